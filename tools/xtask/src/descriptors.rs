//! `descriptors OUT`: the FileDescriptorSet of all protos, for comparison with other tables and
//! for tools that speak to the APIs.

use std::path::Path;

use anyhow::{Context, Result};

/// Writes the set to the named file.
pub(crate) fn run(out: &Path) -> Result<()> {
    std::fs::write(out, proto::FILE_DESCRIPTOR_SET).with_context(|| format!("cannot write {}", out.display()))
}

//! What the server's and the agent's plugins have in common.

pub(crate) mod keyfile;
pub(crate) mod keyring;
pub(crate) mod pem;
pub(crate) mod settings;
pub(crate) mod template;
pub(crate) mod x509pop;

use std::fmt::Write;

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

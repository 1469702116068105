//! From a file and flags to a checked configuration.
//!
//! What is set on the command line wins over the file, the file over the defaults, key by key; empty,
//! zero and false count as not set. Checks run in the order of SPIRE's programs, so that the first
//! complaint about a file is the same.

mod agent;
mod own;
mod plugins;
mod server;
mod shared;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use self::agent::AgentFlags;
pub use self::server::ServerFlags;
use crate::go::{quote, system_text};
use crate::hcl::{self, Body};
use crate::url;

/// A file that was read.
struct File<T> {
    /// What it says, but for its plugins.
    raw: T,
    /// All of it.
    body: Body,
}

/// Reads and decodes a file.
fn read<T: DeserializeOwned>(path: &Path, expand_env: bool) -> Result<File<T>, String> {
    let shown = quote(&path.to_string_lossy());
    let bytes = std::fs::read(path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            let path = absolute(path);
            return format!("could not find config file {}: please use the -config flag", path.display());
        }
        let what = if error.kind() == std::io::ErrorKind::IsADirectory { "read" } else { "open" };
        format!("unable to read configuration at {shown}: {what} {}: {}", path.display(), system_text(&error))
    })?;
    let refused = |error| format!("unable to decode configuration at {shown}: {error}");
    let text = match String::from_utf8(bytes) {
        Ok(text) if expand_env => hcl::expand_env(&text, |name| std::env::var(name).ok()).into_bytes(),
        Ok(text) => text.into_bytes(),
        // The reader says where the damage is.
        Err(error) => error.into_bytes(),
    };
    let body = hcl::parse(&text).map_err(refused)?;
    let raw = hcl::from_body(&body).map_err(refused)?;
    Ok(File { raw, body })
}

/// A path from the root, without dots: of a relative one, below the working directory.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut clean = PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            clean.pop();
        } else {
            clean.push(part);
        }
    }
    clean
}

/// Resolves `host:port`; no host is all of them.
pub(crate) fn resolve_text(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = url::host_and_port(text)?;
    let port = port.parse().map_err(|_| format!("lookup tcp/{port}: unknown port"))?;
    shared::resolve(host, port)
}

/// Takes `value` where nothing is set yet.
fn or_text(set: &mut String, value: &str) {
    if set.is_empty() {
        value.clone_into(set);
    }
}

/// Makes what a flag says win over what the file says.
fn prefer(flag: &str, set: &mut String) {
    if !flag.is_empty() {
        flag.clone_into(set);
    }
}

/// A path that is set.
fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

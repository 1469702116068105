//! Addresses of the Workload API and the broker API (SPIFFE Workload Endpoint, section 4).

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where an API is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix domain socket, by absolute path.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// IP address or, where allowed, a DNS name.
        host: String,
        /// The port.
        port: u16,
    },
}

/// Why a text is no address. Users of go-spiffe know these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `unix` nor `tcp`.
    #[error("workload endpoint socket URI must have a \"tcp\" or \"unix\" scheme")]
    Scheme,
    /// `unix:x` or `tcp:x`.
    #[error("workload endpoint {0} socket URI must not be opaque")]
    Opaque(&'static str),
    /// `user@`.
    #[error("workload endpoint {0} socket URI must not include user info")]
    UserInfo(&'static str),
    /// `?x=y`.
    #[error("workload endpoint {0} socket URI must not include query values")]
    Query(&'static str),
    /// `#x`.
    #[error("workload endpoint {0} socket URI must not include a fragment")]
    Fragment(&'static str),
    /// `unix://host/path`.
    #[error("workload endpoint unix socket URI must not include an authority")]
    Authority,
    /// `unix:`.
    #[error("workload endpoint unix socket URI must include a path")]
    NoPath,
    /// `tcp:`.
    #[error("workload endpoint tcp socket URI must include a host")]
    NoHost,
    /// `tcp://host/path`.
    #[error("workload endpoint tcp socket URI must not include a path")]
    Path,
    /// `tcp://name:1`.
    #[error("workload endpoint tcp socket URI host component must be an IP:port")]
    NotIp,
    /// `tcp://1.2.3.4`.
    #[error("workload endpoint tcp socket URI host component must include a port")]
    NoPort,
}

/// Whether a `tcp` address may name its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostNames {
    /// IP addresses only, as for the Workload API.
    Refused,
    /// Names too, as for the broker API.
    Allowed,
}

impl Address {
    /// The address of a Workload API: `unix:/path`, `unix:///path` or `tcp://ip:port`.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        Self::parse_with(text, HostNames::Refused)
    }

    /// As [`Address::parse`], with host names if they are allowed.
    ///
    /// # Errors
    /// It is no address.
    pub fn parse_with(text: &str, names: HostNames) -> Result<Self, AddressError> {
        let (scheme, rest) = text.split_once(':').ok_or(AddressError::Scheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "unix" => "unix",
            "tcp" => "tcp",
            _ => return Err(AddressError::Scheme),
        };
        let (rest, fragment) = split_off(rest, '#');
        let (rest, query) = split_off(rest, '?');
        if !rest.is_empty() && !rest.starts_with('/') {
            return Err(AddressError::Opaque(scheme));
        }
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        if authority.contains('@') {
            return Err(AddressError::UserInfo(scheme));
        }
        let address = if scheme == "unix" { unix(authority, path) } else { tcp(authority, path, names) }?;
        if query.is_some_and(|query| !query.is_empty()) {
            return Err(AddressError::Query(scheme));
        }
        if fragment.is_some_and(|fragment| !fragment.is_empty()) {
            return Err(AddressError::Fragment(scheme));
        }
        Ok(address)
    }

    /// The socket at `path`.
    #[must_use]
    pub fn unix(path: &Path) -> Self {
        Self::Unix(path.to_path_buf())
    }

    /// A TCP port of an IP address or a named host.
    #[must_use]
    pub fn tcp(host: &str, port: u16) -> Self {
        Self::Tcp { host: host.to_owned(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

fn unix(authority: &str, path: &str) -> Result<Address, AddressError> {
    if !authority.is_empty() {
        return Err(AddressError::Authority);
    }
    if path.is_empty() {
        return Err(AddressError::NoPath);
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn tcp(authority: &str, path: &str, names: HostNames) -> Result<Address, AddressError> {
    if authority.is_empty() {
        return Err(AddressError::NoHost);
    }
    if !path.is_empty() {
        return Err(AddressError::Path);
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if names == HostNames::Refused && host.parse::<IpAddr>().is_err() {
        return Err(AddressError::NotIp);
    }
    let port = port.and_then(|port| port.parse().ok()).ok_or(AddressError::NoPort)?;
    Ok(Address::tcp(host, port))
}

fn split_off(text: &str, at: char) -> (&str, Option<&str>) {
    text.split_once(at).map_or((text, None), |(left, right)| (left, Some(right)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(text: &str, expected: &str) {
        assert_eq!(Address::parse(text).expect(text).to_string(), expected);
    }

    fn bad(text: &str, expected: &str) {
        let refusal = Address::parse(text).expect_err(text).to_string();
        assert!(refusal.ends_with(expected), "{text}: {refusal}");
    }

    #[test]
    fn address_rules() {
        ok("unix:/run/x.sock", "unix:///run/x.sock");
        ok("unix:///run/x.sock", "unix:///run/x.sock");
        ok("tcp://127.0.0.1:8000", "127.0.0.1:8000");
        ok("tcp://[::1]:8000", "[::1]:8000");

        bad("", "must have a \"tcp\" or \"unix\" scheme");
        bad("/run/x.sock", "must have a \"tcp\" or \"unix\" scheme");
        bad("http://127.0.0.1:1", "must have a \"tcp\" or \"unix\" scheme");
        bad("unix:run/x.sock", "unix socket URI must not be opaque");
        bad("unix:", "must include a path");
        bad("unix://", "must include a path");
        bad("unix://host/x", "must not include an authority");
        bad("unix://me@/x", "unix socket URI must not include user info");
        bad("unix:///x?a=b", "unix socket URI must not include query values");
        bad("unix:///x#a", "unix socket URI must not include a fragment");
        bad("tcp:1.2.3.4:1", "tcp socket URI must not be opaque");
        bad("tcp://", "must include a host");
        bad("tcp://1.2.3.4:1/x", "must not include a path");
        bad("tcp://localhost:1", "must be an IP:port");
        bad("tcp://1.2.3.4", "must include a port");
        bad("tcp://1.2.3.4:99999", "must include a port");
        bad("tcp://1.2.3.4:1?a=b", "tcp socket URI must not include query values");
    }

    #[test]
    fn names_where_they_are_allowed() {
        let named = Address::parse_with("tcp://broker.example:1", HostNames::Allowed);

        assert_eq!(named, Ok(Address::tcp("broker.example", 1)));
    }
}

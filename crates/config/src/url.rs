//! As much of URLs as configuration is checked for, with the words users know.

use std::net::IpAddr;

use crate::go::quote;

/// The parts of a URL that are looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Address<'a> {
    /// In lower case; empty for none.
    pub(crate) scheme: String,
    /// What follows the scheme, where that is neither a path nor an authority.
    pub(crate) opaque: &'a str,
    /// User and password.
    pub(crate) user: Option<&'a str>,
    /// Host and port.
    pub(crate) host: &'a str,
    /// The path.
    pub(crate) path: &'a str,
    /// What follows a question mark.
    pub(crate) query: &'a str,
    /// What follows a hash sign.
    pub(crate) fragment: &'a str,
}

impl<'a> Address<'a> {
    /// Takes a URL apart.
    pub(crate) fn parse(text: &'a str) -> Result<Self, String> {
        let refused = |why: &str| format!("parse {}: {why}", quote(text));
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return Err(refused("net/url: invalid control character in URL"));
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (scheme, rest) = scheme(rest).map_err(refused)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut address = Address {
            scheme: scheme.to_lowercase(),
            opaque: "",
            user: None,
            host: "",
            path: rest,
            query,
            fragment,
        };
        if !rest.starts_with('/') {
            if !address.scheme.is_empty() {
                address.opaque = rest;
                address.path = "";
                return Ok(address);
            }
            if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
                return Err(refused("first path segment in URL cannot contain colon"));
            }
        }
        if let Some(authority) = rest.strip_prefix("//")
            && (!address.scheme.is_empty() || !rest.starts_with("///"))
        {
            let end = authority.find('/').unwrap_or(authority.len());
            let (authority, path) = authority.split_at_checked(end).unwrap_or((authority, ""));
            let (user, host) = match authority.rsplit_once('@') {
                Some((user, host)) => (Some(user), host),
                None => (None, authority),
            };
            check_port(host).map_err(|why| refused(&why))?;
            (address.user, address.host, address.path) = (user, host, path);
        }
        if let Some(bad) = bad_escape(address.path) {
            return Err(refused(&format!("invalid URL escape {}", quote(bad))));
        }
        Ok(address)
    }

    /// The keys of the query.
    pub(crate) fn query_keys(&self) -> impl Iterator<Item = &'a str> {
        self.query.split('&').map(|pair| pair.split('=').next().unwrap_or_default())
    }
}

/// The scheme and what follows its colon.
fn scheme(text: &str) -> Result<(&str, &str), &'static str> {
    for (at, character) in text.char_indices() {
        match character {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return Err("missing protocol scheme"),
            ':' => return Ok(text.split_once(':').unwrap_or(("", text))),
            _ => break,
        }
    }
    Ok(("", text))
}

fn check_port(host: &str) -> Result<(), String> {
    let after = match host.rsplit_once(']') {
        Some((_, after)) => after,
        None if host.starts_with('[') => return Err("missing ']' in host".into()),
        None => host.find(':').and_then(|colon| host.get(colon..)).unwrap_or_default(),
    };
    let fits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if after.is_empty() || after.strip_prefix(':').is_some_and(fits) {
        return Ok(());
    }
    Err(format!("invalid port {} after host", quote(after)))
}

fn bad_escape(text: &str) -> Option<&str> {
    text.match_indices('%').find_map(|(at, _)| {
        let escape = text.get(at..at + 3).or_else(|| text.get(at..))?;
        let digits = escape.get(1..).unwrap_or_default();
        let fits = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        (!fits).then_some(escape)
    })
}

/// Checks the address of a Workload API.
pub(crate) fn check_workload_api(text: &str) -> Result<(), String> {
    let address =
        Address::parse(text).map_err(|why| format!("workload endpoint socket is not a valid URI: {why}"))?;
    let kind @ ("tcp" | "unix") = address.scheme.as_str() else {
        return Err("workload endpoint socket URI must have a \"tcp\" or \"unix\" scheme".into());
    };
    let refused = |what: &str| Err(format!("workload endpoint {kind} socket URI must {what}"));
    if !address.opaque.is_empty() {
        return refused("not be opaque");
    }
    if address.user.is_some() {
        return refused("not include user info");
    }
    if kind == "tcp" && address.host.is_empty() {
        return refused("include a host");
    }
    if kind == "tcp" && !address.path.is_empty() {
        return refused("not include a path");
    }
    if kind == "unix" && address.host.is_empty() && address.path.is_empty() {
        return refused("include a path");
    }
    if !address.query.is_empty() {
        return refused("not include query values");
    }
    if !address.fragment.is_empty() {
        return refused("not include a fragment");
    }
    if kind == "unix" {
        return Ok(());
    }
    let (host, port) = match address.host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or_default()),
        None => address.host.split_once(':').unwrap_or((address.host, "")),
    };
    if host.parse::<IpAddr>().is_err() {
        return Err("workload endpoint tcp socket URI host component must be an IP:port".into());
    }
    if port.is_empty() {
        return Err("workload endpoint tcp socket URI host component must include a port".into());
    }
    Ok(())
}

/// Host and port of `host:port`, the host without brackets.
pub(crate) fn host_and_port(text: &str) -> Result<(&str, &str), String> {
    let refused = |why: &str| format!("address {text}: {why}");
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or_else(|| refused("missing ']' in address"))?;
        let port = after.strip_prefix(':').ok_or_else(|| refused("missing port in address"))?;
        return Ok((host, port));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| refused("missing port in address"))?;
    if host.contains(':') { Err(refused("too many colons in address")) } else { Ok((host, port)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str, why: &str) {
        assert_eq!(check_workload_api(text), Err(why.to_owned()), "{text}");
    }

    #[test]
    fn workload_api_addresses() {
        assert_eq!(check_workload_api("unix:///run/api.sock"), Ok(()));
        assert_eq!(check_workload_api("unix://run/api.sock"), Ok(()));
        assert_eq!(check_workload_api("tcp://127.0.0.1:8000"), Ok(()));
        assert_eq!(check_workload_api("tcp://[::1]:8000"), Ok(()));

        refused("/run/api.sock", "workload endpoint socket URI must have a \"tcp\" or \"unix\" scheme");
        refused("unix:api.sock", "workload endpoint unix socket URI must not be opaque");
        refused("unix://", "workload endpoint unix socket URI must include a path");
        refused("unix:///x?y=1", "workload endpoint unix socket URI must not include query values");
        refused("tcp://localhost:1", "workload endpoint tcp socket URI host component must be an IP:port");
        refused("tcp://1.2.3.4", "workload endpoint tcp socket URI host component must include a port");
        refused(":x", "workload endpoint socket is not a valid URI: parse \":x\": missing protocol scheme");
        refused(
            "tcp://1.2.3.4:x",
            "workload endpoint socket is not a valid URI: parse \"tcp://1.2.3.4:x\": invalid port \":x\" \
             after host",
        );
    }

    #[test]
    fn hosts_and_ports() {
        assert_eq!(host_and_port("[::1]:80"), Ok(("::1", "80")));
        assert_eq!(host_and_port("a:80"), Ok(("a", "80")));
        assert_eq!(host_and_port("a"), Err("address a: missing port in address".to_owned()));
        assert_eq!(host_and_port("a:b:1"), Err("address a:b:1: too many colons in address".to_owned()));
    }
}

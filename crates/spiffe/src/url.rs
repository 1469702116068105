//! URLs taken apart and written again as SPIRE's library (Go's `net/url`) does: clients get back what
//! that makes of what they sent, and certificates whose URIs it cannot read are no certificates.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::quote::quoted;

/// A URL in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Url {
    /// In lower case; empty for none.
    pub scheme: String,
    /// Whether it names a user.
    pub has_user: bool,
    /// Host and port, unescaped.
    host: Vec<u8>,
    /// What comes behind the host, as it is written again.
    rest: String,
}

impl Url {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// In the library's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err("net/url: invalid control character in URL".to_owned());
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (scheme, rest) = split_scheme(rest)?;
        let (rest, query) = match rest.split_once('?') {
            Some((rest, query)) => (rest, Some(query)),
            None => (rest, None),
        };
        let mut url = Self { scheme: scheme.to_ascii_lowercase(), ..Self::default() };
        let mut path = rest;
        if !rest.starts_with('/') {
            if !scheme.is_empty() {
                // Opaque: there is no host in it, and it is of no use here.
                rest.clone_into(&mut url.rest);
                return Ok(url);
            }
            if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
                return Err("first path segment in URL cannot contain colon".to_owned());
            }
        }
        if let Some(authority) = rest.strip_prefix("//")
            && (!scheme.is_empty() || !rest.starts_with("///"))
        {
            let (authority, after) = authority.split_at(authority.find('/').unwrap_or(authority.len()));
            let (user, host) = match authority.rsplit_once('@') {
                Some((user, host)) => (Some(user), host),
                None => (None, authority),
            };
            url.host = parsed_host(&url.scheme, host)?;
            if let Some(user) = user {
                if !user.bytes().all(is_userinfo) {
                    return Err("net/url: invalid userinfo".to_owned());
                }
                unescaped(user, Part::User)?;
                url.has_user = true;
            }
            path = after;
        }
        url.rest = written(path, Part::Path)?;
        if let Some(query) = query {
            url.rest.push('?');
            url.rest.push_str(query);
        }
        let fragment = written(fragment, Part::Fragment)?;
        if !fragment.is_empty() {
            url.rest.push('#');
            url.rest.push_str(&fragment);
        }
        Ok(url)
    }

    /// Whether it names a host.
    #[must_use]
    pub const fn has_host(&self) -> bool {
        !self.host.is_empty()
    }

    /// Whether the host can stand in the URI of a certificate: no blanks, no empty labels.
    #[must_use]
    pub fn has_plain_host(&self) -> bool {
        let is_plain = |label: &[u8]| !label.is_empty() && label.iter().all(u8::is_ascii_graphic);
        self.host.is_empty() || self.host.split(|byte| *byte == b'.').all(is_plain)
    }

    /// The port, as far as it is one.
    #[must_use]
    pub fn has_possible_port(&self) -> bool {
        let host = String::from_utf8_lossy(&self.host);
        let after = host.rsplit_once(']').map_or(&*host, |(_, port)| port);
        match after.rsplit_once(':') {
            Some((_, port)) => port.is_empty() || port.parse::<u16>().is_ok(),
            None => true,
        }
    }

    /// The whole, as it is written again. Not for opaque ones or ones with a user.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}://{}{}", self.scheme, escaped(&self.host, Part::Host), self.rest)
    }
}

/// The parts of a URL differ in what stands in them as it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    User,
    Host,
    Path,
    Fragment,
}

/// The scheme, if there is one, and what follows.
fn split_scheme(text: &str) -> Result<(&str, &str), String> {
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => {
                let (scheme, rest) = text.split_at(at);
                return Ok((scheme, rest.get(1..).unwrap_or_default()));
            }
            _ => break,
        }
    }
    Ok(("", text))
}

fn parsed_host(scheme: &str, host: &str) -> Result<Vec<u8>, String> {
    let port = match host.rfind('[') {
        Some(0) => {
            let end = host.rfind(']').ok_or("missing ']' in host")?;
            host.get(end + 1..).unwrap_or_default()
        }
        Some(_) => return Err("invalid IP-literal".to_owned()),
        // More than one colon is let pass where that was never a host on the web.
        None if scheme == "http" || scheme == "https" => from(host, host.find(':')),
        None => from(host, host.rfind(':')),
    };
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return Err(format!("invalid port {} after host", quoted(port)));
    }
    let literal = host.strip_prefix('[').and_then(|host| host.rsplit_once(']'));
    let (address, zone) = match literal {
        Some((address, _)) => address.split_at(address.find("%25").unwrap_or(address.len())),
        None => (host, ""),
    };
    if let Some(bad) =
        address.bytes().find(|byte| byte.is_ascii() && *byte != b'%' && is_escaped(*byte, Part::Host))
    {
        return Err(format!("invalid character {} in host name", quoted(&char::from(bad).to_string())));
    }
    let mut bytes = unescaped(address, Part::Host)?;
    if literal.is_none() {
        return Ok(bytes);
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if text.parse::<Ipv4Addr>().is_ok() {
        return Err("invalid IP-literal".to_owned());
    }
    if text.parse::<Ipv6Addr>().is_err() || zone == "%25" {
        return Err(format!("invalid host: ParseAddr({}): unable to parse IP", quoted(&text)));
    }
    bytes.insert(0, b'[');
    bytes.extend(unescaped(zone, Part::Path)?);
    bytes.push(b']');
    bytes.extend(port.bytes());
    Ok(bytes)
}

/// The text from there on; nothing without a place.
fn from(text: &str, at: Option<usize>) -> &str {
    at.and_then(|at| text.get(at..)).unwrap_or_default()
}

/// A part as it is written again: as it came if it is well-formed, else with the right escapes.
fn written(text: &str, part: Part) -> Result<String, String> {
    let bytes = unescaped(text, part)?;
    let fits = |byte: u8| {
        matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
        ) || matches!(byte, b'[' | b']' | b'%')
            || !is_escaped(byte, part)
    };
    Ok(if text.bytes().all(fits) { text.to_owned() } else { escaped(&bytes, part) })
}

fn unescaped(text: &str, part: Part) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let byte = match after {
            [high, low, ..] => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        // In a host only what is beyond ASCII may be escaped, and the percent sign of a zone.
        let byte = byte.filter(|byte| part != Part::Host || *byte >= 0x80 || *byte == b'%');
        let Some(byte) = byte else {
            let bad = after.get(..2).unwrap_or(after);
            return Err(format!("invalid URL escape \"%{}\"", String::from_utf8_lossy(bad)));
        };
        bytes.push(byte);
        rest = after.get(2..).unwrap_or_default();
    }
    Ok(bytes)
}

fn escaped(bytes: &[u8], part: Part) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if is_escaped(*byte, part) {
            // Writing to a string does not fail.
            _ = write!(text, "%{byte:02X}");
        } else {
            text.push(char::from(*byte));
        }
    }
    text
}

const fn is_escaped(byte: u8, part: Part) -> bool {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => false,
        b'$' | b'&' | b'+' | b',' | b':' | b';' | b'=' => false,
        b'/' | b'@' => matches!(part, Part::Host),
        b'?' => !matches!(part, Part::Fragment),
        b'!' | b'(' | b')' | b'*' => matches!(part, Part::Path),
        b'\'' | b'[' | b']' | b'<' | b'>' | b'"' => !matches!(part, Part::Host),
        _ => true,
    }
}

const fn is_userinfo(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'-' | b'.'
                | b'_'
                | b':'
                | b'~'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b'%'
                | b'@'
        )
}

const fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(text: &str) -> String {
        Url::parse(text).expect(text).text()
    }

    fn bad(text: &str, why: &str) {
        assert_eq!(Url::parse(text).expect_err(text), why);
    }

    #[test]
    fn urls_are_written_again_as_gos_library_writes_them() {
        for same in [
            "https://x",
            "https://x/",
            "https://x/?q#f",
            "https://[::1]:8443/",
            "https://x:99999/",
            "https://x/a%20b/%2F?",
            "https://x/(a);b,c=d@e",
        ] {
            assert_eq!(again(same), same);
        }
        assert_eq!(again("HTTPS://X/"), "https://X/");
        assert_eq!(again("https://é.test/"), "https://%C3%A9.test/");
        assert_eq!(again("https://%c3%a9.test/"), "https://%C3%A9.test/");
        assert_eq!(again("https://x/é b"), "https://x/%C3%A9%20b");
        assert_eq!(again("https://x/#"), "https://x/");
        assert_eq!(again("https://x/#a b"), "https://x/#a%20b");
    }

    #[test]
    fn what_is_no_url_is_refused_in_gos_words() {
        bad("https://x/%zz", "invalid URL escape \"%zz\"");
        bad("https://x/%2", "invalid URL escape \"%2\"");
        bad("https://x\n/", "net/url: invalid control character in URL");
        bad(" https://x", "first path segment in URL cannot contain colon");
        bad(":x", "missing protocol scheme");
        bad("https://x:a/", "invalid port \":a\" after host");
        bad("https://[::1/", "missing ']' in host");
        bad("https://a b/", "invalid character \" \" in host name");
        bad("https://%41/", "invalid URL escape \"%41\"");
        bad("https://a:1:2/", "invalid port \":1:2\" after host");
        bad("https://a[b]/", "invalid IP-literal");
        bad("https://[1.2.3.4]/", "invalid IP-literal");
        bad("https://[x]/", "invalid host: ParseAddr(\"x\"): unable to parse IP");
        bad("https://u%zz@x/", "invalid URL escape \"%zz\"");
    }

    #[test]
    fn parts_are_told_apart() {
        let url = Url::parse("https://u:p@x:0/").unwrap();
        assert!(url.has_user && url.has_host() && url.has_possible_port());

        for hostless in ["https:x", "https:///x", "https://"] {
            assert!(!Url::parse(hostless).unwrap().has_host(), "{hostless}");
        }
        assert!(!Url::parse("https://x:65536").unwrap().has_possible_port());
        assert!(Url::parse("https://[::1]").unwrap().has_possible_port());
        assert!(Url::parse("spiffe://a:1:2/").is_ok());
        assert_eq!(again("https://[fe80::1%25en0]:8443/"), "https://[fe80::1%25en0]:8443/");
    }

    #[test]
    fn hosts_of_certificates_have_no_empty_labels() {
        for (text, is_plain) in [
            ("spiffe://a.test/x", true),
            ("spiffe:///x", true),
            ("urn:x", true),
            ("spiffe://a.test./x", false),
            ("spiffe://.a.test/x", false),
            ("spiffe://a..test/x", false),
            ("spiffe://%c3%a9.test/x", false),
        ] {
            assert_eq!(Url::parse(text).unwrap().has_plain_host(), is_plain, "{text}");
        }
    }
}

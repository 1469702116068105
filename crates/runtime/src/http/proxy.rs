//! The proxy on the way to a server on the network, as the environment names it: `HTTPS_PROXY` and
//! `NO_PROXY`, in capitals or not, read as Go's programs read them.
//!
//! A proxy is asked to `CONNECT` and sees TLS alone, so it can cut a connection and nothing else. Only
//! proxies that are themselves spoken to in the clear are known; another kind is an error, since to go
//! around it might be what its owner forbids.

use std::fmt;
use std::io;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::listen::Network;

/// Opens a connection to a server, through the proxy that the environment names for it, if any.
pub(super) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let Some(proxy) = Proxies::of_environment().on_the_way_to(host, port)? else {
        return TcpStream::connect((host, port)).await;
    };
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("by proxy {proxy}: {error}"));
    proxy.open(host, port).await.map_err(failed)
}

/// What the environment says.
#[derive(Debug, Default)]
struct Proxies {
    /// As it is written.
    proxy: String,
    /// Where to go without: as it is written.
    without: String,
}

/// A proxy.
#[derive(PartialEq, Eq)]
struct Proxy {
    host: String,
    port: u16,
    /// Name and password in base64, for the proxy alone.
    authorization: Option<String>,
}

impl Proxies {
    fn of_environment() -> Self {
        let read = |name: &str| {
            let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            of(name).or_else(|| of(&name.to_lowercase())).unwrap_or_default()
        };
        Self { proxy: read("HTTPS_PROXY"), without: read("NO_PROXY") }
    }

    fn on_the_way_to(&self, host: &str, port: u16) -> io::Result<Option<Proxy>> {
        if self.proxy.is_empty() || is_local(host) || self.is_without(host, port) {
            return Ok(None);
        }
        Proxy::parse(&self.proxy).map(Some)
    }

    fn is_without(&self, host: &str, port: u16) -> bool {
        let host = host.to_lowercase();
        let host = host.trim_end_matches('.');
        let exceptions = self.without.split(',').map(|item| item.trim().to_lowercase());
        exceptions.filter(|item| !item.is_empty()).any(|item| covers(&item, host, port))
    }
}

/// Whether a server is on this machine: no proxy leads there.
fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether one of the exceptions is about a server.
fn covers(exception: &str, host: &str, port: u16) -> bool {
    if exception == "*" {
        return true;
    }
    let address = host.parse::<IpAddr>().ok();
    if exception.contains('/') {
        let network = exception.parse::<Network>();
        return network.is_ok_and(|network| address.is_some_and(|address| network.contains(address)));
    }
    let (name, only) = match exception.rsplit_once(':') {
        Some((name, only)) if !name.contains(':') || name.ends_with(']') => (name, only.parse().ok()),
        _ => (exception, None),
    };
    if only.is_some_and(|only: u16| only != port) {
        return false;
    }
    let name = name.trim_matches(['[', ']']);
    if let Ok(excepted) = name.parse::<IpAddr>() {
        return address == Some(excepted);
    }
    // With a dot in front it is about what is below a domain alone.
    let name = name.strip_prefix('*').unwrap_or(name);
    match name.strip_prefix('.') {
        Some(_) => host.ends_with(name),
        None => host == name || host.strip_suffix(name).is_some_and(|below| below.ends_with('.')),
    }
}

impl Proxy {
    fn parse(text: &str) -> io::Result<Self> {
        let invalid = || {
            let text = "HTTPS_PROXY must be http://host:port, no other kind of proxy is known";
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = with_scheme.parse().map_err(|_| invalid())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(invalid)?;
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| STANDARD.encode(unescaped(user)));
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authorization: user,
        })
    }

    async fn open(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let to = place(host, port);
        let authorization = self.authorization.as_ref();
        let authorization = authorization.map(|user| format!("Proxy-Authorization: Basic {user}\r\n"));
        let request =
            format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{}\r\n", authorization.unwrap_or_default());
        socket.write_all(request.as_bytes()).await?;
        // Byte by byte, as what follows belongs to TLS.
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > LONGEST_HEAD {
                return Err(io::Error::other("the answer has no end"));
            }
            head.push(socket.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head);
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
            return Ok(socket);
        }
        Err(io::Error::other(format!("refused: {:?}", status.chars().take(100).collect::<String>())))
    }
}

/// Without name and password.
impl fmt::Display for Proxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&place(&self.host, self.port))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

fn place(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        match after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(b'%');
                rest = after;
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

const LONGEST_HEAD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::tasks::Group;

    fn without(exceptions: &str, host: &str) -> bool {
        let proxies = Proxies { proxy: "proxy:3128".to_owned(), without: exceptions.to_owned() };
        proxies.on_the_way_to(host, 443).unwrap().is_none()
    }

    #[test]
    fn exceptions_are_read_as_gos_programs_read_them() {
        for (exceptions, host) in [
            ("*", "a.test"),
            ("a.test", "a.test"),
            ("b.test, A.test", "x.a.test"),
            (".a.test", "x.a.test"),
            ("*.a.test", "x.a.test"),
            ("a.test:443", "a.test."),
            ("192.0.2.0/24", "192.0.2.9"),
            ("192.0.2.9", "192.0.2.9"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("", "localhost"),
            ("", "127.9.9.9"),
            ("", "::1"),
        ] {
            assert!(without(exceptions, host), "{exceptions:?} {host}");
        }
        for (exceptions, host) in [
            ("", "a.test"),
            ("a.test", "xa.test"),
            (".a.test", "a.test"),
            ("a.test:80", "a.test"),
            ("192.0.2.0/24", "192.0.3.9"),
            ("192.0.2.0/24", "a.test"),
        ] {
            assert!(!without(exceptions, host), "{exceptions:?} {host}");
        }
    }

    #[test]
    fn proxies_are_named_with_and_without_scheme_and_no_other_kind_is_taken() {
        let parse = |text: &str| Proxy::parse(text).map(|proxy| (proxy.to_string(), proxy.authorization));

        assert_eq!(parse("proxy:3128").unwrap(), ("proxy:3128".to_owned(), None));
        assert_eq!(parse("http://proxy").unwrap().0, "proxy:80");
        let user = parse("http://me:p%40ss@[2001:db8::1]:8080").unwrap();
        assert_eq!(user, ("[2001:db8::1]:8080".to_owned(), Some(STANDARD.encode("me:p@ss"))));
        for other in ["https://proxy:3128", "socks5://proxy:1080", "http://", "a b"] {
            let refused = parse(other).unwrap_err().to_string();
            assert!(refused.starts_with("HTTPS_PROXY must be http://"), "{refused}");
        }
        let none = Proxies::default();
        assert!(none.on_the_way_to("a.test", 443).unwrap().is_none());
    }

    /// A proxy that answers this, and what it was asked.
    async fn asked(answer: &'static str) -> (io::Result<TcpStream>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let group = Group::new(tokio_util::sync::CancellationToken::new());
        let (tell, told) = tokio::sync::oneshot::channel();
        group.spawn("proxy", async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
            tell.send(String::from_utf8(head).unwrap()).unwrap();
        });
        let proxy = Proxy::parse(&format!("http://a:b@127.0.0.1:{port}")).unwrap();
        let opened = proxy.open("far.test", 8443).await;
        (opened, told.await.unwrap())
    }

    #[tokio::test]
    async fn a_proxy_is_asked_to_connect_and_hands_over_what_follows() {
        let (opened, request) = asked("HTTP/1.1 200 Connection established\r\n\r\nhello").await;

        let mut hello = String::new();
        opened.unwrap().read_to_string(&mut hello).await.unwrap();
        assert_eq!(hello, "hello");
        assert_eq!(
            request,
            "CONNECT far.test:8443 HTTP/1.1\r\nHost: far.test:8443\r\nProxy-Authorization: Basic YTpi\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_told() {
        let (opened, _) = asked("HTTP/1.1 403 Forbidden\r\n\r\n").await;

        assert_eq!(opened.unwrap_err().to_string(), "refused: \"HTTP/1.1 403 Forbidden\"");
    }
}

//! The PROXY protocol: a proxy before us tells whom a connection is from (versions 1 and 2, by HAProxy).
//!
//! It is believed only from networks that the operator trusts, and from nobody else may a connection
//! even begin with it. The address is for rate limits and logs; who the peer is, TLS tells.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

/// A range of addresses, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// The text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct NoNetwork(String);

impl Network {
    /// Whether it has this address. One of IPv4 is the same in its IPv6 form.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let is_number = !prefix.is_empty() && prefix.bytes().all(|digit| digit.is_ascii_digit());
            let prefix: u8 = prefix.parse().ok().filter(|_| is_number)?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            (prefix <= most).then_some(Self { address, prefix })
        };
        parse().ok_or_else(|| NoNetwork(text.to_owned()))
    }
}

/// Whether somebody may say whom he speaks for.
pub(super) fn is_trusted(sender: SocketAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| network.contains(sender.ip()))
}

/// Whom a connection is from, after reading the header of the protocol, if it begins with one.
///
/// The header is told from TLS by its first byte: TLS begins with 22.
pub(super) async fn source(
    socket: &mut TcpStream,
    sender: SocketAddr,
    trusted: &[Network],
) -> io::Result<SocketAddr> {
    let mut first = [0];
    if socket.peek(&mut first).await? == 0 || ![V1.first(), V2.first()].contains(&first.first()) {
        return Ok(sender);
    }
    if !is_trusted(sender, trusted) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "PROXY header from an untrusted address",
        ));
    }
    Ok(read(socket).await?.unwrap_or(sender))
}

/// Reads a header and not a byte more. A proxy that speaks for itself, or of what is no TCP, tells no
/// address.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    // As long as version 2's signature, and shorter than any line.
    let mut begin = [0; V2.len()];
    stream.read_exact(&mut begin).await?;
    if begin == *V2 {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed).await?;
        let [version, family, l0, l1] = fixed;
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if length > LONGEST_V2 {
            return Err(malformed());
        }
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await?;
        return binary(version, family, &rest);
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LONGEST_V1 {
            return Err(malformed());
        }
        line.push(stream.read_u8().await?);
    }
    text(&line)
}

/// Version 1: a line.
fn text(line: &[u8]) -> io::Result<Option<SocketAddr>> {
    let line = line.strip_suffix(b"\r\n").and_then(|line| line.strip_prefix(V1)).ok_or_else(malformed)?;
    let line = str::from_utf8(line).map_err(|_| malformed())?;
    let fields: Vec<&str> = line.split(' ').collect();
    let ([kind, from, to, from_port, to_port], is_ipv4) = match fields.as_slice() {
        ["UNKNOWN", ..] => return Ok(None),
        [kind, from, to, from_port, to_port] => ([kind, from, to, from_port, to_port], *kind == "TCP4"),
        _ => return Err(malformed()),
    };
    let address = |text: &str| {
        let address: IpAddr = text.parse().map_err(|_| malformed())?;
        if address.is_ipv4() == is_ipv4 { Ok(address) } else { Err(malformed()) }
    };
    let port = |text: &str| text.parse::<u16>().map_err(|_| malformed());
    if !["TCP4", "TCP6"].contains(kind) {
        return Err(malformed());
    }
    address(to)?;
    port(to_port)?;
    Ok(Some(SocketAddr::new(address(from)?, port(from_port)?)))
}

/// Version 2: version and command, family and protocol; then addresses, and what else there is.
fn binary(version: u8, family: u8, rest: &[u8]) -> io::Result<Option<SocketAddr>> {
    match (version, family) {
        (0x21, 0x11) => {
            let &[a, b, c, d, _, _, _, _, p, q, _, _] = rest.first_chunk().ok_or_else(malformed)?;
            Ok(Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([p, q]))))
        }
        (0x21, 0x21) => {
            let (from, rest) = rest.split_first_chunk::<16>().ok_or_else(malformed)?;
            let (_, ports) = rest.split_first_chunk::<16>().ok_or_else(malformed)?;
            let &[p, q, _, _] = ports.first_chunk().ok_or_else(malformed)?;
            Ok(Some(SocketAddr::new(Ipv6Addr::from(*from).into(), u16::from_be_bytes([p, q]))))
        }
        (0x20 | 0x21, _) => Ok(None),
        _ => Err(malformed()),
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed PROXY header")
}

const V1: &[u8] = b"PROXY ";
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line there can be.
const LONGEST_V1: usize = 107;

/// Room for two addresses and a good deal more.
const LONGEST_V2: usize = 4096;

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn header(version: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&V2[..], &[version, family], &length, rest].concat()
    }

    /// What a header says, and what is left after it.
    fn told(sent: &[u8]) -> Result<Option<String>, String> {
        let all = [sent, b"rest"].concat();
        let mut stream: &[u8] = &all;
        let told = read(&mut stream).now_or_never().unwrap().map_err(|error| error.to_string())?;
        assert_eq!(stream, b"rest");
        Ok(told.map(|address| address.to_string()))
    }

    #[test]
    fn headers_of_both_versions_are_read() {
        let v4 = [10, 0, 0, 1, 10, 0, 0, 2, 0x30, 0x39, 0, 80];
        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[32..34].copy_from_slice(&[0, 7]);
        for (sent, expected) in [
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(), Some("192.0.2.1:56324")),
            (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n".to_vec(), Some("[2001:db8::1]:1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN whatever else\r\n".to_vec(), None),
            (header(0x21, 0x11, &v4), Some("10.0.0.1:12345")),
            (header(0x21, 0x11, &[&v4[..], b"\x04\0\x01x"].concat()), Some("10.0.0.1:12345")),
            (header(0x21, 0x21, &v6), Some("[::1]:7")),
            (header(0x20, 0x00, b""), None),
            (header(0x21, 0x00, b"abc"), None),
        ] {
            assert_eq!(told(&sent).unwrap().as_deref(), expected, "{sent:?}");
        }
    }

    #[test]
    fn x09_malformed_headers_are_refused() {
        for sent in [
            b"PROXY TCP4 192.0.2.1 192.0.2.2 56324\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 70000 443\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 192.0.2.2 1 443\r\n".to_vec(),
            b"PRIXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n".to_vec(),
            [&b"PROXY UNKNOWN "[..], &[b'x'; 100], b"\r\n"].concat(),
            header(0x31, 0x11, &[0; 12]),
            header(0x22, 0x11, &[0; 12]),
            header(0x21, 0x11, &[0; 11]),
            header(0x21, 0x21, &[0; 35]),
            header(0x21, 0x11, &[0; LONGEST_V2 + 1]),
        ] {
            assert_eq!(told(&sent), Err("malformed PROXY header".to_owned()), "{sent:?}");
        }
    }

    #[test]
    fn networks_are_read_and_have_their_addresses() {
        let has = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };

        assert!(has("10.0.0.0/8", "10.200.3.4"));
        assert!(has("10.1.2.3/8", "::ffff:10.200.3.4"));
        assert!(!has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("0.0.0.0/0", "1.2.3.4") && !has("0.0.0.0/0", "::1"));
        assert!(has("192.0.2.1/32", "192.0.2.1") && !has("192.0.2.1/32", "192.0.2.0"));
        assert!(has("2001:db8::/32", "2001:db8:ffff::1") && !has("2001:db8::/32", "2001:db9::1"));
        assert!(has("::/0", "::1"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0/8", "/8", "10.0.0.0/+8", "10.0.0.0/"] {
            let refused = bad.parse::<Network>().unwrap_err().to_string();
            assert_eq!(refused, format!("invalid CIDR address: {bad}"));
        }
    }

    proptest! {
        #[test]
        fn x09_fuzz_proxy_header(
            start in prop_oneof![Just(V1.to_vec()), Just(V2.to_vec()), Just(Vec::new())],
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let sent = [start, rest].concat();
            let mut stream: &[u8] = &sent;
            assert!(read(&mut stream).now_or_never().is_some());
        }
    }
}

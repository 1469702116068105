//! HTTP/2 as no honest client speaks it, and clients that dawdle.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use socket2::{Domain, Socket, Type};

use crate::workload::Workload;

/// Byte sequences that a server must survive, by name: each is the whole of what one connection sends.
#[must_use]
pub fn attacks() -> Vec<(&'static str, Vec<u8>)> {
    // POST /a on http, no authority, and the type of the content.
    let call: &[u8] = b"\x83\x86\x04\x02/a\x0f\x10\x10application/grpc";
    let many = |one: &dyn Fn(u32) -> Vec<u8>, times: u32| (0..times).flat_map(one).collect::<Vec<u8>>();
    let bomb = {
        // One long field into the table, then named again and again.
        let mut block = vec![0x40, 1, b'x', 0x7f, 0x81, 0x1e];
        block.extend(std::iter::repeat_n(b'v', 4000));
        block.extend(std::iter::repeat_n(0x80 | 62, 12_000));
        block
    };
    let attacks: [(&str, Vec<u8>); 16] = [
        ("another protocol", Vec::new()),
        ("nothing after the preface", Vec::new()),
        ("a frame of 16 MB", frame(0, 0, 1, &[]).iter().map(|_| 0xff).chain([0; 100_000]).collect()),
        ("data before a call", frame(0, 0, 1, b"data")),
        ("data on the connection", frame(0, 0, 0, b"data")),
        ("settings of odd length", frame(4, 0, 0, &[0; 5])),
        ("a header block that cannot be read", frame(1, 4, 1, &[0xff; 20])),
        ("a header block that unfolds", frame(1, 4, 1, &bomb)),
        ("padding longer than the frame", frame(1, 4 | 8, 1, &[200, 0x83])),
        ("an even stream", frame(1, 4, 2, call)),
        ("a call on stream 0", frame(1, 4, 0, call)),
        ("a window of nothing", frame(8, 0, 0, &[0; 4])),
        ("continuations without end", {
            let mut sent = frame(1, 0, 1, call);
            sent.extend(many(&|_| frame(9, 0, 1, &[0x82; 8000]), 1000));
            sent
        }),
        ("calls taken back at once", {
            many(
                &|number| {
                    [frame(1, 4, 2 * number + 1, call), frame(3, 0, 2 * number + 1, &[0, 0, 0, 8])].concat()
                },
                20_000,
            )
        }),
        ("pings without end", many(&|_| frame(6, 0, 0, b"12345678"), 50_000)),
        ("settings without end", many(&|_| frame(4, 0, 0, &[]), 50_000)),
    ];
    attacks
        .into_iter()
        .map(|(name, frames)| {
            let begin = if name == "another protocol" {
                b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()
            } else {
                [PREFACE, &frame(4, 0, 0, &[])].concat()
            };
            (name, [begin, frames].concat())
        })
        .collect()
}

/// Sends `bytes` to a Unix socket, reads what comes for a moment, and hangs up. That the server hangs up
/// first, or does not take all of it, is fine.
///
/// # Panics
/// If nobody listens there.
pub fn assault(socket: &Path, bytes: &[u8]) {
    let mut stream = UnixStream::connect(socket).expect("somebody listens");
    stream.set_write_timeout(Some(MOMENT)).expect("a time limit");
    stream.set_read_timeout(Some(MOMENT)).expect("a time limit");
    for piece in bytes.chunks(64 << 10) {
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    stream.read_to_end(&mut Vec::new()).ok();
}

/// Connections that send `bytes` and then nothing more, while they live.
///
/// # Panics
/// If nobody listens there.
#[must_use]
pub fn dawdlers(socket: &Path, count: usize, bytes: &[u8]) -> Vec<UnixStream> {
    let one = || {
        let mut stream = UnixStream::connect(socket).expect("somebody listens");
        // The server may have closed it already to make room.
        stream.write_all(bytes).ok();
        stream
    };
    std::iter::repeat_with(one).take(count).collect()
}

/// The same on a TCP port.
///
/// # Panics
/// If nobody listens there.
#[must_use]
pub fn tcp_dawdlers(address: SocketAddr, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let one = || {
        let mut stream = TcpStream::connect(address).expect("somebody listens");
        stream.write_all(bytes).ok();
        stream
    };
    std::iter::repeat_with(one).take(count).collect()
}

/// Connections from one address of this machine that send `bytes` and then nothing more, while they
/// live. Those that the server takes no more are missing.
///
/// # Panics
/// If no socket can be had on this machine.
#[must_use]
pub fn half_open(from: IpAddr, address: SocketAddr, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let one = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from((from, 0)).into()).expect("an address of this machine");
        socket.connect_timeout(&address.into(), Duration::from_secs(5)).ok()?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(bytes).ok();
        Some(stream)
    };
    std::iter::repeat_with(one).take(count).flatten().collect()
}

/// Whether a server answers a TLS client on this port whose connection begins with `header`.
///
/// # Panics
/// If nobody listens there.
#[must_use]
pub fn answers_tls(address: SocketAddr, header: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let mut first = [0];
    let sent = stream.write_all(&[header, &client_hello()].concat());
    let received = sent.and_then(|()| stream.read_exact(&mut first));
    received.is_ok() && first == [HANDSHAKE]
}

fn client_hello() -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from("server.test").expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("room for a hello");
    hello
}

/// Has an agent validate a token of `size` bytes: the code and the message of the refusal.
///
/// # Panics
/// If the token is found valid.
pub async fn oversized(socket: &str, size: usize) -> (String, String) {
    let token = "x".repeat(size);
    Workload::at(socket).validate("audience", &token).await.expect_err("that is no token")
}

/// What an HTTP/2 client begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame of HTTP/2.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [.., l0, l1, l2] = payload.len().to_be_bytes();
    [&[l0, l1, l2, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// A call with these headers and an empty message.
pub(crate) fn call(stream: u32, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).expect("a short text");
        [&[length], text.as_bytes()].concat()
    };
    // POST, https, and a path.
    let mut headers = [&[0x83, 0x87, 0x04][..], &text(path)].concat();
    for (name, value) in fields {
        headers.push(0);
        headers.extend([text(name), text(value)].concat());
    }
    [frame(1, 4, stream, &headers), frame(0, 1, stream, &[0; 5])].concat()
}

/// The kind of record that a handshake is made of.
const HANDSHAKE: u8 = 22;

const PATIENCE: Duration = Duration::from_secs(20);

const MOMENT: Duration = Duration::from_millis(300);

//! One question over plain HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::plane::pause;

/// Asks a port of this machine for `path`: the status, and the document. Nothing if nobody answers.
#[must_use]
pub fn get(port: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Asks until the status is 200, and hands back the document.
///
/// # Panics
/// If it is not within 60 s.
#[must_use]
pub fn await_ok(port: &str, path: &str) -> String {
    let deadline = Instant::now() + PATIENCE * 3;
    loop {
        let answer = get(port, path);
        if let Some((200, body)) = answer {
            return body;
        }
        assert!(Instant::now() < deadline, "{path} on port {port} is {answer:?}");
        pause();
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

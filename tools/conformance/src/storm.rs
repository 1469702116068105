//! HTTP/2 of chance: connections whose frames are right, nearly right, or noise.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::frames::PREFACE;
use crate::wire::client_config;

/// How long one connection may take to be opened and to be written to, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an answer is waited for before the connection is given up.
const GLANCE: Duration = Duration::from_millis(20);
/// Connections at once.
const ABREAST: u64 = 8;

/// Makes `rounds` connections to this TLS port, without a certificate, each with what follows from `seed`
/// and its number. That the server hangs up is fine.
///
/// # Errors
/// A connection could not be opened at all.
pub async fn storm(port: &str, seed: u64, rounds: u64) -> Result<(), String> {
    let port: u16 = port.parse().map_err(|_| format!("{port:?} is no port"))?;
    let connector = TlsConnector::from(Arc::new(client_config(None, rustls::DEFAULT_VERSIONS)));
    let mut round = 0;
    while round < rounds {
        let mut abreast = tokio::task::JoinSet::new();
        for number in round..(round + ABREAST).min(rounds) {
            let connector = connector.clone();
            abreast.spawn(async move {
                let bytes = connection(&mut Dice::new(seed ^ number.wrapping_mul(GOLDEN)));
                let told = timeout(PATIENCE, tell(&connector, port, &bytes)).await;
                told.map_err(|_| format!("connection {number} is not served in {PATIENCE:?}"))?
                    .map_err(|error| format!("connection {number}: {error}"))
            });
        }
        while let Some(told) = abreast.join_next().await {
            told.map_err(|error| error.to_string())??;
        }
        round += ABREAST;
    }
    Ok(())
}

/// One connection: opened in earnest, then this.
async fn tell(connector: &TlsConnector, port: u16, bytes: &[u8]) -> Result<(), String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| error.to_string())?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
    // From here on the server may do as it likes.
    if stream.write_all(bytes).await.is_ok() && stream.flush().await.is_ok() {
        let mut answers = vec![0; 16 << 10];
        while let Ok(Ok(1..)) = timeout(GLANCE, stream.read(&mut answers)).await {}
    }
    Ok(())
}

/// All that one connection says.
fn connection(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = if dice.one_in(50) { Vec::new() } else { PREFACE.to_vec() };
    if !dice.one_in(20) {
        bytes.extend(frame(4, 0, 0, &settings(dice)));
    }
    let mut stream = 1;
    for _ in 0..=dice.below(40) {
        stream += if dice.one_in(3) { 2 } else { 0 };
        bytes.extend(one(dice, stream));
    }
    damage(dice, &mut bytes);
    bytes
}

/// One frame, or a call's frames.
fn one(dice: &mut Dice, stream: u32) -> Vec<u8> {
    let odd = dice.one_in(8);
    let stream = if odd { dice.below(1 << 31) } else { stream };
    let flags = if dice.one_in(6) { dice.byte() } else { 0 };
    match dice.below(14) {
        0..=4 => call(dice, stream),
        5 => frame(0, flags, stream, &dice.bytes(300)),
        6 => frame(1, flags | if dice.one_in(2) { 4 } else { 0 }, stream, &dice.bytes(200)),
        7 => frame(2, flags, stream, &dice.bytes(8)),
        8 => frame(3, flags, stream, &dice.below(20).to_be_bytes()),
        9 => frame(4, flags, if odd { stream } else { 0 }, &settings(dice)),
        10 => frame(6, flags, 0, &dice.bytes(10)),
        11 => frame(7, flags, 0, &dice.bytes(40)),
        12 => frame(8, flags, if dice.one_in(2) { 0 } else { stream }, &dice.below(1 << 31).to_be_bytes()),
        _ => frame(dice.byte(), flags, stream, &dice.bytes(100)),
    }
}

/// A call of a method that takes anybody, with a message that may be one.
fn call(dice: &mut Dice, stream: u32) -> Vec<u8> {
    let paths: [&str; 5] = [
        "/spire.api.server.bundle.v1.Bundle/GetBundle",
        "/spire.api.server.agent.v1.Agent/AttestAgent",
        "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries",
        "/spire.api.server.svid.v1.SVID/MintX509SVID",
        "/../%00",
    ];
    let path = paths[usize::try_from(dice.below(5)).unwrap_or_default()];
    let mut headers = vec![0x83, 0x87];
    headers.extend(field(b":path", path.as_bytes()));
    headers.extend(field(b":authority", b"localhost"));
    headers.extend(field(b"content-type", b"application/grpc"));
    headers.extend(field(b"te", b"trailers"));
    if dice.one_in(4) {
        let (name, value) = (dice.bytes(30), dice.bytes(120));
        headers.extend(field(&name, &value));
    }
    let mut bytes = if dice.one_in(5) {
        let (begin, end) = headers.split_at(headers.len() / 2);
        let continuation = frame(9, 4, stream, end);
        [frame(1, 0, stream, begin), continuation].concat()
    } else {
        frame(1, 4, stream, &headers)
    };
    // A message's mark and length, and as much of it as there is, or not.
    let message = dice.bytes(200);
    let length =
        if dice.one_in(5) { dice.below(u32::MAX) } else { u32::try_from(message.len()).unwrap_or(0) };
    let marked = [&[u8::from(dice.one_in(9))][..], &length.to_be_bytes(), &message].concat();
    bytes.extend(frame(0, u8::from(!dice.one_in(4)), stream, &marked));
    if dice.one_in(3) {
        bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    bytes
}

fn settings(dice: &mut Dice) -> Vec<u8> {
    let mut all = Vec::new();
    for _ in 0..dice.below(5) {
        let [.., high, low] = dice.below(9).to_be_bytes();
        all.extend([high, low]);
        let value = if dice.one_in(2) { dice.below(1 << 17) } else { dice.below(u32::MAX) };
        all.extend(value.to_be_bytes());
    }
    all
}

/// Bytes changed, left out, or said twice, after the preface mostly.
fn damage(dice: &mut Dice, bytes: &mut Vec<u8>) {
    for _ in 0..dice.below(4) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if length < 40 {
            return;
        }
        let at = usize::try_from(24 + dice.below(length - 24)).unwrap_or_default();
        let end = (at + usize::try_from(dice.below(64)).unwrap_or_default()).min(bytes.len());
        match dice.below(4) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            _ => bytes.truncate(end),
        }
    }
}

/// A header field that is not to be remembered, spelt out.
fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    let text = |bytes: &[u8]| {
        let length = u8::try_from(bytes.len().min(126)).unwrap_or_default();
        [&[length], &bytes[..usize::from(length)]].concat()
    };
    [vec![0x00], text(name), text(value)].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [.., l0, l1, l2] = payload.len().to_be_bytes();
    [&[l0, l1, l2, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// Numbers of chance that come again for the same seed (SplitMix64).
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    /// For this seed.
    const fn new(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0.
    fn below(&mut self, limit: u32) -> u32 {
        u32::try_from(self.next() % u64::from(limit)).unwrap_or_default()
    }

    fn one_in(&mut self, limit: u32) -> bool {
        self.below(limit) == 0
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }

    fn bytes(&mut self, most: u32) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.byte()).collect()
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_comes_again_for_its_seed_and_differs_for_others() {
        let said = |seed| connection(&mut Dice::new(seed));

        assert_eq!(said(7), said(7));
        let distinct: std::collections::HashSet<_> = (0..100).map(said).collect();
        assert!(distinct.len() > 95, "{}", distinct.len());
    }
}

//! Calls whose messages are packed, or are said to be.

use std::io::{Read as _, Write as _};
use std::path::Path;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt as _, Full};
use tonic::body::Body;

use crate::live::Stage;
use crate::plane::Product;
use crate::wire::{Connection, Messages};

const GET_BUNDLE: &str = "/spire.api.server.bundle.v1.Bundle/GetBundle";
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// What comes of each of these on the sockets of server and agent: the encoding of the answer, the flags of
/// its messages, and how it ends.
///
/// # Errors
/// There is no answer, or its messages are not those of the answer to a plain call.
///
/// # Panics
/// If server or agent does not start.
pub fn packed_calls(product: &Product, recorded: &Path) -> Result<Vec<String>, String> {
    let stage = Stage::set(product, &Messages::load(&recorded.join("api/api.fds")), "")?;
    stage.run(async {
        let mut told = Vec::new();
        for (door, socket, method) in [("server", "sock", GET_BUNDLE), ("agent", "asock", CHECK)] {
            let connection = Connection::local(stage.plane.word(socket));
            let mut plain = None;
            for (name, headers, body) in calls() {
                let mut request = http::Request::post(method).header("content-type", "application/grpc");
                for (name, value) in headers {
                    request = request.header(*name, *value);
                }
                let request = request.body(Body::new(Full::new(body))).map_err(|error| error.to_string())?;
                let answer =
                    connection.answer(request).await.map_err(|why| format!("{door}, {name}: {why}"))?;
                let answer = Answer::read(answer).await.map_err(|why| format!("{door}, {name}: {why}"))?;
                if !answer.content.is_empty()
                    && *plain.get_or_insert_with(|| answer.content.clone()) != answer.content
                {
                    return Err(format!("{door}, {name}: another answer than to a plain call"));
                }
                told.push(format!("{door}, {name}: {}", answer.told));
            }
        }
        Ok(told)
    })
}

/// How a bomb ends that comes over TLS without a certificate.
///
/// # Errors
/// There is no answer.
///
/// # Panics
/// If server or agent does not start.
pub fn bomb_of_a_stranger(product: &Product, recorded: &Path) -> Result<String, String> {
    let stage = Stage::set(product, &Messages::load(&recorded.join("api/api.fds")), "")?;
    stage.run(async {
        let connection = Connection::tls(stage.plane.word("port"), None);
        let bomb = framed(1, &packed(&vec![0; 1 << 20]));
        let request = http::Request::post(GET_BUNDLE)
            .header("content-type", "application/grpc")
            .header("grpc-encoding", "gzip")
            .body(Body::new(Full::new(bomb)));
        let answer = connection.answer(request.map_err(|error| error.to_string())?).await?;
        Ok(Answer::read(answer).await?.told)
    })
}

type Call = (&'static str, &'static [(&'static str, &'static str)], Bytes);

/// Calls with an empty message, and some with none. The first is plain.
fn calls() -> [Call; 14] {
    let gzip: &[_] = &[("grpc-encoding", "gzip")];
    let whole = packed(&[]);
    let end = whole.len();
    let mut longer = whole.clone();
    longer.splice(end - 4.., 1_u32.to_le_bytes());
    [
        ("plain", &[], framed(0, &[])),
        ("accepted", &[("grpc-accept-encoding", "gzip")], framed(0, &[])),
        ("packed", gzip, framed(1, &whole)),
        ("named only", gzip, framed(0, &[])),
        ("named last", &[("grpc-encoding", "snappy"), ("grpc-encoding", "gzip")], framed(1, &whole)),
        ("not named", &[], framed(1, &whole)),
        ("named otherwise", &[("grpc-encoding", "identity")], framed(1, &whole)),
        ("of another kind", &[("grpc-encoding", "snappy")], framed(1, &whole)),
        ("of a bomb", gzip, framed(1, &packed(&vec![0; 64 << 20]))),
        ("of nothing", gzip, framed(1, &[])),
        ("of no gzip", gzip, framed(1, b"this is no gzip at all")),
        ("cut", gzip, framed(1, whole.get(..end - 1).unwrap_or_default())),
        ("with more behind", gzip, framed(1, &[&whole[..], &[0; 20]].concat())),
        ("of a wrong length", gzip, framed(1, &longer)),
    ]
}

fn packed(content: &[u8]) -> Vec<u8> {
    let mut packing = GzEncoder::new(Vec::new(), Compression::default());
    packing.write_all(content).expect("packs");
    packing.finish().expect("packs")
}

fn framed(flag: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("short");
    [&[flag], &length.to_be_bytes()[..], message].concat().into()
}

struct Answer {
    told: String,
    /// Its messages, unpacked.
    content: Vec<u8>,
}

impl Answer {
    async fn read(answer: http::Response<Body>) -> Result<Self, String> {
        let encoding = answer.headers().get("grpc-encoding").and_then(|name| name.to_str().ok());
        let encoding = encoding.unwrap_or("none").to_owned();
        let at_once = tonic::Status::from_header_map(answer.headers());
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        let status = at_once.or_else(|| tonic::Status::from_header_map(body.trailers()?));
        let status = status.ok_or("an answer without a status")?;
        let (mut flags, mut content) = (Vec::new(), Vec::new());
        let bytes = body.to_bytes();
        let mut rest = &bytes[..];
        while let Some((&[flag, ref length @ ..], behind)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes(*length) as usize;
            let (message, behind) = behind.split_at_checked(length).ok_or("an answer that is cut")?;
            if flag == 1 {
                GzDecoder::new(message).read_to_end(&mut content).map_err(|error| error.to_string())?;
            } else {
                content.extend_from_slice(message);
            }
            flags.push(flag);
            rest = behind;
        }
        let told = format!("{encoding} {flags:?} {:?} {}", status.code(), status.message());
        Ok(Self { told: told.trim_end().to_owned(), content })
    }
}

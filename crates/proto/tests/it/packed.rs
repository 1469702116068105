//! Messages packed with gzip, both ways.

use std::io::{Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use prost::Message;
use proto::packed::{Answers, unpacked};
use proto::raw::{self, Encoded, RECEIVE_LIMIT};
use proto::spire::types::Bundle;
use testkit::fuzz::drive;
use tonic::body::Body;
use tonic::codegen::tokio_stream;
use tonic::{Code, Request, Response, Status, Streaming};

#[tokio::test]
async fn who_packs_is_answered_packed() {
    for (flag, message) in [(1, gzip(&bundle().encode_to_vec())), (0, bundle().encode_to_vec())] {
        let (echoed, status) = echoed(request("gzip", &[&framed(flag, &message)]), RECEIVE_LIMIT).await;

        assert_eq!(status.code(), Code::Ok, "{status:?}");
        assert_eq!(echoed, [(1, bundle().encode_to_vec())]);
    }
}

#[tokio::test]
async fn a_message_without_content_is_not_packed() {
    let (echoed, status) = echoed(request("gzip", &[&framed(1, &gzip(&[]))]), RECEIVE_LIMIT).await;

    assert_eq!(status.code(), Code::Ok);
    assert_eq!(echoed, [(0, Vec::new())]);
}

#[tokio::test]
async fn who_does_not_pack_is_not_answered_packed() {
    for encoding in ["", "identity"] {
        let plain = framed(0, &bundle().encode_to_vec());
        let (echoed, _) = echoed(request(encoding, &[&plain]), RECEIVE_LIMIT).await;

        assert_eq!(echoed, [(0, bundle().encode_to_vec())]);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_packed_message_is_told_as_spire_tells_it() {
    let whole = gzip(&bundle().encode_to_vec());
    let with = |at: usize, byte: u8| {
        let mut changed = whole.clone();
        changed[at] ^= byte;
        changed
    };
    let end = whole.len();
    let opening = "grpc: failed to decompress the message: ";
    let reading = "grpc: failed to read decompressed data: ";
    let cases = [
        (Vec::new(), opening, "EOF"),
        (b"this is no gzip at all".to_vec(), opening, "gzip: invalid header"),
        (whole[..5].to_vec(), opening, "unexpected EOF"),
        (with(0, 1), opening, "gzip: invalid header"),
        (with(2, 1), opening, "gzip: invalid header"),
        (whole[..10].to_vec(), reading, "unexpected EOF"),
        (with(10, !whole[10] & 6), reading, "flate: corrupt input"),
        (with(end - 6, 1), reading, "gzip: invalid checksum"),
        (with(end - 1, 1), reading, "gzip: invalid checksum"),
        (whole[..end - 8].to_vec(), reading, "unexpected EOF"),
        ([&whole[..], &[1, 2, 3]].concat(), reading, "unexpected EOF"),
        ([&whole[..], &[0; 20]].concat(), reading, "gzip: invalid header"),
    ];
    for (message, what, reason) in cases {
        let (_, status) = echoed(request("gzip", &[&framed(1, &message)]), RECEIVE_LIMIT).await;

        assert_eq!((status.code(), status.message()), (Code::Internal, &*format!("{what}{reason}")));
    }
}

#[tokio::test]
async fn a_message_may_have_several_members_with_names_and_comments() {
    let content = bundle().encode_to_vec();
    let (first, second) = content.split_at(4);
    let mut named = flate2::GzBuilder::new().filename("name").comment("comment").extra([1, 2, 3]);
    named = named.mtime(7);
    let mut first_member = named.write(Vec::new(), Compression::best());
    first_member.write_all(first).expect("packs");
    let message = [first_member.finish().expect("packs"), gzip(&[]), gzip(second)].concat();

    let (echoed, _) = echoed(request("gzip", &[&framed(1, &message)]), RECEIVE_LIMIT).await;

    assert_eq!(echoed, [(1, content)]);
}

#[tokio::test]
async fn what_unpacks_to_more_than_is_allowed_is_refused() {
    let name = |length: usize| Bundle { trust_domain: "x".repeat(length), ..Bundle::default() };
    let longest = name(RECEIVE_LIMIT - 5).encode_to_vec();
    assert_eq!(longest.len(), RECEIVE_LIMIT);
    let sent =
        async |content: &[u8], limit| echoed(request("gzip", &[&framed(1, &gzip(content))]), limit).await.1;

    assert_eq!(sent(&longest, RECEIVE_LIMIT).await.code(), Code::Ok);
    for content in [vec![0; RECEIVE_LIMIT + 1], vec![0; 16 * RECEIVE_LIMIT]] {
        let refused = sent(&content, RECEIVE_LIMIT).await;
        let text = "grpc: received message after decompression larger than max 4194304";
        assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, text));
    }
    let refused = sent(&name(2000).encode_to_vec(), 2000).await;
    let text = "grpc: received message after decompression larger than max 2000";
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, text));
}

#[tokio::test]
async fn what_gets_long_waits_for_a_place_and_what_is_short_does_not() {
    let long =
        framed(1, &gzip(&Bundle { trust_domain: "x".repeat(3 << 20), ..Bundle::default() }.encode_to_vec()));
    // Of a stream that nobody reads on while a message is being unpacked.
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut body = unpacked(request("gzip", &[&long]), RECEIVE_LIMIT).0.into_body();
        for _ in 0..10 {
            assert!(is_pending(&mut body).await);
        }
        stalled.push(body);
    }
    let mut waiting = unpacked(request("gzip", &[&long]), RECEIVE_LIMIT).0.into_body();
    let short = framed(1, &gzip(&bundle().encode_to_vec()));

    assert_eq!(echoed(request("gzip", &[&short]), RECEIVE_LIMIT).await.1.code(), Code::Ok);
    for _ in 0..1000 {
        assert!(is_pending(&mut waiting).await);
    }
    drop(stalled);
    let message = waiting.frame().await.expect("a frame").expect("a frame").into_data().expect("data");
    assert!(message.len() > 3 << 20);
}

#[tokio::test]
async fn what_is_wrong_besides_is_told_as_of_plain_messages() {
    let packed = framed(1, &gzip(&bundle().encode_to_vec()));
    let refused = async |frames: &[&[u8]]| {
        let (_, status) = echoed(request("gzip", frames), RECEIVE_LIMIT).await;
        (status.code(), status.message().to_owned())
    };

    assert_eq!(refused(&[]).await, (Code::Unknown, "EOF".to_owned()));
    assert_eq!(refused(&[&packed[..3]]).await, (Code::Unknown, "EOF".to_owned()));
    assert_eq!(refused(&[&packed[..9]]).await, (Code::Unknown, "unexpected EOF".to_owned()));
    assert_eq!(refused(&[&framed(0, b"x")[..5]]).await, (Code::Unknown, "unexpected EOF".to_owned()));
    let long = "grpc: received message larger than max (4194305 vs. 4194304)";
    assert_eq!(refused(&[&[1, 0, 0x40, 0, 1]]).await, (Code::ResourceExhausted, long.to_owned()));
    let format = "grpc: received unexpected payload format 2";
    assert_eq!(refused(&[&framed(2, b"")]).await, (Code::Internal, format.to_owned()));
}

#[tokio::test]
async fn messages_of_a_stream_come_packed_or_plain_in_any_number_of_frames() {
    let content = bundle().encode_to_vec();
    let wire = [framed(1, &gzip(&content)), framed(0, &content), framed(1, &gzip(&content))].concat();

    for size in [1, 7, wire.len()] {
        let frames: Vec<&[u8]> = wire.chunks(size).collect();
        let (request, answers) = unpacked(request("gzip", &frames), RECEIVE_LIMIT);
        let answer = raw::streaming(request, |request: Request<Streaming<Bundle>>| async {
            let mut stream = request.into_inner();
            let mut replies = Vec::new();
            while let Some(message) = stream.message().await? {
                replies.push(Ok(Encoded::of(&message)));
            }
            Ok(Response::new(Box::pin(tokio_stream::iter(replies)) as raw::Replies))
        })
        .await;
        let (echoed, status) = read(answers.packed(answer)).await;

        assert_eq!(status.code(), Code::Ok, "{status:?}");
        assert_eq!(echoed, [(1, content.clone()), (1, content.clone()), (1, content.clone())]);
    }
}

#[tokio::test]
async fn a_long_answer_is_packed_whole() {
    let mut state = 1_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Bytes::from(state.to_be_bytes().repeat(usize::try_from(state >> 19).expect("small") + 1))
    };
    let pieces: Vec<Bytes> = (0..200).map(|_| noise()).collect();
    let whole = pieces.concat();
    assert!(whole.len() > 2 << 20);

    let (request, answers) = unpacked(request("gzip", &[&[0; 5]]), RECEIVE_LIMIT);
    let reply = Encoded::new(pieces);
    let answer = raw::unary(request, |_: Request<Bundle>| async { Ok(Response::new(reply)) }).await;
    let (read, status) = read(answers.packed(answer)).await;

    assert_eq!(status.code(), Code::Ok);
    assert!(read == [(1, whole)]);
}

#[tokio::test]
async fn damaged_messages_end_in_an_answer() {
    let whole = gzip(&bundle().encode_to_vec());
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            let (_, status) = echoed(request("gzip", &[&framed(1, &damaged)]), RECEIVE_LIMIT).await;
            assert!(
                matches!(status.code(), Code::Ok | Code::Internal | Code::ResourceExhausted),
                "{status:?}"
            );
        }
    }
}

#[test]
fn x07_fuzz_packed_messages() {
    let content = bundle().encode_to_vec();
    let named = flate2::GzBuilder::new().filename("name").comment("comment").extra([1, 2, 3]);
    let mut named = named.write(Vec::new(), Compression::none());
    named.write_all(&content).expect("packs");
    let corpus = [
        gzip(&content),
        gzip(&[]),
        [gzip(&content), gzip(&content)].concat(),
        named.finish().expect("packs"),
        gzip(&vec![7; 100_000]),
    ];
    let pieces: [&[u8]; 5] =
        [&[0x1f, 0x8b, 8, 0], &[0x1f, 0x8b, 8, 0x1e], &[0x01, 0, 0, 0xff, 0xff], &[0; 8], &[0xff; 4]];

    drive("packed_messages", &corpus, &pieces, 4_000, |message| {
        let mut body = unpacked(request("gzip", &[&framed(1, message)]), 64 << 10).0.into_body();
        let mut task = Context::from_waker(Waker::noop());
        let frame = loop {
            match Pin::new(&mut body).poll_frame(&mut task) {
                Poll::Pending => {}
                Poll::Ready(frame) => break frame.expect("a frame"),
            }
        };
        let Ok(frame) = frame else { return };
        let unpacked = frame.into_data().expect("data");
        let mut content = Vec::new();
        MultiGzDecoder::new(message).read_to_end(&mut content).expect("others unpack it too");
        assert!(unpacked == framed(0, &content) && content.len() <= 64 << 10);
    });
}

#[tokio::test]
async fn the_last_encoding_named_is_the_one() {
    let message = framed(1, &gzip(&bundle().encode_to_vec()));
    let named = async |names: [&str; 2]| {
        let mut request = request(names[0], &[&message]);
        request.headers_mut().append("grpc-encoding", names[1].parse().expect("a value"));
        echoed(request, RECEIVE_LIMIT).await.1
    };

    assert_eq!(named(["snappy", "gzip"]).await.code(), Code::Ok);
    let refused = named(["gzip", "snappy"]).await;
    let text = "grpc: Decompressor is not installed for grpc-encoding \"snappy\"";
    assert_eq!((refused.code(), refused.message()), (Code::Unimplemented, text));
}

/// Whether there is nothing to be read yet.
async fn is_pending(body: &mut Body) -> bool {
    std::future::poll_fn(|task| Poll::Ready(Pin::new(&mut *body).poll_frame(task).is_pending())).await
}

fn bundle() -> Bundle {
    Bundle { trust_domain: "example.org ".repeat(20), refresh_hint: 7, ..Bundle::default() }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packing = GzEncoder::new(Vec::new(), Compression::default());
    packing.write_all(content).expect("packs");
    packing.finish().expect("packs")
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short");
    [&[flag], &length.to_be_bytes()[..], message].concat()
}

fn request(encoding: &str, frames: &[&[u8]]) -> http::Request<Body> {
    let frames: Vec<Result<Frame<Bytes>, Status>> =
        frames.iter().map(|frame| Ok(Frame::data(Bytes::copy_from_slice(frame)))).collect();
    let request = http::Request::post("/a/b").header("content-type", "application/grpc");
    let request = if encoding.is_empty() { request } else { request.header("grpc-encoding", encoding) };
    request.body(Body::new(StreamBody::new(tokio_stream::iter(frames)))).expect("a request")
}

/// Sends back what was sent, and gives what came back.
async fn echoed(request: http::Request<Body>, limit: usize) -> (Vec<(u8, Vec<u8>)>, Status) {
    let (request, answers) = unpacked(request, limit);
    let answer = raw::unary(request, |request: Request<Bundle>| async move {
        Ok(Response::new(Encoded::of(request.get_ref())))
    })
    .await;
    let has_messages = !answer.headers().contains_key("grpc-status");
    let answer = answers.packed(answer);
    let encoding = answer.headers().get("grpc-encoding").map(http::HeaderValue::as_bytes);
    assert_eq!(encoding, (answers == Answers::Packed && has_messages).then_some(&b"gzip"[..]));
    read(answer).await
}

/// The flags and the contents of the messages of an answer, and how it ends.
async fn read(answer: http::Response<Body>) -> (Vec<(u8, Vec<u8>)>, Status) {
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return (Vec::new(), status);
    }
    let body = answer.into_body().collect().await.expect("a body");
    let status = Status::from_header_map(body.trailers().expect("trailers")).expect("a status");
    let mut messages = Vec::new();
    let mut rest = &body.to_bytes()[..];
    while let Some((&[flag, ref length @ ..], behind)) = rest.split_first_chunk::<5>() {
        let (message, behind) = behind.split_at(u32::from_be_bytes(*length) as usize);
        let mut content = Vec::new();
        match flag {
            1 => drop(MultiGzDecoder::new(message).read_to_end(&mut content).expect("unpacks")),
            _ => content.extend_from_slice(message),
        }
        messages.push((flag, content));
        rest = behind;
    }
    (messages, status)
}

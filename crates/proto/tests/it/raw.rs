//! Replies that were encoded before reach an ordinary client.

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use prost::Message;
use proto::raw::{self, Encoded};
use proto::spire::server::entry::{GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse};
use proto::spire::types;
use tonic::body::Body;
use tonic::codegen::tokio_stream;
use tonic::{Code, Request, Response, Status, Streaming};

#[tokio::test]
async fn pieces_arrive_as_one_message() {
    let page = |id: &str| {
        let entries = vec![types::Entry { id: id.into(), ..Default::default() }];
        Bytes::from(GetAuthorizedEntriesResponse { entries }.encode_to_vec())
    };
    let reply = Encoded::new(vec![page("a"), page("b")]);

    let answer = |_: Request<GetAuthorizedEntriesRequest>| async { Ok(Response::new(reply.clone())) };
    let (message, status) = called(&[&[0; 5]], answer).await;

    assert_eq!(status.code(), Code::Ok);
    assert_eq!(message.len(), reply.len());
    let read = GetAuthorizedEntriesResponse::decode(message).expect("decodes");
    let ids: Vec<&str> = read.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
}

#[tokio::test]
async fn a_long_reply_is_sent_without_copying_it() {
    let page = Bytes::from(vec![0x22; 100_000]);
    let whole = types::Bundle { trust_domain: "x".repeat(70_000), ..Default::default() };
    let prefixed = Encoded::prefixed(&whole, Bytes::from);

    for (reply, first) in [(Encoded::new(vec![page.clone()]), 5), (prefixed.clone(), prefixed.len() + 5)] {
        let answer = |_: Request<GetAuthorizedEntriesRequest>| async { Ok(Response::new(reply.clone())) };
        let mut body = raw::unary(request(&[&[0; 5]]), answer).await.into_body();
        let frame = body.frame().await.expect("a frame").expect("data").into_data().expect("data");
        assert_eq!(frame.len(), first);
        if first == 5 {
            let frame = body.frame().await.expect("a frame").expect("data").into_data().expect("data");
            assert_eq!(frame.as_ptr(), page.as_ptr());
        }
    }
    let (message, _) =
        called(&[&[0; 5]], |_: Request<GetAuthorizedEntriesRequest>| async { Ok(Response::new(prefixed)) })
            .await;
    assert_eq!(types::Bundle::decode(message).expect("decodes"), whole);
}

#[tokio::test]
async fn short_pieces_share_frames_unless_they_may_not_be_copied() {
    let pieces: Vec<Bytes> = (0..10).map(|number| Bytes::from(vec![number; 3000])).collect();
    let whole = pieces.concat();

    for (reply, frames) in [(Encoded::new(pieces.clone()), 2), (Encoded::uncopied(pieces), 11)] {
        let answer = |_: Request<GetAuthorizedEntriesRequest>| async { Ok(Response::new(reply.clone())) };
        let mut body = raw::unary(request(&[&[0; 5]]), answer).await.into_body();
        let mut sent: Vec<Bytes> = Vec::new();
        while let Ok(data) = body.frame().await.expect("a frame").expect("a frame").into_data() {
            sent.push(data);
        }
        assert_eq!(sent.len(), frames);
        assert!(sent.iter().all(|frame| frame.len() <= 16 << 10));
        assert!(sent.concat()[5..] == whole);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_as_spire_tells_it() {
    let refused = async |frames: &[&[u8]]| {
        let answer = |_: Request<types::Bundle>| async { Ok(Response::new(Encoded::default())) };
        let (_, status) = called(frames, answer).await;
        (status.code(), status.message().to_owned())
    };

    assert_eq!(refused(&[]).await, (Code::Unknown, "EOF".into()));
    assert_eq!(refused(&[&[0, 0, 0, 0, 9, 1]]).await, (Code::Unknown, "unexpected EOF".into()));
    assert_eq!(refused(&[&[0, 0, 0]]).await, (Code::Unknown, "EOF".into()));
    let long = "grpc: received message larger than max (4194305 vs. 4194304)";
    assert_eq!(refused(&[&[0, 0, 0x40, 0, 1]]).await, (Code::ResourceExhausted, long.into()));
    let flag = "grpc: compressed flag set with identity or empty encoding";
    assert_eq!(refused(&[&[1, 0, 0, 0, 0]]).await, (Code::Internal, flag.into()));
    let (code, text) = refused(&[&[0, 0, 0, 0, 1, 0xff]]).await;
    assert_eq!(code, Code::Internal);
    assert!(text.starts_with("grpc: error unmarshalling request: "), "{text}");
}

#[tokio::test]
async fn a_request_may_come_in_any_number_of_frames() {
    let bundle = types::Bundle { trust_domain: "example.org".into(), ..Default::default() };
    let mut wire = vec![0, 0, 0, 0, u8::try_from(bundle.encoded_len()).expect("short")];
    bundle.encode(&mut wire).expect("encodes");

    let frames: Vec<&[u8]> = wire.chunks(1).collect();
    let (message, status) = called(&frames, |request: Request<types::Bundle>| async move {
        Ok(Response::new(Encoded::of(request.get_ref())))
    })
    .await;

    assert_eq!(status.code(), Code::Ok);
    assert_eq!(types::Bundle::decode(message).expect("decodes"), bundle);
}

#[tokio::test]
async fn a_stream_ends_with_its_status() {
    let replies = [Ok(Encoded::of(&types::Bundle::default())), Err(Status::permission_denied("no more"))];
    let response = raw::server_streaming(request(&[&[0; 5]]), |_: Request<types::Bundle>| async {
        Ok(Response::new(Box::pin(tokio_stream::iter(replies)) as raw::Replies))
    })
    .await;

    let body = response.into_body().collect().await.expect("a body");
    let status = Status::from_header_map(body.trailers().expect("trailers")).expect("a status");
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "no more"));
    assert_eq!(body.to_bytes(), [0_u8; 5].as_slice());
}

#[tokio::test]
async fn what_is_wrong_with_a_stream_is_told_as_spire_tells_it() {
    // How many messages there were, and what came behind them.
    let streamed = async |request: http::Request<Body>| {
        let mut told = (0, None);
        raw::streaming(request, |request: Request<Streaming<types::Bundle>>| {
            let mut stream = request.into_inner();
            let told = &mut told;
            async move {
                loop {
                    match stream.message().await {
                        Ok(Some(_)) => told.0 += 1,
                        Ok(None) => break,
                        Err(status) => {
                            told.1 = Some((status.code(), status.message().to_owned()));
                            break;
                        }
                    }
                }
                Err(Status::ok(""))
            }
        })
        .await;
        told
    };
    let empty = &[0; 5][..];

    assert_eq!(streamed(request(&[])).await, (0, None));
    assert_eq!(streamed(request(&[empty, &[0, 0, 0]])).await, (1, None));
    assert_eq!(streamed(request(&[&[0][..]; 15])).await, (3, None));
    let cut = Some((Code::Internal, "unexpected EOF".to_owned()));
    assert_eq!(streamed(request(&[empty, &[0, 0, 0, 0, 9, 1]])).await, (1, cut));
    let long = "grpc: received message larger than max (4194305 vs. 4194304)";
    let long = Some((Code::ResourceExhausted, long.to_owned()));
    assert_eq!(streamed(request(&[&[0, 0, 0x40], &[0, 1]])).await, (0, long));
    let format = Some((Code::Internal, "grpc: received unexpected payload format 2".to_owned()));
    assert_eq!(streamed(request(&[&[2, 0, 0, 0, 0]])).await, (0, format));
    let (_, unreadable) = streamed(request(&[&[0, 0, 0, 0, 1, 0xff]])).await;
    let (code, text) = unreadable.expect("it is no message");
    assert_eq!(code, Code::Internal);
    assert!(text.starts_with("grpc: failed to unmarshal the received message: "), "{text}");
}

#[tokio::test]
async fn an_encoding_that_nobody_knows_is_refused_whatever_is_sent() {
    for name in ["snappy", "gzip"] {
        let mut packed = request(&[&[0; 5]]);
        packed.headers_mut().insert("grpc-encoding", name.parse().expect("a value"));

        let answer = |_: Request<types::Bundle>| async { Ok(Response::new(Encoded::default())) };
        let refused = raw::unary(packed, answer).await;

        let status = Status::from_header_map(refused.headers()).expect("a status");
        let text = format!("grpc: Decompressor is not installed for grpc-encoding {name:?}");
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, &*text));
    }
}

#[tokio::test]
async fn a_call_with_many_replies_says_that_it_wants_one_message() {
    let refused = raw::server_streaming(request(&[]), |_: Request<types::Bundle>| async {
        Err(Status::unavailable("nobody asks"))
    })
    .await;

    let status = Status::from_header_map(refused.headers()).expect("a status");
    let text = "cardinality violation: received no request message from non-client-streaming RPC";
    assert_eq!((status.code(), status.message()), (Code::Internal, text));
}

fn request(frames: &[&[u8]]) -> http::Request<Body> {
    let frames: Vec<Result<Frame<Bytes>, Status>> =
        frames.iter().map(|frame| Ok(Frame::data(Bytes::copy_from_slice(frame)))).collect();
    http::Request::builder()
        .method("POST")
        .header("content-type", "application/grpc")
        .body(Body::new(StreamBody::new(tokio_stream::iter(frames))))
        .expect("a request")
}

/// Calls, and gives the message and the status of the reply.
async fn called<M, F, A>(frames: &[&[u8]], answer: F) -> (Bytes, Status)
where
    M: Message + Default + prost::Name + Send + 'static,
    F: FnOnce(Request<M>) -> A + Send,
    A: Future<Output = Result<Response<Encoded>, Status>> + Send,
{
    let response = raw::unary(request(frames), answer).await;
    if let Some(status) = Status::from_header_map(response.headers()) {
        return (Bytes::new(), status);
    }
    let body = response.into_body().collect().await.expect("a body");
    let status = Status::from_header_map(body.trailers().expect("trailers")).expect("a status");
    (body.to_bytes().slice(5..), status)
}

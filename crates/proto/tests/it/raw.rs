//! Replies that were encoded before reach an ordinary client.

use bytes::Bytes;
use http_body_util::BodyExt;
use prost::Message;
use proto::raw::{self, Encoded};
use proto::spire::server::entry::{GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse};
use proto::spire::types;
use tonic::body::Body;
use tonic::{Request, Response};

#[tokio::test]
async fn pieces_arrive_as_one_message() {
    let page = |id: &str| {
        let entries = vec![types::Entry { id: id.into(), ..Default::default() }];
        Bytes::from(GetAuthorizedEntriesResponse { entries }.encode_to_vec())
    };
    let reply = Encoded::new(vec![page("a"), page("b")]);

    // an empty message, framed
    let request = http::Request::builder()
        .method("POST")
        .header("content-type", "application/grpc")
        .body(Body::new(http_body_util::Full::new(Bytes::from_static(&[0; 5]))))
        .expect("a request");
    let response = raw::unary(request, |_: Request<GetAuthorizedEntriesRequest>| {
        let reply = reply.clone();
        async move { Ok(Response::new(reply)) }
    })
    .await;

    let body = response.into_body().collect().await.expect("a body");
    assert_eq!(body.trailers().and_then(|trailers| trailers.get("grpc-status")).expect("a status"), "0");
    let body = body.to_bytes();
    assert_eq!(body[..5], [0, 0, 0, 0, u8::try_from(reply.len()).expect("short")]);
    let read = GetAuthorizedEntriesResponse::decode(&body[5..]).expect("decodes");
    let ids: Vec<&str> = read.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
}

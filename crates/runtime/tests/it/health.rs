//! The reports over HTTP.

use std::time::Duration;

use finial_runtime::health::{Health, HealthListener, HealthPaths};
use finial_runtime::tasks::Group;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::soon;

fn paths() -> HealthPaths {
    HealthPaths { live: "/live".to_owned(), ready: "/ready".to_owned() }
}

async fn ask(listener: std::net::SocketAddr, request: &str) -> (String, String, String) {
    let mut stream = TcpStream::connect(listener).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap();
    (status.to_owned(), headers.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn reports_are_given_as_spire_gives_them() {
    let listener = HealthListener::bind("localhost", 0, paths()).await.unwrap();
    let address = listener.address();
    let health = Health::new();
    let check = health.check("server");
    let stop = CancellationToken::new();
    let group = Group::new(stop.clone());
    group.spawn("health", listener.serve(health, stop.clone()));

    let (status, _, body) = ask(address, "GET /ready").await;
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 500 Internal Server Error", "{\"server\":{}}\n"));
    check.started();
    for request in ["GET /live", "POST /ready", "GET /ready?verbose=1"] {
        let (status, headers, body) = ask(address, request).await;
        assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", "{\"server\":{}}\n"), "{request}");
        assert!(headers.contains("content-type: application/json"), "{headers}");
    }
    check.failing("get_bundle_err", "gone");
    let (status, _, body) = ask(address, "GET /live").await;
    assert_eq!(status, "HTTP/1.1 500 Internal Server Error");
    assert_eq!(body, "{\"server\":{\"get_bundle_err\":\"gone\"}}\n");
    let (status, headers, body) = ask(address, "GET //live?a&b").await;
    assert_eq!(status, "HTTP/1.1 307 Temporary Redirect");
    assert!(
        headers.contains("location: /live?a&b\r\n") && headers.contains("content-type: text/html"),
        "{headers}"
    );
    assert_eq!(body, "<a href=\"/live?a&amp;b\">Temporary Redirect</a>.\n\n");
    for other in ["GET /", "GET /livelier", "GET /live/"] {
        let (status, _, body) = ask(address, other).await;
        assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 404 Not Found", "404 page not found\n"));
    }

    stop.cancel();
    soon(group.ended()).await;
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn a_slow_client_is_closed_and_holds_up_nobody() {
    let listener = HealthListener::bind("[127.0.0.1]", 0, paths()).await.unwrap();
    let listener = listener.with_header_timeout(Duration::from_millis(50));
    let address = listener.address();
    let stop = CancellationToken::new();
    let group = Group::new(stop.clone());
    group.spawn("health", listener.serve(Health::new(), stop.clone()));
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /live HTTP/1.1\r\nHos").await.unwrap();

    let (status, ..) = ask(address, "GET /live").await;

    assert!(status.starts_with("HTTP/1.1 500"));
    soon(slow.read_to_end(&mut Vec::new())).await.ok();
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_error() {
    let listener = HealthListener::bind("localhost", 0, paths()).await.unwrap();
    let port = listener.address().port();

    let refused = HealthListener::bind("localhost", port, paths()).await.unwrap_err();

    let text = finial_runtime::chain(&refused);
    assert_eq!(text, format!("cannot listen on localhost:{port}: address already in use"));
}

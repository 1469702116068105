//! The end of a listener.

use std::time::Duration;

use finial_runtime::listen::{Limits, UnixListener};
use tokio::net::UnixStream;

use crate::support::{Client, Domain, OPTIONS, call_to, header, served, soon};

#[tokio::test]
async fn nobody_new_gets_in_and_idle_connections_close() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let served = served(UnixListener::bind(&path, OPTIONS).unwrap(), Limits::local());
    let mut client = Client::unix(&path).await;
    soon(client.who()).await;
    let silent = UnixStream::connect(&path).await.unwrap();

    served.stop.cancel();
    soon(served.group.ended()).await;

    assert!(!path.exists());
    UnixStream::connect(&path).await.unwrap_err();
    soon(client.closed()).await;
    drop(silent);
}

#[tokio::test]
async fn calls_that_end_in_time_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let mut served = served(UnixListener::bind(&path, OPTIONS).unwrap(), Limits::local());
    let mut client = Client::unix(&path).await;
    client.sender.ready().await.unwrap();
    let request = call_to("http://localhost/hang").header("grpc-timeout", "200m");
    let mut sender = client.sender.clone();
    let call = sender.send_request(request.body(http_body_util::Empty::new()).unwrap());
    let mut call = std::pin::pin!(call);
    assert!(futures::poll!(&mut call).is_pending());
    served.calls.recv().await.unwrap();

    served.stop.cancel();
    let response = soon(call).await.unwrap();

    assert_eq!(header(&response, "grpc-status"), "4");
    soon(served.group.ended()).await;
}

#[tokio::test]
async fn calls_that_do_not_end_are_cut_off() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let limits = Limits { drain: Duration::from_millis(50), ..Limits::tcp() };
    let mut served = served(listener, limits);
    let mut client = domain.client(address, domain.own("spiffe://example.org/agent")).await.unwrap();
    let call = client.call("/hang");
    let mut call = std::pin::pin!(call);
    assert!(futures::poll!(&mut call).is_pending());
    served.calls.recv().await.unwrap();

    served.stop.cancel();
    soon(served.group.ended()).await;

    soon(call).await.unwrap_err();
    tokio::net::TcpStream::connect(address).await.unwrap_err();
}

//! TLS over TCP.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use finial_runtime::listen::{Limits, ListenError, TlsListener};
use futures::future::join_all;
use http_body_util::Empty;
use hyper::client::conn::http2::SendRequest;
use spiffe::tls::OwnCertificate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{
    Client, Domain, LOCALHOST, SERVER, call_to, header as header_of, served, shake_hands, soon, wrap,
};

#[tokio::test]
async fn a_call_is_told_the_certificate_and_no_certificate_is_nobody() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let _served = served(listener, Limits::tcp());

    let mut agent = domain.client(address, domain.own("spiffe://example.org/agent")).await.unwrap();
    let mut nobody = domain.client(address, OwnCertificate::empty()).await.unwrap();

    assert_eq!(soon(agent.who()).await, "spiffe://example.org/agent");
    assert_eq!(soon(nobody.who()).await, "nobody");
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_error() {
    let domain = Domain::new();
    let listener = domain.listener();
    let config = Arc::new(domain.server_config());

    let refused = TlsListener::bind(listener.address(), Arc::new(move || Arc::clone(&config))).unwrap_err();

    assert!(matches!(refused, ListenError::Address { .. }));
    let text = finial_runtime::chain(&refused);
    assert_eq!(text, format!("cannot listen on {}: address already in use", listener.address()));
}

#[tokio::test]
async fn t07_a_proxy_is_believed_if_it_is_trusted() {
    let domain = Domain::new();
    let trusted = domain.listener().with_trusted_proxies(vec!["127.0.0.0/8".parse().unwrap()]);
    let distrusted = domain.listener().with_trusted_proxies(vec!["192.0.2.0/24".parse().unwrap()]);
    let addresses = [trusted.address(), distrusted.address()];
    let _served = [served(trusted, Limits::tcp()), served(distrusted, Limits::tcp())];
    let connect = async |address, header: &'static [u8]| {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(header).await.unwrap();
        let stream = wrap(socket, domain.client_config(OwnCertificate::empty())).await?;
        let mut client = Client::on(stream).await;
        let response = client.call("/who").await.map_err(std::io::Error::other)?;
        Ok::<_, std::io::Error>(header_of(&response, "address"))
    };
    let header = b"PROXY TCP4 198.51.100.7 192.0.2.2 4711 443\r\n";

    let told = soon(connect(addresses[0], header)).await.unwrap();
    let direct = soon(connect(addresses[0], b"")).await.unwrap();
    let untrusted = soon(connect(addresses[1], header)).await;
    let other = soon(connect(addresses[1], b"")).await.unwrap();

    assert_eq!(told, "198.51.100.7:4711");
    assert!(direct.starts_with("127.0.0.1:") && other.starts_with("127.0.0.1:"));
    untrusted.unwrap_err();
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_http2_is_closed() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let _served = served(listener, Limits::tcp());
    let mut config = domain.client_config(OwnCertificate::empty());
    config.alpn_protocols.clear();

    let mut stream = shake_hands(address, config).await.unwrap();

    assert_eq!(soon(stream.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn t05_certificates_change_under_handshakes_and_none_fails() {
    let domain = Domain::new();
    let (first, second) = (Arc::new(domain.server_config()), Arc::new(domain.server_config()));
    let handshakes = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&handshakes);
    // Another configuration, with another key, for each connection.
    let source = move || {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        Arc::clone(if number.is_multiple_of(2) { &first } else { &second })
    };
    let listener = TlsListener::bind(LOCALHOST, Arc::new(source)).unwrap();
    let address = listener.address();
    let _served = served(listener, Limits::tcp());

    let clients =
        (0..40).map(|_| async { domain.client(address, OwnCertificate::empty()).await.unwrap().who().await });
    let answers = soon(join_all(clients)).await;

    assert_eq!(answers.len(), 40);
    assert_eq!(handshakes.load(Ordering::Relaxed), 40);
}

#[tokio::test]
async fn t02_no_session_is_resumed() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let _served = served(listener, Limits::tcp());
    let mut config = domain.client_config(OwnCertificate::empty());
    config.resumption = rustls::client::Resumption::in_memory_sessions(16);

    for _ in 0..3 {
        let mut stream = shake_hands(address, config.clone()).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        // Tickets would arrive now, before the client's preface is missed.
        let waited = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0])).await;
        assert!(waited.is_err());
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn r03_clients_that_stop_halfway_hold_up_nobody_and_are_closed() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let limits = Limits { opening: Duration::from_millis(300), ..Limits::tcp() };
    let _served = served(listener, limits);
    // Before TLS, and between TLS and HTTP/2.
    let mut before = TcpStream::connect(address).await.unwrap();
    let mut between = shake_hands(address, domain.client_config(OwnCertificate::empty())).await.unwrap();

    let mut client = domain.client(address, OwnCertificate::empty()).await.unwrap();
    assert_eq!(soon(client.who()).await, "nobody");

    assert_eq!(soon(before.read(&mut [0])).await.unwrap_or(0), 0);
    assert_eq!(soon(between.read(&mut [0])).await.unwrap_or(0), 0);
    assert_eq!(soon(client.who()).await, "nobody");
}

#[tokio::test]
async fn a_full_house_of_half_open_connections_lets_honest_clients_in() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let _served = served(listener, Limits { half_open: 8, ..Limits::tcp() });
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }

    let mut client = soon(domain.client(address, OwnCertificate::empty())).await.unwrap();

    assert_eq!(soon(client.who()).await, "nobody");
}

#[tokio::test]
async fn r03_a_crowd_that_comes_back_all_at_once_does_not_push_itself_out() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let _served = served(listener, Limits { half_open: 4, ..Limits::tcp() });

    let id = "spiffe://example.org/agent";
    let crowd = (1..=64).map(async |host| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 2, host], 0).into()).unwrap();
        let socket = socket.connect(address).await.unwrap();
        let stream = wrap(socket, domain.client_config(domain.own(id))).await.unwrap();
        Client::on(stream).await.who().await
    });

    assert!(soon(join_all(crowd)).await.iter().all(|who| who == id));
}

#[tokio::test]
async fn t06_r04_a_connection_ends_at_its_age_and_its_calls_do_not() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let mut served = served(listener, Limits { age: Some(Duration::from_millis(100)), ..Limits::tcp() });
    let mut client = domain.client(address, domain.own(SERVER)).await.unwrap();
    let mut idle = domain.client(address, domain.own(SERVER)).await.unwrap();
    soon(idle.who()).await;

    let mut sender = client.sender.clone();
    let hanging = sender.send_request(call_to("http://localhost/hang").body(Empty::new()).unwrap());
    let mut hanging = std::pin::pin!(hanging);
    assert!(futures::poll!(&mut hanging).is_pending());
    assert_eq!(soon(served.calls.recv()).await.unwrap(), "/who");
    assert_eq!(soon(served.calls.recv()).await.unwrap(), "/hang");

    soon(idle.closed()).await;
    // The other one is as old by now: it takes no more calls, and the one that runs still runs.
    soon(async {
        while client.call("/who").await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(futures::poll!(&mut hanging).is_pending());
}

#[tokio::test]
async fn r03_a_client_without_certificate_may_not_idle() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let limits = Limits { anonymous_idle: Duration::from_millis(50), ..Limits::tcp() };
    let mut served = served(listener, limits);

    let silent = domain.client(address, OwnCertificate::empty()).await.unwrap();
    let mut done = domain.client(address, OwnCertificate::empty()).await.unwrap();
    done.who().await;
    let busy = domain.client(address, OwnCertificate::empty()).await.unwrap();
    let mut sender = busy.sender.clone();
    let hanging = sender.send_request(call_to("http://localhost/hang").body(Empty::new()).unwrap());
    let mut hanging = std::pin::pin!(hanging);
    assert!(futures::poll!(&mut hanging).is_pending());
    let mut known = domain.client(address, domain.own(SERVER)).await.unwrap();
    while soon(served.calls.recv()).await.unwrap() != "/hang" {}

    soon(silent.closed()).await;
    soon(done.closed()).await;

    assert!(futures::poll!(&mut hanging).is_pending(), "a call is no idling");
    assert_eq!(soon(known.who()).await, SERVER);
}

#[tokio::test]
async fn r04_one_address_has_so_many_connections_without_certificate() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let _served = served(listener, Limits { per_address: 2, ..Limits::tcp() });
    let mut first = domain.client(address, OwnCertificate::empty()).await.unwrap();
    let silent = TcpStream::connect(address).await.unwrap();
    soon(first.who()).await;

    let mut third = TcpStream::connect(address).await.unwrap();
    assert_eq!(soon(third.read(&mut [0])).await.unwrap_or(0), 0, "no room for a third");

    let elsewhere = TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let socket = elsewhere.connect(address).await.unwrap();
    let stream = wrap(socket, domain.client_config(OwnCertificate::empty())).await.unwrap();
    assert_eq!(soon(Client::on(stream).await.who()).await, "nobody", "others have room of their own");

    drop(silent);
    let mut known = Vec::new();
    soon(async {
        while known.len() < 3 {
            if let Ok(client) = domain.client(address, domain.own(SERVER)).await {
                known.push(client);
            }
        }
    })
    .await;
    for client in &mut known {
        assert_eq!(soon(client.who()).await, SERVER, "who shows a certificate does not count");
    }
}

#[tokio::test]
async fn r05_one_connection_has_so_many_calls_at_once_and_so_much_to_say_in_each() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let limits = Limits::tcp();
    let mut served = served(listener, limits);
    let client = domain.client(address, domain.own(SERVER)).await.unwrap();
    assert_eq!((limits.calls, limits.headers, limits.resets), (250, 16 << 10, 200));

    // One more than it may have: it waits until another ends.
    let hang = |sender: &mut SendRequest<Empty<Bytes>>| {
        sender.send_request(call_to("http://localhost/hang").body(Empty::new()).unwrap())
    };
    let mut hanging = Vec::new();
    for _ in 0..251 {
        let mut sender = client.sender.clone();
        soon(sender.ready()).await.unwrap();
        hanging.push(tokio::task::JoinSet::new());
        hanging.last_mut().unwrap().spawn(hang(&mut sender));
    }
    for _ in 0..250 {
        assert_eq!(soon(served.calls.recv()).await.unwrap(), "/hang");
    }
    let mut other = domain.client(address, domain.own(SERVER)).await.unwrap();
    assert_eq!(soon(other.who()).await, SERVER);
    assert_eq!(soon(served.calls.recv()).await.unwrap(), "/who", "the call too many has not begun");
    hanging.remove(0).abort_all();
    assert_eq!(soon(served.calls.recv()).await.unwrap(), "/hang");

    // Headers above the limit end their call.
    let long = "x".repeat(17 << 10);
    let request = call_to("http://localhost/who").header("long", long).body(Empty::new());
    let refused = soon(other.sender.send_request(request.unwrap())).await;
    assert!(refused.is_err() || refused.unwrap().status() == 431);
}

#[tokio::test]
async fn r05_who_takes_back_too_many_calls_is_cut_off() {
    let domain = Domain::new();
    let listener = domain.listener();
    let address = listener.address();
    let mut served = served(listener, Limits { resets: 5, ..Limits::tcp() });
    let mut honest = domain.client(address, domain.own(SERVER)).await.unwrap();
    let client = domain.client(address, domain.own(SERVER)).await.unwrap();

    // Each has begun before it is taken back.
    let mut sent = 0;
    while sent < 1000 && !client.sender.is_closed() {
        let mut sender = client.sender.clone();
        if soon(sender.ready()).await.is_err() {
            break;
        }
        let request = call_to("http://localhost/hang").body(Empty::new()).unwrap();
        let mut call = Box::pin(sender.send_request(request));
        let begun = tokio::select! {
            _ = &mut call => false,
            begun = served.calls.recv() => begun.is_some(),
        };
        drop(call);
        sent += usize::from(begun);
    }
    soon(client.closed()).await;

    // Within one second, or a few more if the machine took longer.
    assert!(sent > 5, "cut off after {sent}");
    for _ in 0..50 {
        assert_eq!(soon(honest.who()).await, SERVER, "answers that are read to the end do not count");
    }
    for _ in 0..50 {
        soon(honest.sender.ready()).await.expect("nor those that have begun");
        let request = call_to("http://localhost/endless").body(Empty::new()).unwrap();
        drop(soon(honest.sender.send_request(request)).await.unwrap());
    }
}

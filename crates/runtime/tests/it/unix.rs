//! Unix sockets.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::Path;
use std::time::Duration;

use finial_runtime::listen::{Callers, Limits, ListenError, UnixListener, UnixOptions};
use finial_runtime::tasks::apart;
use http_body_util::BodyExt as _;
use rustix::process::Uid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::{Client, OPTIONS, call_to, header, served, soon, unix};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_call_is_told_the_process_that_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let mut served = unix(&path);

    let mut client = Client::unix(&path).await;

    assert_eq!(soon(client.who()).await, format!("process {}", std::process::id()));
    assert_eq!(served.calls.recv().await.unwrap(), "/who");
}

#[tokio::test]
async fn folders_and_socket_get_their_modes_and_the_socket_goes_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/api.sock");
    let options = UnixOptions { directory_mode: 0o750, socket_mode: 0o770, callers: Callers::IfKnown };

    let listener = UnixListener::bind(&path, options).unwrap();

    assert_eq!(mode(&folder.path().join("a")), 0o750);
    assert_eq!(mode(&folder.path().join("a/b")), 0o750);
    assert_eq!(mode(&path), 0o770);
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_socket_that_nobody_answers_on_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    drop(BlockingListener::bind(&path).unwrap());
    assert!(path.exists());

    let _served = unix(&path);

    soon(Client::unix(&path).await.who()).await;
}

#[tokio::test]
async fn w19_a_socket_in_use_and_a_file_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let _served = unix(&path);
    let file = folder.path().join("precious");
    fs::write(&file, "data").unwrap();

    let in_use = UnixListener::bind(&path, OPTIONS).unwrap_err();
    let no_socket = UnixListener::bind(&file, OPTIONS).unwrap_err();

    assert!(matches!(in_use, ListenError::InUse { .. }));
    let expected = format!("cannot listen on {}: another process listens there", path.display());
    assert_eq!(in_use.to_string(), expected);
    assert!(matches!(no_socket, ListenError::NoSocket { .. }));
    assert_eq!(fs::read_to_string(&file).unwrap(), "data");
    soon(Client::unix(&path).await.who()).await;
}

#[tokio::test]
async fn the_socket_of_a_successor_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let old = UnixListener::bind(&path, OPTIONS).unwrap();
    // Kept, so that its inode is not given to the successor.
    fs::rename(&path, folder.path().join("moved.sock")).unwrap();
    let new = UnixListener::bind(&path, OPTIONS).unwrap();

    drop(old);

    let metadata = fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket() && metadata.ino() != 0);
    drop(new);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let path = folder.path().join("file/api.sock");

    let refused = UnixListener::bind(&path, OPTIONS).unwrap_err();

    let text = finial_runtime::chain(&refused);
    assert!(text.starts_with(&format!("cannot listen on {}: ", path.display())), "{text}");
}

#[tokio::test]
async fn a_silent_client_and_one_of_another_protocol_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let limits = Limits { opening: Duration::from_millis(50), ..Limits::local() };
    let _served = served(UnixListener::bind(&path, OPTIONS).unwrap(), limits);

    let mut silent = UnixStream::connect(&path).await.unwrap();
    let mut halting = UnixStream::connect(&path).await.unwrap();
    halting.write_all(b"PRI * HTTP/2.0").await.unwrap();
    let mut other = UnixStream::connect(&path).await.unwrap();
    other.write_all(b"GET /index.html HTTP/1.1\r\n\r\n").await.unwrap();

    for stream in [&mut silent, &mut halting, &mut other] {
        let ended = soon(stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_err() || ended.unwrap() == 0);
    }
    soon(Client::unix(&path).await.who()).await;
}

#[tokio::test]
async fn silent_clients_make_room_for_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let limits = Limits { half_open: 4, ..Limits::local() };
    let _served = served(UnixListener::bind(&path, OPTIONS).unwrap(), limits);
    let mut silent = Vec::new();
    for _ in 0..12 {
        silent.push(UnixStream::connect(&path).await.unwrap());
    }

    soon(Client::unix(&path).await.who()).await;

    // The oldest had to go long before their time is up.
    soon(silent[0].read_to_end(&mut Vec::new())).await.ok();
}

#[tokio::test]
async fn w20_r06_one_user_has_so_many_connections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let limits = Limits { per_user: 2, ..Limits::local() };
    let _served = served(UnixListener::bind(&path, OPTIONS).unwrap(), limits);
    let (mut first, mut second) = (Client::unix(&path).await, Client::unix(&path).await);
    soon(first.who()).await;
    soon(second.who()).await;

    let mut third = UnixStream::connect(&path).await.unwrap();
    assert_eq!(soon(third.read(&mut [0])).await.unwrap_or(0), 0);

    drop(second);
    // As soon as the end of the second is noticed there is room again.
    soon(async {
        loop {
            let stream = UnixStream::connect(&path).await.unwrap();
            let mut client = Client::on(stream).await;
            if client.call("/who").await.is_ok() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn r00_a_user_waits_for_a_few_calls_of_another_who_makes_a_thousand() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let options = UnixOptions { callers: Callers::IfKnown, ..OPTIONS };
    let listening = path.clone();
    let begun = apart("turns", move || async move {
        let limits = Limits { users_take_turns: true, ..Limits::local() };
        let mut served = served(UnixListener::bind(&listening, options).unwrap(), limits);
        // All of them are there before the first is looked at.
        let flood = as_nobody(|| -> Vec<_> { (0..10).map(|_| asked(&listening, "/who", 100)).collect() });
        let first = asked(&listening, "/first", 1);
        let (mut second, mut begun) = (None, Vec::new());
        while begun.len() < 1002 {
            begun.push(soon(served.calls.recv()).await.unwrap());
            if begun.len() == 300 {
                second = Some(asked(&listening, "/second", 1));
            }
        }
        drop((flood, first, second));
        Ok(begun)
    });

    let begun = begun.await.unwrap();

    let place = |path: &str| begun.iter().position(|call| call == path).unwrap();
    assert!(place("/first") <= 8, "after {} of a thousand", place("/first"));
    assert!(place("/second") < 300 + 50, "after {} of a thousand", place("/second") - 300);
}

/// A connection on which a path is asked for so often at once.
fn asked(socket: &Path, path: &str, count: u32) -> BlockingStream {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // POST, http, the path as it is, and the type of the content (RFC 7541, appendix A).
    let path_length = u8::try_from(path.len()).unwrap();
    let fields = [&[0x83, 0x86, 0x04, path_length], path.as_bytes(), CONTENT_TYPE].concat();
    for number in 0..count {
        bytes.extend([0, 0, u8::try_from(fields.len()).unwrap(), 1, 5]);
        bytes.extend((2 * number + 1).to_be_bytes());
        bytes.extend(&fields);
    }
    let mut stream = BlockingStream::connect(socket).unwrap();
    stream.write_all(&bytes).unwrap();
    stream
}

/// Does something as another user. To the other end of a socket a thread is who it is.
fn as_nobody<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let as_nobody = || {
        rustix::thread::set_thread_res_uid(None, Uid::from_raw(65_534), None).unwrap();
        act()
    };
    std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap())
}

#[tokio::test]
async fn r09_a_client_that_does_not_read_its_answer_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let limits = Limits { unread: Duration::from_millis(200), ..Limits::local() };
    let _served = served(UnixListener::bind(&path, OPTIONS).unwrap(), limits);
    let mut slow = Client::unix(&path).await;
    let mut diligent = Client::unix(&path).await;

    let unread = soon(slow.call("/endless")).await.unwrap();
    let mut read = soon(diligent.call("/endless")).await.unwrap().into_body();
    let reading = async { while read.frame().await.is_some_and(|frame| frame.is_ok()) {} };
    let cut = tokio::select! {
        () = reading => false,
        () = soon(slow.closed()) => true,
    };

    assert!(cut, "whoever reads goes on");
    drop(unread);
    soon(diligent.who()).await;
}

#[tokio::test]
async fn authorities_are_read_as_localhost_where_they_are_paths() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let _served = unix(&path);
    let mut proper = Client::unix(&path).await;
    let response = soon(proper.call_to("agent.test:7", "/who")).await.unwrap();
    assert_eq!(header(&response, "authority"), "agent.test:7");

    // As gRPC's C core sends it; a client of ours would refuse to.
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let block = [
        &[0x83, 0x86, 0x04, 4][..],
        b"/who",
        &[0x41, 16],
        b"tmp%2Fd%2Fx.sock",
        CONTENT_TYPE,
        &[0x40, 2],
        b"te",
        &[8],
        b"trailers",
    ]
    .concat();
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    sent.extend([0, 0, u8::try_from(block.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    sent.extend(block);
    stream.write_all(&sent).await.unwrap();

    // Frames of the server until the headers of the answer.
    soon(async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            assert_ne!(head[3], 3, "the call was reset");
            if head[3] == 1 {
                let fields = loona_hpack::Decoder::new().decode(&payload).unwrap();
                assert!(fields.contains(&(b"authority".to_vec(), b"localhost".to_vec())));
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn g05_a_panic_is_the_matter_of_its_call() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let _served = unix(&path);
    let mut client = Client::unix(&path).await;

    let response = soon(client.call("/panic")).await.unwrap();

    assert_eq!(header(&response, "grpc-status"), "13");
    assert_eq!(header(&response, "grpc-message"), "internal%20error");
    soon(client.who()).await;
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let _served = unix(&path);
    let mut client = Client::unix(&path).await;
    client.sender.ready().await.unwrap();

    let request = call_to("http://localhost/hang").header("grpc-timeout", "10m");
    let request = request.body(http_body_util::Empty::new()).unwrap();
    let response = soon(client.sender.send_request(request)).await.unwrap();

    assert_eq!(header(&response, "grpc-status"), "4");
}

#[tokio::test]
async fn an_answer_that_has_begun_ends_at_the_deadline_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let _served = unix(&path);
    let mut client = Client::unix(&path).await;
    client.sender.ready().await.unwrap();

    let request = call_to("http://localhost/silence").header("grpc-timeout", "50m");
    let request = request.body(http_body_util::Empty::new()).unwrap();
    let response = soon(client.sender.send_request(request)).await.unwrap();
    let ended = soon(response.into_body().collect()).await.unwrap();

    let trailers = ended.trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "4");
    assert_eq!(trailers["grpc-message"], "context%20deadline%20exceeded");
}

#[tokio::test]
async fn what_is_no_call_is_refused_before_anybody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let mut served = unix(&path);
    let mut client = Client::unix(&path).await;
    client.sender.ready().await.unwrap();

    let request = http::Request::get("http://localhost/who").header("content-type", "text/html");
    let request = request.body(http_body_util::Empty::new()).unwrap();
    let response = soon(client.sender.send_request(request)).await.unwrap();

    assert_eq!(response.status(), 415);
    assert_eq!(header(&response, "content-type"), "application/grpc");
    assert_eq!(header(&response, "grpc-status"), "3");
    assert!(served.calls.try_recv().is_err());
}

#[tokio::test]
async fn a_retired_connection_ends_after_its_calls() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let _served = unix(&path);
    let mut client = Client::unix(&path).await;

    let response = soon(client.call("/retire")).await.unwrap();

    assert_eq!(header(&response, "who"), format!("process {}", std::process::id()));
    soon(client.closed()).await;
}

/// The header of that name as it is in a header block.
const CONTENT_TYPE: &[u8] = b"\x0f\x10\x10application/grpc";

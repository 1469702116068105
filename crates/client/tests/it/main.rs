//! The clients against servers in the same process, over real sockets.
#![expect(clippy::expect_used, reason = "a test may fail loudly")]

extern crate finial_client as client;

mod server;
mod tls;
mod workload;
mod workload_stand_in;

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// A directory of its own, and a socket path in it.
struct Place {
    _directory: TempDir,
    socket: PathBuf,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("api.sock");
        Self { _directory: directory, socket }
    }

    fn listen(&self) -> UnixListenerStream {
        listen(&self.socket)
    }
}

fn listen(path: &Path) -> UnixListenerStream {
    UnixListenerStream::new(UnixListener::bind(path).expect("a socket"))
}

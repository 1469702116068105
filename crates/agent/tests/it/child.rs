//! Callers in processes of their own: this very program, told by its environment to be one.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use client::{Address, WorkloadApi};

const SOCKET: &str = "FINIAL_TEST_SOCKET";
const CALLS: &str = "FINIAL_TEST_CALLS";

/// A process that asks so many times for bundles, and ends.
pub(crate) fn bundles(socket: &Path, calls: usize) -> Child {
    command("child::child_that_asks_for_bundles", socket).env(CALLS, calls.to_string()).spawn().unwrap()
}

/// A process that connects and does nothing until it is ended.
pub(crate) fn idle(socket: &Path) -> Child {
    command("child::child_that_connects", socket).spawn().unwrap()
}

fn command(test: &str, socket: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(SOCKET, socket).stdout(Stdio::piped());
    command
}

#[test]
fn child_that_connects() {
    if let Some(path) = std::env::var_os(SOCKET) {
        let mut socket = std::os::unix::net::UnixStream::connect(path).unwrap();
        std::io::copy(&mut socket, &mut std::io::sink()).unwrap();
    }
}

#[tokio::test]
async fn child_that_asks_for_bundles() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let calls: usize = std::env::var(CALLS).unwrap().parse().unwrap();
    let client = WorkloadApi::at(Address::unix(Path::new(&path))).unwrap();
    for _ in 0..calls {
        match client.x509_bundles().await {
            Ok(_) => println!("answered"),
            Err(error) => println!("{error}"),
        }
    }
}

//! Listening sockets that were there before the program, or outlive it.
//!
//! A service manager may make the sockets of a program and pass them to it (`sd_listen_fds(3)`); a
//! program that becomes its successor ([`crate::upgrade`]) passes them in the same way. Either way
//! clients find somebody who listens all the time. A listener that is bound where a passed socket
//! listens takes that one.
//!
//! This is state of the process, as descriptors are: programs say once what they want of it; whoever
//! binds listeners otherwise, such as a test, has nothing to do with it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::{env, io};

use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{SocketAddrAny, SocketAddrUnix, getsockname};

use crate::sys;

/// The name, among the names of passed sockets, of one that the program made itself.
const OWN: &str = "finial-own";
/// And of one that a service manager made.
const MANAGERS: &str = "finial-manager";

static SOCKETS: Mutex<Sockets> =
    Mutex::new(Sockets { passed: Vec::new(), kept: None, is_handing_over: false });

struct Sockets {
    /// Passed to this program and not taken yet.
    passed: Vec<Passed>,
    /// Copies of the sockets that are listened on, if they may outlive the program.
    kept: Option<Vec<Passed>>,
    is_handing_over: bool,
}

#[derive(Debug)]
struct Passed {
    socket: OwnedFd,
    is_managers: bool,
}

/// A socket that listened already.
pub(super) struct Taken {
    pub(super) socket: OwnedFd,
    /// Whether a service manager made it: then its name in the file system is not ours to remove.
    pub(super) is_managers: bool,
}

/// Takes over the sockets that were passed to this program, and keeps those that it makes for a
/// successor. To be called once, before anything is opened.
pub fn inherit() {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let is_for_us = number("LISTEN_PID") == Some(std::process::id());
    let count = number("LISTEN_FDS").filter(|_| is_for_us).unwrap_or(0);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(Some).chain(std::iter::repeat(None));
    let passed = sys::passed_descriptors(usize::try_from(count).unwrap_or(0)).into_iter().zip(names);
    let passed = passed.map(|(socket, name)| Passed { socket, is_managers: name != Some(OWN) });
    with(|sockets| {
        sockets.passed = passed.filter(|passed| is_listening(&passed.socket)).collect();
        sockets.kept = Some(Vec::new());
    });
}

/// Whether sockets were passed to this program that it does not listen on.
pub(crate) fn has_unclaimed() -> bool {
    with(|sockets| !sockets.passed.is_empty())
}

/// Their addresses: the configuration names others. They are closed.
pub(crate) fn unclaimed() -> Vec<String> {
    let left = with(|sockets| std::mem::take(&mut sockets.passed));
    left.iter().map(|passed| address_of(&passed.socket)).collect()
}

/// The program ends and nobody follows it: once its listeners are closed, nobody listens any more.
pub fn give_up() {
    with(|sockets| sockets.kept.take());
}

/// From now on listeners that are closed leave their sockets, and their names, to a successor.
pub(crate) fn hand_over() {
    with(|sockets| sockets.is_handing_over = true);
}

/// Whether a socket that is closed now has a successor.
pub(crate) fn is_handing_over() -> bool {
    with(|sockets| sockets.is_handing_over)
}

/// Puts the sockets where a successor in this process looks for them; the variables that tell it.
pub(crate) fn pass_on() -> io::Result<Vec<(&'static str, String)>> {
    let kept = with(|sockets| sockets.kept.take()).unwrap_or_default();
    let names: Vec<&str> =
        kept.iter().map(|passed| if passed.is_managers { MANAGERS } else { OWN }).collect();
    let variables = vec![
        ("LISTEN_PID", std::process::id().to_string()),
        ("LISTEN_FDS", kept.len().to_string()),
        ("LISTEN_FDNAMES", names.join(":")),
    ];
    sys::pass_descriptors(kept.into_iter().map(|passed| passed.socket).collect())?;
    Ok(variables)
}

/// The passed socket that listens at this path.
pub(super) fn take_unix(path: &Path) -> Option<Taken> {
    let is_there = |name: &[u8]| {
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        std::path::absolute(name).ok() == std::path::absolute(path).ok()
    };
    take(|address| {
        SocketAddrUnix::try_from(address).is_ok_and(|address| address.path_bytes().is_some_and(is_there))
    })
}

/// The passed socket that listens at this address. One for all addresses of a host is one, whether it
/// was made for IPv4 or for IPv6.
pub(super) fn take_tcp(wanted: SocketAddr) -> Option<Taken> {
    take(|address| {
        SocketAddr::try_from(address).is_ok_and(|address| {
            let are_all = address.ip().is_unspecified() && wanted.ip().is_unspecified();
            address == wanted || (are_all && address.port() == wanted.port())
        })
    })
}

/// Keeps a socket that a listener was just bound to, if it may outlive the program.
pub(super) fn keep(socket: &impl AsFd, is_managers: bool) -> io::Result<()> {
    with(|sockets| {
        let Some(kept) = &mut sockets.kept else { return Ok(()) };
        kept.push(Passed { socket: socket.as_fd().try_clone_to_owned()?, is_managers });
        Ok(())
    })
}

fn take(is_wanted: impl Fn(SocketAddrAny) -> bool) -> Option<Taken> {
    with(|sockets| {
        let at =
            sockets.passed.iter().position(|passed| getsockname(&passed.socket).is_ok_and(&is_wanted))?;
        let Passed { socket, is_managers } = sockets.passed.swap_remove(at);
        Some(Taken { socket, is_managers })
    })
}

fn is_listening(socket: &OwnedFd) -> bool {
    socket_acceptconn(socket).unwrap_or(false)
}

fn address_of(socket: &OwnedFd) -> String {
    let Ok(address) = getsockname(socket) else { return "a socket without address".to_owned() };
    match SocketAddr::try_from(address.clone()) {
        Ok(address) => address.to_string(),
        Err(_) => SocketAddrUnix::try_from(address)
            .ok()
            .and_then(|address| Some(String::from_utf8_lossy(address.path_bytes()?).into_owned()))
            .unwrap_or_else(|| "a socket without a name".to_owned()),
    }
}

fn with<T>(act: impl FnOnce(&mut Sockets) -> T) -> T {
    act(&mut SOCKETS.lock().unwrap_or_else(PoisonError::into_inner))
}

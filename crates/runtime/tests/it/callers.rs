//! Callers that are not who they seem: ids that are taken over, programs and users that change, other
//! namespaces. Each round forks, so that tens of thousands take seconds.
#![expect(unsafe_code, reason = "forks, and calls the system in between")]

use std::ffi::CString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use finial_runtime::peer::{Caller, CallerError};

/// Names the socket to a test that runs as another process.
const SOCKET: &str = "FINIAL_TEST_CALLERS_SOCKET";

/// A test of this program as a command, to be run by another.
fn this_program(test: &str) -> [String; 4] {
    let program = std::env::current_exe().unwrap().display().to_string();
    [program, "--exact".to_owned(), format!("callers::{test}"), "--nocapture".to_owned()]
}

/// `cargo xtask soak` asks for more.
fn rounds() -> usize {
    std::env::var("FINIAL_PEER_ROUNDS").map_or(10_000, |rounds| rounds.parse().unwrap())
}

/// Only root may make namespaces and choose ids.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        testkit::skip("callers in other namespaces: only root can make them");
    }
    is_root
}

/// Runs a test of this program in a pid namespace of its own.
fn in_pid_namespace(test: &str, socket: &Path) -> std::process::Child {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).args(this_program(test));
    command.env(SOCKET, socket).stdout(Stdio::null()).spawn().unwrap()
}

/// A process made by `fork`, which does nothing but what its closure does with the system.
struct Forked(i32);

impl Forked {
    fn new(act: impl FnOnce()) -> Self {
        // SAFETY: the closures below call nothing but the system between `fork` and `_exit` or `exec`.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "cannot fork");
        if pid == 0 {
            act();
            // SAFETY: ends the process without running what belongs to its parent.
            unsafe { libc::_exit(0) }
        }
        Self(pid)
    }

    fn wait(self) {
        // SAFETY: a child of this process, waited for once.
        let waited = unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
        assert_eq!(waited, self.0);
    }

    fn kill(self) {
        // SAFETY: a child of this process that was not waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        self.wait();
    }
}

/// A listener, and sockets that connect to it without memory being asked for.
struct Place {
    listener: UnixListener,
    address: libc::sockaddr_un,
}

impl Place {
    fn new(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        // SAFETY: all bytes zero are an address without a name.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = u16::try_from(libc::AF_UNIX).unwrap();
        for (to, from) in address.sun_path.iter_mut().zip(path.as_os_str().as_bytes()) {
            *to = from.cast_signed();
        }
        Self { listener, address }
    }

    /// A socket that is not connected yet; whoever connects it is the caller.
    fn socket() -> OwnedFd {
        // SAFETY: makes a descriptor, which is owned from here on.
        unsafe {
            let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
            assert!(socket >= 0);
            OwnedFd::from_raw_fd(socket)
        }
    }

    fn connect(&self, socket: &OwnedFd) {
        let length = u32::try_from(size_of::<libc::sockaddr_un>()).unwrap();
        // SAFETY: the address is whole and lives as long as the call.
        unsafe { libc::connect(socket.as_raw_fd(), (&raw const self.address).cast(), length) };
    }
}

fn wait_for_a_byte(pipe: &OwnedFd) {
    let mut byte = 0_u8;
    // SAFETY: reads into a byte of this frame.
    unsafe { libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1) };
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    (read.into(), write.into())
}

#[test]
fn w03_a_process_id_that_is_taken_over_tells_nobody() {
    if is_root() {
        let directory = tempfile::tempdir().unwrap();
        let status = in_pid_namespace("ids_are_taken_over", &directory.path().join("socket")).wait().unwrap();
        assert!(status.success());
    }
}

/// The rounds of the test above, in a namespace where the next id can be chosen.
#[test]
fn ids_are_taken_over() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let place = Place::new(Path::new(&path));
    let mut taken_over = 0;
    for round in 0..rounds() {
        let socket = Place::socket();
        let (told, tell) = pipe();
        let first = Forked::new(|| {
            place.connect(&socket);
            wait_for_a_byte(&told);
        });
        let (accepted, _) = place.listener.accept().unwrap();
        let early = (round % 2 == 0).then(|| Caller::of(accepted.as_fd()).unwrap());
        let id = first.0;
        fs::File::from(tell).write_all(b".").unwrap();
        first.wait();
        fs::write("/proc/sys/kernel/ns_last_pid", (id - 1).to_string()).unwrap();
        let second = Forked::new(|| {
            // SAFETY: sleeps until it is killed.
            unsafe { libc::pause() };
        });
        taken_over += usize::from(second.0 == id);

        if let Some(early) = early {
            assert_eq!(early.process.pid(), id);
            assert!(matches!(early.verify(), Err(CallerError::Gone)), "round {round}");
            assert!(early.process.executable().is_err(), "round {round}");
        }
        assert!(matches!(Caller::of(accepted.as_fd()), Err(CallerError::Gone)), "round {round}");
        second.kill();
    }
    assert!(taken_over > rounds() * 9 / 10, "only {taken_over} ids were taken over");
}

#[test]
fn w06_what_was_found_of_a_verified_caller_was_never_another_programs() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(&directory.path().join("socket"));
    let own = std::env::current_exe().unwrap();
    let sleep = CString::new("/bin/sleep").unwrap();
    let arguments = [c"sleep".as_ptr(), c"60".as_ptr(), std::ptr::null()];
    let mut verified = 0;
    for round in 0..rounds() / 4 {
        let socket = Place::socket();
        let (told, tell) = pipe();
        let caller = Forked::new(|| {
            place.connect(&socket);
            wait_for_a_byte(&told);
            // SAFETY: strings and their list end with zero and outlive the call.
            unsafe { libc::execv(sleep.as_ptr(), arguments.as_ptr()) };
        });
        let (accepted, _) = place.listener.accept().unwrap();
        let pinned = Caller::of(accepted.as_fd()).unwrap();
        // From now on it changes when it likes.
        fs::File::from(tell).write_all(b".").unwrap();
        let found = pinned.process.read_link("exe");
        if pinned.verify().is_ok() {
            assert_eq!(found.unwrap(), own, "round {round}");
            verified += 1;
        }
        caller.kill();
    }
    println!("{verified} were verified before they changed");
}

#[test]
fn w10_a_caller_that_becomes_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(&directory.path().join("socket"));
    let socket = Place::socket();
    let ((told, tell), (done, finish)) = (pipe(), pipe());
    let caller = Forked::new(|| {
        place.connect(&socket);
        wait_for_a_byte(&told);
        // SAFETY: changes the user of this process alone, and says so.
        unsafe {
            libc::syscall(libc::SYS_setuid, 65_534);
            libc::write(finish.as_raw_fd(), c".".as_ptr().cast(), 1);
            libc::pause();
        }
    });
    let (accepted, _) = place.listener.accept().unwrap();
    let pinned = Caller::of(accepted.as_fd()).unwrap();
    pinned.verify().unwrap();

    fs::File::from(tell).write_all(b".").unwrap();
    wait_for_a_byte(&done);

    assert!(matches!(pinned.verify(), Err(CallerError::Changed)));
    caller.kill();
}

#[test]
fn w10_groups_of_a_caller_are_those_with_which_it_connected() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(&directory.path().join("socket"));
    let many: Vec<libc::gid_t> = (1000..1100).collect();
    // More than the kernel is asked for are read where all of a process stands.
    for groups in [&[][..], &[9, 7], &many] {
        let socket = Place::socket();
        let ((told, tell), (done, finish)) = (pipe(), pipe());
        let caller = Forked::new(|| {
            set_groups(groups);
            place.connect(&socket);
            wait_for_a_byte(&told);
            set_groups(&[3]);
            // SAFETY: says that it is done, and waits for its end.
            unsafe {
                libc::write(finish.as_raw_fd(), c".".as_ptr().cast(), 1);
                libc::pause();
            }
        });
        let (accepted, _) = place.listener.accept().unwrap();
        let pinned = Caller::of(accepted.as_fd()).unwrap();
        let groups_now = |caller: &Caller| caller.process.credentials().unwrap().groups.clone();
        let mut wanted = groups.to_vec();
        wanted.sort_unstable();
        assert_eq!(groups_now(&pinned), wanted);

        fs::File::from(tell).write_all(b".").unwrap();
        wait_for_a_byte(&done);

        let known_by_id = Caller::with_pid(pinned.process.pid()).unwrap();
        assert_eq!(groups_now(&known_by_id), [3]);
        let are_noted = groups.len() < many.len();
        assert_eq!(groups_now(&pinned), if are_noted { wanted } else { vec![3] });
        pinned.verify().unwrap();
        caller.kill();
    }
}

/// Of this process alone, which the system call is about, and no other thread.
fn set_groups(groups: &[libc::gid_t]) {
    // SAFETY: the list is valid for the call.
    unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
}

#[test]
fn w02_a_caller_that_cannot_be_seen_is_refused() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut listening = in_pid_namespace("nobody_outside_can_be_seen", &path);
    let mut socket = loop {
        match UnixStream::connect(&path) {
            Ok(socket) => break socket,
            Err(_) => assert!(listening.try_wait().unwrap().is_none(), "nobody listens"),
        }
    };
    socket.read_to_end(&mut Vec::new()).unwrap();
    assert!(listening.wait().unwrap().success());
}

/// The other half of the test above: its caller is outside.
#[test]
fn nobody_outside_can_be_seen() {
    if let Some(path) = std::env::var_os(SOCKET) {
        let (accepted, _) = UnixListener::bind(path).unwrap().accept().unwrap();
        assert!(matches!(Caller::of(accepted.as_fd()), Err(CallerError::Invisible)));
    }
}

#[test]
fn w09_root_of_a_user_namespace_is_who_made_it() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let script = "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['AT']); \
                  print(os.getuid(), flush=True); s.recv(1)";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "python3", "-c", script]).env("AT", &path);
    let mut child = command.uid(65_534).gid(65_534).stdout(Stdio::piped()).spawn().unwrap();
    let (accepted, _) = listener.accept().unwrap();

    let caller = Caller::of(accepted.as_fd()).unwrap();

    let mut seen = [0; 2];
    child.stdout.take().unwrap().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"0\n", "it takes itself for root");
    assert_eq!((caller.uid, caller.gid), (65_534, 65_534));
    caller.verify().unwrap();
    drop(accepted);
    child.wait().unwrap();
}

//! The process at the other end of a local socket, pinned so that its id cannot be taken over.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustix::fs::{Mode, OFlags, Stat};
use rustix::process::{Pid, PidfdFlags};

use crate::sys;

/// Who connected to a local socket: the process, and the user, group and program it ran as at that
/// moment. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The process, shared by all calls of the connection.
    pub process: Arc<Process>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Device and inode of its program; nothing where we may not know.
    program: Option<(u64, u64)>,
}

/// Why the process at the other end of a socket cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// It is in a pid namespace that cannot be seen from here.
    #[error("could not resolve caller information")]
    Invisible,
    /// It is gone, or another process has its id now.
    #[error("original process is no longer running")]
    Gone,
    /// It runs as another user or group, or runs another program, than when it connected.
    #[error("original process is no longer what it was")]
    Changed,
    /// The system did not answer.
    #[error("cannot read the credentials of the caller")]
    System(#[from] io::Error),
}

impl Caller {
    /// Pins the process that connected this socket. The kernel hands out a handle to it (Linux 6.5);
    /// where it does not, the process that has the id now is taken if it runs as the user and group
    /// that connected and did not change while it was looked at.
    ///
    /// # Errors
    /// See [`CallerError`]; the connection is then to be closed.
    pub fn of(socket: BorrowedFd<'_>) -> Result<Self, CallerError> {
        Self::with_credentials(socket, sys::peer_credentials(socket)?)
    }

    /// The same, where the credentials of the other end were read already.
    pub(crate) fn with_credentials(
        socket: BorrowedFd<'_>,
        credentials: sys::PeerCredentials,
    ) -> Result<Self, CallerError> {
        if credentials.pid <= 0 {
            return Err(CallerError::Invisible);
        }
        let process = match sys::peer_pidfd(socket) {
            Ok(pidfd) => Process::new(credentials.pid, pidfd),
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => by_id(credentials)?,
            Err(error) => return Err(gone(error)),
        };
        let program = program_of(&process)?;
        let sys::PeerCredentials { uid, gid, .. } = credentials;
        // Where the kernel does not tell them, `/proc` does.
        let groups = sys::peer_groups(socket).ok();
        let process =
            Process { credentials: groups.map(|groups| Credentials { uid, gid, groups }), ..process };
        Ok(Self { process: Arc::new(process), uid, gid, program })
    }

    /// Pins the process that has this id now, as the user and group it runs as: for who asks on behalf
    /// of another.
    ///
    /// # Errors
    /// See [`CallerError`].
    pub fn with_pid(pid: i32) -> Result<Self, CallerError> {
        Self::of_process(Process::open(pid).map_err(gone)?)
    }

    /// A process that did not connect, as it is now.
    ///
    /// # Errors
    /// See [`CallerError`].
    pub fn of_process(process: Process) -> Result<Self, CallerError> {
        let (uid, gid) = process.owner().map_err(gone)?;
        let program = program_of(&process)?;
        Ok(Self { process: Arc::new(process), uid, gid, program })
    }

    /// Checks that the process still is what connected. To be done after it was looked at: what was
    /// found then is true of who connected. A process that runs another program now is refused, since a
    /// child that it left behind with the socket would be taken for that program.
    ///
    /// # Errors
    /// [`CallerError::Gone`], [`CallerError::Changed`], or what the system says.
    pub fn verify(&self) -> Result<(), CallerError> {
        let stat = self.process.stat("").map_err(gone)?;
        // With this is known of both that they are of this very process.
        let program = program_of(&self.process)?;
        let owner = (stat.st_uid, stat.st_gid);
        if owner != (self.uid, self.gid) || program != self.program {
            return Err(CallerError::Changed);
        }
        Ok(())
    }
}

/// The program of a process, unless we may not know. A kernel thread or one that ends has none.
fn program_of(process: &Process) -> Result<Option<(u64, u64)>, CallerError> {
    match process.executable() {
        Ok(program) => Ok(Some(program)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => process.found(None).map_err(gone),
        Err(error) => Err(gone(error)),
    }
}

/// The process that has this id, unless it can be told to be another than the one that connected.
fn by_id(credentials: sys::PeerCredentials) -> Result<Process, CallerError> {
    let path = place_of(credentials.pid).join("stat");
    let before = start_time(&File::open(path).map_err(gone)?).map_err(gone)?;
    let process = Process::open(credentials.pid).map_err(gone)?;
    let after = process.open_file("stat").and_then(|file| start_time(&file)).map_err(gone)?;
    let Credentials { uid, gid, .. } = process.written_credentials().map_err(gone)?;
    if before != after || (uid, gid) != (credentials.uid, credentials.gid) {
        return Err(CallerError::Gone);
    }
    Ok(process)
}

/// What the system says of a process that ended.
fn gone(error: io::Error) -> CallerError {
    let ended = [libc::ESRCH, libc::ENOENT, libc::EINVAL, libc::ENODATA];
    match error.raw_os_error() {
        Some(number) if ended.contains(&number) => CallerError::Gone,
        None if error.kind() == io::ErrorKind::NotFound => CallerError::Gone,
        _ => CallerError::System(error),
    }
}

/// Reads the 22nd field of `stat`. The second is a name in brackets that may hold anything.
fn start_time(file: &File) -> io::Result<u64> {
    let text = read_small(file)?;
    let text = String::from_utf8_lossy(&text);
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_ascii_whitespace());
    let started = fields.and_then(|mut fields| fields.nth(19)).and_then(|field| field.parse().ok());
    started.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in stat"))
}

/// A process: its id, and a handle that lives as long as the process.
///
/// What is read of it is found in `/proc` by its id, and the handle is looked at after that: if the process
/// has not ended by then, nobody else can have had the id. So what is read is of this very process, or
/// reading fails, whoever has the id then.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    handle: Handle,
    credentials: Option<Credentials>,
}

/// As whom a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its supplementary groups, in ascending order.
    pub groups: Vec<u32>,
}

/// What tells whether a process has ended, and no more.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        sys::can_be_read(self.0.as_fd()).is_ok_and(|ended| !ended)
    }
}

impl Process {
    /// Pins the process with this id, which must be alive.
    ///
    /// # Errors
    /// What the system says, or `NotFound` when it ended meanwhile.
    pub fn open(pid: i32) -> io::Result<Self> {
        let id = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let id = id.ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(id, PidfdFlags::empty())?;
        let process = Self::new(pid, pidfd);
        process.found(()).map(|()| process)
    }

    /// The process whose handle was taken elsewhere, such as from a socket.
    const fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, handle: Handle(pidfd), credentials: None }
    }

    /// The process id.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// The handle.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.handle.0.as_fd()
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.handle.is_alive()
    }

    /// A handle for who wants to know that it ended, and nothing else of it.
    ///
    /// # Errors
    /// What the system says.
    pub fn handle(&self) -> io::Result<Handle> {
        self.handle.0.try_clone().map(Handle)
    }

    /// Ends when the process has. To be called within a Tokio runtime.
    pub async fn ended(&self) {
        // A handle that cannot be watched is looked at when there is something to say.
        let Ok(Handle(handle)) = self.handle() else { return std::future::pending().await };
        match sys::watched(handle) {
            Ok(handle) if handle.readable().await.is_ok() => {}
            Ok(_) | Err(_) => std::future::pending().await,
        }
    }

    /// The device and inode of the program it runs, which change when it runs another.
    ///
    /// # Errors
    /// What the system says: without the right to trace the process, `PermissionDenied`.
    pub fn executable(&self) -> io::Result<(u64, u64)> {
        let stat = self.stat("exe")?;
        self.found((stat.st_dev, stat.st_ino))
    }

    /// The effective user and group it runs as now, from the owner of its directory.
    ///
    /// # Errors
    /// What the system says.
    pub fn owner(&self) -> io::Result<(u32, u32)> {
        let stat = self.stat("")?;
        self.found((stat.st_uid, stat.st_gid))
    }

    /// As whom it runs: as whom it connected, if it is known for having connected. The kernel noted that
    /// then, once, where `status` is written anew for each who reads it, all of it; whether user and group
    /// are still the same tells [`Caller::verify`].
    ///
    /// # Errors
    /// What the system says; `InvalidData` where it is not understood.
    pub fn credentials(&self) -> io::Result<Cow<'_, Credentials>> {
        match &self.credentials {
            Some(noted) => Ok(Cow::Borrowed(noted)),
            None => self.written_credentials().map(Cow::Owned),
        }
    }

    /// As whom it runs now, as it is written in `status`.
    fn written_credentials(&self) -> io::Result<Credentials> {
        let status = self.read_file("status")?;
        Credentials::parse(&String::from_utf8_lossy(&status))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no user or group in status"))
    }

    /// Opens a file of its `/proc` directory, such as `status` or `exe`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.path(name), flags, Mode::empty())?;
        self.found(file.into())
    }

    /// Reads a small file of its `/proc` directory; what lies beyond a mebibyte is left.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        read_small(&self.open_file(name)?)
    }

    /// Reads a link of its `/proc` directory, such as `exe`.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_link(&self, name: &str) -> io::Result<PathBuf> {
        let target = rustix::fs::readlink(self.path(name), Vec::new())?;
        self.found(std::ffi::OsString::from_vec(target.into_bytes()).into())
    }

    /// Where this of it is, as long as it has not ended.
    fn path(&self, name: &str) -> PathBuf {
        let mut path = place_of(self.pid);
        path.push(name);
        path
    }

    /// What this of it is, if its id is its own still.
    fn stat(&self, name: &str) -> io::Result<Stat> {
        Ok(rustix::fs::stat(self.path(name))?)
    }

    /// What was found under its id, if that still was its own.
    fn found<T>(&self, found: T) -> io::Result<T> {
        if self.is_alive() { Ok(found) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl Credentials {
    fn parse(status: &str) -> Option<Self> {
        let values = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(line.split_ascii_whitespace())
        };
        // Real, effective, saved, file system: the effective one counts.
        let effective = |name: &str| values(name)?.nth(1)?.parse().ok();
        let groups =
            values("Groups").into_iter().flatten().map(|group| group.parse().ok()).collect::<Option<_>>();
        Some(Self { uid: effective("Uid")?, gid: effective("Gid")?, groups: groups? })
    }
}

/// Reads a file of `/proc`. Nearly all are read at once, since each reading costs as much as the whole.
fn read_small(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_PROC_FILE);
    while bytes.len() < PROC_FILE_LIMIT {
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len().max(1));
        }
        match rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(PROC_FILE_LIMIT);
    Ok(bytes)
}

/// Where in the host's `/proc` the process with this id is: in a container that may be mounted elsewhere.
fn place_of(pid: i32) -> PathBuf {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| match std::env::var_os("HOST_PROC") {
        Some(root) if !root.is_empty() => root.into(),
        _ => Path::new("/proc").to_owned(),
    });
    ROOT.join(pid.to_string())
}

/// Enough for the small files of `/proc`; a hostile name or group list cannot make them grow past it.
const PROC_FILE_LIMIT: usize = 1 << 20;

/// `status` has about 1.5 KiB.
const USUAL_PROC_FILE: usize = 4096;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_pinned_by_its_id() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();

        let caller = Caller::with_pid(pid).unwrap();

        assert_eq!((caller.process.pid(), caller.uid), (pid, rustix::process::geteuid().as_raw()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(caller.verify(), Err(CallerError::Gone)));
        assert!(matches!(Caller::with_pid(pid), Err(CallerError::Gone)));
        for never in [0, -1, i32::MAX] {
            Caller::with_pid(never).unwrap_err();
        }
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_waited_for() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        let mut ended = std::pin::pin!(process.ended());
        let at_once = tokio::time::timeout(std::time::Duration::from_millis(20), &mut ended).await;
        assert!(at_once.is_err());

        child.kill().unwrap();

        tokio::time::timeout(std::time::Duration::from_secs(10), ended).await.unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_read_until_it_ends() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();

        let process = Process::open(pid).unwrap();
        let mut status = String::new();
        process.open_file("status").unwrap().read_to_string(&mut status).unwrap();
        assert!(status.contains(&format!("Pid:\t{pid}\n")));
        assert!(process.read_link("exe").unwrap().is_absolute());
        assert!(process.is_alive());

        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!process.is_alive());
        process.open_file("status").unwrap_err();
        Process::open(pid).unwrap_err();
    }

    #[test]
    fn w01_the_caller_is_the_process_that_connected() {
        let (ours, _theirs) = UnixStream::pair().unwrap();

        let caller = Caller::of(ours.as_fd()).unwrap();

        assert_eq!(caller.process.pid(), i32::try_from(std::process::id()).unwrap());
        assert_eq!(caller.uid, rustix::process::geteuid().as_raw());
        assert_eq!(caller.gid, rustix::process::getegid().as_raw());
        let noted = caller.process.credentials().unwrap();
        assert_eq!(caller.process.owner().unwrap(), (noted.uid, noted.gid));
        assert!(matches!(&noted, Cow::Borrowed(_)));
        assert_eq!(*noted, caller.process.written_credentials().unwrap());
        caller.verify().unwrap();
        assert!(caller.process.is_alive());
        let executable = std::fs::metadata("/proc/self/exe").unwrap();
        assert_eq!(caller.process.executable().unwrap().1, std::os::unix::fs::MetadataExt::ino(&executable));
    }

    #[test]
    fn w05_without_a_handle_from_the_kernel_user_and_group_must_agree() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let credentials = sys::peer_credentials(ours.as_fd()).unwrap();

        assert_eq!(by_id(credentials).unwrap().pid(), credentials.pid);
        let other = sys::PeerCredentials { uid: credentials.uid + 1, ..credentials };
        assert!(matches!(by_id(other), Err(CallerError::Gone)));
        let nobody = sys::PeerCredentials { pid: i32::MAX, ..credentials };
        assert!(matches!(by_id(nobody), Err(CallerError::Gone)));
    }

    #[test]
    fn a_caller_that_ended_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer::tests::child_that_connects_and_ends"])
            .env(CHILD_SOCKET, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (accepted, _) = listener.accept().unwrap();
        child.wait().unwrap();

        assert!(matches!(Caller::of(accepted.as_fd()), Err(CallerError::Gone)));
    }

    #[test]
    fn w06_a_caller_that_runs_another_program_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "peer::tests::child_that_connects_and_becomes_another_program"])
            .env(CHILD_SOCKET, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let caller = Caller::of(accepted.as_fd()).unwrap();
        caller.verify().unwrap();

        accepted.write_all(b".").unwrap();
        accepted.read_to_end(&mut Vec::new()).unwrap();

        assert!(matches!(caller.verify(), Err(CallerError::Changed)));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(caller.verify(), Err(CallerError::Gone)));
    }

    /// The other half of the test above. The socket is closed when the other program begins.
    #[test]
    fn child_that_connects_and_becomes_another_program() {
        if let Some(path) = std::env::var_os(CHILD_SOCKET) {
            let mut socket = UnixStream::connect(path).unwrap();
            socket.read_exact(&mut [0]).unwrap();
            let error = Command::new("sleep").arg("60").exec();
            panic!("no other program: {error}");
        }
    }

    /// The other half of the test further above, which runs it in a process of its own.
    #[test]
    fn child_that_connects_and_ends() {
        if let Some(path) = std::env::var_os(CHILD_SOCKET) {
            UnixStream::connect(path).unwrap();
        }
    }

    #[test]
    fn the_effective_ids_count() {
        let status = "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n";

        let read = Credentials::parse(status).unwrap();

        assert_eq!(read, Credentials { uid: 2, gid: 6, groups: vec![9, 10] });
        assert_eq!(Credentials::parse("Gid:\t5\t6\t7\t8\n"), None);
    }

    #[test]
    fn x08_a_name_with_brackets_does_not_hide_the_start_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stat");
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        std::fs::write(&path, format!("7 (a) 1 2) {}", fields.join(" "))).unwrap();

        assert_eq!(start_time(&File::open(&path).unwrap()).unwrap(), 22);
    }

    const CHILD_SOCKET: &str = "FINIAL_TEST_CHILD_SOCKET";
}

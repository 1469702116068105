//! The process at the other end of a local socket, pinned so that its id cannot be taken over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};

/// A process: its id, a handle that lives as long as the process, and its `/proc` directory.
///
/// The handle is taken before the directory and looked at after it, so the directory is that of this
/// very process; what is read through it fails once the process is gone, whoever has the id then.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    directory: OwnedFd,
}

impl Process {
    /// Pins the process with this id, which must be alive.
    ///
    /// # Errors
    /// What the system says, or `NotFound` when it ended meanwhile.
    pub fn open(pid: i32) -> io::Result<Self> {
        let id = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(id, PidfdFlags::empty())?;
        Self::with_pidfd(pid, pidfd)
    }

    /// The same for a process whose handle was taken elsewhere, such as from a socket.
    ///
    /// # Errors
    /// As [`Process::open`].
    pub fn with_pidfd(pid: i32, pidfd: OwnedFd) -> io::Result<Self> {
        let path = proc_root().join(pid.to_string());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        let process = Self { pid, pidfd, directory };
        if process.is_alive() { Ok(process) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// The process id.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// The handle.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready == 0)
    }

    /// Opens a file of its `/proc` directory, such as `status` or `exe`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open_file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, name, flags, Mode::empty())?.into())
    }

    /// Reads a link of its `/proc` directory, such as `exe`.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_link(&self, name: &str) -> io::Result<PathBuf> {
        let target = rustix::fs::readlinkat(&self.directory, name, Vec::new())?;
        Ok(std::ffi::OsString::from_vec(target.into_bytes()).into())
    }
}

/// Where the host's `/proc` is: in a container it may be mounted elsewhere.
fn proc_root() -> PathBuf {
    match std::env::var_os("HOST_PROC") {
        Some(root) if !root.is_empty() => root.into(),
        _ => Path::new("/proc").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

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
}

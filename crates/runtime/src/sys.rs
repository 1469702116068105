//! The few system calls that need unsafe code, and the allocator. No other module has any.

pub(crate) mod heap;
pub(crate) mod memory;
pub(crate) mod sampler;
pub(crate) mod scheduling;

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

/// What the kernel noted about the other end of a local socket when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerCredentials {
    /// 0 where the process is in a namespace that cannot be seen from here.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Reads `SO_PEERCRED`.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
    let (found, _): (libc::ucred, _) = socket_option(socket, libc::SO_PEERCRED)?;
    Ok(PeerCredentials { pid: found.pid, uid: found.uid, gid: found.gid })
}

/// Reads `SO_PEERGROUPS`: the supplementary groups of who connected, as they were then.
///
/// # Errors
/// `ERANGE` if there are more than [`MOST_GROUPS`].
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let (groups, length): ([u32; MOST_GROUPS], _) = socket_option(socket, libc::SO_PEERGROUPS)?;
    Ok(groups.into_iter().take(length / size_of::<u32>()).collect())
}

/// More than processes have, but for a few.
const MOST_GROUPS: usize = 64;

/// Reads `SO_PEERPIDFD`: a handle to the process that connected, whoever has its id now.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (pidfd, _): (libc::c_int, _) = socket_option(socket, SO_PEERPIDFD)?;
    // SAFETY: the kernel made this descriptor for this call; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Has the runtime watch when the descriptor can be read. To be called within a Tokio runtime.
pub(crate) fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is open and owned by what is returned, which never swaps it for another.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.map_err(io::Error::from)
}

/// Has the runtime watch when the descriptor can be written to. To be called within a Tokio runtime.
pub(crate) fn watched_for_room(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as above.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::WRITABLE) }.map_err(io::Error::from)
}

/// Whether something can be read from the descriptor at this moment.
pub(crate) fn can_be_read(descriptor: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut polled, Some(&at_once))? > 0)
}

/// Reads into the part of `buffer` that is not filled, without zeroing it first.
pub(crate) fn read(descriptor: BorrowedFd<'_>, buffer: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: what is initialised stays so: the kernel writes to it and nobody else does.
    let (filled, _) = rustix::io::read(descriptor, unsafe { buffer.unfilled_mut() })?;
    let count = filled.len();
    // SAFETY: the kernel has written so many bytes.
    unsafe { buffer.assume_init(count) };
    buffer.advance(count);
    Ok(count)
}

/// The first of the descriptors that a service manager passes.
const FIRST_PASSED: libc::c_int = 3;

/// The descriptors that whoever started this program passed to it: so many from the fourth on. To be
/// called once, before anything else is opened.
pub(crate) fn passed_descriptors(count: usize) -> Vec<OwnedFd> {
    let count = libc::c_int::try_from(count).unwrap_or(0).min(MOST_PASSED);
    (FIRST_PASSED..FIRST_PASSED + count)
        .filter_map(|number| {
            // SAFETY: asks whether the number is a descriptor, and keeps children from getting it.
            let is_open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
            // SAFETY: it was opened for this process by who started it; nobody here knows it yet.
            is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}

/// More than any configuration has.
const MOST_PASSED: libc::c_int = 64;

/// Puts descriptors where the program that this one becomes expects them, from the fourth on, whatever
/// is there. Only to be followed by becoming that program: what had these numbers is gone.
pub(crate) fn pass_descriptors(descriptors: Vec<OwnedFd>) -> io::Result<()> {
    // Out of the way first, so that none is overwritten by another.
    let mut moved = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors {
        moved.push(rustix::io::fcntl_dupfd_cloexec(&descriptor, FIRST_PASSED + MOST_PASSED)?);
        // The number may be one that another is put to.
        std::mem::forget(descriptor);
    }
    for (number, descriptor) in (FIRST_PASSED..).zip(&moved) {
        // SAFETY: both are numbers of this process; what the second was is given up, as said above.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// How many seconds local time is ahead of UTC at that instant; 0 where it cannot be told.
pub(crate) fn local_offset(seconds: i64) -> i32 {
    let mut broken_down = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call, and the function is thread-safe; all-zero bytes are
    // a valid `tm`, so it may be read whatever the function did.
    let offset = unsafe {
        if libc::localtime_r(&raw const seconds, broken_down.as_mut_ptr()).is_null() {
            return 0;
        }
        broken_down.assume_init().tm_gmtoff
    };
    i32::try_from(offset).unwrap_or_default()
}

/// The value, and how many bytes of it the kernel has written. Any bit pattern of `T` must be valid.
fn socket_option<T: Copy>(socket: BorrowedFd<'_>, option: libc::c_int) -> io::Result<(T, usize)> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most `length`
    // bytes to `value`, which has room for them.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then written to; any bit pattern is valid.
    let value = unsafe { value.assume_init() };
    Ok((value, usize::try_from(length).unwrap_or_default()))
}

/// Since Linux 6.5; not in `libc` for all targets.
const SO_PEERPIDFD: libc::c_int = 77;

//! How the kernel shares processors among threads.

use std::io;
use std::mem::size_of;
use std::time::Duration;

/// Asks for turns of that length for this thread, which it is to keep its niceness with: the kernel has who wakes
/// and wants a shorter turn go before who is at work, sched_setattr(2), Linux 6.12. It changes nothing of how much
/// of a processor it gets. Threads and processes that it starts have turns of the usual length again.
pub(crate) fn ask_for_turns_of(length: Duration, niceness: i32) -> io::Result<()> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).map_err(io::Error::other)?;
    let attributes = libc::sched_attr {
        size,
        sched_policy: libc::SCHED_OTHER.cast_unsigned(),
        sched_flags: libc::SCHED_FLAG_RESET_ON_FORK.cast_unsigned().into(),
        sched_nice: niceness,
        sched_priority: 0,
        sched_runtime: u64::try_from(length.as_nanos()).map_err(io::Error::other)?,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: 0 means this thread; the kernel reads as many bytes of the attributes as they say they have.
    let asked = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if asked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

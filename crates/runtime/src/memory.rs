//! What a process does about its memory: little of it, and no secrets in what is freed.
//!
//! A program that links this crate takes memory from the kernel as it is needed rather than ahead of it.

use std::time::Duration;

pub use crate::sys::memory::Allocator;

use crate::clock::Clock;
use crate::sys;

/// How long after its start a process is taken to be at rest.
const SETTLED: Duration = Duration::from_secs(5);

/// From now on, memory is zeroed when it is freed.
///
/// For programs that hold others' private keys: encoders and sockets copy them into buffers that nobody
/// else can wipe. Needs [`Allocator`] as the global one.
pub fn zero_what_is_freed() {
    sys::memory::zero_freed();
}

/// Waits until the process has settled and then gives back the code that only its start needed, some
/// ten megabytes of the program's file. What is still in use comes back from the page cache.
pub async fn give_back_the_start(clock: &dyn Clock) {
    clock.sleep(SETTLED).await;
    if let Err(error) = sys::memory::unmap_code() {
        tracing::debug!(error = %error, "Could not give back the memory of the start");
    }
}

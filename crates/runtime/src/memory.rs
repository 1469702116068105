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

/// As long as this exists, memory is zeroed when it is freed, by whatever thread; and at its end, what the
/// calls before left on the stack is overwritten.
///
/// For steps that a secret passes through in the hands of parsers and drivers, which free their copies as
/// they are: between such steps nothing is paid for it. Needs [`Allocator`] as the global one.
#[derive(Debug)]
#[must_use = "memory is zeroed until this is dropped"]
pub struct Zeroing(());

impl Zeroing {
    /// From now on.
    pub fn begin() -> Self {
        sys::memory::zero_freed();
        Self(())
    }
}

impl Drop for Zeroing {
    fn drop(&mut self) {
        overwrite_stack();
        sys::memory::keep_freed();
    }
}

/// Overwrites what calls that returned left on the stack below the caller: ciphers and hashes work there.
#[inline(never)]
fn overwrite_stack() {
    std::hint::black_box(&mut [0_u8; 16 << 10]);
}

/// Waits until the process has settled and then gives back the code that only its start needed, some
/// ten megabytes of the program's file. What is still in use comes back from the page cache.
pub async fn give_back_the_start(clock: &dyn Clock) {
    clock.sleep(SETTLED).await;
    if let Err(error) = sys::memory::unmap_code() {
        tracing::debug!(error = %error, "Could not give back the memory of the start");
    }
}

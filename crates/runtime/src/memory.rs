//! What a process does about its memory: little of it, and no secrets in what is freed.
//!
//! A program that links this crate takes memory from the kernel as it is needed rather than ahead of it.

use std::collections::VecDeque;
use std::time::Duration;

pub use crate::sys::memory::Allocator;

use crate::clock::Clock;
use crate::sys;

/// How long after its start a process is taken to be at rest.
const SETTLED: Duration = Duration::from_secs(5);

/// How often it is looked whether it is.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// How long a process must have been at rest for that, in looks.
const AWHILE: usize = 5;

/// How much of a processor it had in that time, at most, with polls of its server and a call or two. To have
/// code back takes milliseconds, which whoever calls more often is spared.
const BUSY: Duration = Duration::from_millis(8);

/// What a look takes of a processor, at most.
const LOOK: Duration = Duration::from_micros(300);

/// The same after code was given back, when it has its own to get back.
const LOOK_ANEW: Duration = Duration::from_micros(450);

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

/// Keeps a process small that does little: once it has settled, the code that its start needed is given
/// back, and from then on what it ran as long as it is at rest. What is run again comes
/// back from the page cache. Memory that this thread freed goes with it, which the allocator keeps until it
/// is asked for more. Does not end.
///
/// Linux maps code by the run, up to hundreds of kilobytes for one function: otherwise a process has mapped
/// all that it ever did, many times what it runs.
pub async fn stay_small_at_rest(clock: &dyn Clock) {
    let code = match sys::memory::Code::own() {
        Ok(code) => code,
        Err(error) => return tracing::debug!(%error, "Cannot tell what code is mapped"),
    };
    clock.sleep(SETTLED).await;
    let mut rest = Rest::new();
    loop {
        if rest.is_worth_it(sys::memory::processor_time()) {
            sys::memory::give_back_freed();
            if let Err(error) = code.unmap() {
                tracing::debug!(%error, "Could not give back code");
            }
        }
        clock.sleep(BETWEEN_LOOKS).await;
    }
}

/// When code is given back, by how long the process has had a processor.
struct Rest {
    /// At the last looks, the oldest first.
    looks: VecDeque<Duration>,
    has_run: bool,
    has_given_back: bool,
}

impl Rest {
    /// Of a process that has started.
    const fn new() -> Self {
        Self { looks: VecDeque::new(), has_run: true, has_given_back: false }
    }

    /// Whether the process is at rest, and has run something since code was given back.
    fn is_worth_it(&mut self, used: Duration) -> bool {
        let since = |look: Option<&Duration>| look.map_or(Duration::ZERO, |then| used.saturating_sub(*then));
        let (lately, for_a_while) = (since(self.looks.back()), since(self.looks.front()));
        if self.looks.len() == AWHILE {
            self.looks.pop_front();
        }
        self.looks.push_back(used);
        self.has_run |= lately > if self.has_given_back { LOOK_ANEW } else { LOOK };
        self.has_given_back = self.has_run && for_a_while < BUSY;
        self.has_run &= !self.has_given_back;
        self.has_given_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_given_back_by_a_process_that_ran_something_and_is_at_rest() {
        let mut rest = Rest::new();
        let mut is_worth_it = |milliseconds| rest.is_worth_it(Duration::from_millis(milliseconds));

        assert!(is_worth_it(500), "what it ran at its start");
        assert!(!is_worth_it(500), "it has done nothing but look");
        assert!(is_worth_it(503), "it did a little");
        assert!(is_worth_it(506), "and again at once");
        assert!(!is_worth_it(520), "it is busy");
        for _ in 0..4 {
            assert!(!is_worth_it(521), "it was, a while ago");
        }
        assert!(is_worth_it(521), "it is at rest");
        assert!(!is_worth_it(521), "nothing since");
    }
}

//! Stacks of the threads that use the processor, taken by a signal that the kernel sends by used time.
//!
//! The handler runs wherever a thread happens to be, so it takes no lock and allocates nothing: it
//! writes into room that was made before, and what does not fit is counted. The unwinder that it calls
//! finds its tables without a lock on every C library since glibc 2.35.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// The deepest part of a stack that is kept.
const DEPTH: usize = 64;

/// Stacks that there is room for: those of two processors for a minute, and more of longer ones.
const ROOM: usize = 16 * 1024;

static ROOMS: AtomicPtr<Rooms> = AtomicPtr::new(ptr::null_mut());
static INSIDE: AtomicUsize = AtomicUsize::new(0);
static RUNNING: AtomicBool = AtomicBool::new(false);

/// Where stacks are kept.
struct Rooms {
    next: AtomicUsize,
    /// Each begins with how many addresses it has.
    stacks: Vec<[AtomicUsize; DEPTH + 1]>,
}

/// A sampling that is under way; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Sampler {
    rooms: *mut Rooms,
}

/// What was seen.
pub(crate) struct Stacks {
    /// Addresses of code, the innermost first; those of callers are where they go on.
    pub(crate) stacks: Vec<Vec<usize>>,
    /// Stacks for which there was no room.
    pub(crate) lost: usize,
}

// SAFETY: what it points to is reached by atomics alone until it is taken apart by one owner.
unsafe impl Send for Sampler {}

impl Sampler {
    /// Takes a stack each time the process has used the processor for `period` microseconds. `None` if
    /// that is being done already.
    pub(crate) fn start(period: libc::suseconds_t) -> io::Result<Option<Self>> {
        if RUNNING.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        let stacks = (0..ROOM).map(|_| [const { AtomicUsize::new(0) }; DEPTH + 1]).collect();
        let rooms = Box::into_raw(Box::new(Rooms { next: AtomicUsize::new(0), stacks }));
        let sampler = Self { rooms };
        // The unwinder sets itself up with its first use, which must not be within the handler.
        let _first = Trace::here();
        ROOMS.store(rooms, Ordering::Release);
        install()?;
        set_timer(period)?;
        Ok(Some(sampler))
    }

    /// Ends the sampling.
    pub(crate) fn stop(self) -> Stacks {
        self.silence();
        // SAFETY: no handler is at work and none can begin, so this is the only reference.
        let rooms = unsafe { &*self.rooms };
        let count = rooms.next.load(Ordering::Acquire);
        let stacks = rooms.stacks.iter().take(count).map(|stack| {
            let length = stack.first().map_or(0, |length| length.load(Ordering::Acquire));
            stack.iter().skip(1).take(length).map(|address| address.load(Ordering::Relaxed)).collect()
        });
        Stacks { stacks: stacks.collect(), lost: count.saturating_sub(ROOM) }
    }

    /// Stops the timer and waits until no handler is at work.
    fn silence(&self) {
        set_timer(0).ok();
        ROOMS.store(ptr::null_mut(), Ordering::SeqCst);
        while INSIDE.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.silence();
        // SAFETY: made by `start`, and no handler knows it any more.
        drop(unsafe { Box::from_raw(self.rooms) });
        RUNNING.store(false, Ordering::Release);
    }
}

/// A stack: its innermost addresses of code.
pub(super) struct Trace {
    addresses: [usize; DEPTH],
    length: usize,
}

impl Trace {
    /// The stack of who asks. Takes no lock, and no memory but with the first use of all.
    pub(super) fn here() -> Self {
        let mut trace = Self { addresses: [0; DEPTH], length: 0 };
        // SAFETY: `each_frame` keeps within the trace that it is given.
        unsafe { _Unwind_Backtrace(each_frame, (&raw mut trace).cast()) };
        trace
    }

    /// The innermost first.
    pub(super) fn addresses(&self) -> &[usize] {
        self.addresses.get(..self.length).unwrap_or_default()
    }
}

/// The handler stays when a sampling ends: a signal that is still on its way must not end the process.
fn install() -> io::Result<()> {
    // SAFETY: an action of zeroes is one without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_signal as extern "C" fn(c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the action is whole, and its handler does what a handler may.
    let outcome = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_timer(period: libc::suseconds_t) -> io::Result<()> {
    let every = libc::timeval { tv_sec: 0, tv_usec: period };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the timer is whole; the old one is not asked for.
    let outcome = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut()) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_signal(_: c_int) {
    // SAFETY: the place of this thread's error number, which what was interrupted may be about to read.
    let (place, before) = unsafe { (libc::__errno_location(), *libc::__errno_location()) };
    INSIDE.fetch_add(1, Ordering::SeqCst);
    // SAFETY: what is pointed to lives while a handler is inside, which the counter says.
    if let Some(rooms) = unsafe { ROOMS.load(Ordering::SeqCst).as_ref() } {
        keep(rooms);
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: as above.
    unsafe { *place = before };
}

fn keep(rooms: &Rooms) {
    let place = rooms.next.fetch_add(1, Ordering::AcqRel);
    let Some(stack) = rooms.stacks.get(place) else { return };
    let trace = Trace::here();
    for (kept, address) in stack.iter().skip(1).zip(trace.addresses()) {
        kept.store(*address, Ordering::Relaxed);
    }
    if let Some(length) = stack.first() {
        length.store(trace.length, Ordering::Release);
    }
}

extern "C" fn each_frame(context: *mut c_void, trace: *mut c_void) -> c_int {
    // SAFETY: the pointer that was given to `_Unwind_Backtrace`, which calls this while that lives.
    let trace = unsafe { &mut *trace.cast::<Trace>() };
    let mut is_interrupted = 0;
    // SAFETY: the context is the one that this function is called with.
    let address = unsafe { _Unwind_GetIPInfo(context, &raw mut is_interrupted) };
    if is_interrupted != 0 {
        // Above are the handler's own frames.
        trace.length = 0;
    }
    match trace.addresses.get_mut(trace.length) {
        Some(place) if address != 0 => {
            // A caller goes on behind its call, which may be the next function already.
            *place = if is_interrupted != 0 { address } else { address - 1 };
            trace.length += 1;
            GO_ON
        }
        _ => END,
    }
}

const GO_ON: c_int = 0;
const END: c_int = 4;

// Of the unwinder that the standard library panics by.
unsafe extern "C" {
    fn _Unwind_Backtrace(
        each: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut c_void, is_interrupted: *mut c_int) -> usize;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_where_it_is_done_and_two_do_not_sample_at_once() {
        let sampler = Sampler::start(1000).expect("a timer").expect("the only one");

        assert!(Sampler::start(1000).expect("a timer").is_none());
        let mut sum = 0_u64;
        while sampler_count() < 20 {
            sum = std::hint::black_box((0..10_000_u64).fold(sum, |sum, number| sum ^ number.rotate_left(7)));
        }
        let Stacks { stacks, lost } = sampler.stop();

        assert!(stacks.len() >= 20 && lost == 0, "{} {lost}", stacks.len());
        assert!(stacks.iter().filter(|stack| stack.len() > 3).count() > 10);
        assert!(Sampler::start(1000).expect("a timer").is_some());
    }

    fn sampler_count() -> usize {
        // SAFETY: the test's own sampling is under way.
        unsafe { ROOMS.load(Ordering::SeqCst).as_ref() }.map_or(0, |rooms| rooms.next.load(Ordering::SeqCst))
    }
}

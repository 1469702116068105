//! Where blocks of memory come from: a sample of them, with the stacks of those who took them.
//!
//! While it is off it costs a look at a flag for each block. On, a thread notes a block about each half a
//! mebibyte that it takes, at distances that chance decides, so that each byte is as likely to be of a noted
//! block as any other. A noted block stands for as many of its size as it had to be taken for one to be
//! noted; that is how Go counts, too.
//!
//! It runs within the allocator, so what it takes and gives back itself is not noted: it would wait for
//! itself.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sampler::Trace;

/// A block is noted once in so many bytes, in the mean.
pub(crate) const RATE: u32 = 512 * 1024;

/// Blocks that are noted at once, and places where any were, at most; so many blocks are some 32 GiB.
const MOST: usize = 1 << 16;

static IS_ON: AtomicBool = AtomicBool::new(false);

static NOTED: Mutex<Noted> = Mutex::new(Noted { blocks: BTreeMap::new(), sites: BTreeMap::new() });

/// How many noted blocks have an address that falls here: of nearly all that are given back there is none,
/// and they need not be looked for.
static MARKS: [AtomicU16; 1 << 14] = [const { AtomicU16::new(0) }; 1 << 14];

thread_local! {
    /// Bytes until the next block is noted.
    static LEFT: Cell<f64> = const { Cell::new(0.0) };
    /// Where chance is; 0 before the first block.
    static CHANCE: Cell<u64> = const { Cell::new(0) };
    /// This thread is at work here.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Noted {
    blocks: BTreeMap<usize, Block>,
    sites: BTreeMap<Arc<[usize]>, Site>,
}

struct Block {
    site: Arc<[usize]>,
    blocks: f64,
    bytes: f64,
}

/// What was taken at one place in the program, and given back of it. Estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Site {
    /// Blocks, and bytes.
    pub(crate) taken: (f64, f64),
    /// Of these.
    pub(crate) given_back: (f64, f64),
}

/// This thread is inside until it is dropped.
struct Inside;

impl Inside {
    /// Nothing if it is already.
    fn enter() -> Option<Self> {
        (!IS_INSIDE.replace(true)).then_some(Self)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
    }
}

/// From now on blocks are noted, as long as the program runs.
pub(crate) fn note() {
    // What the unwinder sets up with its first use stays, and is nobody's.
    let _inside = Inside::enter();
    let _first = Trace::here();
    IS_ON.store(true, Ordering::Release);
}

/// Whether blocks are noted.
pub(crate) fn is_noting() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// A block was taken.
pub(super) fn took(block: *mut u8, size: usize) {
    let left = LEFT.get() - size as f64;
    if left > 0.0 && CHANCE.get() != 0 {
        LEFT.set(left);
        return;
    }
    let is_first = CHANCE.get() == 0;
    LEFT.set(distance(block.addr()));
    if !is_first && !block.is_null() {
        keep(block.addr(), size);
    }
}

/// How many bytes later the next block is noted.
fn distance(seed: usize) -> f64 {
    // Marsaglia's xorshift: who could guess it would learn where memory is taken.
    let mut chance = CHANCE.get();
    if chance == 0 {
        chance = (seed as u64 ^ std::ptr::from_ref(&seed).addr() as u64)
            .max(1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    CHANCE.set(chance.max(1));
    let uniform = (chance >> 11) as f64 / (1_u64 << 53) as f64;
    -(1.0 - uniform).ln() * f64::from(RATE)
}

#[cold]
fn keep(address: usize, size: usize) {
    let Some(_inside) = Inside::enter() else { return };
    let trace = Trace::here();
    let size = size as f64;
    let blocks = 1.0 / (1.0 - (-size / f64::from(RATE)).exp());
    let noted = &mut *lock();
    if noted.blocks.len().max(noted.sites.len()) >= MOST || size == 0.0 {
        return;
    }
    let stack = trace.addresses();
    let site = match noted.sites.get_key_value(stack) {
        Some((site, _)) => Arc::clone(site),
        None => Arc::from(stack),
    };
    let (taken, bytes) = &mut noted.sites.entry(Arc::clone(&site)).or_default().taken;
    *taken += blocks;
    *bytes += blocks * size;
    mark(address).fetch_add(1, Ordering::Release);
    noted.blocks.insert(address, Block { site, blocks, bytes: blocks * size });
}

/// A block is about to be given back.
pub(super) fn gave_back(block: *mut u8) {
    let mark = mark(block.addr());
    if mark.load(Ordering::Acquire) > 0 {
        forget(block.addr(), mark);
    }
}

#[cold]
fn forget(address: usize, mark: &AtomicU16) {
    let Some(_inside) = Inside::enter() else { return };
    let noted = &mut *lock();
    let Some(Block { site, blocks, bytes }) = noted.blocks.remove(&address) else { return };
    mark.fetch_sub(1, Ordering::Release);
    if let Some(site) = noted.sites.get_mut(&site) {
        site.given_back.0 += blocks;
        site.given_back.1 += bytes;
    }
}

/// What is known by now: addresses of code, the innermost first, and what was taken there.
pub(crate) fn sites() -> Vec<(Vec<usize>, Site)> {
    let Some(_inside) = Inside::enter() else { return Vec::new() };
    lock().sites.iter().map(|(stack, site)| (stack.to_vec(), *site)).collect()
}

fn mark(address: usize) -> &'static AtomicU16 {
    let spread = (address as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
    MARKS.get(spread as usize).unwrap_or(&MARKS[0])
}

fn lock() -> MutexGuard<'static, Noted> {
    NOTED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc as _, Layout};

    use super::super::memory::Allocator;
    use super::*;

    fn take(size: usize) -> *mut u8 {
        // SAFETY: the size is not zero.
        unsafe { Allocator.alloc(layout(size)) }
    }

    fn give_back(block: *mut u8, size: usize) {
        // SAFETY: it was taken with this layout.
        unsafe { Allocator.dealloc(block, layout(size)) };
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("a layout")
    }

    /// Bytes that are held, by an estimate.
    fn held() -> f64 {
        sites().iter().map(|(_, site)| site.taken.1 - site.given_back.1).sum()
    }

    #[test]
    fn what_is_taken_is_seen_and_what_is_given_back_is_not_held() {
        const SMALL: usize = 1000;
        const LARGE: usize = 40_000_000;
        note();
        let before = held();

        let many: Vec<_> = (0..400_000).map(|_| take(SMALL)).collect();
        let large = take(LARGE);
        // SAFETY: the block has this layout, and is as large as before then.
        let large = unsafe { Allocator.realloc(large, layout(LARGE), 2 * LARGE) };
        let all = held() - before;
        many.into_iter().for_each(|block| give_back(block, SMALL));
        let without_many = held() - before;
        give_back(large, 2 * LARGE);

        // From some 760 blocks that were noted: four in ten thousand times it is further off.
        assert!((all - 480e6).abs() < 50e6, "{all}");
        assert!((without_many - 80e6).abs() < 1e6, "{without_many}");
        assert!((held() - before).abs() < 1e6);
        assert!(sites().iter().any(|(stack, _)| stack.len() > 3));
    }
}

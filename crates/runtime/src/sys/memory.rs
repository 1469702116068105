//! The allocator's and the loader's side of memory.

use std::alloc::{GlobalAlloc, Layout};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mimalloc::MiMalloc;

/// How many want freed memory zeroed.
static ZERO_FREED: AtomicUsize = AtomicUsize::new(0);

/// How many blocks were taken and given back. Threads count in different places, so that they do not
/// wait for each other.
static COUNTS: [Counts; 16] = [const { Counts { taken: AtomicU64::new(0), freed: AtomicU64::new(0) } }; 16];

#[repr(align(128))]
struct Counts {
    taken: AtomicU64,
    freed: AtomicU64,
}

impl Counts {
    /// Those of this thread, which it may share with few.
    fn own() -> &'static Self {
        thread_local! {
            static HERE: u8 = const { 0 };
        }
        // Where a thread keeps its own variables tells threads apart, and needs nothing set up.
        let place = HERE.with(|here| ptr::from_ref(here).addr());
        let spread = (place >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        COUNTS.get(spread).unwrap_or(&COUNTS[0])
    }
}

/// How many blocks were taken from the allocator and given back since the program started; `None` if
/// it uses another one.
pub(crate) fn blocks() -> Option<(u64, u64)> {
    let sum = |of: fn(&Counts) -> &AtomicU64| -> u64 {
        COUNTS.iter().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
    };
    // In this order, so that no block counts as given back that was not taken.
    let freed = sum(|counts| &counts.freed);
    let taken = sum(|counts| &counts.taken);
    (taken > 0).then_some((taken, freed))
}

/// mimalloc that counts its blocks, and zeroes what is freed while somebody wants that.
#[derive(Debug, Default)]
pub struct Allocator;

// SAFETY: every block comes from and goes back to `MiMalloc` with the layout the caller gave; what is
// done besides stays within the block.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counts::own().taken.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Counts::own().taken.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Counts::own().freed.fetch_add(1, Ordering::Relaxed);
        if ZERO_FREED.load(Ordering::Relaxed) > 0 {
            // SAFETY: the block is the caller's until it is freed and has the size of its layout.
            unsafe { wipe(block, layout.size()) };
        }
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if ZERO_FREED.load(Ordering::Relaxed) == 0 {
            // SAFETY: as the caller promises.
            return unsafe { MiMalloc.realloc(block, layout, size) };
        }
        // SAFETY: the caller promises that `size` fits a layout of this alignment and is not zero.
        let moved = unsafe { MiMalloc.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both blocks are at least that long, and a new one overlaps no other.
            unsafe {
                ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
        }
        moved
    }
}

/// Zeroes a block in a way that the compiler may not leave out.
///
/// # Safety
/// The block must be the caller's and `size` bytes long.
unsafe fn wipe(block: *mut u8, size: usize) {
    // SAFETY: as the caller promises.
    unsafe { ptr::write_bytes(block, 0, size) };
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    std::hint::black_box(block);
}

/// From here on, freed memory is zeroed, until `keep_freed` was called as often as this.
pub(crate) fn zero_freed() {
    ZERO_FREED.fetch_add(1, Ordering::Relaxed);
}

/// Takes one call of `zero_freed` back.
pub(crate) fn keep_freed() {
    ZERO_FREED.fetch_sub(1, Ordering::Relaxed);
}

/// mimalloc's option `arena_eager_commit`, whose number its Rust names leave out.
const ARENA_EAGER_COMMIT: libmimalloc_sys::mi_option_t = 4;

/// Lets the allocator take memory from the kernel when it is asked for, not ahead: threads that hold
/// little cost little. The loader calls it; by `main` the allocator has already taken its first memory.
extern "C" fn commit_on_demand() {
    // SAFETY: an option is a number that is stored; nothing else runs yet.
    unsafe { libmimalloc_sys::mi_option_set(ARENA_EAGER_COMMIT, 0) };
}

// SAFETY: what the loader calls from this section has this type; this function allocates nothing, needs
// nothing that `main` or another constructor sets up, and cannot unwind.
#[used]
#[unsafe(link_section = ".init_array.00099")]
static BEFORE_ANYTHING_IS_ALLOCATED: extern "C" fn() = commit_on_demand;

unsafe extern "C" {
    /// Where the program's first segment begins, by the linker.
    static __executable_start: u8;
    /// Where its code ends, by the linker.
    static etext: u8;
}

/// Unmaps the pages of the program's code and constants; those still used come back from the page
/// cache when they are touched.
pub(crate) fn unmap_code() -> io::Result<()> {
    let page = rustix::param::page_size();
    let start = (&raw const __executable_start).addr().next_multiple_of(page);
    let end = (&raw const etext).addr() / page * page;
    if end <= start {
        return Ok(());
    }
    let first = (&raw const __executable_start).with_addr(start).cast_mut();
    // SAFETY: these pages are mapped from the program's file without write access, constants first, then
    // code: nothing of them differs from the file, so what is dropped is read again as it was.
    unsafe { rustix::mm::madvise(first.cast(), end - start, rustix::mm::Advice::LinuxDontNeed)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_committed_on_demand_from_the_start() {
        // SAFETY: reads a number.
        assert_eq!(unsafe { libmimalloc_sys::mi_option_get(ARENA_EAGER_COMMIT) }, 0);
    }

    #[test]
    fn a_block_is_zero_after_it_was_wiped_and_its_neighbours_are_not() {
        let mut bytes = [7_u8; 12];

        // SAFETY: four bytes from the fourth on are within the array.
        unsafe { wipe(bytes.as_mut_ptr().add(4), 4) };

        assert_eq!(bytes, [7, 7, 7, 7, 0, 0, 0, 0, 7, 7, 7, 7]);
    }

    #[test]
    fn blocks_keep_what_they_hold_when_they_grow_and_shrink_while_freed_memory_is_zeroed() {
        zero_freed();
        let small = Layout::from_size_align(64, 64).expect("layout");
        let large = Layout::from_size_align(4096, 64).expect("layout");

        // SAFETY: blocks are used within their size, and resized and freed with the layout they have.
        let (grown, shrunk) = unsafe {
            let block = Allocator.alloc(small);
            block.write_bytes(7, small.size());
            let block = Allocator.realloc(block, small, large.size());
            let grown = std::slice::from_raw_parts(block, small.size()).to_vec();
            let block = Allocator.realloc(block, large, small.size());
            let shrunk = std::slice::from_raw_parts(block, small.size()).to_vec();
            Allocator.dealloc(block, small);
            (grown, shrunk)
        };

        assert_eq!(grown, [7; 64]);
        assert_eq!(shrunk, [7; 64]);
    }

    #[test]
    fn code_and_constants_are_the_same_after_they_were_unmapped() {
        let text = std::hint::black_box("constants come back");

        unmap_code().expect("unmapped");

        assert_eq!(text.split(' ').rev().collect::<Vec<_>>(), ["back", "come", "constants"]);
    }
}

//! The allocator's and the loader's side of memory.

use std::alloc::{GlobalAlloc, Layout};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, io, ptr};

use mimalloc::MiMalloc;

use super::heap;

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

/// mimalloc that counts its blocks, notes where they are taken, and zeroes what is freed, the last two while
/// somebody wants that.
#[derive(Debug, Default)]
pub struct Allocator;

/// A block that was taken; where blocks are noted, this one may be.
fn taken(block: *mut u8, size: usize) -> *mut u8 {
    if heap::is_noting() {
        heap::took(block, size);
    }
    block
}

// SAFETY: every block comes from and goes back to `MiMalloc` with the layout the caller gave; what is
// done besides stays within the block.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counts::own().taken.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        taken(unsafe { MiMalloc.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Counts::own().taken.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        taken(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Counts::own().freed.fetch_add(1, Ordering::Relaxed);
        if heap::is_noting() {
            heap::gave_back(block);
        }
        if ZERO_FREED.load(Ordering::Relaxed) > 0 {
            // SAFETY: the block is the caller's until it is freed and has the size of its layout.
            unsafe { wipe(block, layout.size()) };
        }
        // SAFETY: as the caller promises.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if ZERO_FREED.load(Ordering::Relaxed) == 0 {
            if heap::is_noting() {
                heap::gave_back(block);
            }
            // SAFETY: as the caller promises.
            return taken(unsafe { MiMalloc.realloc(block, layout, size) }, size);
        }
        // SAFETY: the caller promises that `size` fits a layout of this alignment and is not zero.
        let moved = unsafe { MiMalloc.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        let moved = taken(moved, size);
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

/// Gives back what the allocator has kept for this thread of blocks that were freed.
pub(crate) fn give_back_freed() {
    // SAFETY: what is in use stays; other threads' blocks are not touched.
    unsafe { libmimalloc_sys::mi_collect(true) };
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

/// The libraries that the program is linked with, by what their files' names begin with: they are there
/// until it ends.
const LIBRARIES: [&str; 4] = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];

/// Where code and constants of the program and its libraries are as the files have them, as addresses.
#[derive(Debug)]
pub(crate) struct Code(Vec<Range<usize>>);

impl Code {
    /// Of this process.
    pub(crate) fn own() -> io::Result<Self> {
        let page = rustix::param::page_size();
        // Of the program, constants come first, then code; what the loader relocated stands behind both.
        let first = (&raw const __executable_start).addr().next_multiple_of(page);
        let program = first..(&raw const etext).addr() / page * page;
        let maps = fs::read_to_string("/proc/self/maps")?;
        Ok(Self(std::iter::once(program).chain(maps.lines().filter_map(code_of_a_library)).collect()))
    }

    /// Unmaps their pages; those still used come back from the page cache when they are touched.
    pub(crate) fn unmap(&self) -> io::Result<()> {
        for range in self.0.iter().filter(|range| !range.is_empty()) {
            let start = (&raw const __executable_start).with_addr(range.start).cast_mut();
            // SAFETY: what is mapped of these pages is mapped from files without write access and stays
            // mapped; nothing of them differs from the files, so what is dropped is read again as it was.
            match unsafe { rustix::mm::madvise(start.cast(), range.len(), rustix::mm::Advice::LinuxDontNeed) }
            {
                // A linker may leave a page between the constants and the code of a program that is mapped
                // to nothing. The kernel passes over it, does the rest and then says so, madvise(2).
                Ok(()) | Err(rustix::io::Errno::NOMEM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Where a line of `/proc/self/maps` maps code of one of the libraries.
fn code_of_a_library(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let access = fields.next()?;
    let (_, name) = fields.nth(3)?.rsplit_once('/')?;
    if access != "r-xp" || !LIBRARIES.iter().any(|library| name.starts_with(library)) {
        return None;
    }
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

/// How long the threads of the process have had a processor, all together.
pub(crate) fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
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
        let code = Code::own().expect("read");

        code.unmap().expect("unmapped");

        assert_eq!(text.split(' ').rev().collect::<Vec<_>>(), ["back", "come", "constants"]);
        let cosine = std::hint::black_box(0.0_f64).cos();
        assert!((cosine - 1.0).abs() < f64::EPSILON, "nor are libraries: {cosine}");
    }

    #[test]
    fn pages_that_are_mapped_to_nothing_are_passed_over() {
        let mut code = Code::own().expect("read");
        code.0.push(0..rustix::param::page_size());

        code.unmap().expect("the first page of all is never mapped");
    }

    #[test]
    fn code_of_libraries_is_what_nobody_can_write() {
        let of = |access: &str, file: &str| {
            code_of_a_library(&format!("7f0058538000-7f005868e000 {access} 00026000 fe:00 39    {file}"))
        };

        assert_eq!(of("r-xp", "/usr/lib/libc.so.6"), Some(0x7f00_5853_8000..0x7f00_5868_e000));
        assert_eq!(of("r--p", "/usr/lib/libc.so.6"), None);
        assert_eq!(of("rwxp", "/usr/lib/libc.so.6"), None);
        assert_eq!(of("r-xp", "/usr/lib/libnss_files.so.2"), None, "that may go");
        assert_eq!(of("r-xp", "[vdso]"), None);
        assert_eq!(of("r-xp", ""), None);
    }
}

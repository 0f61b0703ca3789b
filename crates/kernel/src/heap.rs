//! The allocator of `netloom`: dlmalloc behind a spin lock. A plugin has one thread, so the lock is never contended. A mutex of the C
//! library takes as many instructions as the allocator behind it.
//!
//! The daemon uses the C library's heap. glibc's keeps what was freed, in a heap for each thread, unless it is told otherwise; musl's
//! does not.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, Ordering},
};

use dlmalloc::Dlmalloc;

/// A heap for `#[global_allocator]`.
#[derive(Debug)]
pub struct Heap {
    taken: AtomicBool,
    heap: UnsafeCell<Dlmalloc>,
}

// SAFETY: only the holder of the lock accesses the cell.
unsafe impl Sync for Heap {}

impl Heap {
    /// Creates a heap without memory. The first allocation gets it from the kernel.
    #[expect(clippy::new_without_default, reason = "a static needs a const function")]
    pub const fn new() -> Self {
        Self { taken: AtomicBool::new(false), heap: UnsafeCell::new(Dlmalloc::new()) }
    }

    /// Calls the allocator with the lock held.
    fn with<T>(&self, work: impl FnOnce(&mut Dlmalloc) -> T) -> T {
        while self.taken.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        // SAFETY: this thread holds the lock, and `work` is a method of dlmalloc, which does not allocate from this heap.
        let done = work(unsafe { &mut *self.heap.get() });
        self.taken.store(false, Ordering::Release);
        done
    }
}

// SAFETY: dlmalloc meets the contract of `GlobalAlloc`; this implementation adds the lock.
//
// Never inlined: thousands of call sites would each contain a copy.
unsafe impl GlobalAlloc for Heap {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller meets the same contract.
        self.with(|heap| unsafe { heap.malloc(layout.size(), layout.align()) })
    }

    #[inline(never)]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller meets the same contract.
        self.with(|heap| unsafe { heap.free(memory, layout.size(), layout.align()) });
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller meets the same contract.
        self.with(|heap| unsafe { heap.calloc(layout.size(), layout.align()) })
    }

    #[inline(never)]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller meets the same contract.
        self.with(|heap| unsafe { heap.realloc(memory, layout.size(), layout.align(), size) })
    }
}

/// Makes all threads use one heap, from which large pieces are returned to the kernel as soon as they are free.
pub fn share() {
    /// Lists of thousands of values are larger.
    #[cfg(target_env = "gnu")]
    const LARGE: i32 = 256 << 10;
    #[cfg(target_env = "gnu")]
    // SAFETY: these are numbers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Returns free memory to the kernel.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the C library's allocator takes its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

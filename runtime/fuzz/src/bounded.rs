//! An allocator that ends the process, and so fails the run, when an input takes more memory than its size explains.
//! libFuzzer's own limit of single pieces (`-malloc_limit_mb`) needs a sanitizer that stable Rust has not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What every input may take, for tables of expressions and the like.
const BASE: usize = 64 << 20;
/// What it may take for each of its own bytes.
const PER_BYTE: usize = 1 << 10;

struct Bounded;

static WATCHED: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

fn taken(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
    let limit = LIMIT.load(Ordering::Relaxed);
    if live > limit && WATCHED.swap(false, Ordering::Relaxed) {
        eprintln!("{bytes} bytes more make {live}; {limit} are all that this input may take");
        std::process::abort();
    }
}

fn given_back(bytes: usize) {
    LIVE.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: everything is passed on as it came.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: the caller's layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        taken(size);
        given_back(layout.size());
        // SAFETY: the caller's pointer and layout.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        given_back(layout.size());
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static BOUNDED: Bounded = Bounded;

/// Runs something for an input of that many bytes.
pub(crate) fn run(length: usize, target: impl FnOnce()) {
    let limit = LIVE.load(Ordering::Relaxed).saturating_add(BASE).saturating_add(PER_BYTE.saturating_mul(length));
    LIMIT.store(limit, Ordering::Relaxed);
    WATCHED.store(true, Ordering::Relaxed);
    target();
    WATCHED.store(false, Ordering::Relaxed);
}

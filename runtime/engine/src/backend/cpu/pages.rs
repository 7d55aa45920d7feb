//! Keys and values of past tokens, in pages of 16-bit floats.
//!
//! A page holds [`PAGE_TOKENS`] tokens of every layer and head. Keys lie dimension by dimension, so that a query meets
//! all keys of a page at once; values lie token by token. Memory that was never written is not there yet: the system
//! gives it when it is touched.

#![allow(unsafe_code, reason = "tasks of one stage write disjoint places of the pages")]

use std::cell::UnsafeCell;

use super::simd::Simd;
use crate::graph::{PAGE_TOKENS, Pages};

/// All pages.
pub(crate) struct Store {
    shape: Pages,
    numbers: UnsafeCell<Vec<u16>>,
}

// SAFETY: places are written and read through the unsafe functions below, whose callers keep them apart.
unsafe impl Sync for Store {}

impl Store {
    pub(crate) fn new(shape: Pages, pages: usize) -> Self {
        Self { shape, numbers: UnsafeCell::new(vec![0; shape.values() * pages]) }
    }

    /// Where the keys of a head begin; its values follow them.
    fn at(&self, page: usize, layer: usize, head: usize) -> usize {
        ((page * self.shape.layers + layer) * self.shape.heads + head) * 2 * self.head_length()
    }

    fn head_length(&self) -> usize {
        self.shape.width * PAGE_TOKENS
    }

    /// # Safety
    /// Nobody else reads or writes those numbers meanwhile.
    #[allow(clippy::mut_from_ref, reason = "the caller keeps places apart")]
    unsafe fn numbers(&self, from: usize, length: usize) -> &mut [u16] {
        // SAFETY: the vector itself never changes; the slice is made from its pointer and lies in it.
        unsafe {
            let all = &*self.numbers.get();
            assert!(from <= all.len() && length <= all.len() - from, "the place is in a page");
            std::slice::from_raw_parts_mut(all.as_ptr().cast_mut().add(from), length)
        }
    }

    /// Puts a key.
    ///
    /// # Safety
    /// Nobody reads or writes this token of this head meanwhile.
    pub(crate) unsafe fn put_key(&self, page: usize, layer: usize, head: usize, token: usize, key: &[f32]) {
        let at = self.at(page, layer, head) + token;
        for (dimension, value) in key.iter().enumerate() {
            // SAFETY: the caller's promise, for one number.
            unsafe { self.numbers(at + dimension * PAGE_TOKENS, 1)[0] = half::f16::from_f32(*value).to_bits() };
        }
    }

    /// Puts a value.
    ///
    /// # Safety
    /// Nobody reads or writes this token of this head meanwhile.
    pub(crate) unsafe fn put_value(&self, page: usize, layer: usize, head: usize, token: usize, value: &[f32]) {
        let at = self.at(page, layer, head) + self.head_length() + token * self.shape.width;
        // SAFETY: the caller's promise.
        let place = unsafe { self.numbers(at, self.shape.width) };
        place.iter_mut().zip(value).for_each(|(to, from)| *to = half::f16::from_f32(*from).to_bits());
    }

    /// Keys and values of a head.
    ///
    /// # Safety
    /// Nobody writes this head of this page meanwhile.
    pub(crate) unsafe fn head(&self, page: usize, layer: usize, head: usize) -> (&[u16], &[u16]) {
        // SAFETY: the caller's promise.
        let all: &[u16] = unsafe { self.numbers(self.at(page, layer, head), 2 * self.head_length()) };
        all.split_at(self.head_length())
    }
}

/// The keys and values of a head as 32-bit floats.
pub(crate) fn load_block(simd: Simd, keys: &[u16], values: &[u16], to_keys: &mut [f32], to_values: &mut [f32]) {
    simd.widen(keys, to_keys);
    simd.widen(values, to_values);
}

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
    numbers: Box<[UnsafeCell<u16>]>,
}

// SAFETY: places are written and read through the unsafe functions below, whose callers keep them apart.
unsafe impl Sync for Store {}

impl Store {
    pub(crate) fn new(shape: Pages, pages: usize) -> Self {
        // Made of zeros at once: memory that the system gives for them need not be touched.
        let zeros = Box::into_raw(vec![0u16; shape.values() * pages].into_boxed_slice());
        // SAFETY: a cell lies in memory as what is in it does.
        Self { shape, numbers: unsafe { Box::from_raw(zeros as *mut [UnsafeCell<u16>]) } }
    }

    /// Where the keys of a head begin; its values follow them.
    fn at(&self, page: usize, layer: usize, head: usize) -> usize {
        ((page * self.shape.layers + layer) * self.shape.heads + head) * 2 * self.head_length()
    }

    fn head_length(&self) -> usize {
        self.shape.width * PAGE_TOKENS
    }

    /// Puts a key.
    ///
    /// # Safety
    /// Nobody reads or writes this token of this head meanwhile.
    pub(crate) unsafe fn put_key(&self, page: usize, layer: usize, head: usize, token: usize, key: &[f32]) {
        let places = self.numbers[self.at(page, layer, head)..][..self.head_length()].iter().skip(token);
        for (place, value) in places.step_by(PAGE_TOKENS).zip(key) {
            // SAFETY: the caller's promise.
            unsafe { place.get().write(half::f16::from_f32(*value).to_bits()) };
        }
    }

    /// Puts a value.
    ///
    /// # Safety
    /// Nobody reads or writes this token of this head meanwhile.
    pub(crate) unsafe fn put_value(&self, page: usize, layer: usize, head: usize, token: usize, value: &[f32]) {
        let at = self.at(page, layer, head) + self.head_length() + token * self.shape.width;
        for (place, value) in self.numbers[at..][..self.shape.width].iter().zip(value) {
            // SAFETY: the caller's promise.
            unsafe { place.get().write(half::f16::from_f32(*value).to_bits()) };
        }
    }

    /// Keys and values of a head.
    ///
    /// # Safety
    /// Nobody writes this head of this page meanwhile.
    pub(crate) unsafe fn head(&self, page: usize, layer: usize, head: usize) -> (&[u16], &[u16]) {
        let all = &self.numbers[self.at(page, layer, head)..][..2 * self.head_length()];
        // SAFETY: cells lie in memory as what is in them does; that nobody writes them is the caller's promise.
        unsafe { std::slice::from_raw_parts(all.as_ptr().cast::<u16>(), all.len()) }.split_at(self.head_length())
    }
}

/// The keys and values of a head as 32-bit floats.
pub(crate) fn load_block(simd: Simd, keys: &[u16], values: &[u16], to_keys: &mut [f32], to_values: &mut [f32]) {
    simd.widen(keys, to_keys);
    simd.widen(values, to_values);
}

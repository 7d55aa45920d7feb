//! Attention: over whole texts, and over what pages hold.
//!
//! Whole texts have many queries at once, so that each lane of a vector is a query, and nothing is ever summed across
//! lanes. What is made token by token has few queries and many keys: there each lane is a key. What must hold: what a
//! query sees is summed in an order that follows from the positions alone, whoever else looks at the same time.

#![allow(unsafe_code, reason = "tasks of one stage write disjoint parts of shared buffers")]

use super::pages::load_block;
use super::run::{Run, Scratch, Shared};
use super::simd::Simd;
use crate::backend::Step;
use crate::graph::{Heads, PAGE_TOKENS};
use crate::plan::Buffer;

/// Query rows of one task: keys are brought into order once for all of them. Texts that are seen whole are many at once;
/// of those that are made, one may have to keep all threads busy.
pub(super) const QUERY_ROWS_WHOLE: usize = 64;
pub(super) const QUERY_ROWS_PAGED: usize = 16;
/// Queries that look at once at a whole text.
pub(crate) const LANES: usize = 16;
/// Keys that they look at before what they saw is weighed anew.
pub(crate) const KEYS: usize = 64;

/// How attention to pages is meant.
#[derive(Clone, Copy)]
pub(super) struct Looking {
    pub(super) heads: Heads,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    pub(super) softcap: Option<f32>,
    pub(super) layer: usize,
}

/// Where the keys and values of one head lie in the rows of a text.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    /// All rows.
    pub(crate) rows: &'a [f32],
    /// The length of one.
    pub(crate) stride: usize,
    /// Where in a row the key begins, and where the value.
    pub(crate) key: usize,
    pub(crate) value: usize,
}

/// What sixteen queries have seen so far: the largest scores, the sums of the powers of e of the distances to them, and
/// the values weighed by those, query after query.
pub(crate) struct Seen {
    pub(crate) tops: [f32; LANES],
    pub(crate) totals: [f32; LANES],
    pub(crate) scores: Box<[[f32; LANES]; KEYS]>,
    pub(crate) out: Vec<f32>,
}

impl Seen {
    pub(crate) fn new(width: usize) -> Self {
        let scores = vec![[0.0; LANES]; KEYS].into_boxed_slice().try_into().expect("it has that length");
        Self { tops: [f32::NEG_INFINITY; LANES], totals: [0.0; LANES], scores, out: vec![0.0; width * LANES] }
    }

    fn forget(&mut self) {
        self.tops = [f32::NEG_INFINITY; LANES];
        self.totals = [0.0; LANES];
        self.out.fill(0.0);
    }
}

impl Run<'_> {
    /// A task is a block of queries by one key head with all query heads that it serves.
    pub(super) fn attend(&self, scratch: &Scratch, qkv: Buffer, heads: Heads, out: Buffer, task: usize) {
        let (block, key_head) = (task / heads.key, task % heads.key);
        let (sequence, first_query, count) = self.queries[block];
        let (first_row, length) = (self.firsts[sequence], self.step.sequences[sequence].rows);
        let (simd, width, group, stride) = (self.on.simd, heads.width, heads.query / heads.key, heads.qkv());
        // SAFETY: an earlier stage wrote this.
        let rows = unsafe { scratch.values[qkv].read(first_row * stride, length * stride) };
        let key = (heads.query + key_head) * width;
        let text = Text { rows, stride, key, value: key + heads.key * width };
        let scale = 1.0 / (width as f32).sqrt();
        let mut queries = vec![[0.0; LANES]; width];
        let mut seen = Seen::new(width);
        for first in (0..count * group).step_by(LANES) {
            let lanes = LANES.min(count * group - first);
            let place = |lane: usize| (first_query + (first + lane) / group, key_head * group + (first + lane) % group);
            let from: [&[f32]; LANES] = std::array::from_fn(|lane| {
                // Lanes to spare look with the last query, and nobody asks what they saw.
                let (row, head) = place(lane.min(lanes - 1));
                &rows[row * stride + head * width..][..width]
            });
            simd.to_lanes(&from, scale, &mut queries);
            seen.forget();
            simd.look(text, &queries, &mut seen);
            for lane in 0..lanes {
                let (row, head) = place(lane);
                let at = ((first_row + row) * heads.query + head) * width;
                // SAFETY: these heads of these rows are this task's alone.
                let out = unsafe { scratch.values[out].write(at, width) };
                simd.scale(1.0 / seen.totals[lane], &seen.out[lane * width..][..width], out);
            }
        }
    }

    /// As for [`Run::attend`], of the keys and values in a sequence's pages.
    pub(super) fn paged(&self, scratch: &Scratch, q: Buffer, looking: Looking, out: Buffer, task: usize) {
        let Looking { heads, scale, window, softcap, layer } = looking;
        let (block, key_head) = (task / heads.key, task % heads.key);
        let (sequence, first_query, count) = self.queries[block];
        let first_row = self.firsts[sequence] + first_query;
        let Step { sequences, .. } = self.step;
        let position = |row: usize| sequences[sequence].past + first_query + row;
        let store = self.on.store.as_ref().expect("a graph that looks at pages has them");
        let width = heads.width;
        let mut keys = vec![0.0; width * PAGE_TOKENS];
        let mut values = vec![0.0; width * PAGE_TOKENS];
        let mut items = items(&scratch.values[out], heads, first_row, count, key_head);
        let oldest = |row: usize| window.map_or(0, |window| (position(row) + 1).saturating_sub(window));
        for index in oldest(0) / PAGE_TOKENS..=position(count - 1) / PAGE_TOKENS {
            let start = index * PAGE_TOKENS;
            // SAFETY: earlier stages wrote what is looked at; what lies behind it is masked.
            let (stored_keys, stored_values) =
                unsafe { store.head(sequences[sequence].pages[index] as usize, layer, key_head) };
            load_block(self.on.simd, stored_keys, stored_values, &mut keys, &mut values);
            // SAFETY: an earlier stage wrote this.
            let query = |item: &Item<'_>| unsafe {
                scratch.values[q].read(((first_row + item.row) * heads.query + item.head) * width, width)
            };
            let seen = |row: usize| {
                let (from, to) = (oldest(row).max(start), (position(row) + 1).min(start + PAGE_TOKENS));
                from.saturating_sub(start)..to.saturating_sub(start)
            };
            let block = Block { simd: self.on.simd, keys: &keys, values: &values, scale, softcap };
            for some in items.chunks_mut(4) {
                match some {
                    [a, b, c, d] if seen(a.row) == (0..PAGE_TOKENS) && seen(d.row) == (0..PAGE_TOKENS) => {
                        let queries = [query(a), query(b), query(c), query(d)];
                        block.show_to_four(queries, [a, b, c, d]);
                    }
                    few => few.iter_mut().for_each(|item| block.show(query(item), item, seen(item.row))),
                }
            }
        }
        items.iter_mut().for_each(Item::finish);
    }
}

/// The outputs of a block of queries for the query heads that a key head serves.
fn items(out: &Shared<f32>, heads: Heads, first_row: usize, count: usize, key_head: usize) -> Vec<Item<'_>> {
    let group = heads.query / heads.key;
    let all = (0..count).flat_map(|row| (0..group).map(move |head| (row, key_head * group + head)));
    let item = |(row, head): (usize, usize)| {
        let at = ((first_row + row) * heads.query + head) * heads.width;
        // SAFETY: these heads of these rows are this task's alone.
        let out = unsafe { out.write(at, heads.width) };
        out.fill(0.0);
        Item { row, head, top: f32::NEG_INFINITY, total: 0.0, out }
    };
    all.map(item).collect()
}

/// The attention of one query, kept up while blocks of keys go by: the largest score so far, the sum of the powers of e
/// of the distances to it, and the values weighed by those.
struct Item<'a> {
    row: usize,
    head: usize,
    top: f32,
    total: f32,
    out: &'a mut [f32],
}

impl Item<'_> {
    /// Takes scores of a block, of those keys in it that are seen, and makes them weights.
    fn weigh(&mut self, block: &Block<'_>, scores: &mut [f32; PAGE_TOKENS], seen: std::ops::Range<usize>) {
        let Block { simd, scale, softcap, .. } = *block;
        scores.iter_mut().for_each(|score| *score *= scale);
        if let Some(bound) = softcap {
            simd.softcap(bound, scores);
        }
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let top = simd.largest(self.top, scores);
        if top > self.top {
            let shrink = if self.top == f32::NEG_INFINITY { 0.0 } else { (self.top - top).exp() };
            self.out.iter_mut().for_each(|out| *out *= shrink);
            self.total *= shrink;
            self.top = top;
        }
        self.total += simd.powers(top, &mut scores[seen]);
    }

    fn finish(&mut self) {
        let by = 1.0 / self.total;
        self.out.iter_mut().for_each(|out| *out *= by);
    }
}

/// The keys and values of a page, and how they are looked at.
struct Block<'a> {
    simd: Simd,
    keys: &'a [f32],
    values: &'a [f32],
    scale: f32,
    softcap: Option<f32>,
}

impl Block<'_> {
    /// Lets a query look at a part.
    fn show(&self, query: &[f32], item: &mut Item<'_>, seen: std::ops::Range<usize>) {
        if seen.is_empty() {
            return;
        }
        let mut scores = [0.0; PAGE_TOKENS];
        self.simd.scores(query, self.keys, &mut scores);
        item.weigh(self, &mut scores, seen.clone());
        self.simd.mix(&scores[seen.clone()], &self.values[seen.start * query.len()..], item.out);
    }

    /// Lets four look at all of it, each as if it were alone.
    fn show_to_four(&self, queries: [&[f32]; 4], mut items: [&mut Item<'_>; 4]) {
        let mut scores = [[0.0; PAGE_TOKENS]; 4];
        self.simd.scores_of_four(queries, self.keys, &mut scores);
        for (item, scores) in items.iter_mut().zip(&mut scores) {
            item.weigh(self, scores, 0..PAGE_TOKENS);
        }
        self.simd.mix_for_four(&scores, self.values, items.map(|item| &mut *item.out));
    }
}

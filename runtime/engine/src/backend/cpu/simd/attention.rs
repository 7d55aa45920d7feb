//! Loops over queries, keys and values.

use super::Simd;
use super::functions::{exp, fused};
use super::vectors::{added, sum_of};
use crate::backend::cpu::attention::{KEYS, LANES, Seen, Text};
use crate::graph::PAGE_TOKENS;

impl Simd {
    /// Queries one after the other, times a factor, to one in each lane.
    pub(crate) fn to_lanes(self, from: &[&[f32]; LANES], factor: f32, to: &mut [[f32; LANES]]) {
        assert!(from.iter().all(|query| query.len() == to.len()), "queries are as wide as what they become");
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: these are only made when the machine has what the function is compiled for.
            Simd::Avx512 | Simd::Amx => unsafe { avx512_to_lanes(from, factor, to) },
            _ => plain_to_lanes(from, factor, to, 0),
        }
    }
}

#[inline(always)]
pub(super) fn plain_to_lanes(from: &[&[f32]; LANES], factor: f32, to: &mut [[f32; LANES]], first: usize) {
    for (d, to) in to.iter_mut().enumerate().skip(first) {
        (0..LANES).for_each(|lane| to[lane] = from[lane][d] * factor);
    }
}

/// A square of sixteen by sixteen is turned over by four rounds in which halves of it are dealt out like cards.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512_to_lanes(from: &[&[f32]; LANES], factor: f32, to: &mut [[f32; LANES]]) {
    use std::arch::x86_64::*;
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let whole = to.len() / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        let mut square: [__m512; LANES] = std::array::from_fn(|lane| {
            let part = &from[lane][first..first + LANES];
            // SAFETY: the part is sixteen floats; the load may be unaligned.
            _mm512_mul_ps(unsafe { _mm512_loadu_ps(part.as_ptr()) }, _mm512_set1_ps(factor))
        });
        for _ in 0..4 {
            square = std::array::from_fn(|row| {
                let (above, below) = (square[row / 2], square[row / 2 + LANES / 2]);
                _mm512_permutex2var_ps(above, if row % 2 == 0 { low } else { high }, below)
            });
        }
        for (row, to) in square.iter().zip(&mut to[first..]) {
            // SAFETY: `to` is sixteen floats; the store may be unaligned.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), *row) };
        }
    }
    plain_to_lanes(from, factor, to, whole);
}

/// Keys are taken four at a time, and queries are, so that sums stay in registers.
#[inline(always)]
pub(super) fn plain_look<const F: bool>(text: Text<'_>, queries: &[[f32; LANES]], seen: &mut Seen) {
    let width = queries.len();
    for block in text.rows.chunks(text.stride * KEYS) {
        let count = block.len() / text.stride;
        let key = |key: usize| &block[key.min(count - 1) * text.stride + text.key..][..width];
        let mut tops = seen.tops;
        for first in (0..count).step_by(4) {
            let keys = [key(first), key(first + 1), key(first + 2), key(first + 3)];
            let mut sums = [[0.0; LANES]; 4];
            for (d, query) in queries.iter().enumerate() {
                // One by one: in a loop they would not stay in registers.
                add_times::<F, LANES>(&mut sums[0], keys[0][d], query);
                add_times::<F, LANES>(&mut sums[1], keys[1][d], query);
                add_times::<F, LANES>(&mut sums[2], keys[2][d], query);
                add_times::<F, LANES>(&mut sums[3], keys[3][d], query);
            }
            for (scores, sums) in seen.scores[first..].iter_mut().zip(&sums) {
                *scores = *sums;
                for lane in 0..LANES {
                    tops[lane] = if sums[lane] > tops[lane] { sums[lane] } else { tops[lane] };
                }
            }
        }
        // What was weighed by distances to smaller scores shrinks.
        let mut shrink = [0.0; LANES];
        for lane in 0..LANES {
            shrink[lane] = exp::<F>(seen.tops[lane] - tops[lane]);
        }
        let mut totals = [0.0; LANES];
        for scores in &mut seen.scores[..count] {
            for lane in 0..LANES {
                scores[lane] = exp::<F>(scores[lane] - tops[lane]);
                totals[lane] += scores[lane];
            }
        }
        for lane in 0..LANES {
            seen.totals[lane] = fused::<F>(seen.totals[lane], shrink[lane], totals[lane]);
        }
        seen.tops = tops;
        for first in (0..LANES).step_by(4) {
            let out = &mut seen.out[first * width..][..4 * width];
            for (out, shrink) in out.chunks_exact_mut(width).zip(&shrink[first..]) {
                for out in out {
                    *out *= shrink;
                }
            }
            let values = &block[text.value..];
            let scores = &seen.scores[..count];
            let (wide, narrow) = (width / 32 * 32, width / 16 * 16);
            for from in (0..wide).step_by(32) {
                weigh::<F, 32>(scores, first, values, text.stride, width, from, out);
            }
            for from in (wide..narrow).step_by(16) {
                weigh::<F, 16>(scores, first, values, text.stride, width, from, out);
            }
            for from in narrow..width {
                weigh::<F, 1>(scores, first, values, text.stride, width, from, out);
            }
        }
    }
}

/// Adds `N` dimensions of values, from `from` on, to what four queries saw, each weighed by its score.
#[inline(always)]
fn weigh<const F: bool, const N: usize>(
    scores: &[[f32; LANES]],
    first: usize,
    values: &[f32],
    stride: usize,
    width: usize,
    from: usize,
    out: &mut [f32],
) {
    let mut sums: [[f32; N]; 4] = std::array::from_fn(|query| part_of(&out[query * width + from..]));
    for (scores, value) in scores.iter().zip(values.chunks(stride)) {
        let value = part_of::<N>(&value[from..]);
        add_times::<F, N>(&mut sums[0], scores[first], &value);
        add_times::<F, N>(&mut sums[1], scores[first + 1], &value);
        add_times::<F, N>(&mut sums[2], scores[first + 2], &value);
        add_times::<F, N>(&mut sums[3], scores[first + 3], &value);
    }
    for query in 0..4 {
        out[query * width + from..][..N].copy_from_slice(&sums[query]);
    }
}

#[inline(always)]
fn add_times<const F: bool, const N: usize>(sums: &mut [f32; N], factor: f32, of: &[f32; N]) {
    for lane in 0..N {
        sums[lane] = fused::<F>(factor, of[lane], sums[lane]);
    }
}

/// The first `N` numbers.
#[inline(always)]
fn part_of<const N: usize>(of: &[f32]) -> [f32; N] {
    *of.first_chunk().expect("the caller has that many")
}

#[inline(always)]
pub(super) fn plain_powers<const F: bool>(top: f32, scores: &mut [f32]) -> f32 {
    for x in scores.iter_mut() {
        *x = exp::<F>(*x - top);
    }
    sum_of!(scores.len(), |sum, i| sum + scores[i])
}

#[inline(always)]
pub(super) fn plain_scores<const F: bool>(query: &[f32], keys: &[f32], out: &mut [f32; PAGE_TOKENS]) {
    // Two sums for each key, so that one addition need not wait for the one before.
    let mut sums = [[0.0; PAGE_TOKENS]; 2];
    let (keys, _) = keys.as_chunks::<PAGE_TOKENS>();
    for (query, keys) in query.chunks_exact(2).zip(keys.chunks_exact(2)) {
        add_times::<F, PAGE_TOKENS>(&mut sums[0], query[0], &keys[0]);
        add_times::<F, PAGE_TOKENS>(&mut sums[1], query[1], &keys[1]);
    }
    if query.len() % 2 == 1 {
        let last = query.len() - 1;
        add_times::<F, PAGE_TOKENS>(&mut sums[0], query[last], &keys[last]);
    }
    for key in 0..PAGE_TOKENS {
        out[key] = sums[0][key] + sums[1][key];
    }
}

#[inline(always)]
pub(super) fn plain_mix<const F: bool>(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let width = out.len();
    let wide = width / 64 * 64;
    let narrow = wide + (width - wide) / 16 * 16;
    for from in (0..wide).step_by(64) {
        mix_part::<F, 64>(weights, values, out, from);
    }
    for from in (wide..narrow).step_by(16) {
        mix_part::<F, 16>(weights, values, out, from);
    }
    for from in narrow..width {
        mix_part::<F, 1>(weights, values, out, from);
    }
}

/// What four queries ask is loaded once.
#[inline(always)]
pub(super) fn plain_scores_of_four<const F: bool>(
    queries: [&[f32]; 4],
    keys: &[f32],
    out: &mut [[f32; PAGE_TOKENS]; 4],
) {
    let width = keys.len() / PAGE_TOKENS;
    let queries = queries.map(|query| &query[..width]);
    let (mut even, mut odd) = ([[0.0; PAGE_TOKENS]; 4], [[0.0; PAGE_TOKENS]; 4]);
    let (keys, _) = keys.as_chunks::<PAGE_TOKENS>();
    for (pair, keys) in keys.chunks_exact(2).enumerate() {
        add_for_four::<F>(&mut even, queries, 2 * pair, &keys[0]);
        add_for_four::<F>(&mut odd, queries, 2 * pair + 1, &keys[1]);
    }
    if width % 2 == 1 {
        add_for_four::<F>(&mut even, queries, width - 1, &keys[width - 1]);
    }
    for (out, (even, odd)) in out.iter_mut().zip(even.iter().zip(&odd)) {
        for key in 0..PAGE_TOKENS {
            out[key] = even[key] + odd[key];
        }
    }
}

/// One by one: in a loop they would not stay in registers, and a closure of this size would be a call.
#[inline(always)]
fn add_for_four<const F: bool>(
    sums: &mut [[f32; PAGE_TOKENS]; 4],
    queries: [&[f32]; 4],
    d: usize,
    keys: &[f32; PAGE_TOKENS],
) {
    add_times::<F, PAGE_TOKENS>(&mut sums[0], queries[0][d], keys);
    add_times::<F, PAGE_TOKENS>(&mut sums[1], queries[1][d], keys);
    add_times::<F, PAGE_TOKENS>(&mut sums[2], queries[2][d], keys);
    add_times::<F, PAGE_TOKENS>(&mut sums[3], queries[3][d], keys);
}

#[inline(always)]
pub(super) fn plain_mix_for_four<const F: bool>(
    weights: &[[f32; PAGE_TOKENS]; 4],
    values: &[f32],
    mut out: [&mut [f32]; 4],
) {
    let width = values.len() / PAGE_TOKENS;
    let (wide, narrow) = (width / 32 * 32, width / 16 * 16);
    for from in (0..wide).step_by(32) {
        mix_part_for_four::<F, 32>(weights, values, &mut out, from);
    }
    for from in (wide..narrow).step_by(16) {
        mix_part_for_four::<F, 16>(weights, values, &mut out, from);
    }
    for from in narrow..width {
        mix_part_for_four::<F, 1>(weights, values, &mut out, from);
    }
}

#[inline(always)]
fn mix_part_for_four<const F: bool, const N: usize>(
    weights: &[[f32; PAGE_TOKENS]; 4],
    values: &[f32],
    out: &mut [&mut [f32]; 4],
    from: usize,
) {
    let width = values.len() / PAGE_TOKENS;
    let mut sums: [[f32; N]; 4] = std::array::from_fn(|query| part_of(&out[query][from..]));
    for (key, value) in values.chunks_exact(width).enumerate() {
        let value = part_of::<N>(&value[from..]);
        add_times::<F, N>(&mut sums[0], weights[0][key], &value);
        add_times::<F, N>(&mut sums[1], weights[1][key], &value);
        add_times::<F, N>(&mut sums[2], weights[2][key], &value);
        add_times::<F, N>(&mut sums[3], weights[3][key], &value);
    }
    for query in 0..4 {
        out[query][from..][..N].copy_from_slice(&sums[query]);
    }
}

/// `N` dimensions of [`plain_mix`], from `from` on; their sums stay in registers.
#[inline(always)]
fn mix_part<const F: bool, const N: usize>(weights: &[f32], values: &[f32], out: &mut [f32], from: usize) {
    let width = out.len();
    let mut sums = [0.0; N];
    sums.copy_from_slice(&out[from..from + N]);
    for (weight, value) in weights.iter().zip(values.chunks_exact(width)) {
        for (sum, value) in sums.iter_mut().zip(&value[from..from + N]) {
            *sum = fused::<F>(*weight, *value, *sum);
        }
    }
    out[from..from + N].copy_from_slice(&sums);
}

#[inline(always)]
pub(super) fn plain_largest<const F: bool>(top: f32, x: &[f32]) -> f32 {
    let mut tops = [top; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for part in whole {
        for lane in 0..16 {
            tops[lane] = larger(tops[lane], part[lane]);
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            tops[lane] = larger(tops[lane], tops[lane + half]);
        }
    }
    let mut top = tops[0];
    for x in rest {
        top = larger(top, *x);
    }
    top
}

/// The second only where it is larger: NaN is not.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{close, numbers};
    use super::*;

    #[test]
    fn parts_of_attention_are_right_for_any_width() {
        for (level, width) in
            Simd::available().into_iter().flat_map(|level| [1, 7, 16, 80, 100, 128].map(|w| (level, w)))
        {
            let (query, keys) = (numbers(width, 1), numbers(width * PAGE_TOKENS, 2));
            let mut scores = [0.0; PAGE_TOKENS];
            level.scores(&query, &keys, &mut scores);
            for (key, score) in scores.iter().enumerate() {
                let of = |i: usize| f64::from(query[i]) * f64::from(keys[i * PAGE_TOKENS + key]);
                close(*score, (0..width).map(of).sum(), "score");
            }
            let mut out = numbers(width, 3);
            let before = out.clone();
            level.mix(&scores[..9], &keys, &mut out);
            for (i, (out, before)) in out.iter().zip(before).enumerate() {
                let more: f64 = (0..9).map(|key| f64::from(scores[key]) * f64::from(keys[key * width + i])).sum();
                close(*out, f64::from(before) + more, "mix");
            }
            let top = query.iter().copied().fold(-0.5, f32::max);
            assert_eq!(level.largest(-0.5, &query), top);
        }
    }

    #[test]
    fn four_queries_see_what_each_sees_alone() {
        for (level, width) in
            Simd::available().into_iter().flat_map(|level| [1, 7, 16, 80, 100, 128].map(|w| (level, w)))
        {
            let (all, keys) = (numbers(4 * width, 1), numbers(width * PAGE_TOKENS, 2));
            let queries: [&[f32]; 4] = std::array::from_fn(|query| &all[query * width..][..width]);
            let mut scores = [[0.0; PAGE_TOKENS]; 4];
            level.scores_of_four(queries, &keys, &mut scores);
            let (mut together, mut alone) = (numbers(4 * width, 3), numbers(4 * width, 3));
            let [a, b, c, d] = together.chunks_exact_mut(width).collect::<Vec<_>>().try_into().unwrap();
            level.mix_for_four(&scores, &keys, [a, b, c, d]);
            for (query, alone) in alone.chunks_exact_mut(width).enumerate() {
                let mut found = [0.0; PAGE_TOKENS];
                level.scores(queries[query], &keys, &mut found);
                assert_eq!(found, scores[query]);
                level.mix(&found, &keys, alone);
            }
            assert_eq!(together, alone, "{level:?}, {width}");
        }
    }

    #[test]
    fn queries_see_whole_texts_of_any_length_and_width() {
        for (width, length) in [(1, 1), (7, 3), (32, 64), (48, 65), (100, 150)] {
            let stride = 3 * width + 5;
            let (rows, all) = (numbers(stride * length, 4), numbers(LANES * width, 5));
            let from: [&[f32]; LANES] = std::array::from_fn(|lane| &all[lane * width..][..width]);
            let text = Text { rows: &rows, stride, key: 2, value: 2 * width + 3 };
            for level in Simd::available() {
                let mut queries = vec![[0.0; LANES]; width];
                level.to_lanes(&from, 0.3, &mut queries);
                let mut seen = Seen::new(width);
                level.look(text, &queries, &mut seen);
                for lane in 0..LANES {
                    let at = |row: usize, from: usize, d: usize| f64::from(rows[row * stride + from + d]);
                    let score = |row: usize| -> f64 {
                        (0..width).map(|d| at(row, text.key, d) * 0.3 * f64::from(from[lane][d])).sum()
                    };
                    let top = (0..length).map(score).fold(f64::MIN, f64::max);
                    let powers: Vec<f64> = (0..length).map(|row| (score(row) - top).exp()).collect();
                    let total: f64 = powers.iter().sum();
                    close(seen.totals[lane], total, "total");
                    for d in 0..width {
                        let mixed: f64 = powers.iter().enumerate().map(|(row, p)| p * at(row, text.value, d)).sum();
                        close(seen.out[lane * width + d] / seen.totals[lane], mixed / total, "seen");
                    }
                }
            }
        }
    }
}

//! Which vector instructions are used, and the loops over vectors: written once in plain Rust, compiled again for each
//! level.
//!
//! What must hold: all levels but the portable one exist only after the machine was asked, which is what makes calls
//! of functions compiled for them sound; all levels agree within the tolerances of the tests below, and each gives the
//! same bits for the same numbers every time. A closure that is handed to a function may stay a call, of code that is compiled
//! for no level: there a product that is added is a call of the C library's `fmaf`, and no vector is used. So numbers are
//! worked on in plain loops here, and by functions that are `inline(always)`.

#![allow(unsafe_code, reason = "vector instructions, and calls to functions compiled for them")]
#![allow(clippy::needless_range_loop, reason = "iterators take closures")]

#[cfg(target_arch = "x86_64")]
use super::amx::{self, Offer};
use super::attention::{KEYS, LANES, Seen, Text};
use super::quant::Rounded;
use crate::graph::{Activation, PAGE_TOKENS};

/// Which instructions are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Simd {
    /// What the compiler may assume of every machine.
    Portable,
    /// AVX2, FMA and F16C; made by [`Simd::available`] only.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI; made by [`Simd::available`] only.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// All of AVX-512's, and tiles of bytes ([`super::amx`]) for products of many rows, with the same bits; made by
    /// [`Simd::available`] only.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

/// Calls the build of a function for the level of this machine.
macro_rules! dispatch {
    ($level:expr, $plain:expr, $avx2:expr, $avx512:expr) => {
        match $level {
            $crate::backend::cpu::simd::Simd::Portable => $plain,
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::Avx2` is only made when the machine has what the function is compiled for.
            $crate::backend::cpu::simd::Simd::Avx2 => unsafe { $avx2 },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: these are only made when the machine has what the function is compiled for.
            $crate::backend::cpu::simd::Simd::Avx512 | $crate::backend::cpu::simd::Simd::Amx => unsafe { $avx512 },
        }
    };
}
pub(crate) use dispatch;

impl Simd {
    /// All that this machine has, the best last.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Simd::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Simd::Avx2);
                if ["f", "bw", "vl", "dq", "vnni"].into_iter().all(has_avx512) {
                    levels.push(Simd::Avx512);
                    if amx::offer() == Offer::Granted {
                        levels.push(Simd::Amx);
                    }
                }
            }
        }
        levels
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Simd::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => "avx2,fma,f16c",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 if amx::offer() == Offer::Refused => "avx512,vnni (the kernel refuses amx)",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => "avx512,vnni",
            #[cfg(target_arch = "x86_64")]
            Simd::Amx => "avx512,vnni,amx",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512(part: &str) -> bool {
    match part {
        "f" => is_x86_feature_detected!("avx512f"),
        "bw" => is_x86_feature_detected!("avx512bw"),
        "vl" => is_x86_feature_detected!("avx512vl"),
        "dq" => is_x86_feature_detected!("avx512dq"),
        _ => is_x86_feature_detected!("avx512vnni"),
    }
}

/// Whether every machine that this was built for multiplies and adds in one instruction.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Functions over vectors: a method of [`Simd`] for each, whose body is compiled for every level.
macro_rules! leveled {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $plain:ident;)*) => {
        impl Simd {$(
            $(#[$doc])*
            pub(crate) fn $name(self, $($arg: $type),*) $(-> $result)? {
                dispatch!(self, $plain::<FUSED>($($arg),*), avx2::$name($($arg),*), avx512::$name($($arg),*))
            }
        )*}
        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            use super::*;
            $(#[target_feature(enable = "avx2,fma,f16c")]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? { super::$plain::<true>($($arg),*) })*
        }
        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            use super::*;
            $(#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? { super::$plain::<true>($($arg),*) })*
        }
    };
}

leveled! {
    /// The sum of the products.
    fn dot(a: &[f32], b: &[f32]) -> f32 = plain_dot;
    /// `to += factor · from`.
    fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) = plain_add_scaled;
    /// Copies a short vector without a call: its length is a few whole registers, mostly.
    fn copy(from: &[f32], to: &mut [f32]) = plain_copy;
    /// `out = factor · x`.
    fn scale(factor: f32, x: &[f32], out: &mut [f32]) = plain_scale;
    /// Adds what is to be added to each row of products (nothing where that is empty), and applies a function.
    fn settle(lanes: usize, bias: &[f32], activation: Option<Activation>, sums: &mut [f32]) = plain_settle;
    /// Lets queries look at the keys of a text.
    fn look(text: Text<'_>, queries: &[[f32; LANES]], seen: &mut Seen) = plain_look;
    /// `out = a + b`.
    fn add(a: &[f32], b: &[f32], out: &mut [f32]) = plain_add;
    /// See [`crate::graph::Norm::Layer`].
    fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, out: &mut [f32]) = plain_layer_norm;
    /// See [`crate::graph::Norm::Rms`]; `more` is added to the scale.
    fn rms_norm(x: &[f32], gamma: &[f32], more: f32, epsilon: f32, out: &mut [f32]) = plain_rms_norm;
    /// Applies a function to each number.
    fn activate(activation: Activation, x: &mut [f32]) = plain_activate;
    /// `out = activation(gate) · up`.
    fn gate(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) = plain_gate;
    /// `bound · tanh(x / bound)` of each.
    fn softcap(bound: f32, x: &mut [f32]) = plain_softcap;
    /// Products of a query with the keys of a page, which lie dimension by dimension.
    fn scores(query: &[f32], keys: &[f32], out: &mut [f32; PAGE_TOKENS]) = plain_scores;
    /// The same for four queries at once, each to the same bits.
    fn scores_of_four(queries: [&[f32]; 4], keys: &[f32], out: &mut [[f32; PAGE_TOKENS]; 4]) = plain_scores_of_four;
    /// Replaces scores by powers of e of their distance to `top`; their sum.
    fn powers(top: f32, scores: &mut [f32]) -> f32 = plain_powers;
    /// Adds vectors, one after the other in `values`, each multiplied by its weight.
    fn mix(weights: &[f32], values: &[f32], out: &mut [f32]) = plain_mix;
    /// The same for four weighings at once, each to the same bits.
    fn mix_for_four(weights: &[[f32; PAGE_TOKENS]; 4], values: &[f32], out: [&mut [f32]; 4]) = plain_mix_for_four;
    /// The largest, at least `top`.
    fn largest(top: f32, x: &[f32]) -> f32 = plain_largest;
    /// Numbers to signed bytes, and what there is to know of each block of 32.
    fn quantize(x: &[f32], bytes: &mut [i8], blocks: &mut [Rounded]) = plain_quantize;
    /// 16-bit floats to 32-bit ones.
    fn widen(from: &[u16], to: &mut [f32]) = plain_widen;
}

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
fn plain_to_lanes(from: &[&[f32]; LANES], factor: f32, to: &mut [[f32; LANES]], first: usize) {
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

/// `a · b + c`, rounded once where `F` says that the machine does that in one instruction.
#[inline(always)]
fn fused<const F: bool>(a: f32, b: f32, c: f32) -> f32 {
    if F { a.mul_add(b, c) } else { a * b + c }
}

/// The sum of a term for each place below a count, in sixteen partial sums, so that the compiler may use vectors: the
/// expression adds the term of a place to one.
macro_rules! sum_of {
    ($count:expr, |$sum:ident, $place:ident| $more:expr) => {{
        let count = $count;
        let mut sums = [0.0f32; 16];
        let whole = count / 16 * 16;
        for start in (0..whole).step_by(16) {
            for lane in 0..16 {
                let ($sum, $place) = (sums[lane], start + lane);
                sums[lane] = $more;
            }
        }
        let mut rest = 0.0f32;
        for $place in whole..count {
            let $sum = rest;
            rest = $more;
        }
        added(sums) + rest
    }};
}

/// The sum of sixteen numbers, half by half, so that no step waits for fifteen others.
#[inline(always)]
fn added(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

#[inline(always)]
fn plain_dot<const F: bool>(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    sum_of!(a.len(), |sum, i| fused::<F>(a[i], b[i], sum))
}

#[inline(always)]
fn plain_copy<const F: bool>(from: &[f32], to: &mut [f32]) {
    let (whole, rest) = from.as_chunks::<16>();
    let (to_whole, to_rest) = to.as_chunks_mut::<16>();
    for (to, from) in to_whole.iter_mut().zip(whole) {
        *to = *from;
    }
    for (to, from) in to_rest.iter_mut().zip(rest) {
        *to = *from;
    }
}

#[inline(always)]
fn plain_scale<const F: bool>(factor: f32, x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = factor * x;
    }
}

#[inline(always)]
fn plain_settle<const F: bool>(lanes: usize, bias: &[f32], activation: Option<Activation>, sums: &mut [f32]) {
    if !bias.is_empty() {
        for row in sums.chunks_exact_mut(lanes) {
            for (sum, bias) in row.iter_mut().zip(bias) {
                *sum += bias;
            }
        }
    }
    if let Some(activation) = activation {
        plain_activate::<F>(activation, sums);
    }
}

/// Keys are taken four at a time, and queries are, so that sums stay in registers.
#[inline(always)]
fn plain_look<const F: bool>(text: Text<'_>, queries: &[[f32; LANES]], seen: &mut Seen) {
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
fn plain_add<const F: bool>(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a + b;
    }
}

#[inline(always)]
fn plain_add_scaled<const F: bool>(to: &mut [f32], factor: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = fused::<F>(factor, *from, *to);
    }
}

#[inline(always)]
fn plain_powers<const F: bool>(top: f32, scores: &mut [f32]) -> f32 {
    for x in scores.iter_mut() {
        *x = exp::<F>(*x - top);
    }
    sum_of!(scores.len(), |sum, i| sum + scores[i])
}

#[inline(always)]
fn plain_layer_norm<const F: bool>(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, out: &mut [f32]) {
    let count = x.len() as f32;
    let mean = sum_of!(x.len(), |sum, i| sum + x[i]) / count;
    let variance = sum_of!(x.len(), |sum, i| fused::<F>(x[i] - mean, x[i] - mean, sum)) / count;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for (((out, x), gamma), beta) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
        *out = fused::<F>((x - mean) * scale, *gamma, *beta);
    }
}

#[inline(always)]
fn plain_rms_norm<const F: bool>(x: &[f32], gamma: &[f32], more: f32, epsilon: f32, out: &mut [f32]) {
    let squares = sum_of!(x.len(), |sum, i| fused::<F>(x[i], x[i], sum));
    let scale = 1.0 / (squares / x.len() as f32 + epsilon).sqrt();
    for ((out, x), gamma) in out.iter_mut().zip(x).zip(gamma) {
        *out = x * scale * (gamma + more);
    }
}

#[inline(always)]
fn plain_activate<const F: bool>(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Gelu => {
            for x in x.iter_mut() {
                *x = gelu::<F>(*x);
            }
        }
        Activation::GeluTanh => {
            for x in x.iter_mut() {
                *x = gelu_tanh::<F>(*x);
            }
        }
        Activation::Silu => {
            for x in x.iter_mut() {
                *x = silu::<F>(*x);
            }
        }
    }
}

#[inline(always)]
fn plain_gate<const F: bool>(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    out.copy_from_slice(gate);
    plain_activate::<F>(activation, out);
    for (out, up) in out.iter_mut().zip(up) {
        *out *= up;
    }
}

#[inline(always)]
fn plain_softcap<const F: bool>(bound: f32, x: &mut [f32]) {
    for x in x.iter_mut() {
        *x = bound * tanh::<F>(*x / bound);
    }
}

#[inline(always)]
fn plain_scores<const F: bool>(query: &[f32], keys: &[f32], out: &mut [f32; PAGE_TOKENS]) {
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
fn plain_mix<const F: bool>(weights: &[f32], values: &[f32], out: &mut [f32]) {
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
fn plain_scores_of_four<const F: bool>(queries: [&[f32]; 4], keys: &[f32], out: &mut [[f32; PAGE_TOKENS]; 4]) {
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
fn plain_mix_for_four<const F: bool>(weights: &[[f32; PAGE_TOKENS]; 4], values: &[f32], mut out: [&mut [f32]; 4]) {
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
fn plain_largest<const F: bool>(top: f32, x: &[f32]) -> f32 {
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

#[inline(always)]
fn plain_quantize<const F: bool>(x: &[f32], bytes: &mut [i8], blocks: &mut [Rounded]) {
    for ((x, bytes), block) in x.chunks_exact(32).zip(bytes.chunks_exact_mut(32)).zip(blocks) {
        // Sizes are compared by their bits: there NaN is the largest, while a float's `max` passes it over.
        let mut tops = [0i32; 16];
        for lane in 0..16 {
            tops[lane] = size_bits(x[lane]).max(size_bits(x[lane + 16]));
        }
        let mut top = 0;
        for lane in tops {
            top = top.max(lane);
        }
        let top = f32::from_bits(top.min(INFINITY_BITS) as u32);
        let scale = top / 127.0;
        let by = if top > 0.0 { 127.0 / top } else { 0.0 };
        // Adding 1.5·2²³ rounds to a whole number, to even, and leaves it in the low bits. Where one is not finite all become
        // something or other, under an infinite scale: no product with them is finite.
        let (mut whole, mut sums) = ([0i32; 32], [0i32; 2]);
        for i in 0..32 {
            whole[i] = ((x[i] * by + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        }
        for i in 0..32 {
            bytes[i] = whole[i] as i8;
        }
        for i in 0..16 {
            sums[0] = sums[0].wrapping_add(whole[i]);
        }
        for i in 16..32 {
            sums[1] = sums[1].wrapping_add(whole[i]);
        }
        let sum = sums[0].wrapping_add(sums[1]) as f32 * scale;
        *block = Rounded { scale, sum, halves: [sums[0] as f32 * scale, sums[1] as f32 * scale] };
    }
}

const INFINITY_BITS: i32 = 0x7f80_0000;

/// The bits of a number without its sign: in the order of sizes, infinity's above all of them and NaN's above that.
#[inline(always)]
fn size_bits(x: f32) -> i32 {
    (x.to_bits() & 0x7fff_ffff) as i32
}

#[inline(always)]
fn plain_widen<const F: bool>(from: &[u16], to: &mut [f32]) {
    // Exponent and mantissa moved to their place and scaled, which makes subnormals right too; the rest is infinity
    // and NaN. (half::f16 says the same, a call for each number.)
    for (to, from) in to.iter_mut().zip(from) {
        let bits = u32::from(*from);
        let moved = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
        let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 | (bits & 0x3ff) << 13 } else { moved.to_bits() };
        *to = f32::from_bits(special | (bits & 0x8000) << 16);
    }
}

const ROUND: f32 = 12_582_912.0;

/// A polynomial, its coefficients from the highest power down. (A loop as plain as can be: an iterator's `fold` may stay a
/// call, of code for no level.)
#[inline(always)]
fn polynomial<const F: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = fused::<F>(sum, x, *coefficient);
    }
    sum
}

/// `e^x` without a branch: `2^n · e^r` with `|r| ≤ ln 2 / 2` and a polynomial for `e^r` (the minimax coefficients of
/// Cephes' `expf`). Adding 1.5·2²³ rounds to a whole number and leaves it in the low bits.
#[inline(always)]
fn exp<const F: bool>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = fused::<F>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fused::<F>(n, 2.121_944_4e-4, fused::<F>(n, -0.693_359_4, x));
    let p = polynomial::<F, 6>(r, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
    let power = (shifted.to_bits() as i32).wrapping_sub(0x4B40_0000).wrapping_add(127);
    (fused::<F>(p * r, r, r) + 1.0) * f32::from_bits((power << 23) as u32)
}

#[inline(always)]
fn tanh<const F: bool>(x: f32) -> f32 {
    // Near zero the difference below has no digits left; there x is its own tanh but for a third of its cube.
    if x.abs() < 0.02 { x - x * x * x / 3.0 } else { 1.0 - 2.0 / (exp::<F>(2.0 * x) + 1.0) }
}

#[inline(always)]
fn silu<const F: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<F>(-x))
}

#[inline(always)]
fn gelu_tanh<const F: bool>(x: f32) -> f32 {
    // x/2 · (1 + tanh(u)) = x / (1 + e^(−2u)).
    x / (1.0 + exp::<F>(-1.595_769 * (x + 0.044_715 * x * x * x)))
}

/// `x/2 · (1 + erf(x/√2))`. The error function is a quotient of polynomials to 5.3, from where on it is one: fitted to
/// the least largest error, 8e-9 before rounding.
#[inline(always)]
fn gelu<const F: bool>(x: f32) -> f32 {
    let square = x * x;
    let above = polynomial::<F, 6>(
        square,
        [4.810_066e-8, 1.275_812_6e-5, 3.206_686e-4, 9.255_984e-3, 6.587_151_6e-2, 0.797_884_5],
    );
    let below =
        polynomial::<F, 6>(square, [1.237_169_3e-6, 7.135_227e-5, 1.836_570_3e-3, 2.813_881e-2, 0.249_223_93, 1.0]);
    let erf = if square < 5.3 * 5.3 { x * above / below } else { 1f32.copysign(x) };
    fused::<F>(0.5 * x, erf, 0.5 * x)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Numbers between -1 and 1 from a fixed sequence.
    pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn close(found: f32, expected: f64, what: &str) {
        let off = (f64::from(found) - expected).abs();
        assert!(off <= 2e-6 * expected.abs().max(1.0), "{what}: {found}, not {expected}");
    }

    #[test]
    fn functions_are_near_the_exact_ones_at_every_level() {
        let x: Vec<f32> = numbers(333, 3).into_iter().map(|x| x * 12.0).chain([0.0, -30.0, 30.0, 1e-4]).collect();
        for level in Simd::available() {
            let mut gelu = x.clone();
            level.activate(Activation::Gelu, &mut gelu);
            let mut tanh = x.clone();
            level.activate(Activation::GeluTanh, &mut tanh);
            let mut silu = x.clone();
            level.activate(Activation::Silu, &mut silu);
            let mut cap = x.clone();
            level.softcap(5.0, &mut cap);
            for (i, x) in x.iter().map(|x| f64::from(*x)).enumerate() {
                use super::super::super::reference::erf;
                close(gelu[i], 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)), "gelu");
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                close(tanh[i], 0.5 * x * (1.0 + u.tanh()), "gelu tanh");
                close(silu[i], x / (1.0 + (-x).exp()), "silu");
                close(cap[i], 5.0 * (x / 5.0).tanh(), "softcap");
            }
        }
    }

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

    #[test]
    fn half_floats_widen_as_they_should() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for level in Simd::available() {
            let mut wide = vec![0.0; all.len()];
            level.widen(&all, &mut wide);
            for (bits, wide) in all.iter().zip(&wide) {
                let expected = half::f16::from_bits(*bits).to_f32();
                assert!(expected.to_bits() == wide.to_bits() || expected.is_nan() && wide.is_nan(), "{bits:x}: {wide}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_has_an_infinite_scale_at_every_level() {
        let sound = numbers(96, 9);
        for level in Simd::available() {
            let quantized = |x: &[f32]| {
                let (mut bytes, mut blocks) = (vec![0i8; 96], [Rounded::default(); 3]);
                level.quantize(x, &mut bytes, &mut blocks);
                (bytes, blocks)
            };
            let (expected, known) = quantized(&sound);
            for number in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::NEG_INFINITY] {
                for (at, others) in [(0, 0.5), (15, 0.0), (16, 0.5), (31, 0.0), (7, f32::NAN), (20, f32::INFINITY)] {
                    let mut x = sound.clone();
                    x[32..64].fill(others);
                    x[32 + at] = number;
                    let (bytes, blocks) = quantized(&x);
                    let what = format!("{number} at {at} among {others} at {level:?}: {:?}", blocks[1]);
                    assert_eq!(blocks[1].scale, f32::INFINITY, "{what}");
                    assert!(!blocks[1].sum.is_finite() && blocks[1].halves.iter().all(|x| !x.is_finite()), "{what}");
                    assert_eq!([blocks[0], blocks[2]], [known[0], known[2]], "{what}");
                    assert_eq!([&bytes[..32], &bytes[64..]], [&expected[..32], &expected[64..]], "{what}");
                }
            }
        }
    }

    #[test]
    fn quantized_numbers_are_within_half_a_step() {
        let mut x = numbers(96, 9);
        x[32..64].fill(0.0);
        for level in Simd::available() {
            let (mut bytes, mut blocks) = (vec![0i8; 96], [Rounded::default(); 3]);
            level.quantize(&x, &mut bytes, &mut blocks);
            for (i, x) in x.iter().enumerate() {
                let scale = blocks[i / 32].scale;
                assert!((f32::from(bytes[i]) * scale - x).abs() <= scale * 0.5001, "{i}");
            }
            for (block, bytes) in blocks.iter().zip(bytes.chunks(32)) {
                let sum = |part: &[i8]| part.iter().map(|byte| f32::from(*byte)).sum::<f32>() * block.scale;
                assert_eq!((block.sum, block.halves), (sum(bytes), [sum(&bytes[..16]), sum(&bytes[16..])]));
            }
        }
    }
}

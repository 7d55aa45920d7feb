//! Which vector instructions are used, and the loops over vectors: written once in plain Rust, compiled again for each
//! level.
//!
//! What must hold: all levels but the portable one exist only after the machine was asked, which is what makes calls
//! of functions compiled for them sound; all levels agree within the tolerances of the tests below, and each gives the
//! same bits for the same numbers every time.

#![allow(unsafe_code, reason = "vector instructions, and calls to functions compiled for them")]

#[cfg(target_arch = "x86_64")]
use super::amx::{self, Offer};
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

/// Functions over vectors: a method of [`Simd`] for each, whose body is compiled for every level.
macro_rules! leveled {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $plain:ident;)*) => {
        impl Simd {$(
            $(#[$doc])*
            pub(crate) fn $name(self, $($arg: $type),*) $(-> $result)? {
                dispatch!(self, $plain($($arg),*), avx2::$name($($arg),*), avx512::$name($($arg),*))
            }
        )*}
        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            use super::*;
            $(#[target_feature(enable = "avx2,fma,f16c")]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? { super::$plain($($arg),*) })*
        }
        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            use super::*;
            $(#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? { super::$plain($($arg),*) })*
        }
    };
}

leveled! {
    /// The sum of the products.
    fn dot(a: &[f32], b: &[f32]) -> f32 = plain_dot;
    /// `to += factor · from`.
    fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) = plain_add_scaled;
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
    /// Replaces scores by powers of e of their distance to `top`; their sum.
    fn powers(top: f32, scores: &mut [f32]) -> f32 = plain_powers;
    /// Adds vectors, one after the other in `values`, each multiplied by its weight.
    fn mix(weights: &[f32], values: &[f32], out: &mut [f32]) = plain_mix;
    /// The largest, at least `top`.
    fn largest(top: f32, x: &[f32]) -> f32 = plain_largest;
    /// Numbers to signed bytes, and what there is to know of each block of 32.
    fn quantize(x: &[f32], bytes: &mut [i8], blocks: &mut [Rounded]) = plain_quantize;
    /// 16-bit floats to 32-bit ones.
    fn widen(from: &[u16], to: &mut [f32]) = plain_widen;
}

/// Eight partial sums, so that the compiler may use vectors.
#[inline(always)]
fn sum_of(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let whole = count / 16 * 16;
    for start in (0..whole).step_by(16) {
        (0..16).for_each(|lane| sums[lane] += term(start + lane));
    }
    let rest: f32 = (whole..count).map(term).sum();
    halve(sums, |a, b| a + b) + rest
}

/// Sixteen numbers to one, half by half, so that no step waits for fifteen others.
#[inline(always)]
fn halve(mut lanes: [f32; 16], join: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|lane| lanes[lane] = join(lanes[lane], lanes[lane + half]));
    }
    lanes[0]
}

#[inline(always)]
fn plain_dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    sum_of(a.len(), |i| a[i] * b[i])
}

#[inline(always)]
fn plain_add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}

#[inline(always)]
fn plain_powers(top: f32, scores: &mut [f32]) -> f32 {
    scores.iter_mut().for_each(|x| *x = exp(*x - top));
    sum_of(scores.len(), |i| scores[i])
}

#[inline(always)]
fn plain_layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, out: &mut [f32]) {
    let count = x.len() as f32;
    let mean = sum_of(x.len(), |i| x[i]) / count;
    let variance = sum_of(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / count;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for (((out, x), gamma), beta) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
        *out = (x - mean) * scale * gamma + beta;
    }
}

#[inline(always)]
fn plain_rms_norm(x: &[f32], gamma: &[f32], more: f32, epsilon: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum_of(x.len(), |i| x[i] * x[i]) / x.len() as f32 + epsilon).sqrt();
    for ((out, x), gamma) in out.iter_mut().zip(x).zip(gamma) {
        *out = x * scale * (gamma + more);
    }
}

#[inline(always)]
fn plain_activate(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Gelu => {
            x.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2)))
        }
        Activation::GeluTanh => x.iter_mut().for_each(|x| *x = gelu_tanh(*x)),
        Activation::Silu => x.iter_mut().for_each(|x| *x = silu(*x)),
    }
}

#[inline(always)]
fn plain_gate(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    out.copy_from_slice(gate);
    plain_activate(activation, out);
    out.iter_mut().zip(up).for_each(|(out, up)| *out *= up);
}

#[inline(always)]
fn plain_softcap(bound: f32, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = bound * tanh(*x / bound));
}

#[inline(always)]
fn plain_scores(query: &[f32], keys: &[f32], out: &mut [f32; PAGE_TOKENS]) {
    // Two sums for each key, so that one addition need not wait for the one before.
    let mut sums = [[0.0; PAGE_TOKENS]; 2];
    for (query, keys) in query.chunks_exact(2).zip(keys.chunks_exact(2 * PAGE_TOKENS)) {
        let (even, odd) = keys.split_at(PAGE_TOKENS);
        sums[0].iter_mut().zip(even).for_each(|(sum, key)| *sum += query[0] * key);
        sums[1].iter_mut().zip(odd).for_each(|(sum, key)| *sum += query[1] * key);
    }
    if query.len() % 2 == 1 {
        let last = query.len() - 1;
        sums[0].iter_mut().zip(&keys[last * PAGE_TOKENS..]).for_each(|(sum, key)| *sum += query[last] * key);
    }
    (0..PAGE_TOKENS).for_each(|key| out[key] = sums[0][key] + sums[1][key]);
}

#[inline(always)]
fn plain_mix(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let width = out.len();
    let wide = width / 64 * 64;
    let narrow = wide + (width - wide) / 16 * 16;
    (0..wide).step_by(64).for_each(|from| mix_part::<64>(weights, values, out, from));
    (wide..narrow).step_by(16).for_each(|from| mix_part::<16>(weights, values, out, from));
    (narrow..width).for_each(|from| mix_part::<1>(weights, values, out, from));
}

/// `N` dimensions of [`plain_mix`], from `from` on; their sums stay in registers.
#[inline(always)]
fn mix_part<const N: usize>(weights: &[f32], values: &[f32], out: &mut [f32], from: usize) {
    let width = out.len();
    let mut sums = [0.0; N];
    sums.copy_from_slice(&out[from..from + N]);
    for (weight, value) in weights.iter().zip(values.chunks_exact(width)) {
        sums.iter_mut().zip(&value[from..from + N]).for_each(|(sum, value)| *sum += weight * value);
    }
    out[from..from + N].copy_from_slice(&sums);
}

#[inline(always)]
fn plain_largest(top: f32, x: &[f32]) -> f32 {
    let mut tops = [top; 16];
    let (whole, rest) = x.split_at(x.len() / 16 * 16);
    for part in whole.chunks_exact(16) {
        (0..16).for_each(|lane| tops[lane] = if part[lane] > tops[lane] { part[lane] } else { tops[lane] });
    }
    rest.iter().copied().fold(halve(tops, |a, b| if b > a { b } else { a }), f32::max)
}

#[inline(always)]
fn plain_quantize(x: &[f32], bytes: &mut [i8], blocks: &mut [Rounded]) {
    for ((x, bytes), block) in x.chunks_exact(32).zip(bytes.chunks_exact_mut(32)).zip(blocks) {
        let mut tops = [0.0f32; 16];
        (0..16).for_each(|lane| tops[lane] = x[lane].abs().max(x[lane + 16].abs()));
        let top = tops.iter().copied().fold(0.0, f32::max);
        let scale = top / 127.0;
        let by = if top > 0.0 { 127.0 / top } else { 0.0 };
        // Adding 1.5·2²³ rounds to a whole number, to even, and leaves it in the low bits. NaN and infinity become
        // something or other here; they are found where answers are read, by their scale.
        let mut whole = [0i32; 32];
        (0..32).for_each(|i| whole[i] = (x[i] * by + ROUND).to_bits() as i32 - ROUND.to_bits() as i32);
        (0..32).for_each(|i| bytes[i] = whole[i] as i8);
        let halves = [&whole[..16], &whole[16..]].map(|half| half.iter().fold(0i32, |sum, x| sum.wrapping_add(*x)));
        let sum = halves[0].wrapping_add(halves[1]) as f32 * scale;
        *block = Rounded { scale, sum, halves: halves.map(|half| half as f32 * scale) };
    }
}

#[inline(always)]
fn plain_widen(from: &[u16], to: &mut [f32]) {
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

/// `e^x` without a branch: `2^n · e^r` with `|r| ≤ ln 2 / 2` and a polynomial for `e^r` (the minimax coefficients of
/// Cephes' `expf`). Adding 1.5·2²³ rounds to a whole number and leaves it in the low bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p =
        ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let power = (shifted.to_bits() as i32).wrapping_sub(0x4B40_0000).wrapping_add(127);
    (p * r * r + r + 1.0) * f32::from_bits((power << 23) as u32)
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    // Near zero the difference below has no digits left; there x is its own tanh but for a third of its cube.
    if x.abs() < 0.02 { x - x * x * x / 3.0 } else { 1.0 - 2.0 / (exp(2.0 * x) + 1.0) }
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    // x/2 · (1 + tanh(u)) = x / (1 + e^(−2u)).
    x / (1.0 + exp(-1.595_769 * (x + 0.044_715 * x * x * x)))
}

/// The error function within 2e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let p = ((((1.061_405_4 * t - 1.453_152_1) * t + 1.421_413_8) * t - 0.284_496_72) * t + 0.254_829_6) * t;
    (1.0 - p * exp(-x * x)).copysign(x)
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

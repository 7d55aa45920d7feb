//! Loops over vectors: sums and norms, functions of each number, and numbers in other forms.

use super::functions::{ROUND, fused, gelu, gelu_tanh, silu, tanh};
use crate::backend::cpu::quant::Rounded;
use crate::graph::Activation;

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
pub(super) use sum_of;

/// The sum of sixteen numbers, half by half, so that no step waits for fifteen others.
#[inline(always)]
pub(super) fn added(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

#[inline(always)]
pub(super) fn plain_dot<const F: bool>(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    sum_of!(a.len(), |sum, i| fused::<F>(a[i], b[i], sum))
}

#[inline(always)]
pub(super) fn plain_copy<const F: bool>(from: &[f32], to: &mut [f32]) {
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
pub(super) fn plain_scale<const F: bool>(factor: f32, x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = factor * x;
    }
}

#[inline(always)]
pub(super) fn plain_settle<const F: bool>(
    lanes: usize,
    bias: &[f32],
    activation: Option<Activation>,
    sums: &mut [f32],
) {
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

#[inline(always)]
pub(super) fn plain_add<const F: bool>(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a + b;
    }
}

#[inline(always)]
pub(super) fn plain_add_scaled<const F: bool>(to: &mut [f32], factor: f32, from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = fused::<F>(factor, *from, *to);
    }
}

#[inline(always)]
pub(super) fn plain_layer_norm<const F: bool>(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, out: &mut [f32]) {
    let count = x.len() as f32;
    let mean = sum_of!(x.len(), |sum, i| sum + x[i]) / count;
    let variance = sum_of!(x.len(), |sum, i| fused::<F>(x[i] - mean, x[i] - mean, sum)) / count;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for (((out, x), gamma), beta) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
        *out = fused::<F>((x - mean) * scale, *gamma, *beta);
    }
}

#[inline(always)]
pub(super) fn plain_rms_norm<const F: bool>(x: &[f32], gamma: &[f32], more: f32, epsilon: f32, out: &mut [f32]) {
    let squares = sum_of!(x.len(), |sum, i| fused::<F>(x[i], x[i], sum));
    let scale = 1.0 / (squares / x.len() as f32 + epsilon).sqrt();
    for ((out, x), gamma) in out.iter_mut().zip(x).zip(gamma) {
        *out = x * scale * (gamma + more);
    }
}

#[inline(always)]
pub(super) fn plain_activate<const F: bool>(activation: Activation, x: &mut [f32]) {
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
pub(super) fn plain_gate<const F: bool>(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    out.copy_from_slice(gate);
    plain_activate::<F>(activation, out);
    for (out, up) in out.iter_mut().zip(up) {
        *out *= up;
    }
}

#[inline(always)]
pub(super) fn plain_softcap<const F: bool>(bound: f32, x: &mut [f32]) {
    for x in x.iter_mut() {
        *x = bound * tanh::<F>(*x / bound);
    }
}

#[inline(always)]
pub(super) fn plain_quantize<const F: bool>(x: &[f32], bytes: &mut [i8], blocks: &mut [Rounded]) {
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
            whole[i] = i32::from(whole[i] as i8);
        }
        for i in 0..16 {
            sums[0] += whole[i];
        }
        for i in 16..32 {
            sums[1] += whole[i];
        }
        let whole = sums[0] + sums[1];
        *block = Rounded { scale, sum: whole as f32 * scale, whole, half: sums[0] };
    }
}

const INFINITY_BITS: i32 = 0x7f80_0000;

/// The bits of a number without its sign: in the order of sizes, infinity's above all of them and NaN's above that.
#[inline(always)]
fn size_bits(x: f32) -> i32 {
    (x.to_bits() & 0x7fff_ffff) as i32
}

#[inline(always)]
pub(super) fn plain_widen<const F: bool>(from: &[u16], to: &mut [f32]) {
    // Exponent and mantissa moved to their place and scaled, which makes subnormals right too; the rest is infinity
    // and NaN. (half::f16 says the same, a call for each number.)
    for (to, from) in to.iter_mut().zip(from) {
        let bits = u32::from(*from);
        let moved = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
        let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 | (bits & 0x3ff) << 13 } else { moved.to_bits() };
        *to = f32::from_bits(special | (bits & 0x8000) << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Simd;
    use super::super::tests::numbers;
    use super::*;

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
                    assert!(!blocks[1].sum.is_finite(), "{what}");
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
                let sum = |part: &[i8]| part.iter().map(|byte| i32::from(*byte)).sum::<i32>();
                assert_eq!((block.whole, block.half), (sum(bytes), sum(&bytes[..16])));
                assert_eq!(block.sum, block.whole as f32 * block.scale);
            }
        }
    }
}

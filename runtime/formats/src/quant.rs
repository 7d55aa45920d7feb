//! Stored blocks to numbers and back, plainly: what every faster way is held against.
//!
//! Layouts are ggml's (`ggml-common.h`); all integers and floats are little-endian. What must hold: [`dequantize`] is
//! exact for the stored bytes; [`quantize`] is as near as its format allows by a search that is simple rather than best.

use half::{bf16, f16};

use crate::Dtype;

/// Values in a block of the K formats.
const SUPER: usize = 256;
/// Values in a part of [`Dtype::Q4K`] and [`Dtype::Q5K`], and in a block of the older formats.
const PART: usize = 32;

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The values of whole blocks. `out` must be as long as they are many.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let (values, length) = dtype.block();
    assert_eq!(dtype.bytes_of(out.len()), Some(bytes.len()), "whole blocks of {}", dtype.name());
    // Floats by arrays, of which the compiler makes vectors.
    let each = |of: fn([u8; 2]) -> f32, out: &mut [f32]| {
        bytes.as_chunks::<2>().0.iter().zip(out).for_each(|(b, out)| *out = of(*b));
    };
    match dtype {
        Dtype::F32 => {
            return bytes.as_chunks::<4>().0.iter().zip(out).for_each(|(b, out)| *out = f32::from_le_bytes(*b));
        }
        Dtype::F16 => return each(|b| f16::from_le_bytes(b).to_f32(), out),
        Dtype::Bf16 => return each(|b| bf16::from_le_bytes(b).to_f32(), out),
        _ => {}
    }
    let blocks = bytes.chunks_exact(length).zip(out.chunks_exact_mut(values));
    match dtype {
        Dtype::Q8_0 => blocks.for_each(|(b, out)| {
            let scale = half_at(b, 0);
            out.iter_mut().zip(&b[2..]).for_each(|(out, q)| *out = scale * f32::from(*q as i8));
        }),
        Dtype::Q4_0 => blocks.for_each(|(b, out)| {
            let scale = half_at(b, 0);
            for (index, q) in b[2..].iter().enumerate() {
                out[index] = scale * (f32::from(q & 15) - 8.0);
                out[index + 16] = scale * (f32::from(q >> 4) - 8.0);
            }
        }),
        Dtype::Q4K => blocks.for_each(|(b, out)| parts(b, out, &b[16..], |_, _| 0)),
        Dtype::Q5K => {
            blocks.for_each(|(b, out)| parts(b, out, &b[48..], |part, index| (b[16 + index] >> part & 1) << 4));
        }
        Dtype::Q6K => blocks.for_each(|(b, out)| six(b, out)),
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => unreachable!("done above"),
        Dtype::Other { .. } => panic!("a type whose values cannot be read is refused before"),
    }
}

/// Scale and minimum (six bits each) of one of the eight parts, packed in twelve bytes.
pub fn scale_and_min(packed: &[u8], part: usize) -> (u8, u8) {
    if part < 4 {
        return (packed[part] & 63, packed[part + 4] & 63);
    }
    let low = packed[part + 4];
    ((low & 15) | (packed[part - 4] >> 6) << 4, (low >> 4) | (packed[part] >> 6) << 4)
}

/// A block of [`Dtype::Q4K`] or [`Dtype::Q5K`]: `d · scale · q − dmin · minimum`.
fn parts(block: &[u8], out: &mut [f32], low: &[u8], fifth_bit: impl Fn(usize, usize) -> u8) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (part, out) in out.chunks_exact_mut(PART).enumerate() {
        let (scale, minimum) = scale_and_min(&block[4..16], part);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let nibbles = &low[part / 2 * PART..][..PART];
        for (index, out) in out.iter_mut().enumerate() {
            let q = (nibbles[index] >> (part % 2 * 4) & 15) | fifth_bit(part, index);
            *out = scale * f32::from(q) - minimum;
        }
    }
}

/// Value `index` of a block of [`Dtype::Q6K`], before its scale: 0 to 63.
pub fn six_bits(block: &[u8], index: usize) -> u8 {
    let (half, within) = (index / 128, index % 128);
    let (row, lane) = (within / 32, within % 32);
    let low = block[64 * half + lane + 32 * (row % 2)] >> (row / 2 * 4) & 15;
    let high = block[128 + 32 * half + lane] >> (2 * row) & 3;
    low | high << 4
}

fn six(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 208);
    for (index, out) in out.iter_mut().enumerate() {
        let scale = f32::from(block[192 + index / 16] as i8);
        *out = d * scale * (f32::from(six_bits(block, index)) - 32.0);
    }
}

/// Stores values in a format; `values` must fill whole blocks.
pub fn quantize(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let (count, length) = dtype.block();
    let total = dtype.bytes_of(values.len()).expect("the values fill whole blocks");
    let mut out = Vec::with_capacity(total);
    for block in values.chunks_exact(count) {
        let before = out.len();
        match dtype {
            Dtype::F32 => out.extend(block[0].to_le_bytes()),
            Dtype::F16 => out.extend(f16::from_f32(block[0]).to_le_bytes()),
            Dtype::Bf16 => out.extend(bf16::from_f32(block[0]).to_le_bytes()),
            Dtype::Q8_0 => to_q8_0(block, &mut out),
            Dtype::Q4_0 => to_q4_0(block, &mut out),
            Dtype::Q4K => to_parts(block, 4, &mut out),
            Dtype::Q5K => to_parts(block, 5, &mut out),
            Dtype::Q6K => to_six(block, &mut out),
            Dtype::Other { .. } => panic!("a type that cannot be written is never asked for"),
        }
        debug_assert_eq!(out.len() - before, length);
    }
    out
}

/// The value of largest magnitude, with its sign.
fn extreme(values: &[f32]) -> f32 {
    values.iter().copied().fold(0.0, |top: f32, value| if value.abs() > top.abs() { value } else { top })
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn to_q8_0(block: &[f32], out: &mut Vec<u8>) {
    let scale = extreme(block).abs() / 127.0;
    let by = inverse(scale);
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend(block.iter().map(|value| (value * by).round() as i8 as u8));
}

fn to_q4_0(block: &[f32], out: &mut Vec<u8>) {
    // The largest value becomes -8, the one end of the range that has no opposite.
    let scale = extreme(block) / -8.0;
    let by = inverse(scale);
    let q = |value: f32| ((value * by + 8.5).floor()).clamp(0.0, 15.0) as u8;
    out.extend(f16::from_f32(scale).to_le_bytes());
    out.extend((0..16).map(|index| q(block[index]) | q(block[index + 16]) << 4));
}

fn to_parts(block: &[f32], bits: u32, out: &mut Vec<u8>) {
    let top = ((1u32 << bits) - 1) as f32;
    let mut fits = [(0.0f32, 0.0f32); 8];
    for (fit, part) in fits.iter_mut().zip(block.chunks_exact(PART)) {
        let low = part.iter().copied().fold(0.0, f32::min);
        let high = part.iter().copied().fold(0.0, f32::max);
        *fit = best_fit(part, low, high, top);
    }
    let d = f16::from_f32(fits.iter().map(|fit| fit.0).fold(0.0, f32::max) / 63.0);
    let dmin = f16::from_f32(fits.iter().map(|fit| fit.1).fold(0.0, f32::max) / 63.0);
    let (by, by_min) = (inverse(d.to_f32()), inverse(dmin.to_f32()));
    let six = |value: f32| value.round().clamp(0.0, 63.0) as u8;
    let packed: Vec<(u8, u8)> = fits.iter().map(|fit| (six(fit.0 * by), six(fit.1 * by_min))).collect();
    out.extend(d.to_le_bytes());
    out.extend(dmin.to_le_bytes());
    let mut scales = [0u8; 12];
    for part in 0..4 {
        scales[part] = packed[part].0 | (packed[part + 4].0 >> 4) << 6;
        scales[part + 4] = packed[part].1 | (packed[part + 4].1 >> 4) << 6;
        scales[part + 8] = (packed[part + 4].0 & 15) | (packed[part + 4].1 & 15) << 4;
    }
    out.extend(scales);
    let mut q = [0u8; SUPER];
    for (part, (scale, minimum)) in packed.iter().enumerate() {
        let (scale, minimum) = (d.to_f32() * f32::from(*scale), dmin.to_f32() * f32::from(*minimum));
        let by = inverse(scale);
        for index in part * PART..(part + 1) * PART {
            q[index] = ((block[index] + minimum) * by).round().clamp(0.0, top) as u8;
        }
    }
    if bits == 5 {
        out.extend((0..PART).map(|lane| (0..8).fold(0, |byte, part| byte | (q[part * PART + lane] >> 4) << part)));
    }
    for pair in q.chunks_exact(2 * PART) {
        out.extend((0..PART).map(|lane| (pair[lane] & 15) | (pair[PART + lane] & 15) << 4));
    }
}

/// Scale and minimum for one part: the plain range, and a few narrower ones, the one with the least squared error.
fn best_fit(part: &[f32], low: f32, high: f32, top: f32) -> (f32, f32) {
    let mut best = (0.0, -low, f32::INFINITY);
    for step in 0..8 {
        let shrink = 1.0 - step as f32 * 0.025;
        let (low, high) = (low * shrink, high * shrink);
        let scale = (high - low) / top;
        let by = inverse(scale);
        let error = part.iter().map(|value| {
            let q = ((value - low) * by).round().clamp(0.0, top);
            (q * scale + low - value).powi(2)
        });
        let error: f32 = error.sum();
        if error < best.2 {
            best = (scale, -low, error);
        }
    }
    (best.0, best.1)
}

fn to_six(block: &[f32], out: &mut Vec<u8>) {
    let scales: Vec<f32> = block.chunks_exact(16).map(|part| extreme(part) / -32.0).collect();
    let d = f16::from_f32(extreme(&scales).abs() / 127.0);
    let by = inverse(d.to_f32());
    let scales: Vec<i8> = scales.iter().map(|scale| (scale * by).round() as i8).collect();
    let mut q = [0u8; SUPER];
    for (index, value) in block.iter().enumerate() {
        let by = inverse(d.to_f32() * f32::from(scales[index / 16]));
        q[index] = ((value * by).round() + 32.0).clamp(0.0, 63.0) as u8;
    }
    for half in q.chunks_exact(128) {
        out.extend((0..64).map(|lane| (half[lane] & 15) | (half[lane + 64] & 15) << 4));
    }
    for half in q.chunks_exact(128) {
        out.extend((0..32).map(|lane| (0..4).fold(0, |byte, row| byte | (half[lane + 32 * row] >> 4) << (2 * row))));
    }
    out.extend(scales.iter().map(|scale| *scale as u8));
    out.extend(d.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Relative root-mean-square error that a format may have on numbers spread as weights are.
    const FORMATS: [(Dtype, f32); 8] = [
        (Dtype::F32, 0.0),
        (Dtype::F16, 3e-4),
        (Dtype::Bf16, 2.5e-3),
        (Dtype::Q8_0, 6e-3),
        (Dtype::Q6K, 2.5e-2),
        (Dtype::Q5K, 4.5e-2),
        (Dtype::Q4K, 9e-2),
        (Dtype::Q4_0, 0.11),
    ];

    /// About normal: the sum of a few uniform numbers from a fixed sequence.
    fn weights(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (0..6).map(|_| next()).sum::<f32>() * 0.05).collect()
    }

    fn error(dtype: Dtype, values: &[f32]) -> f32 {
        let bytes = quantize(dtype, values);
        let mut back = vec![0.0; values.len()];
        dequantize(dtype, &bytes, &mut back);
        let off: f32 = values.iter().zip(&back).map(|(a, b)| (a - b).powi(2)).sum();
        (off / values.iter().map(|value| value.powi(2)).sum::<f32>()).sqrt()
    }

    #[test]
    fn what_is_stored_comes_back_as_near_as_the_format_allows() {
        for (dtype, bound) in FORMATS {
            let found = error(dtype, &weights(4096, 7));
            assert!(found <= bound && (bound == 0.0 || found > bound / 4.0), "{}: {found} of {bound}", dtype.name());
        }
    }

    #[test]
    fn nothing_but_zeros_stays_zeros() {
        for (dtype, _) in FORMATS {
            let mut back = vec![1.0; 512];
            dequantize(dtype, &quantize(dtype, &[0.0; 512]), &mut back);
            assert_eq!(back, [0.0; 512], "{}", dtype.name());
        }
    }

    proptest! {
        /// Storing what was read back changes (nearly) nothing more: layouts of reader and writer are the same.
        #[test]
        fn reader_and_writer_agree(seed: u64) {
            for (dtype, bound) in FORMATS {
                let mut once = vec![0.0; 512];
                dequantize(dtype, &quantize(dtype, &weights(512, seed)), &mut once);
                prop_assert!(error(dtype, &once) <= bound / 3.0 + 1e-6, "{}: {}", dtype.name(), error(dtype, &once));
            }
        }

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 210 * 2)) {
            for (dtype, _) in FORMATS {
                let (values, length) = dtype.block();
                let blocks = bytes.len() / length;
                dequantize(dtype, &bytes[..blocks * length], &mut vec![0.0; blocks * values]);
            }
        }
    }
}

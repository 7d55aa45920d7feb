//! The inner loops, twice: with AVX2 and FMA where the machine has them, and in plain Rust everywhere else.
//!
//! What must hold: [`Simd::Avx2`] exists only after the machine was asked, which is what makes the calls below sound;
//! both ways agree within the tolerances of the tests below.

#![allow(unsafe_code, reason = "vector instructions, and calls to functions compiled for them")]

/// Outputs in one panel of packed weights.
pub(crate) const PANEL: usize = 16;
/// Rows of one tile: six by two vectors of sums is what sixteen registers hold.
pub(crate) const TILE_ROWS: usize = 6;

/// Which instructions are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Simd {
    /// What the compiler may assume of every machine.
    Portable,
    /// AVX2 and FMA; made by [`Simd::detect`] only.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

/// Calls the AVX2 build of a function where there is one.
macro_rules! dispatch {
    ($self:ident, $plain:expr, $fast:expr) => {
        match $self {
            Simd::Portable => $plain,
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::Avx2` is only made when the machine has AVX2 and FMA.
            Simd::Avx2 => unsafe { $fast },
        }
    };
}

impl Simd {
    /// The best this machine has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Simd::Avx2;
        }
        Simd::Portable
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Simd::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => "avx2,fma",
        }
    }

    /// Sums of products of the rows of `x` (each `inputs` long, one for each row of `tile`) with a packed panel.
    pub(crate) fn tile(self, x: &[f32], inputs: usize, panel: &[f32], tile: &mut [[f32; PANEL]]) {
        assert!(tile.len() <= TILE_ROWS && x.len() == tile.len() * inputs && panel.len() == PANEL * inputs);
        dispatch!(self, plain_tile(x, inputs, panel, tile), avx2::tile(x, inputs, panel, tile));
    }

    pub(crate) fn dot(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, plain_dot(a, b), avx2::dot(a, b))
    }

    /// `to += factor · from`.
    pub(crate) fn add_scaled(self, to: &mut [f32], factor: f32, from: &[f32]) {
        dispatch!(self, plain_add_scaled(to, factor, from), avx2::add_scaled(to, factor, from));
    }

    /// The exact GELU, `x/2 · (1 + erf(x/√2))`.
    pub(crate) fn gelu(self, x: &mut [f32; PANEL]) {
        dispatch!(self, plain_gelu(x), avx2::gelu(x));
    }

    pub(crate) fn softmax(self, x: &mut [f32]) {
        dispatch!(self, plain_softmax(x), avx2::softmax(x));
    }

    pub(crate) fn layer_norm(self, row: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
        dispatch!(self, plain_layer_norm(row, gamma, beta, epsilon), avx2::layer_norm(row, gamma, beta, epsilon));
    }
}

fn plain_tile(x: &[f32], inputs: usize, panel: &[f32], tile: &mut [[f32; PANEL]]) {
    for (row, sums) in x.chunks_exact(inputs).zip(tile) {
        *sums = [0.0; PANEL];
        for (x, weights) in row.iter().zip(panel.chunks_exact(PANEL)) {
            sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += x * weight);
        }
    }
}

/// Eight partial sums, so that the compiler may use vectors.
#[inline(always)]
fn sum_of(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    let whole = count / 8 * 8;
    for start in (0..whole).step_by(8) {
        (0..8).for_each(|lane| sums[lane] += term(start + lane));
    }
    let rest: f32 = (whole..count).map(term).sum();
    sums.iter().sum::<f32>() + rest
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
fn plain_gelu(x: &mut [f32; PANEL]) {
    x.iter_mut().for_each(|x| *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2)));
}

#[inline(always)]
fn plain_softmax(x: &mut [f32]) {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = exp(*x - top));
    let total = sum_of(x.len(), |i| x[i]);
    x.iter_mut().for_each(|x| *x /= total);
}

#[inline(always)]
fn plain_layer_norm(row: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
    let count = row.len() as f32;
    let mean = sum_of(row.len(), |i| row[i]) / count;
    let variance = sum_of(row.len(), |i| (row[i] - mean) * (row[i] - mean)) / count;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for ((x, gamma), beta) in row.iter_mut().zip(gamma).zip(beta) {
        *x = (*x - mean) * scale * gamma + beta;
    }
}

/// `e^x` without a branch: `2^n · e^r` with `|r| ≤ ln 2 / 2` and a polynomial for `e^r` (the minimax coefficients of
/// Cephes' `expf`). Adding 1.5·2²³ rounds to a whole number and leaves it in the low bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p =
        ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let power = (shifted.to_bits() as i32).wrapping_sub(0x4B40_0000).wrapping_add(127);
    (p * r * r + r + 1.0) * f32::from_bits((power << 23) as u32)
}

/// The error function within 2e-7 (Abramowitz and Stegun, 7.1.26).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let p = ((((1.061_405_4 * t - 1.453_152_1) * t + 1.421_413_8) * t - 0.284_496_72) * t + 0.254_829_6) * t;
    (1.0 - p * exp(-x * x)).copysign(x)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::PANEL;

    /// The plain functions, compiled again with wider vectors.
    macro_rules! recompiled {
        ($($name:ident = $plain:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
            #[target_feature(enable = "avx2,fma")]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? {
                super::$plain($($arg),*)
            }
        )*};
    }

    recompiled! {
        dot = plain_dot(a: &[f32], b: &[f32]) -> f32;
        add_scaled = plain_add_scaled(to: &mut [f32], factor: f32, from: &[f32]);
        gelu = plain_gelu(x: &mut [f32; PANEL]);
        softmax = plain_softmax(x: &mut [f32]);
        layer_norm = plain_layer_norm(row: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile(x: &[f32], inputs: usize, panel: &[f32], tile: &mut [[f32; PANEL]]) {
        match tile.len() {
            6 => rows::<6>(x, inputs, panel, tile),
            5 => rows::<5>(x, inputs, panel, tile),
            4 => rows::<4>(x, inputs, panel, tile),
            3 => rows::<3>(x, inputs, panel, tile),
            2 => rows::<2>(x, inputs, panel, tile),
            1 => rows::<1>(x, inputs, panel, tile),
            _ => {}
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn rows<const R: usize>(x: &[f32], inputs: usize, panel: &[f32], tile: &mut [[f32; PANEL]]) {
        assert!(tile.len() == R && x.len() == R * inputs && panel.len() == PANEL * inputs);
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for input in 0..inputs {
            // SAFETY: the panel is 16 · inputs long, so 16 floats from 16 · input are inside it; the loads may be
            // unaligned.
            let (low, high) = unsafe {
                let weights = panel.as_ptr().add(input * PANEL);
                (_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(8)))
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row < R and input < inputs, and `x` is R · inputs long.
                let value = _mm256_set1_ps(unsafe { *x.get_unchecked(row * inputs + input) });
                sums[0] = _mm256_fmadd_ps(value, low, sums[0]);
                sums[1] = _mm256_fmadd_ps(value, high, sums[1]);
            }
        }
        for (sums, out) in sums.iter().zip(tile) {
            // SAFETY: `out` is 16 floats; the stores may be unaligned.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), sums[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative to the largest sum of magnitudes; products of a few hundred terms round differently by this much.
    const TILE_TOLERANCE: f32 = 1e-5;
    const FUNCTION_TOLERANCE: f64 = 5e-7;

    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn tiles_agree_with_the_plain_sum() {
        for rows in 1..=TILE_ROWS {
            for inputs in [1, 7, 64, 385] {
                let (x, panel) = (numbers(rows * inputs, 3), numbers(PANEL * inputs, 5));
                for simd in [Simd::Portable, Simd::detect()] {
                    let mut tile = vec![[f32::NAN; PANEL]; rows];
                    simd.tile(&x, inputs, &panel, &mut tile);
                    for (row, sums) in tile.iter().enumerate() {
                        for (column, sum) in sums.iter().enumerate() {
                            let exact: f64 = (0..inputs)
                                .map(|i| f64::from(x[row * inputs + i]) * f64::from(panel[i * PANEL + column]))
                                .sum();
                            assert!(
                                (f64::from(*sum) - exact).abs() as f32 <= TILE_TOLERANCE * inputs as f32,
                                "{simd:?} {rows}x{inputs}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn functions_are_close_to_the_exact_ones() {
        for step in -1200..1200 {
            let x = step as f32 / 100.0;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) - exact).abs() <= exact * FUNCTION_TOLERANCE, "exp({x})");
            let exact = crate::backend::reference::erf(f64::from(x));
            assert!((f64::from(erf(x)) - exact).abs() <= FUNCTION_TOLERANCE, "erf({x})");
        }
        assert_eq!(exp(-1000.0), exp(-87.0));
    }

    #[test]
    fn softmax_and_norm_do_what_they_say() {
        for simd in [Simd::Portable, Simd::detect()] {
            let mut shares = numbers(37, 9);
            simd.softmax(&mut shares);
            assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            let (mut row, gamma, beta) = (numbers(37, 11), vec![2.0; 37], vec![1.0; 37]);
            simd.layer_norm(&mut row, &gamma, &beta, 1e-12);
            let mean = row.iter().sum::<f32>() / 37.0;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 37.0;
            assert!((mean - 1.0).abs() < 1e-5 && (variance - 4.0).abs() < 1e-4, "{mean} {variance}");
        }
    }
}

//! `y = x Wᵀ` with weights that are floats of 32 or 16 bits, kept as they are but in panels of 32 outputs.
//!
//! A panel is stored input by input, so that the inner loop reads it from front to back; a tile of a few rows by one
//! panel is summed in registers over all inputs. What must hold: each sum is added up in the same order whatever rows
//! are in the tile, so a row's answer does not depend on its neighbours; the last panel is padded with zeros that are
//! never written out.

#![allow(unsafe_code, reason = "vector instructions")]

use kedge_formats::{Dtype, Tensor};

use super::packed::Part;
use super::simd::{Simd, dispatch};

/// Outputs in one panel.
pub(crate) const PANEL: usize = 32;
/// What comes from memory at once, in bytes.
const LINE: usize = 64;
/// Inputs by which weights are asked for before they are needed, where they are: the machine has them in its second cache,
/// and the sums would wait.
const AHEAD: usize = 8;
/// Rows of one tile: twelve by two vectors of sums, two of weights and one of x are what 32 registers hold.
pub(crate) const TILE_ROWS: usize = 12;

/// A packed matrix.
pub(crate) struct Dense {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    kind: Kind,
    panels: Part,
}

/// What the elements are.
#[derive(Clone, Copy)]
enum Kind {
    F32,
    F16,
    Bf16,
}

impl Kind {
    fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F16 => Kind::F16,
            Dtype::Bf16 => Kind::Bf16,
            _ => Kind::F32,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::F16 | Kind::Bf16 => 2,
        }
    }
}

impl Dense {
    /// The matrix whose packed panels are those.
    pub(crate) fn new(matrix: &Tensor, panels: Part) -> Self {
        let (inputs, outputs, kind) = (matrix.columns(), matrix.rows(), Kind::of(matrix.dtype));
        assert_eq!(panels.len(), outputs.div_ceil(PANEL) * Self::panel_bytes(matrix), "the panels are the matrix's");
        Self { inputs, outputs, kind, panels }
    }

    /// Bytes of a packed panel.
    pub(crate) fn panel_bytes(matrix: &Tensor) -> usize {
        matrix.columns() * PANEL * Kind::of(matrix.dtype).bytes()
    }

    /// Packs one panel; `out` is zeros.
    pub(crate) fn pack(matrix: &Tensor, panel: usize, out: &mut [u8]) {
        let width = Kind::of(matrix.dtype).bytes();
        for output in panel * PANEL..matrix.rows().min((panel + 1) * PANEL) {
            for (input, value) in matrix.row(output).chunks_exact(width).enumerate() {
                out[(input * PANEL + output % PANEL) * width..][..width].copy_from_slice(value);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn packed(&self) -> &[u8] {
        &self.panels
    }

    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// The bytes of a panel, if there is one of that number.
    pub(crate) fn panel(&self, panel: usize) -> Option<&[u8]> {
        let length = PANEL * self.inputs * self.kind.bytes();
        self.panels.get(panel * length..(panel + 1) * length)
    }

    /// Products of the rows of `x` (as many as `tile` has, at most [`TILE_ROWS`]) with a panel. Meanwhile memory is asked
    /// for `next`, which may be empty.
    pub(crate) fn tile(&self, simd: Simd, x: &[f32], panel: usize, next: &[u8], tile: &mut [[f32; PANEL]]) {
        assert!(tile.len() <= TILE_ROWS && x.len() == tile.len() * self.inputs);
        let (panel, inputs) = (self.panel(panel).expect("there is such a panel"), self.inputs);
        let two = |b: &[u8]| [b[0], b[1]];
        match self.kind {
            Kind::F32 => dispatch!(
                simd,
                plain(x, inputs, panel, |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]), tile),
                avx2::tile::<avx2::F32>(x, inputs, panel.as_ptr(), next, tile),
                avx512::tile::<avx512::F32>(x, inputs, panel.as_ptr(), next, tile)
            ),
            Kind::F16 => dispatch!(
                simd,
                plain(x, inputs, panel, |b| half::f16::from_le_bytes(two(b)).to_f32(), tile),
                avx2::tile::<avx2::F16>(x, inputs, panel.as_ptr(), next, tile),
                avx512::tile::<avx512::F16>(x, inputs, panel.as_ptr(), next, tile)
            ),
            Kind::Bf16 => dispatch!(
                simd,
                plain(x, inputs, panel, |b| half::bf16::from_le_bytes(two(b)).to_f32(), tile),
                avx2::tile::<avx2::Bf16>(x, inputs, panel.as_ptr(), next, tile),
                avx512::tile::<avx512::Bf16>(x, inputs, panel.as_ptr(), next, tile)
            ),
        }
    }
}

fn plain(x: &[f32], inputs: usize, panel: &[u8], value: impl Fn(&[u8]) -> f32, tile: &mut [[f32; PANEL]]) {
    let width = panel.len() / (inputs * PANEL);
    for (row, sums) in x.chunks_exact(inputs).zip(tile) {
        *sums = [0.0; PANEL];
        for (x, weights) in row.iter().zip(panel.chunks_exact(PANEL * width)) {
            sums.iter_mut().zip(weights.chunks_exact(width)).for_each(|(sum, weight)| *sum += x * value(weight));
        }
    }
}

/// The tiles of one level: a vector type, how each kind of element is loaded, and the sums.
#[cfg(target_arch = "x86_64")]
macro_rules! tiles {
    ($features:literal, $vector:ty, $lanes:literal, $zero:ident, $splat:ident, $fma:ident, $store:ident, $rows_max:literal, [$($rows:literal)*],
     $from:ident, $f32:expr, $f16:expr, $bf16:expr) => {
        use std::arch::x86_64::*;

        use super::{AHEAD, LINE, PANEL};
        use crate::backend::cpu::simd::ASKS;

        /// Vectors in a panel that are summed at once.
        const WIDE: usize = 2;

        pub(super) trait Element {
            const BYTES: usize;
            /// Loads as many elements as a vector has lanes.
            ///
            /// # Safety
            /// That many must lie at `from`, and the machine must have the level.
            unsafe fn load(from: *const u8) -> $vector;
        }
        tiles!(@element F32, 4, $features, $vector, $from, $f32);
        tiles!(@element F16, 2, $features, $vector, $from, $f16);
        tiles!(@element Bf16, 2, $features, $vector, $from, $bf16);

        /// # Safety
        /// The panel must have `PANEL` elements for each input.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn tile<E: Element>(x: &[f32], inputs: usize, panel: *const u8, next: &[u8], tile: &mut [[f32; PANEL]]) {
            for (x, tile) in x.chunks($rows_max * inputs).zip(tile.chunks_mut($rows_max)) {
                // SAFETY: the caller's panel is as long as that.
                unsafe {
                    match tile.len() {
                        $($rows => rows::<$rows, E>(x, inputs, panel, next, tile),)*
                        _ => {}
                    }
                }
            }
        }

        /// # Safety
        /// As for `tile`.
        #[target_feature(enable = $features)]
        unsafe fn rows<const R: usize, E: Element>(x: &[f32], inputs: usize, panel: *const u8, next: &[u8], tile: &mut [[f32; PANEL]]) {
            assert!(tile.len() == R && x.len() == R * inputs);
            // Elsewhere it is what is loaded now, of which the memory learns nothing new, and no branch is taken.
            let (mut next, ahead) = (next.chunks(LINE), if *ASKS { AHEAD } else { 0 });
            for first in (0..PANEL).step_by(WIDE * $lanes) {
                let mut sums = [[$zero(); WIDE]; R];
                for input in 0..inputs {
                    if let Some(line) = next.next() {
                        _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
                    }
                    for part in 0..WIDE {
                        let asked = ((input + ahead) * PANEL + first + part * $lanes) * E::BYTES;
                        _mm_prefetch::<_MM_HINT_T0>(panel.wrapping_add(asked).cast());
                    }
                    // SAFETY: the panel has PANEL elements for each input, and first + WIDE · lanes ≤ PANEL.
                    let weights: [$vector; WIDE] = unsafe {
                        let from = panel.add((input * PANEL + first) * E::BYTES);
                        [E::load(from), E::load(from.add($lanes * E::BYTES))]
                    };
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: row < R and input < inputs, and `x` is R · inputs long.
                        let value = $splat(unsafe { *x.get_unchecked(row * inputs + input) });
                        sums[0] = $fma(value, weights[0], sums[0]);
                        sums[1] = $fma(value, weights[1], sums[1]);
                    }
                }
                for (sums, out) in sums.iter().zip(tile.iter_mut()) {
                    for (sum, out) in sums.iter().zip(out[first..].chunks_exact_mut($lanes)) {
                        // SAFETY: `out` is as many floats as a vector has lanes; the store may be unaligned.
                        unsafe { $store(out.as_mut_ptr(), *sum) };
                    }
                }
            }
        }
    };
    (@element $name:ident, $bytes:literal, $features:literal, $vector:ty, $from:ident, $load:expr) => {
        pub(super) struct $name;
        impl Element for $name {
            const BYTES: usize = $bytes;
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn load($from: *const u8) -> $vector {
                // SAFETY: the caller's elements are there; the loads may be unaligned.
                unsafe { $load }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    tiles!(
        "avx2,fma,f16c", __m256, 8, _mm256_setzero_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_storeu_ps, 6, [1 2 3 4 5 6], from,
        _mm256_loadu_ps(from.cast()),
        _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
    );
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    tiles!(
        "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c", __m512, 16, _mm512_setzero_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_storeu_ps, 12, [1 2 3 4 5 6 7 8 9 10 11 12], from,
        _mm512_loadu_ps(from.cast()),
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))))
    );
}

#[cfg(test)]
mod tests {
    use super::super::packed::tests::packed;
    use super::super::simd::tests::numbers;
    use super::*;

    #[test]
    fn tiles_are_the_products_at_every_level_and_for_every_element() {
        for (inputs, outputs) in [(1, 1), (7, 33), (40, 64)] {
            let weights = numbers(inputs * outputs, 5);
            for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                let bytes = kedge_formats::quant::quantize(dtype, &weights);
                let matrix = Tensor::of_bytes(dtype, &[outputs, inputs], bytes).unwrap();
                let (exact, packed) = (matrix.to_f32(), Dense::new(&matrix, packed(&matrix)));
                for rows in 1..=TILE_ROWS {
                    let x = numbers(rows * inputs, rows as u32);
                    for level in Simd::available() {
                        for panel in 0..packed.panels() {
                            let mut tile = vec![[9.0; PANEL]; rows];
                            packed.tile(level, &x, panel, packed.panel(panel + 1).unwrap_or(&[]), &mut tile);
                            for (row, output) in (0..rows).flat_map(|row| (0..PANEL).map(move |output| (row, output))) {
                                let column = panel * PANEL + output;
                                let of =
                                    |i: usize| f64::from(x[row * inputs + i]) * f64::from(exact[column * inputs + i]);
                                let expected: f64 = if column < outputs { (0..inputs).map(of).sum() } else { 0.0 };
                                let found = f64::from(tile[row][output]);
                                assert!(
                                    (found - expected).abs() < 1e-5,
                                    "{level:?} {dtype:?} {rows}: {found} {expected}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

//! `y = x Wᵀ` with quantised weights: rows of `x` become signed bytes in blocks of 32, and products are summed as whole
//! numbers, block by block.
//!
//! Weights lie in panels of 16 outputs. A panel is a list of blocks of 32 inputs; a block is the stored whole numbers of
//! its 16 outputs, without sign and four inputs together (what one vector instruction multiplies), and then the scales.
//! Four-bit numbers share a byte with those 16 inputs further on. What the sign or the minimum takes off is known from the
//! sum of `x` alone: `Σ (u − o)·x = Σ u·x − o·Σ x`, in whole numbers where `o` is one. What must hold: packing loses nothing, so the products are exactly
//! those of the stored weights with the rounded `x`; sums of floats are made in the order of the blocks whatever rows are
//! in the tile, so a row's answer does not depend on its neighbours. Tiles of whole numbers ([`super::amx`]) give the same
//! bits as AVX-512: whole sums are exact in any order, and floats are added by the same code.

#![allow(unsafe_code, reason = "vector instructions")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod layout;
mod portable;
#[cfg(target_arch = "x86_64")]
mod tiles;

use kedge_formats::Tensor;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::packed::Part;
use super::simd::{Simd, dispatch};
pub(crate) use layout::Layout;
use portable::plain;

/// Outputs in one panel.
pub(crate) const PANEL: usize = 16;
/// Rows of one tile.
pub(crate) const TILE_ROWS: usize = 8;
/// Inputs of one block.
pub(crate) const BLOCK: usize = 32;
/// Inputs that are multiplied at once.
const GROUP: usize = 4;
/// Blocks of a panel that stay in the first cache while tile after tile of rows goes by: a multiple of [`SUPER`].
pub(crate) const STRETCH: usize = 32;

/// A packed matrix.
pub(crate) struct Quant {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    layout: Layout,
    panels: Part,
}

/// Rows of `x` as signed bytes.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// `rows × inputs`.
    pub(crate) bytes: &'a [i8],
    /// One for each block.
    pub(crate) blocks: &'a [Rounded],
}

/// What is known of a block of `x` beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub(crate) struct Rounded {
    /// What the bytes are multiplied by.
    pub(crate) scale: f32,
    /// The sum of what the bytes stand for.
    pub(crate) sum: f32,
    /// The sum of the bytes, and of the first half of them.
    pub(crate) whole: i32,
    pub(crate) half: i32,
}

impl<'a> Rows<'a> {
    /// Rows `range` of them.
    pub(crate) fn slice(&self, inputs: usize, first: usize, count: usize) -> Rows<'a> {
        let blocks = inputs / BLOCK;
        Rows {
            bytes: &self.bytes[first * inputs..][..count * inputs],
            blocks: &self.blocks[first * blocks..][..count * blocks],
        }
    }
}

impl Quant {
    /// The matrix whose packed panels are those.
    pub(crate) fn new(matrix: &Tensor, layout: Layout, panels: Part) -> Self {
        let (inputs, outputs) = (matrix.columns(), matrix.rows());
        assert_eq!(panels.len(), outputs.div_ceil(PANEL) * layout.panel(), "the panels are the matrix's");
        Self { inputs, outputs, layout, panels }
    }

    #[cfg(test)]
    pub(crate) fn packed(&self) -> &[u8] {
        &self.panels
    }

    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Adds to `sums`, which has as many rows, the products of the rows with a panel.
    pub(crate) fn add(&self, simd: Simd, rows: Rows, panel: usize, sums: &mut [[f32; PANEL]]) {
        let (layout, blocks) = (self.layout, self.layout.blocks);
        assert!(panel < self.panels() && rows.bytes.len() == sums.len() * self.inputs);
        assert!(rows.blocks.len() == sums.len() * blocks && self.inputs == blocks * BLOCK);
        let panel = &self.panels[panel * layout.panel()..][..layout.panel()];
        #[cfg(target_arch = "x86_64")]
        if simd == Simd::Amx && sums.len() > TILE_ROWS {
            // SAFETY: the level is only made when tiles may be used.
            return unsafe { avx512::by_tiles(&mut amx::Instructions, simd, layout, rows, panel, sums) };
        }
        for first in (0..blocks).step_by(STRETCH) {
            let stretch = first..blocks.min(first + STRETCH);
            for (index, tile) in sums.chunks_mut(TILE_ROWS).enumerate() {
                let rows = rows.slice(self.inputs, index * TILE_ROWS, tile.len());
                let stretch = stretch.clone();
                dispatch!(
                    simd,
                    plain(layout, rows, panel, stretch, tile),
                    avx2::tile(layout, rows, panel, stretch, tile),
                    avx512::tile(layout, rows, panel, stretch, tile)
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kedge_formats::{Dtype, quant};

    use super::super::packed::tests::packed;
    use super::super::simd::tests::numbers;
    use super::*;

    pub(super) fn quant(matrix: &Tensor) -> Quant {
        Quant::new(matrix, Layout::of(matrix).unwrap(), packed(matrix))
    }

    pub(super) const TYPES: [Dtype; 5] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K];

    /// The rows rounded to bytes, and what they are then.
    pub(super) fn rounded(x: &[f32]) -> (Vec<i8>, Vec<Rounded>, Vec<f64>) {
        let (mut bytes, mut blocks) = (vec![0; x.len()], vec![Rounded::default(); x.len() / BLOCK]);
        Simd::Portable.quantize(x, &mut bytes, &mut blocks);
        let exact = |(i, byte): (usize, &i8)| f64::from(*byte) * f64::from(blocks[i / BLOCK].scale);
        let exact = bytes.iter().enumerate().map(exact).collect();
        (bytes, blocks, exact)
    }

    #[test]
    fn tiles_are_the_products_of_the_stored_weights_at_every_level() {
        for dtype in TYPES {
            // The longer ones are more than a stretch.
            let inputs = if dtype.block().0 == 32 { 96 } else { 1280 };
            for outputs in [1, 16, 37] {
                // The extremes are where whole numbers would overflow.
                let mut weights = numbers(inputs * outputs, 11);
                weights[..inputs].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 2 == 0 { 1.0 } else { -1.0 });
                let bytes = quant::quantize(dtype, &weights);
                let matrix = Tensor::of_bytes(dtype, &[outputs, inputs], bytes).unwrap();
                let (exact, packed) = (matrix.to_f32(), super::tests::quant(&matrix));
                for rows in 1..=TILE_ROWS + 3 {
                    let mut x = numbers(rows * inputs, rows as u32);
                    x[..inputs].copy_from_slice(&weights[..inputs]);
                    let (bytes, blocks, x) = rounded(&x);
                    let all = Rows { bytes: &bytes, blocks: &blocks };
                    for level in Simd::available() {
                        for panel in 0..packed.panels() {
                            let mut tile = vec![[0.0; PANEL]; rows];
                            packed.add(level, all, panel, &mut tile);
                            for (row, lane) in (0..rows).flat_map(|row| (0..PANEL).map(move |lane| (row, lane))) {
                                let column = panel * PANEL + lane;
                                let of = |i: usize| x[row * inputs + i] * f64::from(exact[column * inputs + i]);
                                let expected: f64 = if column < outputs { (0..inputs).map(of).sum() } else { 0.0 };
                                let found = f64::from(tile[row][lane]);
                                let off = (found - expected).abs();
                                assert!(off < 1e-3, "{level:?} {dtype:?} {rows} rows: {found}, not {expected}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn packed_weights_are_hardly_larger_than_stored_ones() {
        for (dtype, most) in [(Dtype::Q8_0, 1.0), (Dtype::Q4_0, 1.0), (Dtype::Q4K, 1.06), (Dtype::Q6K, 1.4)] {
            let matrix = Tensor::of_bytes(dtype, &[16, 1024], quant::quantize(dtype, &numbers(16 * 1024, 1))).unwrap();
            let share = packed(&matrix).len() as f64 / matrix.bytes().len() as f64;
            assert!(share <= most, "{}: {share}", dtype.name());
        }
    }
}

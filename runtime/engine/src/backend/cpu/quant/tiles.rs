//! Products of many rows by tiles of whole numbers ([`crate::backend::cpu::amx`]).

use super::layout::{Layout, Scheme, block_at};
use super::{BLOCK, PANEL, Rows, STRETCH, avx512};
use crate::backend::cpu::amx;
use crate::backend::cpu::simd::Simd;

/// Blocks whose sums are made one after the other before they are weighed: one alone would be waited for.
pub(super) const AT_ONCE: usize = 4;

/// [`Quant::add`] by tiles: a stretch of the panel meets sixteen rows after sixteen. Where rows are no multiple of that, the
/// last sixteen overlap with those before, and only what is new is kept.
///
/// # Safety
/// The unit may be used on this thread: see [`amx::Offer::Granted`]. The level is one with AVX-512; with the model of a unit,
/// tests may take any.
pub(super) unsafe fn by_tiles<U: amx::Unit>(
    unit: &mut U,
    simd: Simd,
    layout: Layout,
    rows: Rows,
    panel: &[u8],
    sums: &mut [[f32; PANEL]],
) {
    let (inputs, parts) = (layout.blocks * BLOCK, if layout.scheme == Scheme::Halves { 2 } else { 1 });
    let (height, width) = (sums.len().min(amx::ROWS), BLOCK / parts);
    // SAFETY: the caller's promise.
    let mut tiles = unsafe { amx::Multiplier::new(unit, height, width) };
    let mut opened = Opened([[0; PANEL * BLOCK]; STRETCH]);
    let mut products = [amx::Sums([[0; PANEL]; amx::ROWS]); 2 * AT_ONCE];
    for first in (0..layout.blocks).step_by(STRETCH) {
        let stretch = first..layout.blocks.min(first + STRETCH);
        if layout.four_bits {
            for (block, opened) in stretch.clone().zip(&mut opened.0) {
                let stored = &panel[block_at(layout, block)..][..layout.numbers()];
                match simd {
                    #[cfg(test)]
                    Simd::Portable | Simd::Avx2 => open(stored, opened),
                    // SAFETY: the caller's promise.
                    _ => unsafe { avx512::open(stored, opened) },
                }
            }
        }
        let mut done = 0;
        while done < sums.len() {
            let from = done.min(sums.len() - height);
            for blocks in stretch.clone().step_by(AT_ONCE) {
                let blocks = blocks..stretch.end.min(blocks + AT_ONCE);
                let each = blocks.clone().flat_map(|block| (0..parts).map(move |part| (block, part)));
                for (turn, ((block, part), products)) in each.zip(&mut products).enumerate() {
                    let weights = match layout.four_bits {
                        true => &opened.0[block - first],
                        false => &panel[block_at(layout, block)..][..layout.numbers()],
                    };
                    let x = &rows.bytes[from * inputs + block * BLOCK + part * width..];
                    tiles.multiply(turn, x, inputs, &weights[part * width * PANEL..], products);
                }
                let new = rows.slice(inputs, done, from + height - done);
                let (skip, sums) = (done - from, &mut sums[done..from + height]);
                match simd {
                    #[cfg(test)]
                    Simd::Portable | Simd::Avx2 => tests::weigh(layout, new, panel, blocks, &products, skip, sums),
                    // SAFETY: as above.
                    _ => unsafe { avx512::weigh(layout, new, panel, blocks, &products, skip, sums) },
                }
            }
            done = from + height;
        }
    }
}

/// A stretch of four-bit numbers, a byte each.
#[repr(C, align(64))]
struct Opened([[u8; PANEL * BLOCK]; STRETCH]);

/// Gives each four-bit number of a block a byte.
#[inline(always)]
pub(super) fn open(stored: &[u8], to: &mut [u8; PANEL * BLOCK]) {
    let (low, high) = to.split_at_mut(PANEL * BLOCK / 2);
    for ((stored, low), high) in stored.iter().zip(low).zip(high) {
        (*low, *high) = (stored & 15, stored >> 4);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use kedge_formats::{Tensor, quant as stored};

    use super::super::layout::{SUPER, half_at};
    use super::super::tests::{TYPES, quant, rounded};
    use super::super::{Quant, Rows};
    use super::*;
    use crate::backend::cpu::simd::tests::numbers;

    /// What [`avx512::weigh`] does, with the same bits.
    pub(super) fn weigh(
        layout: Layout,
        rows: Rows,
        panel: &[u8],
        blocks: Range<usize>,
        products: &[amx::Sums],
        skip: usize,
        sums: &mut [[f32; PANEL]],
    ) {
        let parts = if layout.scheme == Scheme::Halves { 2 } else { 1 };
        for (block, products) in blocks.zip(products.chunks_exact(parts)) {
            let head = block_at(layout, block / SUPER * SUPER) - layout.scheme.head();
            let scales = block_at(layout, block) + layout.numbers();
            for (row, lane) in (0..sums.len()).flat_map(|row| (0..PANEL).map(move |lane| (row, lane))) {
                let known = rows.blocks[row * layout.blocks + block];
                let product = |part: usize| products[part].0[skip + row][lane] as f32;
                let unit = |at: usize| half_at(panel, head + 2 * (at * PANEL + lane));
                let byte = |at: usize| panel[scales + at * PANEL + lane];
                let sum = &mut sums[row][lane];
                match layout.scheme {
                    Scheme::Plain => {
                        let offset = if layout.four_bits { 8.0 } else { 128.0 };
                        let product = product(0).mul_add(known.scale, -(offset * known.sum));
                        *sum = product.mul_add(half_at(panel, scales + 2 * lane), *sum);
                    }
                    Scheme::Minimum => {
                        *sum = (product(0) * known.scale).mul_add(unit(0) * f32::from(byte(0)), *sum);
                        *sum = (unit(1) * f32::from(byte(1))).mul_add(-known.sum, *sum);
                    }
                    Scheme::Halves => {
                        for part in 0..2 {
                            let product = product(part).mul_add(known.scale, -(32.0 * known.halves[part]));
                            *sum = product.mul_add(unit(0) * f32::from(byte(part) as i8), *sum);
                        }
                    }
                }
            }
        }
    }

    /// The products of so many rows with each panel, by the model of tiles or by a level.
    fn products(packed: &Quant, simd: Simd, tiles: bool, rows: Rows, count: usize) -> Vec<f32> {
        let mut all = Vec::new();
        for panel in 0..packed.panels() {
            let mut sums = vec![[0.0; PANEL]; count];
            if tiles {
                let (layout, unit) = (packed.layout, &mut amx::tests::Model::default());
                let panel = &packed.panels[panel * layout.panel()..][..layout.panel()];
                // SAFETY: the model may be used everywhere.
                unsafe { by_tiles(unit, simd, layout, rows, panel, &mut sums) };
                assert!(unit.is_released());
            } else {
                packed.add(simd, rows, panel, &mut sums);
            }
            all.extend(sums.into_flattened());
        }
        all
    }

    #[test]
    fn products_by_tiles_are_the_portable_ones_with_the_bits_of_avx512() {
        for dtype in TYPES {
            let lengths: &[usize] = if dtype.block().0 == 32 { &[32, 96, 32 * 45] } else { &[256, 1280] };
            for (inputs, outputs) in lengths.iter().flat_map(|inputs| [(*inputs, 5), (*inputs, 37)]) {
                let mut weights = numbers(inputs * outputs, 11);
                weights[..inputs].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 2 == 0 { 1.0 } else { -1.0 });
                let bytes = stored::quantize(dtype, &weights);
                let packed = quant(&Tensor::of_bytes(dtype, &[outputs, inputs], bytes).unwrap());
                for count in [1, 2, 9, 15, 16, 17, 31, 32, 33, 96] {
                    let mut x = numbers(count * inputs, count as u32);
                    x[..inputs].copy_from_slice(&weights[..inputs]);
                    let (bytes, blocks, _) = rounded(&x);
                    let all = Rows { bytes: &bytes, blocks: &blocks };
                    let found = products(&packed, Simd::Portable, true, all, count);
                    let what = format!("{dtype:?}, {count} rows of {inputs}");
                    let expected = products(&packed, Simd::Portable, false, all, count);
                    let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(far < 1e-3, "{what}: off by {far}");
                    for simd in Simd::available().into_iter().filter(|simd| *simd >= Simd::Avx512) {
                        assert_eq!(found, products(&packed, simd, false, all, count), "{what} by {simd:?}");
                        assert_eq!(found, products(&packed, simd, true, all, count), "{what} weighed by {simd:?}");
                    }
                    // One row by itself.
                    let row = count / 2;
                    let alone = products(&packed, Simd::Portable, true, all.slice(inputs, row, 1), 1);
                    let of = |panel: usize| &found[(panel * count + row) * PANEL..][..PANEL];
                    assert_eq!((0..packed.panels()).flat_map(of).copied().collect::<Vec<_>>(), alone, "{what} alone");
                }
            }
        }
    }
}

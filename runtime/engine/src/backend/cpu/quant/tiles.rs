//! Products of many rows by tiles of whole numbers ([`crate::backend::cpu::amx`]).

use super::layout::{Layout, Scheme};
use super::{BLOCK, PANEL, Rows, avx512};
use crate::backend::cpu::amx;
use crate::backend::cpu::simd::Simd;

/// Blocks that are opened, multiplied and weighed at once. Fewer would have vector units and tiles wait for each other more
/// often, with more the products would not stay in the first cache.
pub(super) const AT_ONCE: usize = 8;

/// [`Quant::add`] by tiles: a few blocks of the panel meet sixteen rows after sixteen. Where rows are no multiple of that, the
/// last sixteen overlap with those before, and only what is new is kept. `SCHEME` is that of the layout, as a number.
///
/// # Safety
/// The unit may be used on this thread: see [`amx::Offer::Granted`]. The level is one with AVX-512; with the model of a unit,
/// tests may take any.
#[inline(always)]
pub(super) unsafe fn by_tiles<U: amx::Unit, const SCHEME: u8>(
    unit: &mut U,
    simd: Simd,
    layout: Layout,
    all: Rows,
    panel: &[u8],
    sums: &mut [[f32; PANEL]],
) {
    let (inputs, parts) = (layout.blocks * BLOCK, const { if SCHEME == 2 { 2 } else { 1 } });
    let height = sums.len().min(amx::ROWS);
    // SAFETY: the caller's promise.
    let mut tiles = unsafe { amx::Multiplier::new(unit, height, BLOCK / parts) };
    let mut opened = Opened { numbers: [[0; PANEL * BLOCK]; AT_ONCE], scales: [[[0.0; PANEL]; 2]; AT_ONCE] };
    let mut products = [amx::Sums([[0; PANEL]; amx::ROWS]); 2 * AT_ONCE];
    for first in (0..layout.blocks).step_by(AT_ONCE) {
        let blocks = first..layout.blocks.min(first + AT_ONCE);
        let products = &mut products[..blocks.len() * parts];
        match simd {
            #[cfg(test)]
            Simd::Portable | Simd::Avx2 => tests::open::<SCHEME>(layout, panel, blocks.clone(), &mut opened),
            // SAFETY: the caller's promise.
            _ => unsafe { avx512::open::<SCHEME>(layout, panel, blocks.clone(), &mut opened) },
        }
        let mut done = 0;
        while done < sums.len() {
            let from = done.min(sums.len() - height);
            let x = &all.bytes[from * inputs + first * BLOCK..];
            tiles.multiply(x, inputs, opened.numbers.as_flattened(), products);
            let known = &all.blocks[done * layout.blocks + first..];
            let (scales, sums) = (&opened.scales[..blocks.len()], &mut sums[done..from + height]);
            let skip = done - from;
            match simd {
                #[cfg(test)]
                Simd::Portable | Simd::Avx2 => {
                    tests::weigh::<SCHEME>(known, layout.blocks, scales, products, skip, sums);
                }
                // SAFETY: as above.
                _ => unsafe { avx512::weigh::<SCHEME>(known, layout.blocks, scales, products, skip, sums) },
            }
            done = from + height;
        }
    }
}

/// Of a block the scales of its numbers, and those of what is taken off or of its second half.
pub(super) type Scales = [[f32; PANEL]; 2];

/// A few blocks of a panel.
#[repr(C, align(64))]
pub(super) struct Opened {
    /// Signed bytes, in the order of the panel.
    pub(super) numbers: [[i8; PANEL * BLOCK]; AT_ONCE],
    pub(super) scales: [Scales; AT_ONCE],
}

/// Gives each number of a block its sign and a byte.
#[inline(always)]
pub(super) fn signed(layout: Layout, stored: &[u8], to: &mut [i8; PANEL * BLOCK]) {
    let off = match (layout.scheme, layout.four_bits) {
        (Scheme::Plain, true) => 8,
        (Scheme::Plain, false) => 128,
        (Scheme::Minimum, _) => 0,
        (Scheme::Halves, _) => 32,
    };
    if layout.four_bits {
        let (low, high) = to.split_at_mut(PANEL * BLOCK / 2);
        for ((stored, low), high) in stored.iter().zip(low).zip(high) {
            *low = (stored & 15).wrapping_sub(off).cast_signed();
            *high = (stored >> 4).wrapping_sub(off).cast_signed();
        }
    } else {
        for (stored, to) in stored.iter().zip(to) {
            *to = stored.wrapping_sub(off).cast_signed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use kedge_formats::{Tensor, quant as stored};

    use super::super::layout::{SUPER, block_at, half_at};
    use super::super::tests::{TYPES, quant, rounded};
    use super::super::{Quant, Rounded, Rows};
    use super::*;
    use crate::backend::cpu::simd::tests::numbers;

    /// What [`avx512::open`] does.
    pub(super) fn open<const SCHEME: u8>(layout: Layout, panel: &[u8], stretch: Range<usize>, to: &mut Opened) {
        for ((block, numbers), scales) in stretch.zip(&mut to.numbers).zip(&mut to.scales) {
            let at = block_at(layout, block);
            signed(layout, &panel[at..][..layout.numbers()], numbers);
            let head = block_at(layout, block / SUPER * SUPER) - layout.scheme.head();
            for lane in 0..PANEL {
                let unit = |which: usize| half_at(panel, head + 2 * (which * PANEL + lane));
                let byte = |part: usize| panel[at + layout.numbers() + part * PANEL + lane];
                (scales[0][lane], scales[1][lane]) = match SCHEME {
                    0 => (half_at(panel, at + layout.numbers() + 2 * lane), 0.0),
                    1 => (unit(0) * f32::from(byte(0)), unit(1) * f32::from(byte(1))),
                    _ => (unit(0) * f32::from(byte(0) as i8), unit(0) * f32::from(byte(1) as i8)),
                };
            }
        }
    }

    /// What [`avx512::weigh`] does, with the same bits.
    pub(super) fn weigh<const SCHEME: u8>(
        known: &[Rounded],
        blocks: usize,
        scales: &[Scales],
        products: &[amx::Sums],
        skip: usize,
        sums: &mut [[f32; PANEL]],
    ) {
        let parts = if SCHEME == 2 { 2 } else { 1 };
        for (block, ([scales, second], products)) in scales.iter().zip(products.chunks_exact(parts)).enumerate() {
            for (row, lane) in (0..sums.len()).flat_map(|row| (0..PANEL).map(move |lane| (row, lane))) {
                let known = known[row * blocks + block];
                let scaled = |part: usize| products[part].0[skip + row][lane] as f32 * known.scale;
                let sum = &mut sums[row][lane];
                *sum = scaled(0).mul_add(scales[lane], *sum);
                match SCHEME {
                    0 => {}
                    1 => *sum = second[lane].mul_add(-known.sum, *sum),
                    _ => *sum = scaled(1).mul_add(second[lane], *sum),
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
                unsafe {
                    match layout.scheme {
                        Scheme::Plain => by_tiles::<_, 0>(unit, simd, layout, rows, panel, &mut sums),
                        Scheme::Minimum => by_tiles::<_, 1>(unit, simd, layout, rows, panel, &mut sums),
                        Scheme::Halves => by_tiles::<_, 2>(unit, simd, layout, rows, panel, &mut sums),
                    }
                }
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

//! AVX-512 with VNNI: a block's sixteen outputs are one vector, four inputs one instruction.

use std::arch::x86_64::*;
use std::ops::Range;

use super::layout::{Layout, SUPER, Scheme, block_at};
use super::tiles::{self, AT_ONCE};
use super::{BLOCK, GROUP, PANEL, Rounded, Rows};
use crate::backend::cpu::amx;

/// Calls `rows` for as many rows as the tile has.
macro_rules! by_rows {
    ($scheme:literal, $four:literal, $layout:ident, $rows:ident, $panel:ident, $stretch:ident, $tile:ident) => {
        match $tile.len() {
            1 => rows::<1, $scheme, $four>($layout, $rows, $panel, $stretch, $tile),
            2 => rows::<2, $scheme, $four>($layout, $rows, $panel, $stretch, $tile),
            3 => rows::<3, $scheme, $four>($layout, $rows, $panel, $stretch, $tile),
            4 => rows::<4, $scheme, $four>($layout, $rows, $panel, $stretch, $tile),
            5 => rows::<5, $scheme, $four>($layout, $rows, $panel, $stretch, $tile),
            6 => rows::<6, $scheme, $four>($layout, $rows, $panel, $stretch, $tile),
            7 => rows::<7, $scheme, $four>($layout, $rows, $panel, $stretch, $tile),
            8 => rows::<8, $scheme, $four>($layout, $rows, $panel, $stretch, $tile),
            _ => {}
        }
    };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn tile(layout: Layout, rows: Rows, panel: &[u8], stretch: Range<usize>, tile: &mut [[f32; PANEL]]) {
    match (layout.scheme, layout.four_bits) {
        (Scheme::Plain, false) => by_rows!(0, false, layout, rows, panel, stretch, tile),
        (Scheme::Plain, true) => by_rows!(0, true, layout, rows, panel, stretch, tile),
        (Scheme::Minimum, false) => by_rows!(1, false, layout, rows, panel, stretch, tile),
        (Scheme::Minimum, true) => by_rows!(1, true, layout, rows, panel, stretch, tile),
        (Scheme::Halves, _) => by_rows!(2, false, layout, rows, panel, stretch, tile),
    }
}

/// `R` rows by a panel. `SCHEME` is that of the layout, as a number.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn rows<const R: usize, const SCHEME: u8, const FOUR: bool>(
    layout: Layout,
    rows: Rows,
    panel: &[u8],
    stretch: Range<usize>,
    tile: &mut [[f32; PANEL]],
) {
    let inputs = layout.blocks * BLOCK;
    assert!(tile.len() == R && rows.bytes.len() == R * inputs && panel.len() == layout.panel());
    assert!(rows.blocks.len() == R * layout.blocks);
    assert!(stretch.end <= layout.blocks && stretch.start.is_multiple_of(SUPER));
    let mut totals = [_mm512_setzero_ps(); R];
    // SAFETY: a row of the tile is sixteen floats; the load may be unaligned.
    totals.iter_mut().zip(&*tile).for_each(|(total, row)| *total = unsafe { _mm512_loadu_ps(row.as_ptr()) });
    let mut units = [_mm512_setzero_ps(); 2];
    // SAFETY: all reads of the panel lie in a block below `layout.blocks` or in the units in front of it, and those
    // of the rows in one of their blocks; the lengths are asserted above. Loads may be unaligned.
    unsafe {
        for block in stretch {
            let at = panel.as_ptr().add(block_at(layout, block));
            if SCHEME != 0 && block % SUPER == 0 {
                units = units_at::<SCHEME>(at.sub(layout.scheme.head()));
            }
            let mut w = [_mm512_setzero_si512(); BLOCK / GROUP];
            if FOUR {
                let low = _mm512_set1_epi8(15);
                for group in 0..4 {
                    let both = _mm512_loadu_si512(at.add(group * PANEL * GROUP).cast());
                    w[group] = _mm512_and_si512(both, low);
                    w[group + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                }
            } else {
                for (group, w) in w.iter_mut().enumerate() {
                    *w = _mm512_loadu_si512(at.add(group * PANEL * GROUP).cast());
                }
            }
            let scales = scales_at::<SCHEME>(at.add(layout.numbers()), units);
            for (row, total) in totals.iter_mut().enumerate() {
                let x = rows.bytes.as_ptr().add(row * inputs + block * BLOCK).cast::<i32>();
                let known = rows.blocks.get_unchecked(row * layout.blocks + block);
                let product = |part: usize| {
                    let mut sum = _mm512_setzero_si512();
                    for group in if SCHEME == 2 { 4 * part..4 * part + 4 } else { 0..8 } {
                        sum = _mm512_dpbusd_epi32(sum, w[group], _mm512_set1_epi32(x.add(group).read_unaligned()));
                    }
                    sum
                };
                *total = weighed::<SCHEME, FOUR>(product, known, scales, *total);
            }
        }
    }
    for (total, out) in totals.iter().zip(tile) {
        // SAFETY: `out` is sixteen floats; the store may be unaligned.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *total) };
    }
}

/// The units of scale and of minimum at the head of eight blocks.
///
/// # Safety
/// As many bytes as the scheme's head has lie there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn units_at<const SCHEME: u8>(head: *const u8) -> [__m512; 2] {
    // SAFETY: the caller's promise; sixteen 16-bit floats of each kind that the scheme has.
    unsafe {
        let units = |at: usize| _mm512_cvtph_ps(_mm256_loadu_si256(head.add(2 * PANEL * at).cast()));
        [units(0), if SCHEME == 1 { units(1) } else { _mm512_setzero_ps() }]
    }
}

/// The scales of a block: of its numbers and of what is taken off, or of its halves.
///
/// # Safety
/// A block's 32 bytes of scales lie there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
unsafe fn scales_at<const SCHEME: u8>(at: *const u8, [unit, unit_min]: [__m512; 2]) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = |part: usize| _mm_loadu_si128(at.add(part * PANEL).cast());
        let plain = |part: usize| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(part)));
        let signed = |part: usize| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(part)));
        match SCHEME {
            0 => [_mm512_cvtph_ps(_mm256_loadu_si256(at.cast())), _mm512_setzero_ps()],
            1 => [_mm512_mul_ps(unit, plain(0)), _mm512_mul_ps(unit_min, plain(1))],
            _ => [_mm512_mul_ps(unit, signed(0)), _mm512_mul_ps(unit, signed(1))],
        }
    }
}

/// Adds the whole-number products of one row with a block, or with its halves, to its total: the order of this is what a row's bits are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn weighed<const SCHEME: u8, const FOUR: bool>(
    product: impl Fn(usize) -> __m512i,
    known: &Rounded,
    [scale, second]: [__m512; 2],
    mut total: __m512,
) -> __m512 {
    let by = _mm512_set1_ps(known.scale);
    match SCHEME {
        0 => {
            let off = _mm512_set1_ps(if FOUR { 8.0 } else { 128.0 } * known.sum);
            total = _mm512_fmadd_ps(_mm512_fmsub_ps(_mm512_cvtepi32_ps(product(0)), by, off), scale, total);
        }
        1 => {
            total = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(product(0)), by), scale, total);
            total = _mm512_fnmadd_ps(second, _mm512_set1_ps(known.sum), total);
        }
        _ => {
            for (half, scale) in [scale, second].into_iter().enumerate() {
                let off = _mm512_set1_ps(32.0 * known.halves[half]);
                total = _mm512_fmadd_ps(_mm512_fmsub_ps(_mm512_cvtepi32_ps(product(half)), by, off), scale, total);
            }
        }
    }
    total
}

/// See [`tiles::open`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn open(stored: &[u8], to: &mut [u8; PANEL * BLOCK]) {
    tiles::open(stored, to);
}

/// Adds to `sums` the whole-number products of a few blocks, weighed by their scales. The first `skip` rows of each of the
/// products are others'.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn weigh(
    layout: Layout,
    rows: Rows,
    panel: &[u8],
    blocks: Range<usize>,
    products: &[amx::Sums],
    skip: usize,
    sums: &mut [[f32; PANEL]],
) {
    match (layout.scheme, layout.four_bits) {
        (Scheme::Plain, false) => weigh_as::<0, false>(layout, rows, panel, blocks, products, skip, sums),
        (Scheme::Plain, true) => weigh_as::<0, true>(layout, rows, panel, blocks, products, skip, sums),
        (Scheme::Minimum, _) => weigh_as::<1, false>(layout, rows, panel, blocks, products, skip, sums),
        (Scheme::Halves, _) => weigh_as::<2, false>(layout, rows, panel, blocks, products, skip, sums),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn weigh_as<const SCHEME: u8, const FOUR: bool>(
    layout: Layout,
    rows: Rows,
    panel: &[u8],
    blocks: Range<usize>,
    products: &[amx::Sums],
    skip: usize,
    sums: &mut [[f32; PANEL]],
) {
    let (parts, count) = (if SCHEME == 2 { 2 } else { 1 }, blocks.len());
    assert!(panel.len() == layout.panel() && blocks.end <= layout.blocks && count <= AT_ONCE);
    assert!(rows.blocks.len() == sums.len() * layout.blocks && products.len() >= count * parts);
    assert!(skip + sums.len() <= amx::ROWS);
    let mut scales = [[_mm512_setzero_ps(); 2]; AT_ONCE];
    for (block, scales) in blocks.clone().zip(&mut scales) {
        let head = block_at(layout, block / SUPER * SUPER) - layout.scheme.head();
        // SAFETY: the head and the scales of a block below `layout.blocks`, in a panel as long as asserted.
        *scales = unsafe {
            let units = if SCHEME == 0 { [_mm512_setzero_ps(); 2] } else { units_at::<SCHEME>(panel[head..].as_ptr()) };
            scales_at::<SCHEME>(panel[block_at(layout, block) + layout.numbers()..].as_ptr(), units)
        };
    }
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: a row of sums is sixteen numbers, here and below; loads and stores may be unaligned.
        let mut total = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
        let known = &rows.blocks[row * layout.blocks + blocks.start..][..count];
        for ((known, scales), products) in known.iter().zip(&scales).zip(products.chunks_exact(parts)) {
            let product = |part: usize| unsafe { _mm512_loadu_si512(products[part].0[skip + row].as_ptr().cast()) };
            total = weighed::<SCHEME, FOUR>(product, known, *scales, total);
        }
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
    }
}

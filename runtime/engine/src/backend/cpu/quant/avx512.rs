//! AVX-512 with VNNI: a block's sixteen outputs are one vector, four inputs one instruction.

use std::arch::x86_64::*;
use std::ops::Range;

use super::layout::{Layout, SUPER, Scheme, block_at};
use super::tiles::{self, AT_ONCE, Opened, Scales};
use super::{BLOCK, GROUP, PANEL, Rounded, Rows};
use crate::backend::cpu::amx;
use crate::backend::cpu::simd::{ASKS, Simd};

/// Bytes from what is multiplied to what is asked for from memory, where weights are asked for: Sapphire Rapids makes 10 to
/// 57 % more answers with it, Zen 4 5 to 12 % more without.
const AHEAD: usize = 2048;

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
    let asks = *ASKS;
    // SAFETY: all reads of the panel lie in a block below `layout.blocks` or in the units in front of it, and those
    // of the rows in one of their blocks; the lengths are asserted above. Loads may be unaligned.
    unsafe {
        for block in stretch {
            let at = panel.as_ptr().add(block_at(layout, block));
            if R == 1 && asks {
                // One row is multiplied as fast as its weights come, and nothing else asks for them in time.
                for line in (0..layout.block()).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + line).cast());
                }
            }
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
                    // What the offset of the weights takes off.
                    let off = match SCHEME {
                        0 => known.whole << if FOUR { 3 } else { 7 },
                        1 => 0,
                        _ => (if part == 0 { known.half } else { known.whole - known.half }) << 5,
                    };
                    let mut sum = _mm512_set1_epi32(-off);
                    for group in if SCHEME == 2 { 4 * part..4 * part + 4 } else { 0..8 } {
                        sum = _mm512_dpbusd_epi32(sum, w[group], _mm512_set1_epi32(x.add(group).read_unaligned()));
                    }
                    sum
                };
                *total = weighed::<SCHEME>(product, known, scales, *total);
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
fn weighed<const SCHEME: u8>(
    product: impl Fn(usize) -> __m512i,
    known: &Rounded,
    [scale, second]: [__m512; 2],
    total: __m512,
) -> __m512 {
    let by = _mm512_set1_ps(known.scale);
    let scaled = |part: usize| _mm512_mul_ps(_mm512_cvtepi32_ps(product(part)), by);
    match SCHEME {
        0 => _mm512_fmadd_ps(scaled(0), scale, total),
        1 => _mm512_fnmadd_ps(second, _mm512_set1_ps(known.sum), _mm512_fmadd_ps(scaled(0), scale, total)),
        _ => _mm512_fmadd_ps(scaled(1), second, _mm512_fmadd_ps(scaled(0), scale, total)),
    }
}

/// [`tiles::by_tiles`].
///
/// # Safety
/// As there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) unsafe fn by_tiles<U: amx::Unit>(
    unit: &mut U,
    simd: Simd,
    layout: Layout,
    rows: Rows,
    panel: &[u8],
    sums: &mut [[f32; PANEL]],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match layout.scheme {
            Scheme::Plain => tiles::by_tiles::<U, 0>(unit, simd, layout, rows, panel, sums),
            Scheme::Minimum => tiles::by_tiles::<U, 1>(unit, simd, layout, rows, panel, sums),
            Scheme::Halves => tiles::by_tiles::<U, 2>(unit, simd, layout, rows, panel, sums),
        }
    }
}

/// Opens a stretch of a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn open<const SCHEME: u8>(layout: Layout, panel: &[u8], stretch: Range<usize>, to: &mut Opened) {
    assert!(panel.len() == layout.panel() && stretch.end <= layout.blocks);
    let mut units = [_mm512_setzero_ps(); 2];
    for ((block, numbers), scales) in stretch.zip(&mut to.numbers).zip(&mut to.scales) {
        let at = block_at(layout, block);
        tiles::signed(layout, &panel[at..][..layout.numbers()], numbers);
        let head = block_at(layout, block / SUPER * SUPER) - layout.scheme.head();
        // SAFETY: the head and the scales of a block below `layout.blocks`, in a panel as long as asserted; sixteen floats.
        unsafe {
            if SCHEME != 0 {
                units = units_at::<SCHEME>(panel[head..].as_ptr());
            }
            let found = scales_at::<SCHEME>(panel[at + layout.numbers()..].as_ptr(), units);
            scales.iter_mut().zip(found).for_each(|(to, found)| _mm512_storeu_ps(to.as_mut_ptr(), found));
        }
    }
}

/// Adds to `sums` the whole-number products of as many blocks as there are scales, weighed by them. The first `skip` rows of
/// the products are others'; what is `known` of a row is `blocks` further on than of the one before.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(super) fn weigh<const SCHEME: u8>(
    known: &[Rounded],
    blocks: usize,
    scales: &[Scales],
    products: &[amx::Sums],
    skip: usize,
    sums: &mut [[f32; PANEL]],
) {
    let parts = const { if SCHEME == 2 { 2 } else { 1 } };
    if let Some(scales) = scales.as_array::<AT_ONCE>() {
        return weigh_some::<SCHEME, AT_ONCE>(known, blocks, scales, products, skip, sums);
    }
    for (block, scales) in scales.iter().enumerate() {
        weigh_some::<SCHEME, 1>(&known[block..], blocks, &[*scales], &products[block * parts..], skip, sums);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
fn weigh_some<const SCHEME: u8, const N: usize>(
    known: &[Rounded],
    blocks: usize,
    scales: &[Scales; N],
    products: &[amx::Sums],
    skip: usize,
    sums: &mut [[f32; PANEL]],
) {
    let parts = const { if SCHEME == 2 { 2 } else { 1 } };
    assert!(!sums.is_empty() && known.len() >= (sums.len() - 1) * blocks + N);
    assert!(products.len() >= N * parts && skip + sums.len() <= amx::ROWS);
    // SAFETY: rows of scales, sums and products are sixteen numbers; the lengths are asserted above. Loads and stores may be
    // unaligned.
    unsafe {
        let mut loaded = [[_mm512_setzero_ps(); 2]; N];
        for (to, from) in loaded.iter_mut().zip(scales) {
            *to = [_mm512_loadu_ps(from[0].as_ptr()), _mm512_loadu_ps(from[1].as_ptr())];
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let mut total = _mm512_loadu_ps(sums.as_ptr());
            for (block, scales) in loaded.into_iter().enumerate() {
                let known = known.get_unchecked(row * blocks + block);
                let product = |part: usize| {
                    let products = products.get_unchecked(block * parts + part);
                    _mm512_loadu_si512(products.0.get_unchecked(skip + row).as_ptr().cast())
                };
                total = weighed::<SCHEME>(product, known, scales, total);
            }
            _mm512_storeu_ps(sums.as_mut_ptr(), total);
        }
    }
}

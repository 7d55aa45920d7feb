//! AVX2: a block's sixteen outputs are two vectors of eight.

use std::arch::x86_64::*;
use std::ops::Range;

use super::layout::{Layout, SUPER, Scheme, block_at};
use super::{BLOCK, GROUP, PANEL, Rounded, Rows};

/// Outputs in a vector.
const LANES: usize = 8;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile(layout: Layout, rows: Rows, panel: &[u8], stretch: Range<usize>, tile: &mut [[f32; PANEL]]) {
    for (index, out) in tile.iter_mut().enumerate() {
        let x = rows.slice(layout.blocks * BLOCK, index, 1);
        for half in 0..2 {
            let (out, stretch) = (&mut out[half * LANES..][..LANES], stretch.clone());
            match (layout.scheme, layout.four_bits) {
                (Scheme::Plain, false) => row::<0, false>(layout, x, panel, stretch, half, out),
                (Scheme::Plain, true) => row::<0, true>(layout, x, panel, stretch, half, out),
                (Scheme::Minimum, false) => row::<1, false>(layout, x, panel, stretch, half, out),
                (Scheme::Minimum, true) => row::<1, true>(layout, x, panel, stretch, half, out),
                (Scheme::Halves, _) => row::<2, false>(layout, x, panel, stretch, half, out),
            }
        }
    }
}

/// One row by eight outputs of a panel. `SCHEME` is that of the layout, as a number.
#[target_feature(enable = "avx2,fma,f16c")]
fn row<const SCHEME: u8, const FOUR: bool>(
    layout: Layout,
    rows: Rows,
    panel: &[u8],
    stretch: Range<usize>,
    half: usize,
    out: &mut [f32],
) {
    let x = rows.bytes;
    assert!(x.len() == layout.blocks * BLOCK && panel.len() == layout.panel() && out.len() == LANES);
    assert!(rows.blocks.len() == layout.blocks && stretch.end <= layout.blocks && stretch.start.is_multiple_of(SUPER));
    // SAFETY: `out` is eight floats; the load may be unaligned.
    let mut total = unsafe { _mm256_loadu_ps(out.as_ptr()) };
    let (mut unit, mut unit_min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    let ones = _mm256_set1_epi16(1);
    // SAFETY: all reads of the panel lie in a block below `layout.blocks` or in the units in front of it, and those
    // of x in one of its blocks; the lengths are asserted above. Loads may be unaligned.
    unsafe {
        for block in stretch {
            let at = panel.as_ptr().add(block_at(layout, block));
            if SCHEME != 0 && block % SUPER == 0 {
                let head = at.sub(layout.scheme.head()).add(2 * LANES * half);
                unit = _mm256_cvtph_ps(_mm_loadu_si128(head.cast()));
                if SCHEME == 1 {
                    unit_min = _mm256_cvtph_ps(_mm_loadu_si128(head.add(2 * PANEL).cast()));
                }
            }
            let x = x.as_ptr().add(block * BLOCK);
            let mut products = [_mm256_setzero_si256(); 2];
            for group in 0..BLOCK / GROUP {
                let x = _mm256_set1_epi32(x.add(group * GROUP).cast::<i32>().read_unaligned());
                let stored = if FOUR { group % 4 } else { group };
                let w = _mm256_loadu_si256(at.add((stored * PANEL + half * LANES) * GROUP).cast());
                let pairs = if FOUR {
                    let w = if group < 4 { w } else { _mm256_srli_epi16::<4>(w) };
                    _mm256_maddubs_epi16(_mm256_and_si256(w, _mm256_set1_epi8(15)), x)
                } else if SCHEME == 0 {
                    // Eight bits with an offset would overflow pairs of 16 bits: the sign goes to x instead.
                    let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                } else {
                    _mm256_maddubs_epi16(w, x)
                };
                let into = &mut products[if SCHEME == 2 { group / 4 } else { 0 }];
                *into = _mm256_add_epi32(*into, _mm256_madd_epi16(pairs, ones));
            }
            let Rounded { scale: x_scale, sum: x_sum, whole, half: first } = *rows.blocks.get_unchecked(block);
            let by = _mm256_set1_ps(x_scale);
            let w_scales = at.add(layout.numbers());
            match SCHEME {
                0 => {
                    let offset = _mm256_set1_epi32(if FOUR { 8 * whole } else { 0 });
                    let product = _mm256_cvtepi32_ps(_mm256_sub_epi32(products[0], offset));
                    let product = _mm256_mul_ps(product, by);
                    let scale = _mm256_cvtph_ps(_mm_loadu_si128(w_scales.add(2 * LANES * half).cast()));
                    total = _mm256_fmadd_ps(product, scale, total);
                }
                1 => {
                    let bytes =
                        |from: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())));
                    let scale = _mm256_mul_ps(unit, bytes(w_scales.add(LANES * half)));
                    let minimum = _mm256_mul_ps(unit_min, bytes(w_scales.add(PANEL + LANES * half)));
                    let product = _mm256_mul_ps(_mm256_cvtepi32_ps(products[0]), by);
                    total = _mm256_fmadd_ps(product, scale, total);
                    total = _mm256_fnmadd_ps(minimum, _mm256_set1_ps(x_sum), total);
                }
                _ => {
                    for (part, of_x) in [first, whole - first].into_iter().enumerate() {
                        let from = w_scales.add(part * PANEL + LANES * half);
                        let scale = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())));
                        let product = _mm256_sub_epi32(products[part], _mm256_set1_epi32(32 * of_x));
                        let product = _mm256_mul_ps(_mm256_cvtepi32_ps(product), by);
                        total = _mm256_fmadd_ps(product, _mm256_mul_ps(unit, scale), total);
                    }
                }
            }
        }
        _mm256_storeu_ps(out.as_mut_ptr(), total);
    }
}

//! `y = x Wᵀ` with quantised weights: rows of `x` become signed bytes in blocks of 32, and products are summed as whole
//! numbers, block by block.
//!
//! Weights lie in panels of 16 outputs. A panel is a list of blocks of 32 inputs; a block is the stored whole numbers of
//! its 16 outputs, without sign and four inputs together (what one vector instruction multiplies), and then the scales.
//! Four-bit numbers share a byte with those 16 inputs further on. What the sign or the minimum adds is known from the
//! sum of `x` alone: `Σ (u − o)·x = Σ u·x − o·Σ x`. What must hold: packing loses nothing, so the products are exactly
//! those of the stored weights with the rounded `x`; sums of floats are made in the order of the blocks whatever rows are
//! in the tile, so a row's answer does not depend on its neighbours.

#![allow(unsafe_code, reason = "vector instructions")]

use kedge_formats::{Dtype, Tensor, quant};

use super::simd::{Simd, dispatch};

/// Outputs in one panel.
pub(crate) const PANEL: usize = 16;
/// Rows of one tile.
pub(crate) const TILE_ROWS: usize = 8;
/// Inputs of one block.
const BLOCK: usize = 32;
/// Inputs that are multiplied at once.
const GROUP: usize = 4;

/// How a block's scales lie behind its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// Sixteen 16-bit scales; 8 is taken off four bits, 128 off eight.
    Plain,
    /// Sixteen bytes of scale and sixteen of minimum, in units that the first block of each eight carries: sixteen
    /// 16-bit units of scale, sixteen of minimum.
    Minimum,
    /// Sixteen signed bytes of scale for each half of the block, in sixteen 16-bit units that the first block of each
    /// eight carries; 32 is taken off.
    Halves,
}

/// Blocks that share units of scale.
const SUPER: usize = 8;

impl Scheme {
    /// Bytes of units in front of each eight blocks.
    const fn head(self) -> usize {
        match self {
            Scheme::Plain => 0,
            Scheme::Minimum => 64,
            Scheme::Halves => 32,
        }
    }
}

/// A packed matrix.
pub(crate) struct Quant {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    layout: Layout,
    panels: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Layout {
    scheme: Scheme,
    four_bits: bool,
    blocks: usize,
}

impl Layout {
    /// Bytes of a block's numbers.
    fn numbers(self) -> usize {
        if self.four_bits { PANEL * BLOCK / 2 } else { PANEL * BLOCK }
    }

    fn block(self) -> usize {
        self.numbers() + 2 * PANEL
    }

    /// Bytes of a panel.
    fn panel(self) -> usize {
        self.blocks * self.block() + self.blocks.div_ceil(SUPER) * self.scheme.head()
    }
}

/// Rows of `x` as signed bytes.
pub(crate) struct Rows<'a> {
    /// `rows × inputs`.
    pub(crate) bytes: &'a [i8],
    /// One for each block.
    pub(crate) scales: &'a [f32],
    /// Two for each block: sums of the bytes of its halves.
    pub(crate) sums: &'a [i32],
}

impl<'a> Rows<'a> {
    /// Rows `range` of them.
    pub(crate) fn slice(&self, inputs: usize, first: usize, count: usize) -> Rows<'a> {
        let blocks = inputs / BLOCK;
        Rows {
            bytes: &self.bytes[first * inputs..][..count * inputs],
            scales: &self.scales[first * blocks..][..count * blocks],
            sums: &self.sums[2 * first * blocks..][..2 * count * blocks],
        }
    }
}

impl Quant {
    /// Packs a matrix; none when its type is not quantised or its rows are no whole blocks.
    pub(crate) fn new(matrix: &Tensor) -> Option<Self> {
        let (scheme, four_bits) = match matrix.dtype {
            Dtype::Q8_0 => (Scheme::Plain, false),
            Dtype::Q4_0 => (Scheme::Plain, true),
            Dtype::Q4K => (Scheme::Minimum, true),
            Dtype::Q5K => (Scheme::Minimum, false),
            Dtype::Q6K => (Scheme::Halves, false),
            _ => return None,
        };
        let (inputs, outputs) = (matrix.columns(), matrix.rows());
        let layout = Layout { scheme, four_bits, blocks: inputs / BLOCK };
        let mut panels = vec![0; outputs.div_ceil(PANEL) * layout.panel()];
        for output in 0..outputs {
            let panel = &mut panels[output / PANEL * layout.panel()..][..layout.panel()];
            pack_row(matrix.dtype, layout, matrix.row(output), output % PANEL, panel);
        }
        Some(Self { inputs, outputs, layout, panels })
    }

    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Products of the rows (as many as `tile` has, at most [`TILE_ROWS`]) with a panel.
    pub(crate) fn tile(&self, simd: Simd, rows: &Rows, panel: usize, tile: &mut [[f32; PANEL]]) {
        let (count, blocks) = (tile.len(), self.layout.blocks);
        assert!(count <= TILE_ROWS && rows.bytes.len() == count * self.inputs && panel < self.panels());
        assert!(rows.scales.len() == count * blocks && rows.sums.len() == 2 * count * blocks);
        let layout = self.layout;
        let panel = &self.panels[panel * layout.panel()..][..layout.panel()];
        dispatch!(
            simd,
            plain(layout, rows, panel, tile),
            avx2::tile(layout, rows, panel, tile),
            avx512::tile(layout, rows, panel, tile)
        );
    }
}

/// Where a block begins in its panel.
fn block_at(layout: Layout, block: usize) -> usize {
    block * layout.block() + (block / SUPER + 1) * layout.scheme.head()
}

/// Puts one stored row into its lane of a panel.
fn pack_row(dtype: Dtype, layout: Layout, row: &[u8], lane: usize, panel: &mut [u8]) {
    let (values, bytes) = dtype.block();
    let mut put_two = |at: usize, from: &[u8]| panel[at..at + 2].copy_from_slice(&from[..2]);
    for (index, stored) in row.chunks_exact(bytes).enumerate() {
        let head = |unit: usize| block_at(layout, index * SUPER) - layout.scheme.head() + 2 * (unit * PANEL + lane);
        match layout.scheme {
            Scheme::Plain => put_two(block_at(layout, index) + layout.numbers() + 2 * lane, stored),
            Scheme::Minimum => {
                put_two(head(0), stored);
                put_two(head(1), &stored[2..]);
            }
            Scheme::Halves => put_two(head(0), &stored[208..]),
        }
    }
    let per_stored = values / BLOCK;
    for block in 0..layout.blocks {
        let (stored, part) = (&row[block / per_stored * bytes..][..bytes], block % per_stored);
        let at = block_at(layout, block);
        for input in 0..BLOCK {
            let value = number(dtype, stored, part * BLOCK + input);
            let (group, within) = (input / GROUP, input % GROUP);
            if layout.four_bits {
                let byte = &mut panel[at + (group % 4) * PANEL * GROUP + lane * GROUP + within];
                *byte |= value << (group / 4 * 4);
            } else {
                panel[at + group * PANEL * GROUP + lane * GROUP + within] = value;
            }
        }
        let scales = at + layout.numbers();
        match layout.scheme {
            Scheme::Plain => {}
            Scheme::Minimum => {
                let (scale, minimum) = quant::scale_and_min(&stored[4..16], part);
                panel[scales + lane] = scale;
                panel[scales + PANEL + lane] = minimum;
            }
            Scheme::Halves => {
                for half in 0..2 {
                    panel[scales + half * PANEL + lane] = stored[192 + 2 * part + half];
                }
            }
        }
    }
}

/// The whole number of one value of a stored block, without sign.
fn number(dtype: Dtype, stored: &[u8], index: usize) -> u8 {
    match dtype {
        Dtype::Q8_0 => stored[2 + index] ^ 0x80,
        Dtype::Q4_0 => stored[2 + index % 16] >> (index / 16 * 4) & 15,
        Dtype::Q4K => nibble(&stored[16..], index),
        Dtype::Q5K => nibble(&stored[48..], index) | (stored[16 + index % 32] >> (index / 32) & 1) << 4,
        _ => quant::six_bits(stored, index),
    }
}

fn nibble(low: &[u8], index: usize) -> u8 {
    low[index / 64 * 32 + index % 32] >> (index / 32 % 2 * 4) & 15
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn plain(layout: Layout, rows: &Rows, panel: &[u8], tile: &mut [[f32; PANEL]]) {
    let inputs = layout.blocks * BLOCK;
    for (row, sums) in tile.iter_mut().enumerate() {
        *sums = [0.0; PANEL];
        for block in 0..layout.blocks {
            let at = block_at(layout, block);
            let head = block_at(layout, block / SUPER * SUPER) - layout.scheme.head();
            let x = &rows.bytes[row * inputs + block * BLOCK..][..BLOCK];
            let x_scale = rows.scales[row * layout.blocks + block];
            let halves = &rows.sums[2 * (row * layout.blocks + block)..][..2];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let mut products = [0i32; 2];
                for (input, x) in x.iter().enumerate() {
                    let (group, within) = (input / GROUP, input % GROUP);
                    let value = if layout.four_bits {
                        panel[at + (group % 4) * PANEL * GROUP + lane * GROUP + within] >> (group / 4 * 4) & 15
                    } else {
                        panel[at + group * PANEL * GROUP + lane * GROUP + within]
                    };
                    products[input / 16] += i32::from(value) * i32::from(*x);
                }
                let scales = at + layout.numbers();
                match layout.scheme {
                    Scheme::Plain => {
                        let offset = if layout.four_bits { 8 } else { 128 };
                        let whole = products[0] + products[1] - offset * (halves[0] + halves[1]);
                        *sum += whole as f32 * (half_at(panel, scales + 2 * lane) * x_scale);
                    }
                    Scheme::Minimum => {
                        let scale = half_at(panel, head + 2 * lane) * f32::from(panel[scales + lane]);
                        let minimum =
                            half_at(panel, head + 2 * (PANEL + lane)) * f32::from(panel[scales + PANEL + lane]);
                        *sum += (products[0] + products[1]) as f32 * (scale * x_scale);
                        *sum -= minimum * ((halves[0] + halves[1]) as f32 * x_scale);
                    }
                    Scheme::Halves => {
                        let unit = half_at(panel, head + 2 * lane);
                        for half in 0..2 {
                            let scale = unit * f32::from(panel[scales + half * PANEL + lane] as i8);
                            *sum += (products[half] - 32 * halves[half]) as f32 * (scale * x_scale);
                        }
                    }
                }
            }
        }
    }
}

/// AVX2: a block's sixteen outputs are two vectors of eight.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;

    /// Outputs in a vector.
    const LANES: usize = 8;

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn tile(layout: Layout, rows: &Rows, panel: &[u8], tile: &mut [[f32; PANEL]]) {
        let inputs = layout.blocks * BLOCK;
        for (index, out) in tile.iter_mut().enumerate() {
            let x = &rows.bytes[index * inputs..][..inputs];
            let scales = &rows.scales[index * layout.blocks..][..layout.blocks];
            let sums = &rows.sums[2 * index * layout.blocks..][..2 * layout.blocks];
            for half in 0..2 {
                let sum = match (layout.scheme, layout.four_bits) {
                    (Scheme::Plain, false) => row::<0, false>(layout, x, scales, sums, panel, half),
                    (Scheme::Plain, true) => row::<0, true>(layout, x, scales, sums, panel, half),
                    (Scheme::Minimum, false) => row::<1, false>(layout, x, scales, sums, panel, half),
                    (Scheme::Minimum, true) => row::<1, true>(layout, x, scales, sums, panel, half),
                    (Scheme::Halves, _) => row::<2, false>(layout, x, scales, sums, panel, half),
                };
                // SAFETY: half · 8 + 8 floats are in `out`; the store may be unaligned.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(half * LANES), sum) };
            }
        }
    }

    /// One row by eight outputs of a panel. `SCHEME` is that of the layout, as a number.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn row<const SCHEME: u8, const FOUR: bool>(
        layout: Layout,
        x: &[i8],
        scales: &[f32],
        sums: &[i32],
        panel: &[u8],
        half: usize,
    ) -> __m256 {
        assert!(x.len() == layout.blocks * BLOCK && panel.len() == layout.panel());
        assert!(scales.len() == layout.blocks && sums.len() == 2 * layout.blocks);
        let mut total = _mm256_setzero_ps();
        let (mut unit, mut unit_min) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        let ones = _mm256_set1_epi16(1);
        // SAFETY: all reads of the panel lie in a block below `layout.blocks` or in the units in front of it, and those
        // of x in one of its blocks; the lengths are asserted above. Loads may be unaligned.
        unsafe {
            for block in 0..layout.blocks {
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
                let x_scale = *scales.get_unchecked(block);
                let x_sum = [*sums.get_unchecked(2 * block), *sums.get_unchecked(2 * block + 1)];
                let w_scales = at.add(layout.numbers());
                match SCHEME {
                    0 => {
                        let offset = if FOUR { 8 * (x_sum[0] + x_sum[1]) } else { 0 };
                        let whole = _mm256_cvtepi32_ps(_mm256_sub_epi32(products[0], _mm256_set1_epi32(offset)));
                        let scale = _mm256_cvtph_ps(_mm_loadu_si128(w_scales.add(2 * LANES * half).cast()));
                        total = _mm256_fmadd_ps(whole, _mm256_mul_ps(scale, _mm256_set1_ps(x_scale)), total);
                    }
                    1 => {
                        let bytes =
                            |from: *const u8| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())));
                        let scale = _mm256_mul_ps(unit, bytes(w_scales.add(LANES * half)));
                        let minimum = _mm256_mul_ps(unit_min, bytes(w_scales.add(PANEL + LANES * half)));
                        let whole = _mm256_cvtepi32_ps(products[0]);
                        total = _mm256_fmadd_ps(whole, _mm256_mul_ps(scale, _mm256_set1_ps(x_scale)), total);
                        let sum = _mm256_set1_ps((x_sum[0] + x_sum[1]) as f32 * x_scale);
                        total = _mm256_fnmadd_ps(minimum, sum, total);
                    }
                    _ => {
                        for part in 0..2 {
                            let from = w_scales.add(part * PANEL + LANES * half);
                            let scale = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())));
                            let scale = _mm256_mul_ps(_mm256_mul_ps(unit, scale), _mm256_set1_ps(x_scale));
                            let whole = _mm256_sub_epi32(products[part], _mm256_set1_epi32(32 * x_sum[part]));
                            total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), scale, total);
                        }
                    }
                }
            }
        }
        total
    }
}

/// AVX-512 with VNNI: a block's sixteen outputs are one vector, four inputs one instruction.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    /// Calls `rows` for as many rows as the tile has.
    macro_rules! by_rows {
        ($scheme:literal, $four:literal, $layout:ident, $rows:ident, $panel:ident, $tile:ident) => {
            match $tile.len() {
                1 => rows::<1, $scheme, $four>($layout, $rows, $panel, $tile),
                2 => rows::<2, $scheme, $four>($layout, $rows, $panel, $tile),
                3 => rows::<3, $scheme, $four>($layout, $rows, $panel, $tile),
                4 => rows::<4, $scheme, $four>($layout, $rows, $panel, $tile),
                5 => rows::<5, $scheme, $four>($layout, $rows, $panel, $tile),
                6 => rows::<6, $scheme, $four>($layout, $rows, $panel, $tile),
                7 => rows::<7, $scheme, $four>($layout, $rows, $panel, $tile),
                8 => rows::<8, $scheme, $four>($layout, $rows, $panel, $tile),
                _ => {}
            }
        };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    pub(super) fn tile(layout: Layout, rows: &Rows, panel: &[u8], tile: &mut [[f32; PANEL]]) {
        match (layout.scheme, layout.four_bits) {
            (Scheme::Plain, false) => by_rows!(0, false, layout, rows, panel, tile),
            (Scheme::Plain, true) => by_rows!(0, true, layout, rows, panel, tile),
            (Scheme::Minimum, false) => by_rows!(1, false, layout, rows, panel, tile),
            (Scheme::Minimum, true) => by_rows!(1, true, layout, rows, panel, tile),
            (Scheme::Halves, _) => by_rows!(2, false, layout, rows, panel, tile),
        }
    }

    /// `R` rows by a panel. `SCHEME` is that of the layout, as a number.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    fn rows<const R: usize, const SCHEME: u8, const FOUR: bool>(
        layout: Layout,
        rows: &Rows,
        panel: &[u8],
        tile: &mut [[f32; PANEL]],
    ) {
        let inputs = layout.blocks * BLOCK;
        assert!(tile.len() == R && rows.bytes.len() == R * inputs && panel.len() == layout.panel());
        assert!(rows.scales.len() == R * layout.blocks && rows.sums.len() == 2 * R * layout.blocks);
        let mut totals = [_mm512_setzero_ps(); R];
        let (mut unit, mut unit_min) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        // SAFETY: all reads of the panel lie in a block below `layout.blocks` or in the units in front of it, and those
        // of the rows in one of their blocks; the lengths are asserted above. Loads may be unaligned.
        unsafe {
            for block in 0..layout.blocks {
                let at = panel.as_ptr().add(block_at(layout, block));
                if SCHEME != 0 && block % SUPER == 0 {
                    let head = at.sub(layout.scheme.head());
                    unit = _mm512_cvtph_ps(_mm256_loadu_si256(head.cast()));
                    if SCHEME == 1 {
                        unit_min = _mm512_cvtph_ps(_mm256_loadu_si256(head.add(2 * PANEL).cast()));
                    }
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
                let w_scales = at.add(layout.numbers());
                let bytes = |from: *const u8| _mm_loadu_si128(from.cast());
                let (scale, second) = match SCHEME {
                    0 => (_mm512_cvtph_ps(_mm256_loadu_si256(w_scales.cast())), _mm512_setzero_ps()),
                    1 => (
                        _mm512_mul_ps(unit, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(w_scales)))),
                        _mm512_mul_ps(unit_min, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(w_scales.add(PANEL))))),
                    ),
                    _ => (
                        _mm512_mul_ps(unit, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(w_scales)))),
                        _mm512_mul_ps(unit, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(w_scales.add(PANEL))))),
                    ),
                };
                for (row, total) in totals.iter_mut().enumerate() {
                    let x = rows.bytes.as_ptr().add(row * inputs + block * BLOCK).cast::<i32>();
                    let index = row * layout.blocks + block;
                    let x_scale = *rows.scales.get_unchecked(index);
                    let x_sum = [*rows.sums.get_unchecked(2 * index), *rows.sums.get_unchecked(2 * index + 1)];
                    let product = |sum: __m512i, group: usize| {
                        _mm512_dpbusd_epi32(sum, w[group], _mm512_set1_epi32(x.add(group).read_unaligned()))
                    };
                    let offset = match (SCHEME, FOUR) {
                        (0, true) => [-8 * (x_sum[0] + x_sum[1]), 0],
                        (0, false) => [-128 * (x_sum[0] + x_sum[1]), 0],
                        (1, _) => [0, 0],
                        _ => [-32 * x_sum[0], -32 * x_sum[1]],
                    };
                    let mut first = _mm512_set1_epi32(offset[0]);
                    for group in 0..4 {
                        first = product(first, group);
                    }
                    let mut last = _mm512_set1_epi32(offset[1]);
                    for group in 4..8 {
                        last = product(last, group);
                    }
                    let by = _mm512_set1_ps(x_scale);
                    if SCHEME == 2 {
                        *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(first), _mm512_mul_ps(scale, by), *total);
                        *total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(last), _mm512_mul_ps(second, by), *total);
                    } else {
                        let whole = _mm512_cvtepi32_ps(_mm512_add_epi32(first, last));
                        *total = _mm512_fmadd_ps(whole, _mm512_mul_ps(scale, by), *total);
                        if SCHEME == 1 {
                            let sum = _mm512_set1_ps((x_sum[0] + x_sum[1]) as f32 * x_scale);
                            *total = _mm512_fnmadd_ps(second, sum, *total);
                        }
                    }
                }
            }
        }
        for (total, out) in totals.iter().zip(tile) {
            // SAFETY: `out` is sixteen floats; the store may be unaligned.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *total) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::tests::numbers;
    use super::*;

    const TYPES: [Dtype; 5] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K];

    /// The rows rounded to bytes, and what they are then.
    fn rounded(x: &[f32]) -> (Vec<i8>, Vec<f32>, Vec<i32>, Vec<f64>) {
        let (mut bytes, mut scales, mut sums) =
            (vec![0; x.len()], vec![0.0; x.len() / BLOCK], vec![0; x.len() / BLOCK * 2]);
        Simd::Portable.quantize(x, &mut bytes, &mut scales, &mut sums);
        let exact = bytes.iter().enumerate().map(|(i, byte)| f64::from(*byte) * f64::from(scales[i / BLOCK])).collect();
        (bytes, scales, sums, exact)
    }

    #[test]
    fn tiles_are_the_products_of_the_stored_weights_at_every_level() {
        for dtype in TYPES {
            let inputs = if dtype.block().0 == 32 { 96 } else { 512 };
            for outputs in [1, 16, 37] {
                // The extremes are where whole numbers would overflow.
                let mut weights = numbers(inputs * outputs, 11);
                weights[..inputs].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 2 == 0 { 1.0 } else { -1.0 });
                let bytes = quant::quantize(dtype, &weights);
                let matrix = Tensor::of_bytes(dtype, &[outputs, inputs], bytes).unwrap();
                let (exact, packed) = (matrix.to_f32(), Quant::new(&matrix).unwrap());
                for rows in 1..=TILE_ROWS {
                    let mut x = numbers(rows * inputs, rows as u32);
                    x[..inputs].copy_from_slice(&weights[..inputs]);
                    let (bytes, scales, sums, x) = rounded(&x);
                    let all = Rows { bytes: &bytes, scales: &scales, sums: &sums };
                    for level in Simd::available() {
                        for panel in 0..packed.panels() {
                            let mut tile = vec![[9.0; PANEL]; rows];
                            packed.tile(level, &all, panel, &mut tile);
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
            let share = Quant::new(&matrix).unwrap().panels.len() as f64 / matrix.bytes().len() as f64;
            assert!(share <= most, "{}: {share}", dtype.name());
        }
    }
}

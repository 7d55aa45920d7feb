//! `y = x Wᵀ` with quantised weights: rows of `x` become signed bytes in blocks of 32, and products are summed as whole
//! numbers, block by block.
//!
//! Weights lie in panels of 16 outputs. A panel is a list of blocks of 32 inputs; a block is the stored whole numbers of
//! its 16 outputs, without sign and four inputs together (what one vector instruction multiplies), and then the scales.
//! Four-bit numbers share a byte with those 16 inputs further on. What the sign or the minimum adds is known from the
//! sum of `x` alone: `Σ (u − o)·x = Σ u·x − o·Σ x`. What must hold: packing loses nothing, so the products are exactly
//! those of the stored weights with the rounded `x`; sums of floats are made in the order of the blocks whatever rows are
//! in the tile, so a row's answer does not depend on its neighbours. Tiles of whole numbers ([`super::amx`]) give the same
//! bits as AVX-512: whole sums are exact in any order, and floats are added by the same code.

#![allow(unsafe_code, reason = "vector instructions")]

use std::ops::Range;

use kedge_formats::{Dtype, Tensor, quant};

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::packed::Part;
use super::simd::{Simd, dispatch};

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
    panels: Part,
}

/// How a matrix is packed.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    scheme: Scheme,
    four_bits: bool,
    blocks: usize,
}

impl Layout {
    /// That of a matrix; none when its type is not quantised.
    pub(crate) fn of(matrix: &Tensor) -> Option<Self> {
        let (scheme, four_bits) = match matrix.dtype {
            Dtype::Q8_0 => (Scheme::Plain, false),
            Dtype::Q4_0 => (Scheme::Plain, true),
            Dtype::Q4K => (Scheme::Minimum, true),
            Dtype::Q5K => (Scheme::Minimum, false),
            Dtype::Q6K => (Scheme::Halves, false),
            _ => return None,
        };
        Some(Self { scheme, four_bits, blocks: matrix.columns() / BLOCK })
    }

    /// Packs one panel of such a matrix; `out` is zeros.
    pub(crate) fn pack(self, matrix: &Tensor, panel: usize, out: &mut [u8]) {
        for output in panel * PANEL..matrix.rows().min((panel + 1) * PANEL) {
            pack_row(matrix.dtype, self, matrix.row(output), output % PANEL, out);
        }
    }

    /// Bytes of a block's numbers.
    fn numbers(self) -> usize {
        if self.four_bits { PANEL * BLOCK / 2 } else { PANEL * BLOCK }
    }

    fn block(self) -> usize {
        self.numbers() + 2 * PANEL
    }

    /// Bytes of a packed panel.
    pub(crate) fn panel(self) -> usize {
        self.blocks * self.block() + self.blocks.div_ceil(SUPER) * self.scheme.head()
    }
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
    /// That of each half.
    pub(crate) halves: [f32; 2],
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
            return unsafe { by_tiles(&mut amx::Instructions, simd, layout, rows, panel, sums) };
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

/// Blocks whose sums are made one after the other before they are weighed: one alone would be waited for.
#[cfg(target_arch = "x86_64")]
const AT_ONCE: usize = 4;

/// [`Quant::add`] by tiles: a stretch of the panel meets sixteen rows after sixteen. Where rows are no multiple of that, the
/// last sixteen overlap with those before, and only what is new is kept.
///
/// # Safety
/// The unit may be used on this thread: see [`amx::Offer::Granted`]. The level is one with AVX-512; with the model of a unit,
/// tests may take any.
#[cfg(target_arch = "x86_64")]
unsafe fn by_tiles<U: amx::Unit>(
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
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct Opened([[u8; PANEL * BLOCK]; STRETCH]);

/// Gives each four-bit number of a block a byte.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn open(stored: &[u8], to: &mut [u8; PANEL * BLOCK]) {
    let (low, high) = to.split_at_mut(PANEL * BLOCK / 2);
    for ((stored, low), high) in stored.iter().zip(low).zip(high) {
        (*low, *high) = (stored & 15, stored >> 4);
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

fn plain(layout: Layout, rows: Rows, panel: &[u8], stretch: Range<usize>, tile: &mut [[f32; PANEL]]) {
    let inputs = layout.blocks * BLOCK;
    for (row, sums) in tile.iter_mut().enumerate() {
        for block in stretch.clone() {
            let at = block_at(layout, block);
            let head = block_at(layout, block / SUPER * SUPER) - layout.scheme.head();
            let x = &rows.bytes[row * inputs + block * BLOCK..][..BLOCK];
            let Rounded { scale: x_scale, sum: x_sum, halves } = rows.blocks[row * layout.blocks + block];
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
                        let offset = if layout.four_bits { 8.0 } else { 128.0 };
                        let product = (products[0] + products[1]) as f32 * x_scale - offset * x_sum;
                        *sum += product * half_at(panel, scales + 2 * lane);
                    }
                    Scheme::Minimum => {
                        let scale = half_at(panel, head + 2 * lane) * f32::from(panel[scales + lane]);
                        let minimum =
                            half_at(panel, head + 2 * (PANEL + lane)) * f32::from(panel[scales + PANEL + lane]);
                        *sum += (products[0] + products[1]) as f32 * x_scale * scale;
                        *sum -= minimum * x_sum;
                    }
                    Scheme::Halves => {
                        let unit = half_at(panel, head + 2 * lane);
                        for half in 0..2 {
                            let scale = unit * f32::from(panel[scales + half * PANEL + lane] as i8);
                            *sum += (products[half] as f32 * x_scale - 32.0 * halves[half]) * scale;
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
        assert!(
            rows.blocks.len() == layout.blocks && stretch.end <= layout.blocks && stretch.start.is_multiple_of(SUPER)
        );
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
                let Rounded { scale: x_scale, sum: x_sum, halves } = *rows.blocks.get_unchecked(block);
                let by = _mm256_set1_ps(x_scale);
                let w_scales = at.add(layout.numbers());
                match SCHEME {
                    0 => {
                        let offset = _mm256_set1_ps(if FOUR { 8.0 * x_sum } else { 0.0 });
                        let product = _mm256_fmsub_ps(_mm256_cvtepi32_ps(products[0]), by, offset);
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
                        for part in 0..2 {
                            let from = w_scales.add(part * PANEL + LANES * half);
                            let scale = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())));
                            let offset = _mm256_set1_ps(32.0 * halves[part]);
                            let product = _mm256_fmsub_ps(_mm256_cvtepi32_ps(products[part]), by, offset);
                            total = _mm256_fmadd_ps(product, _mm256_mul_ps(unit, scale), total);
                        }
                    }
                }
            }
            _mm256_storeu_ps(out.as_mut_ptr(), total);
        }
    }
}

/// AVX-512 with VNNI: a block's sixteen outputs are one vector, four inputs one instruction.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

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

    /// See [`super::open`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
    pub(super) fn open(stored: &[u8], to: &mut [u8; PANEL * BLOCK]) {
        super::open(stored, to);
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
                let units =
                    if SCHEME == 0 { [_mm512_setzero_ps(); 2] } else { units_at::<SCHEME>(panel[head..].as_ptr()) };
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
}

#[cfg(test)]
mod tests {
    use super::super::packed::tests::packed;
    use super::super::simd::tests::numbers;
    use super::*;

    fn quant(matrix: &Tensor) -> Quant {
        Quant::new(matrix, Layout::of(matrix).unwrap(), packed(matrix))
    }

    const TYPES: [Dtype; 5] = [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K];

    /// The rows rounded to bytes, and what they are then.
    fn rounded(x: &[f32]) -> (Vec<i8>, Vec<Rounded>, Vec<f64>) {
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

    /// What [`avx512::weigh`] does, with the same bits.
    #[cfg(target_arch = "x86_64")]
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
    #[cfg(target_arch = "x86_64")]
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
    #[cfg(target_arch = "x86_64")]
    fn products_by_tiles_are_the_portable_ones_with_the_bits_of_avx512() {
        for dtype in TYPES {
            let lengths: &[usize] = if dtype.block().0 == 32 { &[32, 96, 32 * 45] } else { &[256, 1280] };
            for (inputs, outputs) in lengths.iter().flat_map(|inputs| [(*inputs, 5), (*inputs, 37)]) {
                let mut weights = numbers(inputs * outputs, 11);
                weights[..inputs].iter_mut().enumerate().for_each(|(i, w)| *w = if i % 2 == 0 { 1.0 } else { -1.0 });
                let bytes = quant::quantize(dtype, &weights);
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

    #[test]
    fn packed_weights_are_hardly_larger_than_stored_ones() {
        for (dtype, most) in [(Dtype::Q8_0, 1.0), (Dtype::Q4_0, 1.0), (Dtype::Q4K, 1.06), (Dtype::Q6K, 1.4)] {
            let matrix = Tensor::of_bytes(dtype, &[16, 1024], quant::quantize(dtype, &numbers(16 * 1024, 1))).unwrap();
            let share = packed(&matrix).len() as f64 / matrix.bytes().len() as f64;
            assert!(share <= most, "{}: {share}", dtype.name());
        }
    }
}

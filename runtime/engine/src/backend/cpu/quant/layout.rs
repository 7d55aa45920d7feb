//! How packed matrices lie, and how they are packed.

use kedge_formats::{Dtype, Tensor, quant};

use super::{BLOCK, GROUP, PANEL};

/// How a block's scales lie behind its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
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
pub(super) const SUPER: usize = 8;

impl Scheme {
    /// Bytes of units in front of each eight blocks.
    #[inline]
    pub(super) const fn head(self) -> usize {
        match self {
            Scheme::Plain => 0,
            Scheme::Minimum => 64,
            Scheme::Halves => 32,
        }
    }
}

/// How a matrix is packed.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(super) scheme: Scheme,
    pub(super) four_bits: bool,
    pub(super) blocks: usize,
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
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Other { .. } => return None,
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
    #[inline]
    pub(super) fn numbers(self) -> usize {
        if self.four_bits { PANEL * BLOCK / 2 } else { PANEL * BLOCK }
    }

    /// Bytes of a block, without the units in front of eight.
    #[inline]
    pub(super) fn block(self) -> usize {
        self.numbers() + 2 * PANEL
    }

    /// Bytes of a packed panel.
    pub(crate) fn panel(self) -> usize {
        self.blocks * self.block() + self.blocks.div_ceil(SUPER) * self.scheme.head()
    }
}

/// Where a block begins in its panel.
#[inline]
pub(super) fn block_at(layout: Layout, block: usize) -> usize {
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
        Dtype::Q6K => quant::six_bits(stored, index),
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::Other { .. } => unreachable!("a layout is of a quantised type"),
    }
}

fn nibble(low: &[u8], index: usize) -> u8 {
    low[index / 64 * 32 + index % 32] >> (index / 32 % 2 * 4) & 15
}

pub(super) fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

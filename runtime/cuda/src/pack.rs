//! Matrices as the kernels read them.
//!
//! A matrix is cut into tiles of 16 outputs, and a tile into chunks of 32 inputs (16 for 16-bit floats). In a chunk each
//! number lies where the lane that multiplies it reads it: register `r` of lane `4 g + t` has outputs `g + 8 (r mod 2)`
//! of the tile, and the numbers from input `(chunk / 2) (r / 2) + 4 t` (or `2 t`) on. That is how the tensor cores want
//! their 16-row side. Behind a quantised chunk's numbers lie 32 bytes of scales.
//!
//! What must hold: packing loses nothing. The exception is [`Dtype::Bf16`]: it becomes 16-bit floats under a power of two
//! for each output, which is exact for every number above 2⁻³² of the largest in its row, and less of a loss for those
//! below than any sum would notice; all devices that we know multiply such floats at the same speed, and vectors are
//! rounded less that way. Not here: devices.

use half::{bf16, f16};
use kedge_formats::{Dtype, Tensor, quant};

use crate::constants as c;

/// Outputs of a tile.
pub const TILE: usize = c::OUTPUTS;
/// Chunks that share units of scale.
const SUPER: usize = 8;
/// Tiles that are worth a thread.
const TILES_MIN: usize = 64;
/// Bytes of scales behind a quantised chunk.
const SCALES: usize = 2 * TILE;

/// The kernels of a format's products.
macro_rules! kernels {
    ($name:literal) => {
        [
            concat!("kedge_linear_", $name, "_8"),
            concat!("kedge_linear_", $name, "_32"),
            concat!("kedge_linear_", $name, "_64"),
        ]
    };
}

/// How a matrix lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats, as stored: no tiles.
    F32,
    /// 16-bit floats.
    Half,
    /// Signed bytes with a scale for 32.
    Q8_0,
    /// Four bits with a scale for 32.
    Q4_0,
    /// Four bits with a scale and a minimum for 32, in units for 256.
    Q4K,
    /// As [`Format::Q4K`], with five bits.
    Q5K,
    /// Six bits with a scale for 16, in units for 256.
    Q6K,
}

impl Format {
    /// That of matrices of a type; none for what cannot be multiplied.
    pub fn of(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 | Dtype::Bf16 => Self::Half,
            Dtype::Q8_0 => Self::Q8_0,
            Dtype::Q4_0 => Self::Q4_0,
            Dtype::Q4K => Self::Q4K,
            Dtype::Q5K => Self::Q5K,
            Dtype::Q6K => Self::Q6K,
            Dtype::Other { .. } => return None,
        })
    }

    /// What it is like: a line for each.
    pub(crate) const fn facts(self) -> Facts {
        match self {
            Self::F32 => Facts::of(1, 4 * TILE, 0, 0, c::STORED_F32, ["kedge_linear_f32"; 3]),
            Self::Half => Facts::of(16, 512, 0, c::ROUNDED_HALVES, c::PACKED_HALF, kernels!("half")),
            Self::Q8_0 => Facts::of(32, 512, 0, c::ROUNDED_BYTES, c::PACKED_Q8_0, kernels!("q8_0")),
            Self::Q4_0 => Facts::of(32, 256, 0, c::ROUNDED_BYTES, c::PACKED_Q4_0, kernels!("q4_0")),
            Self::Q4K => Facts::of(32, 256, 4 * TILE, c::ROUNDED_BYTES, c::PACKED_Q4_K, kernels!("q4_k")),
            Self::Q5K => Facts::of(32, 256 + 64, 4 * TILE, c::ROUNDED_BYTES, c::PACKED_Q5_K, kernels!("q5_k")),
            Self::Q6K => Facts::of(32, 256 + 128, 2 * TILE, c::ROUNDED_BYTES, c::PACKED_Q6_K, kernels!("q6_k")),
        }
    }

    /// Whether vectors are rounded to bytes for it.
    fn takes_bytes(self) -> bool {
        self.facts().rounding == c::ROUNDED_BYTES
    }

    /// Bytes of a chunk.
    fn bytes(self) -> usize {
        self.facts().numbers + if self.takes_bytes() { SCALES } else { 0 }
    }
}

/// What a format is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Inputs of a chunk; rows are padded to whole ones.
    pub(crate) chunk: usize,
    /// Bytes of a chunk's numbers, for all outputs of a tile.
    numbers: usize,
    /// Bytes of units for each eight chunks of a tile.
    units: usize,
    /// How vectors are rounded for it (`constants`); zero for not at all.
    pub(crate) rounding: usize,
    /// What the kernels call a table that lies so (`constants`).
    pub(crate) table: usize,
    /// The kernels of its products, for 8, 32 and 64 vectors at a time.
    pub(crate) kernels: [&'static str; 3],
}

impl Facts {
    const fn of(
        chunk: usize,
        numbers: usize,
        units: usize,
        rounding: usize,
        table: usize,
        kernels: [&'static str; 3],
    ) -> Self {
        Self { chunk, numbers, units, rounding, table, kernels }
    }
}

/// A packed matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// How it lies.
    pub format: Format,
    /// Inputs, padded to whole chunks.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Its chunks, tile by tile.
    pub weights: Vec<u8>,
    /// Units of scale, tile by tile; for what was [`Dtype::Bf16`] a 32-bit float for each output; else nothing.
    pub units: Vec<u8>,
}

impl Packed {
    /// Packs a matrix, which has a format.
    pub fn new(matrix: &Tensor, format: Format) -> Self {
        let (inputs, outputs) = (matrix.columns().next_multiple_of(format.facts().chunk), matrix.rows());
        if format == Format::F32 {
            return Self { format, inputs, outputs, weights: matrix.bytes().to_vec(), units: Vec::new() };
        }
        let (tiles, chunks) = (outputs.div_ceil(TILE), inputs / format.facts().chunk);
        let units_length = chunks.div_ceil(SUPER) * format.facts().units;
        let mut weights = vec![0; tiles * chunks * format.bytes()];
        let mut units = vec![0; tiles * units_length];
        let mut scales = vec![1.0f32; if matrix.dtype == Dtype::Bf16 { outputs } else { 0 }];
        // Tiles are shared out among threads: large models would wait for one.
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(tiles / TILES_MIN + 1);
        let share = tiles.div_ceil(threads);
        std::thread::scope(|scope| {
            let (mut units, mut scales) = (&mut units[..], &mut scales[..]);
            for (index, weights) in weights.chunks_mut(share * chunks * format.bytes()).enumerate() {
                let my_units = units.split_off_mut(..units.len().min(share * units_length)).unwrap_or_default();
                let my_scales = scales.split_off_mut(..scales.len().min(share * TILE)).unwrap_or_default();
                let mut pack = move || {
                    for (tile, weights) in weights.chunks_mut(chunks * format.bytes()).enumerate() {
                        let first = (index * share + tile) * TILE;
                        for lane in 0..TILE.min(outputs - first) {
                            if format == Format::Half {
                                let scale = half_row(matrix, first + lane, lane, weights);
                                if let Some(kept) = my_scales.get_mut(tile * TILE + lane) {
                                    *kept = scale;
                                }
                            } else {
                                let units = &mut my_units[tile * units_length..];
                                quant_row(matrix.dtype, format, matrix.row(first + lane), lane, weights, units);
                            }
                        }
                    }
                };
                if threads == 1 {
                    pack();
                } else {
                    scope.spawn(pack);
                }
            }
        });
        if !scales.is_empty() {
            units = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        }
        Self { format, inputs, outputs, weights, units }
    }
}

/// Which register of which lane has a number of a chunk, and which of the register's numbers it is.
fn place(lane_of_tile: usize, input: usize, per_register: usize) -> (usize, usize, usize) {
    let half = 4 * per_register;
    let (second, within) = (input / half, input % half);
    (lane_of_tile % 8 * 4 + within / per_register, 2 * second + lane_of_tile / 8, within % per_register)
}

/// Puts one row into its place in a tile; returns what its numbers are to be multiplied by.
fn half_row(matrix: &Tensor, row: usize, lane_of_tile: usize, tile: &mut [u8]) -> f32 {
    let two = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
    let stored = matrix.row(row).chunks_exact(2).map(two);
    let mut put = |input: usize, bits: u16| {
        let (lane, register, within) = place(lane_of_tile, input % 16, 2);
        let at = input / 16 * 512 + lane * 16 + register * 4 + within * 2;
        tile[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    };
    if matrix.dtype == Dtype::F16 {
        stored.enumerate().for_each(|(input, bits)| put(input, bits));
        return 1.0;
    }
    // The largest exponent of the row becomes that of 2¹⁴. Infinities and NaN stay what they are, unscaled.
    let exponent = stored.clone().map(|bits| bits >> 7 & 0xff).max().unwrap_or_default();
    let power = if exponent == 0xff || exponent == 0 { 0 } else { 141 - i32::from(exponent) };
    let by = f64::from(power).exp2();
    for (input, bits) in stored.enumerate() {
        put(input, f16::from_f64(bf16::from_bits(bits).to_f64() * by).to_bits());
    }
    (-f64::from(power)).exp2() as f32
}

/// Puts one stored row into its place in a tile.
fn quant_row(dtype: Dtype, format: Format, row: &[u8], lane_of_tile: usize, tile: &mut [u8], units: &mut [u8]) {
    let (values, bytes) = dtype.block();
    let per_stored = values / 32;
    for (index, stored) in row.chunks_exact(bytes).enumerate() {
        let unit = |units: &mut [u8], which: usize, from: usize| {
            let at = index * format.facts().units + 2 * (which * TILE + lane_of_tile);
            units[at..at + 2].copy_from_slice(&stored[from..from + 2]);
        };
        match format {
            Format::Q4K | Format::Q5K => {
                unit(units, 0, 0);
                unit(units, 1, 2);
            }
            Format::Q6K => unit(units, 0, 208),
            Format::Q8_0 | Format::Q4_0 | Format::F32 | Format::Half => {}
        }
        for part in 0..per_stored {
            let chunk = &mut tile[(index * per_stored + part) * format.bytes()..][..format.bytes()];
            for input in 0..32 {
                let value = number(format, stored, part * 32 + input);
                let (lane, register, within) = place(lane_of_tile, input, 4);
                if format == Format::Q8_0 {
                    chunk[lane * 16 + register * 4 + within] = value;
                    continue;
                }
                chunk[lane * 8 + register / 2 * 4 + within] |= (value & 15) << (register % 2 * 4);
                match format {
                    Format::Q5K => chunk[256 + lane * 2 + register / 2] |= (value >> 4) << (register % 2 * 4 + within),
                    Format::Q6K => chunk[256 + lane * 4 + within] |= (value >> 4) << (2 * register),
                    Format::Q8_0 | Format::Q4_0 | Format::Q4K | Format::F32 | Format::Half => {}
                }
            }
            let scales = &mut chunk[format.facts().numbers..];
            match format {
                Format::Q4K | Format::Q5K => {
                    let (scale, minimum) = quant::scale_and_min(&stored[4..16], part);
                    (scales[lane_of_tile], scales[TILE + lane_of_tile]) = (scale, minimum);
                }
                Format::Q6K => {
                    scales[lane_of_tile] = stored[192 + 2 * part];
                    scales[TILE + lane_of_tile] = stored[193 + 2 * part];
                }
                Format::Q8_0 | Format::Q4_0 => scales[2 * lane_of_tile..][..2].copy_from_slice(&stored[..2]),
                Format::F32 | Format::Half => {}
            }
        }
    }
}

/// The stored number of one value of a block: a signed byte, or bits without sign.
fn number(format: Format, stored: &[u8], index: usize) -> u8 {
    let nibble = |low: &[u8]| low[index / 64 * 32 + index % 32] >> (index / 32 % 2 * 4) & 15;
    match format {
        Format::Q8_0 => stored[2 + index],
        Format::Q4_0 => stored[2 + index % 16] >> (index / 16 * 4) & 15,
        Format::Q4K => nibble(&stored[16..]),
        Format::Q5K => nibble(&stored[48..]) | (stored[16 + index % 32] >> (index / 32) & 1) << 4,
        Format::Q6K => quant::six_bits(stored, index),
        Format::F32 | Format::Half => unreachable!("floats are in no blocks"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    #[test]
    fn every_number_of_a_chunk_has_a_place_of_its_own() {
        for per_register in [2, 4] {
            let mut found = std::collections::BTreeSet::new();
            for (lane, input) in (0..TILE).flat_map(|lane| (0..8 * per_register).map(move |input| (lane, input))) {
                let (lane, register, within) = place(lane, input, per_register);
                assert!(lane < 32 && register < 4 && within < per_register);
                assert!(found.insert((lane, register, within)));
            }
        }
    }

    #[test]
    fn many_threads_pack_what_one_packs() {
        // Enough tiles for several threads; each tile alone has one.
        let (outputs, inputs) = (16 * 200 - 5, 256);
        for dtype in [Dtype::Q4K, Dtype::Q8_0, Dtype::Bf16] {
            let bytes = quant::quantize(dtype, &numbers(outputs * inputs));
            let matrix = Tensor::of_bytes(dtype, &[outputs, inputs], bytes).unwrap();
            let format = Format::of(dtype).unwrap();
            let whole = Packed::new(&matrix, format);
            let (mut weights, mut units) = (Vec::new(), Vec::new());
            for first in (0..outputs).step_by(TILE) {
                let tile = Packed::new(&matrix.slice_rows(first..outputs.min(first + TILE)), format);
                weights.extend(tile.weights);
                units.extend(tile.units);
            }
            assert!(whole.weights == weights && whole.units == units, "{}", dtype.name());
        }
    }

    #[test]
    fn packed_weights_are_hardly_larger_than_stored_ones() {
        for (dtype, most) in [
            (Dtype::F16, 1.0),
            (Dtype::Bf16, 1.01),
            (Dtype::Q8_0, 1.0),
            (Dtype::Q4_0, 1.0),
            (Dtype::Q4K, 1.03),
            (Dtype::Q5K, 1.03),
            (Dtype::Q6K, 1.01),
        ] {
            let bytes = quant::quantize(dtype, &numbers(16 * 1024));
            let matrix = Tensor::of_bytes(dtype, &[16, 1024], bytes).unwrap();
            let packed = Packed::new(&matrix, Format::of(dtype).unwrap());
            let share = (packed.weights.len() + packed.units.len()) as f64 / matrix.bytes().len() as f64;
            assert!(share <= most, "{}: {share}", dtype.name());
        }
    }

    #[test]
    fn bf16_of_any_size_is_kept_under_a_power_of_two() {
        for size in [1.0f32, 3.0e30, 2.0e-36] {
            let values: Vec<f32> = numbers(64).iter().map(|value| value * size).collect();
            let matrix = Tensor::of_bytes(Dtype::Bf16, &[1, 64], quant::quantize(Dtype::Bf16, &values)).unwrap();
            let packed = Packed::new(&matrix, Format::Half);
            let scale = f32::from_le_bytes(packed.units[..4].try_into().unwrap());
            for (input, value) in matrix.to_f32().into_iter().enumerate() {
                let (lane, register, within) = place(0, input % 16, 2);
                let at = input / 16 * 512 + lane * 16 + register * 4 + within * 2;
                let bits = u16::from_le_bytes([packed.weights[at], packed.weights[at + 1]]);
                assert_eq!(f64::from(f16::from_bits(bits)) * f64::from(scale), f64::from(value), "{size}: {input}");
            }
        }
    }
}

//! Products: how vectors are rounded for a matrix, which kernel multiplies them, and the gates between.

use kedge_engine::graph::Activation;

use super::{Writer, threads};
use crate::arguments as a;
use crate::constants::{
    ACTIVATION_GELU, ACTIVATION_GELU_TANH, ACTIVATION_SILU, COLUMNS, F32_EACH, ROUNDED_BYTES, SHARES,
};
use crate::model::Matrix;
use crate::pack::{Format, TILE};
use crate::places::Part;

/// The most vectors for which warps share the inputs of the same outputs: beyond, each has outputs of its own.
const SPLIT_VECTORS_MAX: usize = 32;
/// Warps of a block then.
const OWN_WARPS: usize = 4;

/// A way of rounding vectors: what the kernels call it (`constants`), and the width of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rounding {
    pub(super) kind: u32,
    pub(super) padded: usize,
}

impl Rounding {
    /// What a matrix wants; none when it takes vectors as they are.
    pub(super) fn of(matrix: Matrix) -> Option<Self> {
        let kind = matrix.format.facts().rounding;
        (kind != 0).then_some(Self { kind: kind as u32, padded: matrix.inputs })
    }

    /// Whether it needs no more than 32 numbers of a vector.
    pub(super) fn is_to_bytes(self) -> bool {
        self.kind == ROUNDED_BYTES as u32
    }
}

/// Who takes part in a product.
#[derive(Clone, Copy)]
pub(super) struct Who {
    pub(super) count: u64,
    /// The most that there may be.
    pub(super) most: usize,
    /// How many are likely for a matrix.
    pub(super) likely: usize,
    /// Lists of a mixture: where, how far apart, and how many.
    pub(super) lists: Option<(u64, usize, usize)>,
    pub(super) divide: usize,
    /// Rounded vectors that there is room for.
    pub(super) vectors: usize,
}

impl Writer<'_> {
    #[allow(clippy::too_many_arguments, reason = "the fields of one operation")]
    pub(super) fn gate(
        &mut self,
        x: u64,
        out: u64,
        count: u64,
        rows: usize,
        width: usize,
        activation: Activation,
        times: usize,
        rounding: Option<Rounding>,
        vectors: usize,
    ) {
        let (kind_of_rounded, padded) = rounding.map_or((0, 0), |to| (to.kind, to.padded as u32));
        let arguments = a::Gate {
            x,
            out,
            rounded: self.scratch(Part::Rounded),
            scales: self.scratch(Part::Scales),
            count,
            width: width as u32,
            activation: number(Some(activation)),
            times: times as u32,
            kind_of_rounded,
            padded,
            scales_step: vectors as u32,
        };
        self.plain("kedge_gate", width, rows * times, arguments.bytes());
    }

    /// Rounds vectors, `times` as many as there are rows.
    pub(super) fn round(&mut self, x: u64, to: Rounding, width: usize, who: Who, times: usize) {
        let arguments = a::Round {
            x,
            rounded: self.scratch(Part::Rounded),
            scales: self.scratch(Part::Scales),
            count: who.count,
            width: width as u32,
            times: times as u32,
            kind_of_rounded: to.kind,
            padded: to.padded as u32,
            scales_step: who.vectors as u32,
        };
        let rows = who.most * times;
        if to.is_to_bytes() {
            self.plain("kedge_round_bytes", width, rows, arguments.bytes());
        } else {
            self.push("kedge_round_half", [rows, 1, 1], threads(width, 1024), 0, arguments.bytes());
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one product")]
    pub(super) fn product(
        &mut self,
        x: u64,
        matrix: Matrix,
        bias: u64,
        out: u64,
        width: usize,
        first: usize,
        activation: u32,
        who: Who,
    ) {
        let (facts, plain) = (matrix.format.facts(), matrix.format == Format::F32);
        let [few, some, many] = facts.kernels;
        let (columns, kernel) = match who.likely {
            likely if plain || likely <= COLUMNS => (COLUMNS, few),
            likely if likely <= SPLIT_VECTORS_MAX => (32, some),
            _ => (64, many),
        };
        let (list, list_step, matrices) = who.lists.unwrap_or((0, 0, 1));
        let arguments = a::Linear {
            x: if plain { x } else { self.scratch(Part::Rounded) },
            scales: if plain { 0 } else { self.scratch(Part::Scales) },
            weights: matrix.weights,
            units: matrix.units,
            bias,
            out,
            count: who.count,
            list,
            weights_step: matrix.weights_step,
            units_step: matrix.units_step,
            inputs: matrix.inputs as u32,
            outputs: matrix.outputs as u32,
            width: width as u32,
            first: first as u32,
            divide: who.divide as u32,
            activation,
            list_step: list_step as u32,
            scales_step: who.vectors as u32,
        };
        let (warps, tiles) = match columns {
            _ if plain => {
                let warps = matrix.outputs.div_ceil(F32_EACH).min(SHARES);
                (warps, matrix.outputs.div_ceil(F32_EACH * warps))
            }
            64 => (OWN_WARPS, matrix.outputs.div_ceil(TILE * OWN_WARPS)),
            _ => ((matrix.inputs / facts.chunk).clamp(1, SHARES), matrix.outputs.div_ceil(TILE)),
        };
        let grid = [tiles, who.most.div_ceil(columns), matrices];
        self.push(kernel, grid, 32 * warps, 0, arguments.bytes());
    }
}

/// The number by which the kernels know an activation.
pub(super) fn number(activation: Option<Activation>) -> u32 {
    let number = match activation {
        None => 0,
        Some(Activation::Gelu) => ACTIVATION_GELU,
        Some(Activation::GeluTanh) => ACTIVATION_GELU_TANH,
        Some(Activation::Silu) => ACTIVATION_SILU,
    };
    number as u32
}

//! A graph's weights in the form that operations want: vectors as floats, matrices in panels, tables of vectors as they are
//! stored.
//!
//! What must hold: which form a weight has follows from the operations that use it and from its type.

use std::collections::BTreeSet;
use std::path::Path;

use kedge_formats::Tensor;

use super::dense::{self, Dense};
use super::packed;
use super::pool::Pool;
use super::quant::{self, Layout, Quant, Rows};
use super::simd::Simd;
use crate::EngineError;
use crate::graph::{Graph, Norm, Op, Part};

/// Rows of one task of a product: they and a panel stay in the second cache. A multiple of both kinds of tile.
pub(super) const PRODUCT_ROWS: usize = 96;

/// A weight in the form that operations want.
pub(super) enum Packed {
    /// Read from the file row by row: tables of vectors.
    AsStored,
    Vector(Vec<f32>),
    Matrix(Matrix),
}

/// A packed matrix.
pub(super) enum Matrix {
    Dense(Dense),
    Quant(Quant),
}

impl Matrix {
    /// The matrix whose packed panels are those.
    pub(super) fn new(tensor: &Tensor, panels: packed::Part) -> Self {
        match Layout::of(tensor) {
            Some(layout) => Self::Quant(Quant::new(tensor, layout, panels)),
            None => Self::Dense(Dense::new(tensor, panels)),
        }
    }

    /// Panels that a tensor is packed into.
    pub(super) fn panels_of(tensor: &Tensor) -> usize {
        tensor.rows().div_ceil(if Layout::of(tensor).is_some() { quant::PANEL } else { dense::PANEL })
    }

    /// Bytes that it takes then.
    pub(super) fn packed_bytes(tensor: &Tensor) -> usize {
        Self::panels_of(tensor) * Layout::of(tensor).map_or_else(|| Dense::panel_bytes(tensor), Layout::panel)
    }

    /// Packs one panel; `out` is zeros.
    pub(super) fn pack(tensor: &Tensor, panel: usize, out: &mut [u8]) {
        match Layout::of(tensor) {
            Some(layout) => layout.pack(tensor, panel, out),
            None => Dense::pack(tensor, panel, out),
        }
    }

    pub(super) fn inputs(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.inputs,
            Self::Quant(quant) => quant.inputs,
        }
    }

    pub(super) fn outputs(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.outputs,
            Self::Quant(quant) => quant.outputs,
        }
    }

    pub(super) fn panels(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.panels(),
            Self::Quant(quant) => quant.panels(),
        }
    }

    /// Products of `rows` rows, at most [`PRODUCT_ROWS`], with a panel: calls `put` with a few rows at a time. `next` is the
    /// panel that this thread most likely wants after it, if there is one of that number.
    #[allow(clippy::too_many_arguments, reason = "what it multiplies, and with what")]
    pub(super) fn panel(
        &self,
        simd: Simd,
        x: &[f32],
        bytes: Option<Rows>,
        rows: usize,
        panel: usize,
        next: Option<usize>,
        put: &mut dyn FnMut(Products),
    ) {
        match self {
            Self::Dense(dense) => {
                let width = dense::PANEL.min(dense.outputs - panel * dense::PANEL);
                // With few rows the first tile is all there is, and the memory has no time to spare.
                let next = next.filter(|_| rows > dense::TILE_ROWS).and_then(|next| dense.panel(next)).unwrap_or(&[]);
                let mut parts = next.chunks(next.len().div_ceil(rows.div_ceil(dense::TILE_ROWS)).max(1));
                for first in (0..rows).step_by(dense::TILE_ROWS) {
                    let count = dense::TILE_ROWS.min(rows - first);
                    let mut tile = [[0.0; dense::PANEL]; dense::TILE_ROWS];
                    let x = &x[first * dense.inputs..(first + count) * dense.inputs];
                    dense.tile(simd, x, panel, parts.next().unwrap_or(&[]), &mut tile[..count]);
                    let sums = tile[..count].as_flattened_mut();
                    put(Products { row: first, output: panel * dense::PANEL, width, lanes: dense::PANEL, sums });
                }
            }
            Self::Quant(quant) => {
                let width = quant::PANEL.min(quant.outputs - panel * quant::PANEL);
                let bytes = bytes.expect("rows are made bytes for quantised weights");
                let mut sum = |sums: &mut [[f32; quant::PANEL]]| {
                    quant.add(simd, bytes, panel, sums);
                    let sums = sums.as_flattened_mut();
                    put(Products { row: 0, output: panel * quant::PANEL, width, lanes: quant::PANEL, sums });
                };
                // Clearing room for all rows would cost single ones dearly.
                if rows <= quant::TILE_ROWS {
                    sum(&mut [[0.0; quant::PANEL]; quant::TILE_ROWS][..rows]);
                } else {
                    sum(&mut [[0.0; quant::PANEL]; PRODUCT_ROWS][..rows]);
                }
            }
        }
    }
}

/// Products of a few rows with a panel.
pub(super) struct Products<'a> {
    /// The first row.
    pub(super) row: usize,
    /// The first output.
    pub(super) output: usize,
    /// How many outputs there are.
    pub(super) width: usize,
    /// How many numbers each row takes in `sums`.
    pub(super) lanes: usize,
    pub(super) sums: &'a mut [f32],
}

/// All weights of a graph, matrices packed or found packed in the folder.
pub(super) fn prepare(graph: &Graph, pool: &Pool, folder: Option<&Path>) -> Result<Vec<Packed>, EngineError> {
    let mut weights: Vec<Packed> = graph.weights.iter().map(|_| Packed::AsStored).collect();
    let mut matrices = BTreeSet::new();
    for op in &graph.ops {
        match op {
            Op::Linear { parts, .. } => {
                for Part { weight, bias } in parts {
                    matrices.insert(*weight);
                    if let Some(bias) = bias {
                        weights[*bias] = Packed::Vector(graph.weights[*bias].to_f32());
                    }
                }
            }
            Op::Experts { experts, .. } => {
                matrices.extend(experts.iter().flat_map(|expert| [expert.gate, expert.up, expert.down]));
            }
            Op::Norm { norm, .. } => keep_norm(graph, *norm, &mut weights),
            Op::Place { norms: Some((q, k)), .. } => [q, k].iter().for_each(|n| keep_norm(graph, **n, &mut weights)),
            _ => {}
        }
    }
    for (weight, matrix) in packed::matrices(graph, &matrices, pool, folder)? {
        weights[weight] = Packed::Matrix(matrix);
    }
    Ok(weights)
}

fn keep_norm(graph: &Graph, norm: Norm, weights: &mut [Packed]) {
    let (Norm::Layer { gamma, .. } | Norm::Rms { gamma, .. }) = norm;
    weights[gamma] = Packed::Vector(graph.weights[gamma].to_f32());
    if let Norm::Layer { beta, .. } = norm {
        weights[beta] = Packed::Vector(graph.weights[beta].to_f32());
    }
}

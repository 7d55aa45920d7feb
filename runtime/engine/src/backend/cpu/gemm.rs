//! `y = x Wᵀ + b`, with the weights packed once into panels of 16 outputs.
//!
//! A panel is stored input by input, so that the inner loop reads it from front to back; a tile of up to six rows by
//! one panel is summed in registers over all inputs, and bias and GELU are applied before it is written. What must
//! hold: the last panel is padded with zeros that are never written out.

use super::pool::Pool;
use super::simd::{PANEL, Simd, TILE_ROWS};
use crate::model::weights::Linear;

/// Rows of one chunk of work: small enough that they and a panel stay in the second cache.
const CHUNK_ROWS_MAX: usize = 8 * TILE_ROWS;

/// A packed matrix and its bias.
pub(crate) struct Packed {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    panels: Vec<f32>,
    bias: Vec<f32>,
}

impl Packed {
    pub(crate) fn new(linear: &Linear) -> Self {
        let (inputs, outputs) = (linear.inputs, linear.outputs);
        let count = outputs.div_ceil(PANEL);
        let mut panels = vec![0.0; count * PANEL * inputs];
        for (output, row) in linear.weight.chunks_exact(inputs).enumerate() {
            let panel = &mut panels[output / PANEL * PANEL * inputs..];
            row.iter().enumerate().for_each(|(input, value)| panel[input * PANEL + output % PANEL] = *value);
        }
        let mut bias = linear.bias.clone();
        bias.resize(count * PANEL, 0.0);
        Self { inputs, outputs, panels, bias }
    }

    /// Multiplies every row of `x`; `out` has as many rows.
    pub(crate) fn multiply(&self, pool: &Pool, simd: Simd, x: &[f32], gelu: bool, out: &mut [f32]) {
        let rows = x.len() / self.inputs;
        let share = rows.div_ceil(pool.threads() * 2).next_multiple_of(TILE_ROWS);
        let chunk = share.min(CHUNK_ROWS_MAX);
        pool.chunks(out, chunk * self.outputs, &|index, out: &mut [f32]| {
            self.rows(simd, &x[index * chunk * self.inputs..], gelu, out);
        });
    }

    fn rows(&self, simd: Simd, x: &[f32], gelu: bool, out: &mut [f32]) {
        let rows = out.len() / self.outputs;
        for (index, panel) in self.panels.chunks_exact(PANEL * self.inputs).enumerate() {
            let column = index * PANEL;
            let width = PANEL.min(self.outputs - column);
            for start in (0..rows).step_by(TILE_ROWS) {
                let count = TILE_ROWS.min(rows - start);
                let mut tile = [[0.0; PANEL]; TILE_ROWS];
                simd.tile(
                    &x[start * self.inputs..(start + count) * self.inputs],
                    self.inputs,
                    panel,
                    &mut tile[..count],
                );
                for (row, sums) in tile[..count].iter_mut().enumerate() {
                    sums.iter_mut().zip(&self.bias[column..]).for_each(|(sum, bias)| *sum += bias);
                    if gelu {
                        simd.gelu(sums);
                    }
                    out[(start + row) * self.outputs + column..][..width].copy_from_slice(&sums[..width]);
                }
            }
        }
    }
}

//! The plain version of every operation: 64-bit floats, one loop inside another, nothing clever.
//!
//! It exists to be read and to be compared with. Nothing here is ever made fast.

use super::{Backend, Capabilities, Input, Prepared, Tables};
use crate::EngineError;
use crate::model::weights::{Linear, Norm};
use crate::model::{EncoderWeights, Pooling};
use crate::plan::{Matrix, NormOf, Op, Plan};

/// The backend every other is compared with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "reference", features: "f64 scalar", threads: 1 }
    }

    fn prepare(&self, weights: EncoderWeights) -> Result<Box<dyn Prepared>, EngineError> {
        Ok(Box::new(Plain { weights }))
    }
}

struct Plain {
    weights: EncoderWeights,
}

impl Prepared for Plain {
    fn run(&self, plan: &Plan, input: &Input) -> Result<Vec<f32>, EngineError> {
        input.check(plan, Tables::of(&self.weights))?;
        let mut buffers: Vec<Vec<f64>> = plan.buffers.iter().map(|length| vec![0.0; *length]).collect();
        for op in &plan.ops {
            self.step(op, plan, input, &mut buffers);
        }
        Ok(buffers[plan.result][..plan.batch * plan.hidden].iter().map(|value| *value as f32).collect())
    }
}

impl Plain {
    fn step(&self, op: &Op, plan: &Plan, input: &Input, buffers: &mut [Vec<f64>]) {
        let (rows, d) = (plan.rows(), plan.hidden);
        let (to, result) = match *op {
            Op::Embed { out } => (out, embed(&self.weights, input, plan)),
            Op::LayerNorm { x, residual, norm, out } => {
                let sum: Vec<f64> =
                    (0..rows * d).map(|i| buffers[x][i] + residual.map_or(0.0, |r| buffers[r][i])).collect();
                (out, layer_norm(&sum, norm_of(&self.weights, norm), plan.epsilon))
            }
            Op::Linear { x, layer, matrix, gelu, out } => {
                (out, linear(&buffers[x], matrix_of(&self.weights, layer, matrix), rows, gelu))
            }
            Op::Attention { qkv, out } => (out, attention(&buffers[qkv], plan, &input.lengths)),
            Op::Pool { x, pooling, out } => (out, pool(&buffers[x], pooling, plan, &input.lengths)),
            Op::Normalize { x, out } => (out, normalize(&buffers[x], plan)),
        };
        buffers[to][..result.len()].copy_from_slice(&result);
    }
}

/// The matrix an operation names.
pub(crate) fn matrix_of(weights: &EncoderWeights, layer: usize, matrix: Matrix) -> &Linear {
    let layer = &weights.layers[layer];
    match matrix {
        Matrix::Qkv => &layer.qkv,
        Matrix::AttentionOutput => &layer.attention_output,
        Matrix::Up => &layer.up,
        Matrix::Down => &layer.down,
    }
}

/// The layer norm an operation names.
pub(crate) fn norm_of(weights: &EncoderWeights, norm: NormOf) -> &Norm {
    match norm {
        NormOf::Embedding => &weights.embedding_norm,
        NormOf::Attention(layer) => &weights.layers[layer].attention_norm,
        NormOf::Output(layer) => &weights.layers[layer].output_norm,
    }
}

fn embed(weights: &EncoderWeights, input: &Input, plan: &Plan) -> Vec<f64> {
    let d = plan.hidden;
    let mut out = Vec::with_capacity(plan.rows() * d);
    for row in 0..plan.rows() {
        let (word, position, kind) = (input.ids[row] as usize, row % plan.sequence, input.types[row] as usize);
        for i in 0..d {
            let sum = f64::from(weights.words[word * d + i]) + f64::from(weights.positions[position * d + i]);
            out.push(sum + f64::from(weights.types[kind * d + i]));
        }
    }
    out
}

fn layer_norm(x: &[f64], norm: &Norm, epsilon: f64) -> Vec<f64> {
    let d = norm.gamma.len();
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(d) {
        let mean = row.iter().sum::<f64>() / d as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
        for (i, value) in row.iter().enumerate() {
            let scaled = (value - mean) / (variance + epsilon).sqrt();
            out.push(scaled * f64::from(norm.gamma[i]) + f64::from(norm.beta[i]));
        }
    }
    out
}

fn linear(x: &[f64], weights: &Linear, rows: usize, gelu: bool) -> Vec<f64> {
    let (inputs, outputs) = (weights.inputs, weights.outputs);
    let mut out = Vec::with_capacity(rows * outputs);
    for row in 0..rows {
        for o in 0..outputs {
            let mut sum = f64::from(weights.bias[o]);
            for i in 0..inputs {
                sum += x[row * inputs + i] * f64::from(weights.weight[o * inputs + i]);
            }
            out.push(if gelu { 0.5 * sum * (1.0 + erf(sum / 2f64.sqrt())) } else { sum });
        }
    }
    out
}

fn attention(qkv: &[f64], plan: &Plan, lengths: &[usize]) -> Vec<f64> {
    let (d, s) = (plan.hidden, plan.sequence);
    let width = d / plan.heads;
    let at = |text: usize, token: usize, part: usize, i: usize| qkv[(text * s + token) * 3 * d + part * d + i];
    let mut out = vec![0.0; plan.rows() * d];
    for (text, length) in lengths.iter().copied().enumerate() {
        for head in 0..plan.heads {
            let columns = head * width..(head + 1) * width;
            for query in 0..s {
                let score = |key| {
                    columns.clone().map(|i| at(text, query, 0, i) * at(text, key, 1, i)).sum::<f64>()
                        / (width as f64).sqrt()
                };
                let scores: Vec<f64> = (0..length).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let shares: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let total: f64 = shares.iter().sum();
                for i in columns.clone() {
                    let mixed: f64 = (0..length).map(|key| shares[key] * at(text, key, 2, i)).sum();
                    out[(text * s + query) * d + i] = mixed / total;
                }
            }
        }
    }
    out
}

fn pool(x: &[f64], pooling: Pooling, plan: &Plan, lengths: &[usize]) -> Vec<f64> {
    let (d, s) = (plan.hidden, plan.sequence);
    let mut out = Vec::with_capacity(plan.batch * d);
    for (text, length) in lengths.iter().copied().enumerate() {
        for i in 0..d {
            let mut column = (0..length).map(|token| x[(text * s + token) * d + i]);
            out.push(match pooling {
                Pooling::Mean => column.sum::<f64>() / length as f64,
                Pooling::Max => column.fold(f64::NEG_INFINITY, f64::max),
                Pooling::Cls => column.next().expect("a text has a first token"),
            });
        }
    }
    out
}

/// As `torch.nn.functional.normalize`: a length below 1e-12 counts as 1e-12, so that zero stays zero.
fn normalize(x: &[f64], plan: &Plan) -> Vec<f64> {
    let row = |row: &[f64]| {
        let length = row.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        row.iter().map(|v| v / length).collect::<Vec<_>>()
    };
    x[..plan.batch * plan.hidden].chunks(plan.hidden).flat_map(row).collect()
}

/// The error function: `2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!`, whose terms are all of one sign.
pub(crate) fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-17 {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of erf from Abramowitz and Stegun, table 7.1.
    #[test]
    fn erf_is_the_tabled_one() {
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (2.0, 0.995_322_265_0),
            (-1.0, -0.842_700_792_9),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - expected).abs() < 1e-10, "erf({x}) = {}", erf(x));
        }
    }
}

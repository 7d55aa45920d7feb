//! The CPU backend: 32-bit floats, packed weights, and a few threads that sleep when there is nothing to do.
//!
//! Rows of an operation are cut into chunks and the pool's threads take them one at a time. What must hold: a
//! chunk's result does not depend on which thread computed it or on how many there are, so the same input gives the
//! same bits every time. Not here: NUMA placement, AVX-512, 8-bit weights.

mod gemm;
mod pool;
mod simd;

use std::sync::{Arc, Mutex, PoisonError};

use super::reference::norm_of;
use super::{Backend, Capabilities, Input, Prepared, Tables};
use crate::EngineError;
use crate::model::weights::Norm;
use crate::model::{EncoderWeights, Pooling};
use crate::plan::{Matrix, Op, Plan};
use gemm::Packed;
use pool::Pool;
use simd::Simd;

/// Most buffer sets kept between runs; more are made when more plans run at once.
const SCRATCH_KEPT_MAX: usize = 2;

/// The CPU backend.
pub struct Cpu {
    pool: Arc<Pool>,
    simd: Simd,
}

impl Cpu {
    /// With that many threads, or as many as this process may use (which respects affinity and cgroup quotas).
    pub fn new(threads: Option<usize>) -> Result<Self, EngineError> {
        Self::with(threads, Simd::detect())
    }

    /// Without vector instructions beyond what every machine has; tests compare it with the detected ones.
    pub fn portable(threads: Option<usize>) -> Result<Self, EngineError> {
        Self::with(threads, Simd::Portable)
    }

    fn with(threads: Option<usize>, simd: Simd) -> Result<Self, EngineError> {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        Ok(Self { pool: Arc::new(Pool::new(threads.clamp(1, 64))?), simd })
    }
}

impl Backend for Cpu {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "cpu", features: self.simd.name(), threads: self.pool.threads() }
    }

    fn prepare(&self, mut weights: EncoderWeights) -> Result<Box<dyn Prepared>, EngineError> {
        let layers = std::mem::take(&mut weights.layers);
        let tables = Tables::of(&weights);
        let mut packed = Vec::with_capacity(layers.len());
        for mut layer in layers {
            packed.push([&layer.qkv, &layer.attention_output, &layer.up, &layer.down].map(Packed::new));
            for linear in [&mut layer.qkv, &mut layer.attention_output, &mut layer.up, &mut layer.down] {
                linear.weight = Vec::new();
            }
            weights.layers.push(layer);
        }
        Ok(Box::new(Loaded {
            weights,
            tables,
            packed,
            pool: self.pool.clone(),
            simd: self.simd,
            scratch: Mutex::default(),
        }))
    }
}

struct Loaded {
    /// Tables and norms; the matrices are in `packed`.
    weights: EncoderWeights,
    tables: Tables,
    packed: Vec<[Packed; 4]>,
    pool: Arc<Pool>,
    simd: Simd,
    /// Buffers of finished runs. Held for a push or a pop only.
    scratch: Mutex<Vec<Vec<Vec<f32>>>>,
}

impl Prepared for Loaded {
    fn run(&self, plan: &Plan, input: &Input) -> Result<Vec<f32>, EngineError> {
        input.check(plan, self.tables)?;
        let mut buffers = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        buffers.resize_with(plan.buffers.len().max(buffers.len()), Vec::new);
        for (buffer, length) in buffers.iter_mut().zip(&plan.buffers) {
            buffer.resize(*length, 0.0);
        }
        for op in &plan.ops {
            self.step(op, plan, input, &mut buffers);
        }
        let result = buffers[plan.result][..plan.batch * plan.hidden].to_vec();
        let mut kept = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < SCRATCH_KEPT_MAX {
            kept.push(buffers);
        }
        Ok(result)
    }
}

impl Loaded {
    fn step(&self, op: &Op, plan: &Plan, input: &Input, buffers: &mut [Vec<f32>]) {
        let (rows, d) = (plan.rows(), plan.hidden);
        match *op {
            Op::Embed { out } => self.embed(plan, input, &mut buffers[out][..rows * d]),
            Op::LayerNorm { x, residual, norm, out } => {
                let mut into = std::mem::take(&mut buffers[out]);
                let residual = residual.map(|residual| &buffers[residual][..rows * d]);
                self.layer_norm(&buffers[x], residual, norm_of(&self.weights, norm), plan, &mut into[..rows * d]);
                buffers[out] = into;
            }
            Op::Linear { x, layer, matrix, gelu, out } => {
                let slot =
                    [Matrix::Qkv, Matrix::AttentionOutput, Matrix::Up, Matrix::Down].iter().position(|m| *m == matrix);
                let packed = &self.packed[layer][slot.expect("every matrix has a slot")];
                let mut into = std::mem::take(&mut buffers[out]);
                packed.multiply(
                    &self.pool,
                    self.simd,
                    &buffers[x][..rows * packed.inputs],
                    gelu,
                    &mut into[..rows * packed.outputs],
                );
                buffers[out] = into;
            }
            Op::Attention { qkv, out } => {
                let mut into = std::mem::take(&mut buffers[out]);
                self.attention(&buffers[qkv], plan, &input.lengths, &mut into[..rows * d]);
                buffers[out] = into;
            }
            Op::Pool { x, pooling, out } => {
                let mut into = std::mem::take(&mut buffers[out]);
                pool_tokens(&buffers[x], pooling, plan, &input.lengths, &mut into[..plan.batch * d]);
                buffers[out] = into;
            }
            Op::Normalize { x, out } => {
                let mut into = std::mem::take(&mut buffers[out]);
                for (from, to) in buffers[x].chunks_exact(d).zip(into[..plan.batch * d].chunks_exact_mut(d)) {
                    let length = self.simd.dot(from, from).sqrt().max(1e-12);
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = from / length);
                }
                buffers[out] = into;
            }
        }
    }

    fn embed(&self, plan: &Plan, input: &Input, out: &mut [f32]) {
        let d = plan.hidden;
        let row_of = |table: &'_ [f32], row: usize, i: usize| table[row * d + i];
        for (row, to) in out.chunks_exact_mut(d).enumerate() {
            let (word, position, kind) = (input.ids[row] as usize, row % plan.sequence, input.types[row] as usize);
            for (i, to) in to.iter_mut().enumerate() {
                *to = row_of(&self.weights.words, word, i)
                    + row_of(&self.weights.positions, position, i)
                    + row_of(&self.weights.types, kind, i);
            }
        }
    }

    fn layer_norm(&self, x: &[f32], residual: Option<&[f32]>, norm: &Norm, plan: &Plan, out: &mut [f32]) {
        let d = plan.hidden;
        let rows = 32;
        self.pool.chunks(out, rows * d, &|index, out: &mut [f32]| {
            let start = index * rows * d;
            out.copy_from_slice(&x[start..start + out.len()]);
            if let Some(residual) = residual {
                out.iter_mut().zip(&residual[start..]).for_each(|(to, add)| *to += add);
            }
            out.chunks_exact_mut(d)
                .for_each(|row| self.simd.layer_norm(row, &norm.gamma, &norm.beta, plan.epsilon as f32));
        });
    }

    /// One chunk is a few query rows of one text, all heads.
    fn attention(&self, qkv: &[f32], plan: &Plan, lengths: &[usize], out: &mut [f32]) {
        let (d, s) = (plan.hidden, plan.sequence);
        let rows = [8, 4, 2, 1].into_iter().find(|rows| s % rows == 0).expect("1 divides every number");
        let width = d / plan.heads;
        let scale = 1.0 / (width as f32).sqrt();
        self.pool.chunks(out, rows * d, &|index, out: &mut [f32]| {
            let text = index * rows / s;
            let length = lengths[text];
            let part = |token: usize, part: usize, head: usize| {
                &qkv[(text * s + token) * 3 * d + part * d + head * width..][..width]
            };
            let mut shares = vec![0.0; length];
            for (row, out) in out.chunks_exact_mut(d).enumerate() {
                let query = index * rows % s + row;
                out.fill(0.0);
                if query >= length {
                    continue;
                }
                for (head, out) in out.chunks_exact_mut(width).enumerate() {
                    let q = part(query, 0, head);
                    shares
                        .iter_mut()
                        .enumerate()
                        .for_each(|(key, share)| *share = self.simd.dot(q, part(key, 1, head)) * scale);
                    self.simd.softmax(&mut shares);
                    shares
                        .iter()
                        .enumerate()
                        .for_each(|(key, share)| self.simd.add_scaled(out, *share, part(key, 2, head)));
                }
            }
        });
    }
}

fn pool_tokens(x: &[f32], pooling: Pooling, plan: &Plan, lengths: &[usize], out: &mut [f32]) {
    let (d, s) = (plan.hidden, plan.sequence);
    for (text, (to, length)) in out.chunks_exact_mut(d).zip(lengths.iter().copied()).enumerate() {
        to.copy_from_slice(&x[text * s * d..][..d]);
        for token in x[text * s * d..][..length * d].chunks_exact(d).skip(1) {
            match pooling {
                Pooling::Mean => to.iter_mut().zip(token).for_each(|(to, from)| *to += from),
                Pooling::Max => to.iter_mut().zip(token).for_each(|(to, from)| *to = to.max(*from)),
                Pooling::Cls => {}
            }
        }
        if pooling == Pooling::Mean {
            to.iter_mut().for_each(|to| *to /= length as f32);
        }
    }
}

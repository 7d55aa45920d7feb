//! A plan: the operations of one forward pass for one (batch, sequence) shape, with every buffer assigned.
//!
//! Values are first named freely, then [`Plan::encoder`] gives each a buffer, and a buffer is taken again as soon as
//! the last operation that reads its value has run. What must hold: an operation's output never shares a buffer with
//! one of its inputs, and no buffer is overwritten while its value is still to be read (a property test below).
//! Not here: numbers, weights, devices.

use crate::model::{EncoderConfig, Pooling};

/// The index of a buffer in [`Plan::buffers`].
pub type Buffer = usize;

/// Which matrix of a layer an operation multiplies by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// Query, key and value at once.
    Qkv,
    /// After attention.
    AttentionOutput,
    /// The widening half of the feed-forward part.
    Up,
    /// The narrowing half.
    Down,
}

/// Which layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOf {
    /// The one after the embeddings.
    Embedding,
    /// The one after attention in this layer.
    Attention(usize),
    /// The one at the end of this layer.
    Output(usize),
}

/// One operation. Rows are `batch · sequence` unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Sum of word, position and type vectors.
    Embed {
        /// `rows × hidden`.
        out: Buffer,
    },
    /// Layer norm of `x`, with `residual` added first where there is one.
    LayerNorm {
        /// `rows × hidden`.
        x: Buffer,
        /// The same shape.
        residual: Option<Buffer>,
        /// Scale and shift.
        norm: NormOf,
        /// The same shape.
        out: Buffer,
    },
    /// `out = x Wᵀ + b`, then GELU where asked for.
    Linear {
        /// `rows × inputs`.
        x: Buffer,
        /// The layer.
        layer: usize,
        /// The matrix in it.
        matrix: Matrix,
        /// Whether the exact (erf) GELU follows.
        gelu: bool,
        /// `rows × outputs`.
        out: Buffer,
    },
    /// Softmax attention over the tokens of each text that are not padding.
    Attention {
        /// `rows × 3·hidden`.
        qkv: Buffer,
        /// `rows × hidden`.
        out: Buffer,
    },
    /// Tokens to one vector for each text.
    Pool {
        /// `rows × hidden`.
        x: Buffer,
        /// How.
        pooling: Pooling,
        /// `batch × hidden`.
        out: Buffer,
    },
    /// Every vector scaled to length one.
    Normalize {
        /// `batch × hidden`.
        x: Buffer,
        /// The same shape.
        out: Buffer,
    },
}

impl Op {
    fn reads(&self) -> Vec<Buffer> {
        match self {
            Op::Embed { .. } => vec![],
            Op::LayerNorm { x, residual, .. } => std::iter::once(*x).chain(*residual).collect(),
            Op::Linear { x, .. } | Op::Pool { x, .. } | Op::Normalize { x, .. } => vec![*x],
            Op::Attention { qkv, .. } => vec![*qkv],
        }
    }

    fn writes(&self) -> Buffer {
        match self {
            Op::Embed { out }
            | Op::LayerNorm { out, .. }
            | Op::Linear { out, .. }
            | Op::Attention { out, .. }
            | Op::Pool { out, .. }
            | Op::Normalize { out, .. } => *out,
        }
    }

    fn rename(&mut self, to: &[Buffer]) {
        let read = match self {
            Op::Embed { .. } => None,
            Op::LayerNorm { x, residual, .. } => {
                if let Some(residual) = residual {
                    *residual = to[*residual];
                }
                Some(x)
            }
            Op::Linear { x, .. } | Op::Pool { x, .. } | Op::Normalize { x, .. } => Some(x),
            Op::Attention { qkv, .. } => Some(qkv),
        };
        if let Some(read) = read {
            *read = to[*read];
        }
        match self {
            Op::Embed { out }
            | Op::LayerNorm { out, .. }
            | Op::Linear { out, .. }
            | Op::Attention { out, .. }
            | Op::Pool { out, .. }
            | Op::Normalize { out, .. } => *out = to[*out],
        }
    }
}

/// One forward pass, ready to run any number of times.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Texts in the batch.
    pub batch: usize,
    /// Tokens of each text, padding included.
    pub sequence: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Added to the variance in layer norm.
    pub epsilon: f64,
    /// Length of each buffer, in numbers.
    pub buffers: Vec<usize>,
    /// The operations in order.
    pub ops: Vec<Op>,
    /// Where the result is: `batch × hidden`.
    pub result: Buffer,
}

impl Plan {
    /// The plan of an encoder for that shape.
    pub fn encoder(config: &EncoderConfig, batch: usize, sequence: usize) -> Self {
        let (ops, lengths) = operations(config, batch * sequence, batch);
        let (ops, buffers) = assign(ops, &lengths);
        let result = ops.last().expect("an encoder has operations").writes();
        Self {
            batch,
            sequence,
            hidden: config.hidden,
            heads: config.heads,
            epsilon: config.epsilon,
            buffers,
            ops,
            result,
        }
    }

    /// `batch · sequence`.
    pub fn rows(&self) -> usize {
        self.batch * self.sequence
    }
}

/// The operations, each writing a value of its own, and the length of each value.
fn operations(config: &EncoderConfig, rows: usize, batch: usize) -> (Vec<Op>, Vec<usize>) {
    let mut lengths = Vec::new();
    let mut value = |length: usize| {
        lengths.push(length);
        lengths.len() - 1
    };
    let d = config.hidden;
    let sum = value(rows * d);
    let mut x = value(rows * d);
    let mut ops =
        vec![Op::Embed { out: sum }, Op::LayerNorm { x: sum, residual: None, norm: NormOf::Embedding, out: x }];
    for layer in 0..config.layers {
        let (qkv, mixed, projected, attended) =
            (value(rows * 3 * d), value(rows * d), value(rows * d), value(rows * d));
        let (wide, narrow, out) = (value(rows * config.intermediate), value(rows * d), value(rows * d));
        ops.push(Op::Linear { x, layer, matrix: Matrix::Qkv, gelu: false, out: qkv });
        ops.push(Op::Attention { qkv, out: mixed });
        ops.push(Op::Linear { x: mixed, layer, matrix: Matrix::AttentionOutput, gelu: false, out: projected });
        ops.push(Op::LayerNorm { x: projected, residual: Some(x), norm: NormOf::Attention(layer), out: attended });
        ops.push(Op::Linear { x: attended, layer, matrix: Matrix::Up, gelu: true, out: wide });
        ops.push(Op::Linear { x: wide, layer, matrix: Matrix::Down, gelu: false, out: narrow });
        ops.push(Op::LayerNorm { x: narrow, residual: Some(attended), norm: NormOf::Output(layer), out });
        x = out;
    }
    let pooled = value(batch * d);
    ops.push(Op::Pool { x, pooling: config.pooling, out: pooled });
    if config.normalize {
        let out = value(batch * d);
        ops.push(Op::Normalize { x: pooled, out });
    }
    (ops, lengths)
}

/// Gives every value a buffer: the smallest free one that is large enough, else the largest free one, grown.
fn assign(mut ops: Vec<Op>, lengths: &[usize]) -> (Vec<Op>, Vec<usize>) {
    let mut last_read = vec![0; lengths.len()];
    for (step, op) in ops.iter().enumerate() {
        op.reads().into_iter().for_each(|value| last_read[value] = step);
    }
    let (mut buffers, mut free, mut place) =
        (Vec::<usize>::new(), Vec::<Buffer>::new(), vec![usize::MAX; lengths.len()]);
    for (step, op) in ops.iter().enumerate() {
        let value = op.writes();
        let fits = free.iter().copied().filter(|b| buffers[*b] >= lengths[value]).min_by_key(|b| buffers[*b]);
        let chosen = fits.or_else(|| free.iter().copied().max_by_key(|b| buffers[*b])).unwrap_or_else(|| {
            buffers.push(0);
            buffers.len() - 1
        });
        free.retain(|buffer| *buffer != chosen);
        buffers[chosen] = buffers[chosen].max(lengths[value]);
        place[value] = chosen;
        free.extend(op.reads().into_iter().filter(|read| last_read[*read] == step).map(|read| place[read]));
    }
    ops.iter_mut().for_each(|op| op.rename(&place));
    (ops, buffers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(layers: usize, intermediate: usize, normalize: bool) -> EncoderConfig {
        EncoderConfig {
            hidden: 8,
            layers,
            heads: 2,
            intermediate,
            vocabulary: 9,
            positions: 16,
            types: 2,
            epsilon: 1e-12,
            pooling: Pooling::Mean,
            normalize,
            sequence_max: 16,
        }
    }

    #[test]
    fn deep_models_need_no_more_buffers_than_shallow_ones() {
        assert_eq!(
            Plan::encoder(&config(12, 32, true), 2, 8).buffers.len(),
            Plan::encoder(&config(2, 32, true), 2, 8).buffers.len()
        );
    }

    proptest! {
        /// Runs the plan on labels in place of numbers: each read must find the label the unassigned list says.
        #[test]
        fn no_value_is_overwritten_before_it_is_read(layers in 1usize..5, wide in 1usize..64, batch in 1usize..4, sequence in 1usize..16, normalize: bool) {
            let config = config(layers, wide, normalize);
            let (free, lengths) = operations(&config, batch * sequence, batch);
            let plan = Plan::encoder(&config, batch, sequence);
            let mut holds = vec![usize::MAX; plan.buffers.len()];
            for (wanted, op) in free.iter().zip(&plan.ops) {
                for (value, buffer) in wanted.reads().into_iter().zip(op.reads()) {
                    prop_assert_eq!(holds[buffer], value);
                    prop_assert_ne!(buffer, op.writes());
                }
                prop_assert!(plan.buffers[op.writes()] >= lengths[wanted.writes()]);
                holds[op.writes()] = wanted.writes();
            }
        }
    }
}

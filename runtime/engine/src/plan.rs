//! A plan: a graph for at most so many rows and outputs, with a buffer assigned to every value.
//!
//! A buffer is taken again as soon as the last operation that reads its value has run. What must hold: an operation's
//! outputs share a buffer with none of its inputs nor with each other, and no buffer is overwritten while its value is
//! still to be read (a property test below). Not here: numbers, weights, devices.

use crate::graph::{Access, Graph, Op, Per, Size, Value};

/// The index of a buffer in [`Plan::buffers`].
pub type Buffer = usize;

/// How much one run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Tokens.
    pub rows: usize,
    /// Answers.
    pub outputs: usize,
}

impl Shape {
    /// The vectors that a value has.
    pub fn count(self, per: Per) -> usize {
        match per {
            Per::Row => self.rows,
            Per::Output => self.outputs,
        }
    }
}

/// A graph, ready to run any number of times.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The most that fits.
    pub shape: Shape,
    /// Length of each buffer, in numbers.
    pub buffers: Vec<usize>,
    /// The operations in order, naming buffers where the graph names values.
    pub ops: Vec<Op>,
    /// What each operation's written values are sized like: widths and counts.
    pub sizes: Vec<Size>,
    /// Where the answers are.
    pub result: Buffer,
}

impl Plan {
    /// The plan of a graph for that shape.
    pub fn new(graph: &Graph, shape: Shape) -> Self {
        let lengths: Vec<usize> = graph.values.iter().map(|size| shape.count(size.per) * size.width).collect();
        let (place, buffers) = assign(&graph.ops, &lengths, graph.result);
        let mut ops = graph.ops.clone();
        let mut sizes = Vec::with_capacity(ops.len());
        for op in &mut ops {
            let written = op.values(Access::Write);
            sizes.push(graph.values[*written.last().expect("an operation writes something")]);
            op.visit(&mut |_, value| *value = place[*value]);
        }
        Self { shape, buffers, ops, sizes, result: place[graph.result] }
    }
}

/// Gives every value a buffer: the smallest free one that is large enough, else the largest free one, grown.
fn assign(ops: &[Op], lengths: &[usize], result: Value) -> (Vec<Buffer>, Vec<usize>) {
    let mut last_use = vec![0; lengths.len()];
    for (step, op) in ops.iter().enumerate() {
        for value in [Access::Read, Access::Write].into_iter().flat_map(|access| op.values(access)) {
            last_use[value] = step;
        }
    }
    last_use[result] = usize::MAX;
    let (mut buffers, mut free, mut place) =
        (Vec::<usize>::new(), Vec::<Buffer>::new(), vec![usize::MAX; lengths.len()]);
    for (step, op) in ops.iter().enumerate() {
        let written = op.values(Access::Write);
        for &value in &written {
            let fits = free.iter().copied().filter(|b| buffers[*b] >= lengths[value]).min_by_key(|b| buffers[*b]);
            let chosen = fits.or_else(|| free.iter().copied().max_by_key(|b| buffers[*b])).unwrap_or_else(|| {
                buffers.push(0);
                buffers.len() - 1
            });
            free.retain(|buffer| *buffer != chosen);
            buffers[chosen] = buffers[chosen].max(lengths[value]);
            place[value] = chosen;
        }
        let mut done = op.values(Access::Read);
        done.extend(written);
        done.retain(|value| last_use[*value] == step);
        done.sort_unstable();
        done.dedup();
        free.extend(done.into_iter().map(|value| place[value]));
    }
    (place, buffers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::graph::{Activation, Builder, Norm, Pooling};

    /// A chain of operations chosen by `choices`, with side branches that stay to be read for a while.
    fn graph(choices: &[u8]) -> Graph {
        let mut g = Builder::default();
        let gamma = g.weight(kedge_formats::Tensor::of_f32(&[4], &[0.0; 4]));
        let norm = Norm::Rms { gamma, plus_one: false };
        let mut x = g.per_row(4);
        g.push(Op::Embed { words: 0, positions: None, types: None, scale: 1.0, out: x });
        let mut kept = x;
        for choice in choices {
            match choice % 4 {
                0 => x = g.norm(x, norm, 1e-5),
                1 => x = g.add(x, kept),
                2 => (kept, x) = g.add_norm(x, kept, norm, 1e-5),
                _ => {
                    let wide = g.per_row(8);
                    g.push(Op::Linear { x, parts: vec![], activation: Some(Activation::Silu), out: wide });
                    x = g.gate(wide, Activation::Silu);
                }
            }
        }
        let out = g.pool(x, Pooling::Mean);
        g.finish(out, None)
    }

    #[test]
    fn deep_models_need_no_more_buffers_than_shallow_ones() {
        let layer = [2, 3, 2, 0];
        let count =
            |layers: usize| Plan::new(&graph(&layer.repeat(layers)), Shape { rows: 8, outputs: 2 }).buffers.len();
        assert_eq!(count(12), count(2));
    }

    proptest! {
        /// Runs the plan on labels in place of numbers: each read must find the label the graph says.
        #[test]
        fn no_value_is_overwritten_before_it_is_read(choices in proptest::collection::vec(any::<u8>(), 0..40), rows in 1usize..9, outputs in 1usize..4) {
            let graph = graph(&choices);
            let plan = Plan::new(&graph, Shape { rows, outputs });
            let mut holds = vec![usize::MAX; plan.buffers.len()];
            for (wanted, op) in graph.ops.iter().zip(&plan.ops) {
                let reads: Vec<_> = wanted.values(Access::Read).into_iter().zip(op.values(Access::Read)).collect();
                for (value, buffer) in &reads {
                    prop_assert_eq!(holds[*buffer], *value);
                }
                let writes = op.values(Access::Write);
                for (value, buffer) in wanted.values(Access::Write).into_iter().zip(&writes) {
                    prop_assert!(reads.iter().all(|(_, read)| read != buffer));
                    prop_assert_eq!(writes.iter().filter(|other| *other == buffer).count(), 1);
                    let size = graph.values[value];
                    prop_assert!(plan.buffers[*buffer] >= size.width * plan.shape.count(size.per));
                    holds[*buffer] = value;
                }
            }
            prop_assert_eq!(holds[plan.result], graph.result);
        }
    }
}

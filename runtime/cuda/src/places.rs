//! Where a step works: its table of numbers, the plan's buffers, keys and values, and scratch memory. Pure.

use kedge_engine::backend::Step;
use kedge_engine::graph::{Graph, Op, PAGE_TOKENS, Pages};
use kedge_engine::plan::{Plan, Shape};

use crate::constants::{PAGE, SPLITS};
use crate::model::{Matrix, Mixture, Model};
use crate::pack::Format;

/// The most rows whose attention is computed in parts, by several blocks; of more, a block does all that it does.
pub(crate) const PARTIAL_ROWS_MAX: usize = 64;

const _: () = assert!(PAGE == PAGE_TOKENS, "kernels and engine cut sequences alike");

/// A step as one table of numbers of 32 bits, each list at a place that follows from the plan's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    shape: Shape,
}

/// Numbers in front of a table: rows, answers, sequences.
const HEAD: usize = 4;

/// A list of a table, each as long as there are rows, but for the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// Tokens.
    Ids,
    /// Their types.
    Types,
    /// The sequence of each row, and its position there.
    Sequences,
    Positions,
    /// Where the pages of each sequence begin.
    FirstPages,
    /// Where its rows do; one more says where all end.
    FirstRows,
    /// The rows that are answered.
    Outputs,
}

impl Table {
    /// That of a plan.
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape }
    }

    /// Its length in numbers.
    pub(crate) fn len(self) -> usize {
        self.list(List::Outputs) + self.shape.outputs
    }

    /// Where a list begins.
    pub(crate) fn list(self, list: List) -> usize {
        HEAD + list as usize * self.shape.rows + usize::from(list == List::Outputs)
    }

    /// The table of a step, and the pages of its sequences one after the other.
    pub(crate) fn of(self, step: &Step, answers: usize) -> (Vec<u32>, Vec<u32>) {
        let mut table = vec![0; self.len()];
        let mut pages = Vec::new();
        table[..3].copy_from_slice(&[step.ids.len() as u32, answers as u32, step.sequences.len() as u32]);
        let mut put = |list: List, at: usize, numbers: &[u32]| {
            table[self.list(list) + at..][..numbers.len()].copy_from_slice(numbers);
        };
        put(List::Ids, 0, &step.ids);
        put(List::Types, 0, &step.types);
        for (row, (sequence, position)) in step.places().enumerate() {
            put(List::Sequences, row, &[sequence as u32]);
            put(List::Positions, row, &[position as u32]);
        }
        let mut first = 0;
        for (index, sequence) in step.sequences.iter().enumerate() {
            put(List::FirstPages, index, &[pages.len() as u32]);
            pages.extend_from_slice(&sequence.pages);
            put(List::FirstRows, index, &[first]);
            first += sequence.rows as u32;
        }
        put(List::FirstRows, step.sequences.len(), &[first]);
        put(List::Outputs, 0, &step.outputs);
        (table, pages)
    }
}

/// Where a run works. Sizes of the scratch parts are those of [`scratch`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Places {
    /// The plan's buffers.
    pub(crate) buffers: Vec<u64>,
    /// The step's table.
    pub(crate) table: u64,
    /// Pages of the sequences, one after the other.
    pub(crate) pages: u64,
    /// Keys and values.
    pub(crate) store: u64,
    /// The parts of the scratch memory, in the order of [`Part`].
    pub(crate) scratch: Vec<u64>,
}

/// A part of the scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Part {
    /// Rounded vectors.
    Rounded,
    /// Their scales.
    Scales,
    /// Attention in parts.
    Partial,
    /// Experts chosen, their weights, how many chose each, and who.
    Choice,
    Weights,
    Counts,
    List,
    /// Experts' gates and inputs side by side, those put together, and answers.
    Both,
    Inner,
    Answers,
}

pub(crate) const PARTS: usize = 10;

/// Bytes of each part of the scratch memory, and then of the angles of each rope.
pub(crate) fn scratch(graph: &Graph, model: &Model, plan: &Plan) -> Vec<usize> {
    let mut sizes = vec![0; PARTS];
    let mut need = |part: Part, bytes: usize| sizes[part as usize] = sizes[part as usize].max(bytes);
    let rounded = |matrix: Matrix, vectors: usize, need: &mut dyn FnMut(Part, usize)| match matrix.format {
        Format::F32 => {}
        Format::Half => {
            need(Part::Rounded, vectors * matrix.inputs * 2);
            need(Part::Scales, vectors * 4);
        }
        Format::Q8_0 | Format::Q4_0 | Format::Q4K | Format::Q5K | Format::Q6K => {
            need(Part::Rounded, vectors * matrix.inputs);
            need(Part::Scales, vectors * matrix.inputs / 32 * 8);
        }
    };
    for (index, op) in graph.ops.iter().enumerate() {
        match op {
            Op::Linear { .. } => {
                let vectors = plan.shape.count(plan.sizes[index].per);
                model.products[index].iter().for_each(|product| rounded(product.matrix, vectors, &mut need));
            }
            Op::Paged { heads, .. } => {
                let rows = plan.shape.rows.min(PARTIAL_ROWS_MAX);
                need(Part::Partial, rows * heads.query * SPLITS * (heads.width + 2) * 4);
            }
            Op::Experts { experts, used, .. } => {
                let Mixture { gate, up, down } = model.mixture(index);
                let pairs = plan.shape.rows * used;
                for matrix in [gate, up] {
                    rounded(matrix, plan.shape.rows, &mut need);
                }
                rounded(down, pairs, &mut need);
                need(Part::Choice, pairs * 4);
                need(Part::Weights, pairs * 4);
                need(Part::Counts, experts.len() * 4);
                need(Part::List, experts.len() * pairs * 4);
                need(Part::Both, pairs * 2 * gate.outputs * 4);
                need(Part::Inner, pairs * gate.outputs * 4);
                need(Part::Answers, pairs * down.outputs * 4);
            }
            Op::Embed { .. }
            | Op::Norm { .. }
            | Op::Attend { .. }
            | Op::Place { .. }
            | Op::Gate { .. }
            | Op::Add { .. }
            | Op::Take { .. }
            | Op::Softcap { .. }
            | Op::Pool { .. }
            | Op::Normalize { .. } => {}
        }
    }
    sizes.extend(model.ropes.iter().map(|(rope, _)| plan.shape.rows * rope.frequencies.len() * 8));
    sizes
}

/// Numbers of 16 bits of a page.
pub(crate) fn page_numbers(pages: Pages) -> usize {
    pages.layers * pages.heads * PAGE_TOKENS * (pages.width.next_multiple_of(8) + pages.width)
}

#[cfg(test)]
mod tests {
    use kedge_engine::backend::Sequence;

    use super::*;

    #[test]
    fn a_table_says_where_everything_is() {
        let sequence = |rows, past, pages: &[u32]| Sequence { rows, past, pages: pages.to_vec() };
        let step = Step {
            ids: vec![7, 8, 9],
            types: vec![0, 1, 1],
            sequences: vec![sequence(1, 40, &[5, 2]), sequence(2, 0, &[3])],
            outputs: vec![0, 2],
        };
        let (table, pages) = Table::new(Shape { rows: 4, outputs: 2 }).of(&step, 2);
        assert_eq!(pages, [5, 2, 3]);
        let rows: Vec<&[u32]> = table[HEAD..].chunks(4).collect();
        assert_eq!(table[..HEAD], [3, 2, 2, 0]);
        assert_eq!(rows[0][..3], [7, 8, 9], "tokens");
        assert_eq!(rows[1][..3], [0, 1, 1], "types");
        assert_eq!(rows[2][..3], [0, 1, 1], "sequences");
        assert_eq!(rows[3][..3], [40, 0, 1], "places");
        assert_eq!(rows[4][..2], [0, 2], "first pages");
        assert_eq!(rows[5][..3], [0, 1, 3], "first rows");
        assert_eq!(table[HEAD + 6 * 4 + 1..], [0, 2], "rows that are answered");
    }
}

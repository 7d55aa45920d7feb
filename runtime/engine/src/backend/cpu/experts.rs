//! Mixtures of experts on all threads: each expert meets the rows that were sent to it together.
//!
//! A row is sent to a few experts; every such pair is a *slot*, and slots are sorted by expert. Then each matrix of an
//! expert is multiplied with the rows of its slots as any other matrix is, in tasks of so many panels. What must hold: a
//! slot's numbers do not depend on the other slots of its expert, and a row's slots are added in the order in which its
//! experts were chosen, so a row's answer does not depend on its neighbours.

#![allow(unsafe_code, reason = "tasks of one stage write disjoint parts of shared buffers")]

use super::dense;
use super::quant::{self, Rounded, Rows};
use super::run::{Loaded, PLAIN_ROWS, Run, Scratch, Shared, TASKS_PER_THREAD};
use super::weights::{Matrix, PRODUCT_ROWS};
use crate::backend::reference::choose;
use crate::graph::{Activation, Expert, Op};
use crate::plan::Buffer;

/// The steps of the operation, each a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Rows are sent to experts: one task.
    Route,
    /// The rows of slots, side by side.
    Gather,
    /// Products with gate and up.
    Inner,
    /// `activation(gate) · up`.
    Gate,
    /// Products with down.
    Down,
    /// The slots of each row.
    Sum,
}

pub(super) const PARTS: [Part; 6] = [Part::Route, Part::Gather, Part::Inner, Part::Gate, Part::Down, Part::Sum];

/// A row at one of its experts.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    row: u32,
    weight: f32,
}

/// The slots of one expert that has any.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    expert: u32,
    first: u32,
    count: u32,
}

/// What the stages hand on.
#[derive(Default)]
pub(super) struct Space {
    slots: Shared<Slot>,
    /// As many as there are slots; those that are not needed have none.
    groups: Shared<Group>,
    /// For each row its slots in the order of its choice.
    of_row: Shared<u32>,
    /// Vectors of slots, and the same as bytes: first what goes in, then what is inside.
    x: Shared<f32>,
    gates: Shared<f32>,
    ups: Shared<f32>,
    downs: Shared<f32>,
    bytes: Shared<i8>,
    blocks: Shared<Rounded>,
}

/// The operation, taken apart.
struct Mixture<'a> {
    x: Buffer,
    router: Buffer,
    experts: &'a [Expert],
    used: usize,
    normalize: bool,
    activation: Activation,
    out: Buffer,
    width: usize,
    inner: usize,
}

impl Space {
    pub(super) fn make_room(&mut self, run: &Run, op: &Op) {
        let Some(m) = mixture(run.on, op) else { return };
        let slots = run.rows * m.used;
        self.slots.resize(slots);
        self.groups.resize(slots);
        self.of_row.resize(slots);
        self.x.resize(slots * m.width);
        self.gates.resize(slots * m.inner);
        self.ups.resize(slots * m.inner);
        self.downs.resize(slots * m.width);
        let widest = m.width.max(m.inner);
        self.bytes.resize(slots * widest);
        self.blocks.resize(slots * widest.div_ceil(quant::BLOCK));
    }
}

fn mixture<'a>(on: &Loaded, op: &'a Op) -> Option<Mixture<'a>> {
    let Op::Experts { x, router, experts, used, normalize, activation, out } = op else { return None };
    let (width, inner) = (on.matrix(experts[0].gate).inputs(), on.matrix(experts[0].gate).outputs());
    let (experts, used, normalize, activation) = (experts.as_slice(), *used, *normalize, *activation);
    Some(Mixture { x: *x, router: *router, experts, used, normalize, activation, out: *out, width, inner })
}

/// How many tasks a stage has.
pub(super) fn tasks(run: &Run, op: &Op, part: Part) -> usize {
    let m = mixture(run.on, op).expect("the stages are those of a mixture");
    let slots = run.rows * m.used;
    let groups = slots.min(m.experts.len());
    match part {
        Part::Route => 1,
        Part::Gather | Part::Gate => slots.div_ceil(PLAIN_ROWS),
        Part::Inner => 2 * groups * chunks(run, &m, m.inner),
        Part::Down => groups * chunks(run, &m, m.width),
        Part::Sum => run.rows.div_ceil(PLAIN_ROWS),
    }
}

/// Pieces that each matrix with so many outputs is cut into: enough for all threads when one row is there.
fn chunks(run: &Run, m: &Mixture, outputs: usize) -> usize {
    let wanted = (run.on.pool.threads() * TASKS_PER_THREAD).div_ceil(m.used);
    wanted.clamp(1, outputs.div_ceil(dense::PANEL))
}

pub(super) fn work(run: &Run, scratch: &Scratch, op: &Op, part: Part, task: usize) {
    let m = mixture(run.on, op).expect("the stages are those of a mixture");
    let (on, space, slots) = (run.on, &scratch.experts, run.rows * m.used);
    // SAFETY (all below): a stage reads what earlier stages wrote, and its tasks write different rows, slots or outputs.
    match part {
        Part::Route => unsafe { route(run, scratch, &m) },
        Part::Gather => {
            for slot in Run::plain_rows(slots, task) {
                let (from, to) = unsafe {
                    let row = space.slots.read(slot, 1)[0].row as usize;
                    (scratch.values[m.x].read(row * m.width, m.width), space.x.write(slot * m.width, m.width))
                };
                to.copy_from_slice(from);
                round(on, space, &[m.experts[0].gate, m.experts[0].up], slot, m.width, to);
            }
        }
        Part::Inner => {
            let chunks = chunks(run, &m, m.inner);
            let (which, chunk) = (task / chunks, task % chunks);
            let (group, is_up) = (which / 2, which % 2 == 1);
            let out = if is_up { &space.ups } else { &space.gates };
            let matrix = |expert: &Expert| on.matrix(if is_up { expert.up } else { expert.gate });
            multiply(run, space, &m, group, (chunk, chunks), &space.x, matrix, out);
        }
        Part::Gate => {
            for slot in Run::plain_rows(slots, task) {
                let (gate, up) =
                    unsafe { (space.gates.write(slot * m.inner, m.inner), space.ups.read(slot * m.inner, m.inner)) };
                on.simd.activate(m.activation, gate);
                gate.iter_mut().zip(up).for_each(|(gate, up)| *gate *= up);
                round(on, space, &[m.experts[0].down], slot, m.inner, gate);
            }
        }
        Part::Down => {
            let chunks = chunks(run, &m, m.width);
            let (group, chunk) = (task / chunks, task % chunks);
            let matrix = |expert: &Expert| on.matrix(expert.down);
            multiply(run, space, &m, group, (chunk, chunks), &space.gates, matrix, &space.downs);
        }
        Part::Sum => {
            for row in Run::plain_rows(run.rows, task) {
                let (out, own) = unsafe {
                    (scratch.values[m.out].write(row * m.width, m.width), space.of_row.read(row * m.used, m.used))
                };
                out.fill(0.0);
                for slot in own.iter().map(|slot| *slot as usize) {
                    let (weight, down) =
                        unsafe { (space.slots.read(slot, 1)[0].weight, space.downs.read(slot * m.width, m.width)) };
                    on.simd.add_scaled(out, weight, down);
                }
            }
        }
    }
}

/// Sends rows to experts, and sorts what comes of it by expert.
///
/// # Safety
/// Nobody else is at the routes, and the router's logits were written by an earlier stage.
unsafe fn route(run: &Run, scratch: &Scratch, m: &Mixture) {
    let (space, count) = (&scratch.experts, m.experts.len());
    let mut chosen = Vec::with_capacity(run.rows * m.used);
    for row in 0..run.rows {
        // SAFETY: see above.
        let logits = unsafe { scratch.values[m.router].read(row * count, count) };
        let logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
        let best = choose(&logits, m.used, m.normalize).into_iter().enumerate();
        chosen.extend(best.map(|(turn, (expert, weight))| (expert, row, turn, weight as f32)));
    }
    chosen.sort_unstable_by_key(|(expert, row, turn, _)| (*expert, *row, *turn));
    // SAFETY: see above.
    let (slots, groups, of_row) = unsafe {
        let all = chosen.len();
        (space.slots.write(0, all), space.groups.write(0, all), space.of_row.write(0, all))
    };
    groups.fill(Group::default());
    let mut found = 0;
    for (slot, (expert, row, turn, weight)) in chosen.into_iter().enumerate() {
        slots[slot] = Slot { row: row as u32, weight };
        of_row[row * m.used + turn] = slot as u32;
        if found == 0 || groups[found - 1].expert != expert as u32 {
            groups[found] = Group { expert: expert as u32, first: slot as u32, count: 0 };
            found += 1;
        }
        groups[found - 1].count += 1;
    }
}

/// A slot's vector as bytes, where a matrix that it meets wants them. (Experts of a layer are stored alike.)
fn round(on: &Loaded, space: &Space, meets: &[usize], slot: usize, width: usize, x: &[f32]) {
    if meets.iter().any(|weight| matches!(on.matrix(*weight), Matrix::Quant(_))) {
        // SAFETY: a slot's bytes are written by the one task that has the slot.
        unsafe {
            let blocks = width / quant::BLOCK;
            on.simd.quantize(x, space.bytes.write(slot * width, width), space.blocks.write(slot * blocks, blocks));
        }
    }
}

/// Products of the slots of one group with a piece of one of its expert's matrices.
#[allow(clippy::too_many_arguments, reason = "what one product takes")]
fn multiply<'a>(
    run: &Run<'a>,
    space: &Space,
    m: &Mixture,
    group: usize,
    (chunk, chunks): (usize, usize),
    x: &Shared<f32>,
    matrix: impl Fn(&Expert) -> &'a Matrix,
    out: &Shared<f32>,
) {
    // SAFETY: groups were written by an earlier stage.
    let Group { expert, first, count } = unsafe { space.groups.read(group, 1)[0] };
    let (first, count) = (first as usize, count as usize);
    if count == 0 {
        return;
    }
    let matrix = matrix(&m.experts[expert as usize]);
    let (inputs, outputs, panels) = (matrix.inputs(), matrix.outputs(), matrix.panels());
    for panel in chunk * panels / chunks..(chunk + 1) * panels / chunks {
        for from in (first..first + count).step_by(PRODUCT_ROWS) {
            let rows = PRODUCT_ROWS.min(first + count - from);
            // SAFETY: earlier stages wrote the slots; these outputs of these slots are this task's alone.
            let (x, bytes) = unsafe {
                let bytes = matches!(matrix, Matrix::Quant(_)).then(|| Rows {
                    bytes: space.bytes.read(from * inputs, rows * inputs),
                    blocks: space.blocks.read(from * inputs / quant::BLOCK, rows * inputs / quant::BLOCK),
                });
                (x.read(from * inputs, rows * inputs), bytes)
            };
            matrix.panel(run.on.simd, x, bytes, rows, panel, Some(panel + 1), &mut |products| {
                for (row, sums) in (from + products.row..).zip(products.sums.chunks_exact(products.lanes)) {
                    // SAFETY: as above.
                    let to = unsafe { out.write(row * outputs + products.output, products.width) };
                    run.on.simd.copy(&sums[..products.width], to);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kedge_formats::{Dtype, Tensor, quant as stored};

    use super::super::simd::tests::numbers;
    use super::*;
    use crate::backend::{Backend, Sequence, Step};
    use crate::graph::{Builder, Graph};
    use crate::plan::{Plan, Shape};
    use crate::{Cpu, Reference};

    const WIDTH: usize = 256;
    const INNER: usize = 512;
    const WORDS: usize = 50;

    /// Words to a mixture of six experts and out.
    fn graph(dtype: Dtype) -> Arc<Graph> {
        let mut g = Builder::default();
        let mut seed = 1;
        let mut weight = |g: &mut Builder, dtype: Dtype, shape: [usize; 2]| {
            seed += 1;
            let bytes = stored::quantize(dtype, &numbers(shape[0] * shape[1], seed));
            g.weight(Tensor::of_bytes(dtype, &shape, bytes).unwrap())
        };
        let words = weight(&mut g, Dtype::F32, [WORDS, WIDTH]);
        let x = g.per_row(WIDTH);
        g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: x });
        let routes = weight(&mut g, Dtype::F32, [6, WIDTH]);
        let router = g.linear(x, vec![crate::graph::Part { weight: routes, bias: None }], None);
        let experts = (0..6).map(|_| Expert {
            gate: weight(&mut g, dtype, [INNER, WIDTH]),
            up: weight(&mut g, dtype, [INNER, WIDTH]),
            down: weight(&mut g, dtype, [WIDTH, INNER]),
        });
        let experts = experts.collect();
        let out = g.like(x);
        let activation = Activation::Silu;
        g.push(Op::Experts { x, router, experts, used: 2, normalize: true, activation, out });
        let taken = g.take(out);
        Arc::new(g.finish(taken, None))
    }

    fn answers(graph: &Arc<Graph>, backend: &dyn Backend, ids: &[u32]) -> Vec<f32> {
        let shape = Shape { rows: ids.len(), outputs: ids.len() };
        let sequences = vec![Sequence { rows: ids.len(), past: 0, pages: vec![] }];
        let outputs = (0..ids.len() as u32).collect();
        let step = Step { ids: ids.to_vec(), types: vec![], sequences, outputs };
        let mut out = Vec::new();
        backend.prepare(graph.clone(), 0).unwrap().run(&Plan::new(graph, shape), &step, &mut out).unwrap();
        out
    }

    #[test]
    fn mixtures_of_every_type_are_the_plain_ones_and_rows_do_not_know_each_other() {
        for (dtype, tolerance) in
            [(Dtype::F32, 1e-5), (Dtype::Bf16, 1e-5), (Dtype::Q8_0, 2e-2), (Dtype::Q4K, 2e-2), (Dtype::Q6K, 2e-2)]
        {
            let graph = graph(dtype);
            // More rows than one product takes at an expert, some of them alike.
            let ids: Vec<u32> = (0..400).map(|row| row * 7 % WORDS as u32).collect();
            let expected = answers(&graph, &Reference, &ids[..WORDS]);
            for cpu in Cpu::levels(Some(3)).unwrap() {
                let all = answers(&graph, &cpu, &ids);
                let off = |found: &[f32], expected: &[f32]| {
                    let far: f32 = found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum();
                    f64::from(far / expected.iter().map(|b| b.powi(2)).sum::<f32>()).sqrt()
                };
                let away = off(&all[..WORDS * WIDTH], &expected);
                assert!(away < tolerance, "{dtype:?} on {:?}: {away}", cpu.capabilities().features);
                for row in [0, 1, 49, 399] {
                    assert_eq!(answers(&graph, &cpu, &ids[row..=row]), all[row * WIDTH..(row + 1) * WIDTH]);
                }
            }
        }
    }
}

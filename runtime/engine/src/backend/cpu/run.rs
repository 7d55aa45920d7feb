//! A run of a plan: each operation becomes one or two stages of tasks.
//!
//! What must hold: a stage reads what earlier stages wrote and nothing that another task of it writes.

#![allow(unsafe_code, reason = "tasks of one stage write disjoint parts of shared buffers")]

use std::cell::UnsafeCell;
use std::sync::{Arc, Mutex, PoisonError};

use super::attention::{Looking, QUERY_ROWS_PAGED, QUERY_ROWS_WHOLE};
use super::experts;
use super::pages::Store;
use super::pool::Pool;
use super::quant::{self, Rounded, Rows};
use super::simd::Simd;
use super::weights::{Matrix, PRODUCT_ROWS, Packed, Products};
use crate::EngineError;
use crate::backend::{Prepared, Step};
use crate::graph::{Activation, Graph, Norm, Op, PAGE_TOKENS, Pairs, Part, Pooling, Rope};
use crate::plan::{Buffer, Plan};

/// Rows of one task that handles each row by itself.
pub(super) const PLAIN_ROWS: usize = 8;
/// Tasks for each thread that a product is cut into, so that one that was held up is made up for by others.
pub(super) const TASKS_PER_THREAD: usize = 6;

/// A graph on the processor.
pub(super) struct Loaded {
    graph: Arc<Graph>,
    weights: Vec<Packed>,
    ropes: Vec<Rope>,
    pub(super) store: Option<Store>,
    pages: usize,
    pub(super) pool: Arc<Pool>,
    pub(super) simd: Simd,
    /// What a run works in. Held for a whole run: one at a time.
    scratch: Mutex<Scratch>,
}

/// What a run works in.
#[derive(Default)]
pub(super) struct Scratch {
    /// The plan's buffers.
    pub(super) values: Vec<Shared<f32>>,
    /// Rows of the product at hand as bytes, and what is known of their blocks.
    bytes: Shared<i8>,
    blocks: Shared<Rounded>,
    /// Cosine and sine for each way of turning: `rows × pairs × 2`.
    angles: Vec<Shared<f32>>,
    pub(super) experts: experts::Space,
}

/// A buffer that the tasks of one stage write in disjoint parts.
#[derive(Default)]
pub(super) struct Shared<T>(Vec<UnsafeCell<T>>);

// SAFETY: access goes through `read` and `write`, whose callers keep parts apart.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T: Copy + Default> Shared<T> {
    pub(super) fn resize(&mut self, length: usize) {
        if self.0.len() < length {
            self.0.resize_with(length, UnsafeCell::default);
        }
    }

    /// # Safety
    /// Nobody writes that part meanwhile: a stage reads only what an earlier stage wrote.
    pub(super) unsafe fn read(&self, from: usize, length: usize) -> &[T] {
        let part = &self.0[from..from + length];
        // SAFETY: cells lie in memory as what is in them does; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(part.as_ptr().cast(), length) }
    }

    /// # Safety
    /// Nobody else reads or writes that part meanwhile: tasks of a stage write disjoint parts.
    #[allow(clippy::mut_from_ref, reason = "the point of the type")]
    pub(super) unsafe fn write(&self, from: usize, length: usize) -> &mut [T] {
        let part = &self.0[from..from + length];
        // SAFETY: as above; what is in a cell may be written through a shared reference to it.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(part.as_ptr()), length) }
    }
}

/// What the tasks of a stage do.
#[derive(Clone, Copy)]
enum Work {
    Angles,
    /// Rows of an operation's input to bytes.
    Round {
        op: usize,
    },
    /// An operation, in tasks of so many rows, queries or panels.
    Op {
        op: usize,
    },
    /// A part of a mixture of experts.
    Experts {
        op: usize,
        part: experts::Part,
    },
}

impl Loaded {
    pub(super) fn new(graph: Arc<Graph>, weights: Vec<Packed>, pages: usize, pool: Arc<Pool>, simd: Simd) -> Self {
        let ropes = ropes(&graph);
        let store = graph.pages.map(|shape| Store::new(shape, pages));
        Self { graph, weights, ropes, store, pages, pool, simd, scratch: Mutex::default() }
    }
}

impl Prepared for Loaded {
    fn run(&self, plan: &Plan, step: &Step, answers: &mut Vec<f32>) -> Result<(), EngineError> {
        step.check(&self.graph, plan, self.pages)?;
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let run = Run::new(self, plan, step);
        run.make_room(&mut scratch);
        let (works, tasks): (Vec<Work>, Vec<usize>) = run.stages().into_iter().unzip();
        let scratch_ref = &*scratch;
        self.pool.run(&tasks, &|stage, task| run.work(scratch_ref, works[stage], task));
        let count = step.answers(&self.graph) * self.graph.result_width();
        answers.clear();
        // SAFETY: all tasks have ended.
        answers.extend_from_slice(unsafe { scratch.values[plan.result].read(0, count) });
        Ok(())
    }
}

/// One run of a plan.
pub(super) struct Run<'a> {
    pub(super) on: &'a Loaded,
    plan: &'a Plan,
    pub(super) step: &'a Step,
    pub(super) rows: usize,
    outputs: usize,
    /// For each row its sequence and its position in it.
    places: Vec<(usize, usize)>,
    /// For each sequence its first row.
    pub(super) firsts: Vec<usize>,
    /// Blocks of query rows: sequence, first row in it, and how many.
    pub(super) queries: Vec<(usize, usize, usize)>,
}

impl<'a> Run<'a> {
    fn new(on: &'a Loaded, plan: &'a Plan, step: &'a Step) -> Self {
        let mut first = 0;
        let (mut firsts, mut queries) = (Vec::new(), Vec::new());
        let most = if on.store.is_some() { QUERY_ROWS_PAGED } else { QUERY_ROWS_WHOLE };
        for (index, sequence) in step.sequences.iter().enumerate() {
            firsts.push(first);
            first += sequence.rows;
            let blocks = (0..sequence.rows).step_by(most);
            queries.extend(blocks.map(|row| (index, row, most.min(sequence.rows - row))));
        }
        let (rows, outputs) = (step.ids.len(), step.answers(&on.graph));
        Self { on, plan, step, rows, outputs, places: step.places().collect(), firsts, queries }
    }

    fn make_room(&self, scratch: &mut Scratch) {
        let buffers = &self.plan.buffers;
        scratch.values.resize_with(buffers.len().max(scratch.values.len()), Shared::default);
        scratch.values.iter_mut().zip(buffers).for_each(|(buffer, length)| buffer.resize(*length));
        scratch.angles.resize_with(self.on.ropes.len(), Shared::default);
        for (angles, rope) in scratch.angles.iter_mut().zip(&self.on.ropes) {
            angles.resize(self.rows * rope.frequencies.len() * 2);
        }
        let widest = self.plan.ops.iter().filter_map(|op| self.rounded_width(op)).max().unwrap_or(0);
        let most = self.rows.max(self.outputs) * widest;
        scratch.bytes.resize(most);
        scratch.blocks.resize(most / quant::BLOCK);
        self.plan.ops.iter().for_each(|op| scratch.experts.make_room(self, op));
    }

    /// Width of the rows that have to become bytes for an operation.
    fn rounded_width(&self, op: &Op) -> Option<usize> {
        let Op::Linear { parts, .. } = op else { return None };
        let quantised =
            parts.iter().map(|part| self.on.matrix(part.weight)).find(|matrix| matches!(matrix, Matrix::Quant(_)));
        quantised.map(Matrix::inputs)
    }

    /// The stages in order, with their numbers of tasks.
    fn stages(&self) -> Vec<(Work, usize)> {
        let mut stages = Vec::with_capacity(self.plan.ops.len() * 2);
        if !self.on.ropes.is_empty() {
            stages.push((Work::Angles, self.rows.div_ceil(PLAIN_ROWS)));
        }
        for (index, op) in self.plan.ops.iter().enumerate() {
            let count = self.count(index);
            if self.rounded_width(op).is_some() {
                stages.push((Work::Round { op: index }, count.div_ceil(PLAIN_ROWS)));
            }
            let tasks = match op {
                Op::Linear { parts, .. } => {
                    let chunk = self.panels_of_task(parts, count);
                    let chunks: usize =
                        parts.iter().map(|part| self.on.matrix(part.weight).panels().div_ceil(chunk)).sum();
                    chunks * count.div_ceil(PRODUCT_ROWS)
                }
                Op::Attend { heads, .. } | Op::Paged { heads, .. } => self.queries.len() * heads.key,
                Op::Experts { .. } => {
                    stages.extend(
                        experts::PARTS.map(|part| (Work::Experts { op: index, part }, experts::tasks(self, op, part))),
                    );
                    continue;
                }
                Op::Pool { .. } => self.step.sequences.len(),
                _ => count.div_ceil(PLAIN_ROWS),
            };
            stages.push((Work::Op { op: index }, tasks));
        }
        stages
    }

    /// How many vectors an operation makes.
    fn count(&self, op: usize) -> usize {
        match self.plan.sizes[op].per {
            crate::graph::Per::Row => self.rows,
            crate::graph::Per::Output => self.outputs,
        }
    }

    fn panels_of_task(&self, parts: &[Part], rows: usize) -> usize {
        let panels: usize = parts.iter().map(|part| self.on.matrix(part.weight).panels()).sum();
        let tasks = self.on.pool.threads() * TASKS_PER_THREAD;
        let most = (panels * rows.div_ceil(PRODUCT_ROWS) / tasks).clamp(1, 64);
        // As many in each: a rest of few would leave a thread waiting for one with many.
        panels.div_ceil(panels.div_ceil(most))
    }

    fn work(&self, scratch: &Scratch, work: Work, task: usize) {
        match work {
            Work::Angles => self.angles(scratch, task),
            Work::Round { op } => self.round(scratch, op, task),
            Work::Op { op } => self.op(scratch, op, task),
            Work::Experts { op, part } => experts::work(self, scratch, &self.plan.ops[op], part, task),
        }
    }

    /// The rows of a task that handles each by itself.
    pub(super) fn plain_rows(count: usize, task: usize) -> std::ops::Range<usize> {
        task * PLAIN_ROWS..count.min((task + 1) * PLAIN_ROWS)
    }

    fn angles(&self, scratch: &Scratch, task: usize) {
        for (rope, angles) in self.on.ropes.iter().zip(&scratch.angles) {
            let pairs = rope.frequencies.len();
            for row in Self::plain_rows(self.rows, task) {
                // SAFETY: each row's angles are written by the one task that has the row.
                let out = unsafe { angles.write(row * pairs * 2, pairs * 2) };
                for (out, frequency) in out.chunks_exact_mut(2).zip(&rope.frequencies) {
                    let (sin, cos) = (self.places[row].1 as f64 * frequency).sin_cos();
                    out.copy_from_slice(&[(cos * rope.magnitude) as f32, (sin * rope.magnitude) as f32]);
                }
            }
        }
    }

    fn round(&self, scratch: &Scratch, op: usize, task: usize) {
        let Op::Linear { x, .. } = &self.plan.ops[op] else { return };
        let Some(width) = self.rounded_width(&self.plan.ops[op]) else { return };
        let rows = Self::plain_rows(self.count(op), task);
        let (first, count) = (rows.start * width, rows.len() * width);
        // SAFETY: `x` was written by an earlier stage; the rows' bytes, scales and sums belong to this task alone.
        unsafe {
            let x = scratch.values[*x].read(first, count);
            self.on.simd.quantize(
                x,
                scratch.bytes.write(first, count),
                scratch.blocks.write(first / quant::BLOCK, count / quant::BLOCK),
            );
        }
    }

    fn op(&self, scratch: &Scratch, index: usize, task: usize) {
        let (simd, on) = (self.on.simd, self.on);
        let count = self.count(index);
        let size = self.plan.sizes[index].width;
        // SAFETY (both): operations read what earlier stages wrote; a task writes its own rows, and a plan never gives an
        // operation's input and output the same buffer.
        let read =
            |buffer: Buffer, row: usize, width: usize| unsafe { scratch.values[buffer].read(row * width, width) };
        let write =
            |buffer: Buffer, row: usize, width: usize| unsafe { scratch.values[buffer].write(row * width, width) };
        match &self.plan.ops[index] {
            Op::Embed { words, positions, types, scale, out } => {
                let mut more = vec![0.0; size];
                for row in Self::plain_rows(count, task) {
                    let out = write(*out, row, size);
                    on.graph.weights[*words].row_f32(self.step.ids[row] as usize, out);
                    let kind = self.step.types.get(row).copied().unwrap_or(0) as usize;
                    for (table, at) in [(positions, self.places[row].1), (types, kind)] {
                        if let Some(table) = table {
                            on.graph.weights[*table].row_f32(at, &mut more);
                            simd.add_scaled(out, 1.0, &more);
                        }
                    }
                    if *scale != 1.0 {
                        out.iter_mut().for_each(|value| *value *= *scale as f32);
                    }
                }
            }
            Op::Norm { x, residual, norm, epsilon, sum, out } => {
                let mut added = vec![0.0; if residual.is_some() && sum.is_none() { size } else { 0 }];
                for row in Self::plain_rows(count, task) {
                    let mut x = read(*x, row, size);
                    if let Some(residual) = residual {
                        let to = sum.map_or(&mut added[..], |sum| write(sum, row, size));
                        simd.add(x, read(*residual, row, size), to);
                        x = to;
                    } else if let Some(sum) = sum {
                        write(*sum, row, size).copy_from_slice(x);
                    }
                    on.norm(*norm, *epsilon, x, write(*out, row, size));
                }
            }
            Op::Linear { x, parts, activation, out } => {
                self.product(scratch, *x, parts, *activation, *out, count, size, task)
            }
            Op::Attend { qkv, heads, out } => self.attend(scratch, *qkv, *heads, *out, task),
            Op::Place { qkv, heads, norms, epsilon, rope, layer, out } => {
                let angles = rope.as_ref().map(|rope| {
                    let index = on.ropes.iter().position(|known| known == rope).expect("all ropes were gathered");
                    (rope, &scratch.angles[index])
                });
                let store = on.store.as_ref().expect("a graph that places has pages");
                let mut head = vec![0.0; heads.width];
                for row in Self::plain_rows(count, task) {
                    let (sequence, position) = self.places[row];
                    let page = self.step.sequences[sequence].pages[position / PAGE_TOKENS] as usize;
                    let queries = write(*out, row, heads.query * heads.width);
                    for (index, from) in read(*qkv, row, heads.qkv()).chunks_exact(heads.width).enumerate() {
                        let is_query = index < heads.query;
                        if index >= heads.query + heads.key {
                            let key_head = index - heads.query - heads.key;
                            // SAFETY: this position of the page is this row's alone, and nobody reads it yet.
                            unsafe { store.put_value(page, *layer, key_head, position % PAGE_TOKENS, from) };
                            continue;
                        }
                        match norms {
                            Some((q, k)) => on.norm(if is_query { *q } else { *k }, *epsilon, from, &mut head),
                            None => head.copy_from_slice(from),
                        }
                        if let Some((rope, angles)) = angles {
                            let pairs = rope.frequencies.len();
                            // SAFETY: the angles were written by an earlier stage.
                            turn(&mut head, rope.pairs, unsafe { angles.read(row * pairs * 2, pairs * 2) });
                        }
                        if is_query {
                            queries[index * heads.width..][..heads.width].copy_from_slice(&head);
                        } else {
                            // SAFETY: as above.
                            unsafe { store.put_key(page, *layer, index - heads.query, position % PAGE_TOKENS, &head) };
                        }
                    }
                }
            }
            Op::Paged { q, heads, scale, window, softcap, layer, out } => {
                let (scale, softcap) = (*scale as f32, softcap.map(|bound| bound as f32));
                let looking = Looking { heads: *heads, scale, window: *window, softcap, layer: *layer };
                self.paged(scratch, *q, looking, *out, task);
            }
            Op::Gate { x, activation, out } => {
                for row in Self::plain_rows(count, task) {
                    let (gate, up) = read(*x, row, 2 * size).split_at(size);
                    simd.gate(*activation, gate, up, write(*out, row, size));
                }
            }
            Op::Experts { .. } => unreachable!("its stages are its parts"),
            Op::Add { x, y, out } => {
                for row in Self::plain_rows(count, task) {
                    simd.add(read(*x, row, size), read(*y, row, size), write(*out, row, size));
                }
            }
            Op::Take { x, out } => {
                for row in Self::plain_rows(count, task) {
                    write(*out, row, size).copy_from_slice(read(*x, self.step.outputs[row] as usize, size));
                }
            }
            Op::Softcap { x, bound, out } => {
                for row in Self::plain_rows(count, task) {
                    let out = write(*out, row, size);
                    out.copy_from_slice(read(*x, row, size));
                    simd.softcap(*bound as f32, out);
                }
            }
            Op::Pool { x, pooling, out } => {
                let (first, rows) = (self.firsts[task], self.step.sequences[task].rows);
                let out = write(*out, task, size);
                pool_rows(*pooling, rows, |row| read(*x, first + row, size), out);
            }
            Op::Normalize { x, out } => {
                for row in Self::plain_rows(count, task) {
                    let x = read(*x, row, size);
                    let length = simd.dot(x, x).sqrt().max(1e-12);
                    write(*out, row, size).iter_mut().zip(x).for_each(|(out, x)| *out = x / length);
                }
            }
        }
    }

    /// A task is a chunk of panels of one part by a chunk of rows.
    #[allow(clippy::too_many_arguments, reason = "the fields of one operation")]
    fn product(
        &self,
        scratch: &Scratch,
        x: Buffer,
        parts: &[Part],
        activation: Option<Activation>,
        out: Buffer,
        count: usize,
        width: usize,
        task: usize,
    ) {
        let chunk = self.panels_of_task(parts, count);
        let row_chunks = count.div_ceil(PRODUCT_ROWS);
        let (mut at, row_chunk) = (task / row_chunks, task % row_chunks);
        let mut column = 0;
        for part in parts {
            let matrix = self.on.matrix(part.weight);
            let chunks = matrix.panels().div_ceil(chunk);
            if at >= chunks {
                at -= chunks;
                column += matrix.outputs();
                continue;
            }
            let first = row_chunk * PRODUCT_ROWS;
            let (rows, inputs) = (PRODUCT_ROWS.min(count - first), matrix.inputs());
            // SAFETY: earlier stages wrote these.
            let (x, bytes) = unsafe {
                let bytes = matches!(matrix, Matrix::Quant(_)).then(|| Rows {
                    bytes: scratch.bytes.read(first * inputs, rows * inputs),
                    blocks: scratch.blocks.read(first * inputs / quant::BLOCK, rows * inputs / quant::BLOCK),
                });
                (scratch.values[x].read(first * inputs, rows * inputs), bytes)
            };
            let bias = part.bias.map(|bias| self.on.vector(bias));
            let panels = at * chunk..matrix.panels().min((at + 1) * chunk);
            for panel in panels.clone() {
                // After its last the thread takes that of a later task: others have those between. Of several chunks of
                // rows the next task has the same panels, which are near.
                let later = (row_chunks == 1).then(|| panel + 1 + chunk * (self.on.pool.threads() - 1));
                let next = if panel + 1 < panels.end { Some(panel + 1) } else { later };
                matrix.panel(self.on.simd, x, bytes, rows, panel, next, &mut |products| {
                    let Products { row, output, width: count, lanes, sums } = products;
                    let bias = bias.map_or(&[][..], |bias| &bias[output..output + count]);
                    self.on.simd.settle(lanes, bias, activation, sums);
                    for (row, sums) in (first + row..).zip(sums.chunks_exact(lanes)) {
                        // SAFETY: these outputs of these rows are this task's alone.
                        let out = unsafe { scratch.values[out].write(row * width + column + output, count) };
                        self.on.simd.copy(&sums[..count], out);
                    }
                });
            }
            return;
        }
    }
}

impl Loaded {
    pub(super) fn matrix(&self, weight: usize) -> &Matrix {
        match &self.weights[weight] {
            Packed::Matrix(matrix) => matrix,
            _ => unreachable!("matrices were packed as such"),
        }
    }

    pub(super) fn vector(&self, weight: usize) -> &[f32] {
        match &self.weights[weight] {
            Packed::Vector(vector) => vector,
            _ => unreachable!("vectors were kept as such"),
        }
    }

    fn norm(&self, norm: Norm, epsilon: f64, x: &[f32], out: &mut [f32]) {
        match norm {
            Norm::Layer { gamma, beta } => {
                self.simd.layer_norm(x, self.vector(gamma), self.vector(beta), epsilon as f32, out);
            }
            Norm::Rms { gamma, plus_one } => {
                let more = if plus_one { 1.0 } else { 0.0 };
                self.simd.rms_norm(x, self.vector(gamma), more, epsilon as f32, out);
            }
        }
    }
}

/// Turns the pairs of a head by angles given as cosine and sine.
fn turn(head: &mut [f32], pairs: Pairs, angles: &[f32]) {
    let half = angles.len() / 2;
    for (index, angle) in angles.chunks_exact(2).enumerate() {
        let (a, b) = match pairs {
            Pairs::Halves => (index, index + half),
            Pairs::Neighbours => (2 * index, 2 * index + 1),
        };
        let (x, y) = (head[a], head[b]);
        head[a] = x * angle[0] - y * angle[1];
        head[b] = y * angle[0] + x * angle[1];
    }
}

fn pool_rows<'a>(pooling: Pooling, rows: usize, row: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    out.copy_from_slice(row(if pooling == Pooling::Last { rows - 1 } else { 0 }));
    for index in 1..rows {
        match pooling {
            Pooling::Mean => out.iter_mut().zip(row(index)).for_each(|(out, x)| *out += x),
            Pooling::Max => out.iter_mut().zip(row(index)).for_each(|(out, x)| *out = out.max(*x)),
            Pooling::Cls | Pooling::Last => return,
        }
    }
    if pooling == Pooling::Mean {
        out.iter_mut().for_each(|out| *out /= rows as f32);
    }
}

/// The distinct ways of turning that a graph has, so that angles are computed once for all its layers.
fn ropes(graph: &Graph) -> Vec<Rope> {
    let mut found: Vec<Rope> = Vec::new();
    for op in &graph.ops {
        if let Op::Place { rope: Some(rope), .. } = op
            && !found.contains(rope)
        {
            found.push(rope.clone());
        }
    }
    found
}

//! The plain version of every operation: 64-bit floats, one loop inside another, nothing clever.
//!
//! It exists to be read and to be compared with. Nothing here is ever made fast.

use std::sync::{Arc, Mutex, PoisonError};

use kedge_formats::Tensor;

use super::{Backend, Capabilities, Prepared, Step};
use crate::EngineError;
use crate::graph::{Activation, Expert, Graph, Heads, Norm, Op, PAGE_TOKENS, Pages, Pairs, Part, Pooling, Rope};
use crate::plan::Plan;

/// The backend every other is compared with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

impl Backend for Reference {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "reference", features: "f64 scalar", threads: 1, pinned: false }
    }

    fn memory_bytes_free(&self) -> u64 {
        u64::MAX
    }

    fn prepare(&self, graph: Arc<Graph>, pages: usize) -> Result<Box<dyn Prepared>, EngineError> {
        let store = Mutex::new(vec![0.0; graph.pages.map_or(0, Pages::values) * pages]);
        Ok(Box::new(Plain { graph, store, pages }))
    }
}

struct Plain {
    graph: Arc<Graph>,
    /// Keys and values by page, layer, which of the two, head, token and dimension. Held for a whole run.
    store: Mutex<Vec<f64>>,
    pages: usize,
}

/// Vectors of equal width.
type Rows = Vec<Vec<f64>>;

impl Prepared for Plain {
    fn run(&self, plan: &Plan, step: &Step, answers: &mut Vec<f32>) -> Result<(), EngineError> {
        step.check(&self.graph, plan, self.pages)?;
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffers: Vec<Rows> = vec![Vec::new(); plan.buffers.len()];
        for op in &plan.ops {
            self.step(op, step, &mut buffers, &mut store);
        }
        answers.clear();
        answers.extend(buffers[plan.result].iter().flatten().map(|value| *value as f32));
        Ok(())
    }
}

impl Plain {
    fn weight(&self, weight: usize) -> &Tensor {
        &self.graph.weights[weight]
    }

    fn vector(&self, weight: usize) -> Vec<f64> {
        self.weight(weight).to_f32().into_iter().map(f64::from).collect()
    }

    fn row(&self, weight: usize, row: usize) -> Vec<f64> {
        let mut out = vec![0.0; self.weight(weight).columns()];
        self.weight(weight).row_f32(row, &mut out);
        out.into_iter().map(f64::from).collect()
    }

    fn step(&self, op: &Op, step: &Step, buffers: &mut [Rows], store: &mut [f64]) {
        let (to, rows) = match op {
            Op::Embed { words, positions, types, scale, out } => {
                let row = |(index, (_, position)): (usize, (usize, usize))| {
                    let mut sum = self.row(*words, step.ids[index] as usize);
                    let kind = step.types.get(index).copied().unwrap_or(0) as usize;
                    for (table, at) in [(positions, position), (types, kind)] {
                        if let Some(table) = table {
                            sum.iter_mut().zip(self.row(*table, at)).for_each(|(sum, more)| *sum += more);
                        }
                    }
                    sum.into_iter().map(|value| value * scale).collect()
                };
                (*out, step.places().enumerate().map(row).collect())
            }
            Op::Norm { x, residual, norm, epsilon, sum, out } => {
                let mut added = buffers[*x].clone();
                if let Some(residual) = residual {
                    add(&mut added, &buffers[*residual]);
                }
                let scaled = added.iter().map(|row| self.norm(row, *norm, *epsilon)).collect();
                if let Some(sum) = sum {
                    buffers[*sum] = added;
                }
                (*out, scaled)
            }
            Op::Linear { x, parts, activation, out } => {
                let row = |row: &Vec<f64>| {
                    let products = parts.iter().flat_map(|part| self.linear(row, part));
                    products.map(|value| activation.map_or(value, |activation| activate(activation, value))).collect()
                };
                (*out, buffers[*x].iter().map(row).collect())
            }
            Op::Attend { qkv, heads, out } => (*out, attend(&buffers[*qkv], *heads, step)),
            Op::Place { qkv, heads, norms, epsilon, rope, layer, out } => {
                let mut queries = Rows::new();
                for (row, (sequence, position)) in buffers[*qkv].iter().zip(step.places()) {
                    let place = self.place(&step.sequences[sequence].pages, position, *layer);
                    let mut turned = Vec::new();
                    for (index, head) in row.chunks_exact(heads.width).enumerate() {
                        let is_query = index < heads.query;
                        let is_value = index >= heads.query + heads.key;
                        let mut head = head.to_vec();
                        if let (Some((q, k)), false) = (norms, is_value) {
                            head = self.norm(&head, if is_query { *q } else { *k }, *epsilon);
                        }
                        if let (Some(rope), false) = (rope, is_value) {
                            turn(&mut head, rope, position);
                        }
                        if is_query {
                            turned.extend(head);
                        } else {
                            let key_head = (index - heads.query) % heads.key;
                            let at = place.at(is_value, key_head);
                            store[at..at + heads.width].copy_from_slice(&head);
                        }
                    }
                    queries.push(turned);
                }
                (*out, queries)
            }
            Op::Paged { q, heads, scale, window, softcap, layer, out } => {
                let row = |(row, (sequence, position)): (&Vec<f64>, (usize, usize))| {
                    let pages = &step.sequences[sequence].pages;
                    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
                    let mut out = Vec::new();
                    for (index, query) in row.chunks_exact(heads.width).enumerate() {
                        let key_head = index / (heads.query / heads.key);
                        let stored = |is_value: bool, at: usize| {
                            let at = self.place(pages, at, *layer).at(is_value, key_head);
                            &store[at..at + heads.width]
                        };
                        let score = |at: usize| {
                            let score = dot(query, stored(false, at)) * scale;
                            softcap.map_or(score, |bound| bound * (score / bound).tanh())
                        };
                        let weights = softmax((first..=position).map(score).collect());
                        let mut sum = vec![0.0; heads.width];
                        for (weight, at) in weights.into_iter().zip(first..) {
                            sum.iter_mut().zip(stored(true, at)).for_each(|(sum, value)| *sum += weight * value);
                        }
                        out.extend(sum);
                    }
                    out
                };
                (*out, buffers[*q].iter().zip(step.places()).map(row).collect())
            }
            Op::Gate { x, activation, out } => {
                let row = |row: &Vec<f64>| {
                    let (gate, up) = row.split_at(row.len() / 2);
                    gate.iter().zip(up).map(|(gate, up)| activate(*activation, *gate) * up).collect()
                };
                (*out, buffers[*x].iter().map(row).collect())
            }
            Op::Experts { x, router, experts, used, normalize, activation, out } => {
                let row = |(row, logits): (&Vec<f64>, &Vec<f64>)| {
                    let mut sum = vec![0.0; row.len()];
                    for (expert, weight) in choose(logits, *used, *normalize) {
                        let Expert { gate, up, down } = experts[expert];
                        let product = |weight: usize, x: &[f64]| self.linear(x, &Part { weight, bias: None });
                        let (gates, ups) = (product(gate, row), product(up, row));
                        let inner: Vec<f64> =
                            gates.iter().zip(ups).map(|(gate, up)| activate(*activation, *gate) * up).collect();
                        sum.iter_mut().zip(product(down, &inner)).for_each(|(sum, value)| *sum += weight * value);
                    }
                    sum
                };
                (*out, buffers[*x].iter().zip(&buffers[*router]).map(row).collect())
            }
            Op::Add { x, y, out } => {
                let mut sum = buffers[*x].clone();
                add(&mut sum, &buffers[*y]);
                (*out, sum)
            }
            Op::Take { x, out } => (*out, step.outputs.iter().map(|row| buffers[*x][*row as usize].clone()).collect()),
            Op::Softcap { x, bound, out } => {
                let row = |row: &Vec<f64>| row.iter().map(|value| bound * (value / bound).tanh()).collect();
                (*out, buffers[*x].iter().map(row).collect())
            }
            Op::Pool { x, pooling, out } => (*out, pool(&buffers[*x], *pooling, step)),
            Op::Normalize { x, out } => {
                let row = |row: &Vec<f64>| {
                    let length = dot(row, row).sqrt().max(1e-12);
                    row.iter().map(|value| value / length).collect()
                };
                (*out, buffers[*x].iter().map(row).collect())
            }
        };
        buffers[to] = rows;
    }

    fn norm(&self, x: &[f64], norm: Norm, epsilon: f64) -> Vec<f64> {
        let count = x.len() as f64;
        match norm {
            Norm::Layer { gamma, beta } => {
                let mean = x.iter().sum::<f64>() / count;
                let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
                let scale = 1.0 / (variance + epsilon).sqrt();
                let scaled = x.iter().zip(self.vector(gamma)).map(|(value, gamma)| (value - mean) * scale * gamma);
                scaled.zip(self.vector(beta)).map(|(value, beta)| value + beta).collect()
            }
            Norm::Rms { gamma, plus_one } => {
                let scale = 1.0 / (dot(x, x) / count + epsilon).sqrt();
                let more = if plus_one { 1.0 } else { 0.0 };
                x.iter().zip(self.vector(gamma)).map(|(value, gamma)| value * scale * (gamma + more)).collect()
            }
        }
    }

    fn linear(&self, x: &[f64], part: &Part) -> Vec<f64> {
        let rows = self.weight(part.weight).rows();
        let bias = part.bias.map_or(vec![0.0; rows], |bias| self.vector(bias));
        (0..rows).zip(bias).map(|(row, bias)| dot(&self.row(part.weight, row), x) + bias).collect()
    }

    /// Where the keys and values of a position lie.
    fn place(&self, pages: &[u32], position: usize, layer: usize) -> Place {
        let shape = self.graph.pages.expect("a graph with pages says their shape");
        Place { page: pages[position / PAGE_TOKENS] as usize, token: position % PAGE_TOKENS, layer, shape }
    }
}

struct Place {
    page: usize,
    token: usize,
    layer: usize,
    shape: Pages,
}

impl Place {
    fn at(&self, is_value: bool, head: usize) -> usize {
        let layer = self.page * self.shape.layers + self.layer;
        let kind = layer * 2 + usize::from(is_value);
        ((kind * self.shape.heads + head) * PAGE_TOKENS + self.token) * self.shape.width
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut Rows, more: &Rows) {
    for (to, more) in to.iter_mut().zip(more) {
        to.iter_mut().zip(more).for_each(|(to, more)| *to += more);
    }
}

fn softmax(scores: Vec<f64>) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = scores.into_iter().map(|score| (score - top).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// Rotates the pairs of a head by angles that grow with its position.
fn turn(head: &mut [f64], rope: &Rope, position: usize) {
    let half = rope.frequencies.len();
    for (index, frequency) in rope.frequencies.iter().enumerate() {
        let (a, b) = match rope.pairs {
            Pairs::Halves => (index, index + half),
            Pairs::Neighbours => (2 * index, 2 * index + 1),
        };
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        let (x, y) = (head[a], head[b]);
        head[a] = (x * cos - y * sin) * rope.magnitude;
        head[b] = (y * cos + x * sin) * rope.magnitude;
    }
}

/// The best experts and their weights: a softmax over all of them, and the largest few; of equals the first.
pub(crate) fn choose(logits: &[f64], used: usize, normalize: bool) -> Vec<(usize, f64)> {
    let weights = softmax(logits.to_vec());
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    order.truncate(used);
    let total: f64 = if normalize { order.iter().map(|expert| weights[*expert]).sum() } else { 1.0 };
    order.into_iter().map(|expert| (expert, weights[expert] / total)).collect()
}

fn attend(qkv: &Rows, heads: Heads, step: &Step) -> Rows {
    let mut out = Rows::new();
    let mut first = 0;
    for sequence in &step.sequences {
        let rows = &qkv[first..first + sequence.rows];
        for row in rows {
            let mut sums = Vec::new();
            for head in 0..heads.query {
                let key_head = head / (heads.query / heads.key);
                let at = |index: usize| index * heads.width..(index + 1) * heads.width;
                let (key, value) = (at(heads.query + key_head), at(heads.query + heads.key + key_head));
                let scale = 1.0 / (heads.width as f64).sqrt();
                let scores = rows.iter().map(|other| dot(&row[at(head)], &other[key.clone()]) * scale).collect();
                let mut sum = vec![0.0; heads.width];
                for (weight, other) in softmax(scores).into_iter().zip(rows) {
                    sum.iter_mut().zip(&other[value.clone()]).for_each(|(sum, value)| *sum += weight * value);
                }
                sums.extend(sum);
            }
            out.push(sums);
        }
        first += sequence.rows;
    }
    out
}

fn pool(x: &Rows, pooling: Pooling, step: &Step) -> Rows {
    let mut out = Rows::new();
    let mut first = 0;
    for sequence in &step.sequences {
        let rows = &x[first..first + sequence.rows];
        first += sequence.rows;
        out.push(match pooling {
            Pooling::Cls => rows[0].clone(),
            Pooling::Last => rows[rows.len() - 1].clone(),
            Pooling::Mean => {
                let of = |i: usize| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64;
                (0..rows[0].len()).map(of).collect()
            }
            Pooling::Max => {
                let of = |i: usize| rows.iter().map(|row| row[i]).fold(f64::NEG_INFINITY, f64::max);
                (0..rows[0].len()).map(of).collect()
            }
        });
    }
    out
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

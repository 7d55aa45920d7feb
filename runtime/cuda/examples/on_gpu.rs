//! How fast the kernels are on this machine's device: `cargo run --release -p kedge-cuda --example on_gpu`.
//!
//! A chain of products with matrices of their own, more of them than a cache holds, for each type and number of rows; and
//! attention to contexts of some lengths. Times are the least of several runs, the copy of the answer included.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a measurement")]

use std::sync::Arc;
use std::time::Instant;

use kedge_cuda::Cuda;
use kedge_engine::Backend;
use kedge_engine::backend::{Prepared, Sequence, Step};
use kedge_engine::graph::{Builder, Graph, Heads, Op, PAGE_TOKENS, Pages, Part};
use kedge_engine::plan::{Plan, Shape};
use kedge_formats::{Dtype, Tensor, quant};

const WIDTH: usize = 4096;
const RUNS: usize = 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cuda = Cuda::probe()?;
    println!("{:?}, {} kernels", cuda.facts(), cuda.capabilities().features);
    println!("\n{WIDTH} x {WIDTH}\nweights  rows  us/product    GB/s  TFLOP/s");
    for dtype in Dtype::READABLE {
        let (bytes, graph) = products(dtype);
        let depth = graph.ops.len() - 2;
        let prepared = cuda.prepare(graph.clone(), 16)?;
        for rows in [1, 8, 32, 128, 512] {
            let step = Step {
                ids: vec![0; rows],
                sequences: vec![Sequence { rows, past: 0, pages: (0..rows.div_ceil(PAGE_TOKENS) as u32).collect() }],
                outputs: vec![0],
                ..Step::default()
            };
            let seconds = least(&*prepared, &graph, &step)? / depth as f64;
            let (gigabytes, teraflops) = (bytes as f64 / 1e9, 2.0 * (WIDTH * WIDTH * rows) as f64 / 1e12);
            println!(
                "{:7} {rows:5} {:11.1} {:7.0} {:8.1}",
                dtype.name(),
                seconds * 1e6,
                gigabytes / seconds,
                teraflops / seconds
            );
        }
    }
    println!("\nattention, 32 query heads, 8 key heads, 128 wide\nrows  context  us/layer    GB/s of keys and values");
    let graph = attention();
    let layers = graph.pages.map_or(1, |pages| pages.layers);
    let prepared = cuda.prepare(graph.clone(), 16384 / PAGE_TOKENS)?;
    for (rows, context) in [(1, 128usize), (1, 2048), (1, 16384), (512, 512), (512, 4096)] {
        let pages = context.div_ceil(PAGE_TOKENS);
        let step = Step {
            ids: vec![0; rows],
            sequences: vec![Sequence { rows, past: context - rows, pages: (0..pages as u32).collect() }],
            outputs: vec![0],
            ..Step::default()
        };
        let seconds = least(&*prepared, &graph, &step)? / layers as f64;
        let gigabytes = (rows * context * 2 * 8 * 128 * 2) as f64 / 1e9;
        println!("{rows:4} {context:8} {:9.1} {:7.0}", seconds * 1e6, gigabytes / seconds);
    }
    Ok(())
}

/// The least time of a step, in seconds.
fn least(prepared: &dyn Prepared, graph: &Graph, step: &Step) -> Result<f64, Box<dyn std::error::Error>> {
    let plan = Plan::new(graph, Shape { rows: step.ids.len(), outputs: 1 });
    let (mut least, mut answers) = (f64::INFINITY, Vec::new());
    for _ in 0..RUNS {
        let begin = Instant::now();
        prepared.run(&plan, step, &mut answers)?;
        least = least.min(begin.elapsed().as_secs_f64());
    }
    Ok(least)
}

/// A chain of products, and the bytes of each matrix.
fn products(dtype: Dtype) -> (usize, Arc<Graph>) {
    let values: Vec<f32> = (0..WIDTH * WIDTH).map(|i| ((i * 7919) % 1009) as f32 / 1e5 - 5e-3).collect();
    let matrix = quant::quantize(dtype, &values);
    let depth = (1 << 30) / matrix.len();
    let mut g = Builder::default();
    let words = g.weight(Tensor::of_f32(&[1, WIDTH], &values[..WIDTH]));
    let mut x = g.per_row(WIDTH);
    g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: x });
    for _ in 0..depth {
        let weight = Tensor::of_bytes(dtype, &[WIDTH, WIDTH], matrix.clone()).expect("whole blocks");
        let part = Part { weight: g.weight(weight), bias: None };
        x = g.linear(x, vec![part], None);
    }
    let result = g.take(x);
    // Pages, which nobody uses, make the steps ones that are recorded.
    (matrix.len(), Arc::new(g.finish(result, Some(Pages { layers: 1, heads: 1, width: 8 }))))
}

/// Layers of nothing but attention.
fn attention() -> Arc<Graph> {
    let heads = Heads { query: 32, key: 8, width: 128 };
    let mut g = Builder::default();
    let words = g.weight(Tensor::of_f32(&[1, heads.qkv()], &vec![0.01; heads.qkv()]));
    let qkv = g.per_row(heads.qkv());
    g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: qkv });
    let mut seen = qkv;
    for layer in 0..8 {
        let q = g.per_row(heads.query * heads.width);
        seen = g.per_row(heads.query * heads.width);
        g.push(Op::Place { qkv, heads, norms: None, epsilon: 1e-5, rope: None, layer, out: q });
        g.push(Op::Paged { q, heads, scale: 0.1, window: None, softcap: None, layer, out: seen });
    }
    let result = g.take(seen);
    Arc::new(g.finish(result, Some(Pages { layers: 8, heads: heads.key, width: heads.width })))
}

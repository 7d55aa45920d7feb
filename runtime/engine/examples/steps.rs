//! Tokens a second of a decoder's steps: `cargo run --release -p kedge-engine --example steps -- MODEL [THREADS [FOLDER]]`.
//! FOLDER is where packed weights are kept.
//!
//! A prompt of 512 tokens in steps of 256, then 64 tokens one by one, then steps of 32 sequences; the best of five each.

#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kedge_engine::backend::{Sequence, Step};
use kedge_engine::graph::PAGE_TOKENS as PAGE;
use kedge_engine::plan::{Plan, Shape};
use kedge_engine::{Backend, Cpu, Decoder};

/// Seconds of the fastest of five.
fn best(mut run: impl FnMut()) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        run();
        least = least.min(start.elapsed().as_secs_f64());
    }
    least
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("the model is missing")?;
    let threads = arguments.next().map(|threads| threads.parse()).transpose()?;
    let cpu = Cpu::new(threads)?.keep_packed(arguments.next().map(Into::into));
    let (_, graph) = Decoder::read(Path::new(&model))?;
    let graph = Arc::new(graph);
    let begin = Instant::now();
    let prepared = cpu.prepare(graph.clone(), 1024)?;
    println!("{:?}, prepared in {:.2} s", cpu.capabilities(), begin.elapsed().as_secs_f64());
    let mut answers = Vec::new();
    let mut run = |plan: &Plan, sequences: Vec<Sequence>, outputs: Vec<u32>| {
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let ids = (0..rows as u32).map(|row| 300 + row * 7 % 20_000).collect();
        let step = Step { ids, types: vec![], sequences, outputs };
        prepared.run(plan, &step, &mut answers).expect("the step fits");
    };
    let pages = |first: u32, count: usize| (first..first + count as u32).collect::<Vec<_>>();
    let wide = Plan::new(&graph, Shape { rows: 256, outputs: 1 });
    let one = Plan::new(&graph, Shape { rows: 1, outputs: 1 });
    let many = Plan::new(&graph, Shape { rows: 32, outputs: 32 });
    let prompt = best(|| {
        for past in [0, 256] {
            run(&wide, vec![Sequence { rows: 256, past, pages: pages(0, 512 / PAGE) }], vec![255]);
        }
    });
    println!("prompt of 512: {:.1} tokens/s", 512.0 / prompt);
    let single = best(|| {
        for past in 8..72 {
            run(&one, vec![Sequence { rows: 1, past, pages: pages(0, 3) }], vec![0]);
        }
    });
    println!("one by one: {:.1} tokens/s", 64.0 / single);
    let together = best(|| {
        for past in 8..16 {
            let each = |index: u32| Sequence { rows: 1, past, pages: pages(index * 2, 2) };
            run(&many, (0..32).map(each).collect(), (0..32).collect());
        }
    });
    println!("32 together: {:.1} tokens/s", 256.0 / together);
    Ok(())
}

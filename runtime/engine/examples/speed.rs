//! Milliseconds for each text: `cargo run --release -p kedge-engine --example speed -- MODEL [THREADS]`.
//!
//! The least of ten runs, for batches of 1 and 32 texts of 32 tokens.

#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::path::Path;
use std::time::Instant;

use kedge_engine::{Cpu, Encoder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().ok_or("the model's directory is missing")?;
    let threads = arguments.next().map(|threads| threads.parse()).transpose()?;
    let encoder = Encoder::open(Path::new(&model), &Cpu::new(threads)?)?;
    println!("{:?}", encoder.on().0);
    let ids: Vec<u32> = [101].into_iter().chain((0..30).map(|word| 2_000 + word * 577)).chain([102]).collect();
    let text = encoder.tokens(0, &ids)?;
    for batch in [1, 32] {
        let mut least = f64::INFINITY;
        for _ in 0..10 {
            let start = Instant::now();
            encoder.encode_tokens(&vec![text.clone(); batch])?;
            least = least.min(start.elapsed().as_secs_f64() * 1e3 / batch as f64);
        }
        println!("batch {batch}: {least:.2} ms a text");
    }
    Ok(())
}

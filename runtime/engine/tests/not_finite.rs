//! A number that is not finite stays visible to the end: whoever chooses a token is told so, on every level of the CPU
//! backend, and other sequences of the step are not touched by it.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]

mod tiny_decoders;

use std::sync::Arc;

use kedge_engine::backend::{Sequence, Step, Work};
use kedge_engine::generate::sample::{Draw, NotFinite};
use kedge_engine::graph::{Graph, Op};
use kedge_engine::plan::{Plan, Shape};
use kedge_engine::{Backend, Cpu};
use kedge_formats::{Dtype, Tensor, quant};
use tiny_decoders::{graph_of, write_gguf};

/// A token whose vector the tests change.
const BAD: u32 = 5;

/// The model with a number in that token's vector.
fn with(path: &std::path::Path, number: f32) -> Arc<Graph> {
    let mut graph = Arc::into_inner(graph_of(path)).unwrap();
    let embeds = |op: &Op| if let Op::Embed { words, .. } = op { Some(*words) } else { None };
    let words = graph.ops.iter().find_map(embeds).unwrap();
    let table = &graph.weights[words];
    let mut values = table.to_f32();
    values[BAD as usize * table.columns() + 77] = number;
    graph.weights[words] = Tensor::of_bytes(Dtype::F32, &table.shape, quant::quantize(Dtype::F32, &values)).unwrap();
    Arc::new(graph)
}

#[test]
fn a_number_that_is_not_finite_is_an_error_of_its_own_sequence_with_quantised_weights() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K] {
        let path = folder.path().join("model.gguf");
        write_gguf(&path, dtype);
        for number in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let graph = with(&path, number);
            // Alone, and among so many rows that tiles are used.
            for length in [1, 12] {
                let sequences = [3, 7].map(|page| Sequence { rows: length, past: 0, pages: vec![page] });
                let ids = [vec![BAD; length], vec![BAD + 1; length]].concat();
                let outputs = vec![length as u32 - 1, 2 * length as u32 - 1];
                let step = Step { ids, outputs, sequences: sequences.into(), ..Step::default() };
                let plan = Plan::new(&graph, Shape { rows: 32, outputs: 8 });
                for backend in Cpu::levels(Some(2)).unwrap() {
                    let prepared = backend.prepare(graph.clone(), 16).unwrap();
                    let (mut room, mut choices) = (Vec::new(), Vec::new());
                    let draws = [(); 2].map(|()| Draw::default());
                    let work = Work { plan: &plan, step: &step, draws: &draws };
                    prepared.choose(work, &mut room, &mut choices).unwrap();
                    let what = format!("{number} with {dtype:?} by {}", backend.capabilities().features);
                    assert_eq!(choices[0], Err(NotFinite), "{what}");
                    assert!(choices[1].is_ok(), "{what}");
                }
            }
        }
    }
}

//! Tokens chosen on the device against those that the host chooses from the same logits: all of them the same, with the
//! same probabilities to the bit.

#![allow(clippy::unwrap_used, reason = "a test")]

mod devices;

use std::collections::BTreeMap;
use std::sync::Arc;

use devices::{Tested, each};
use kedge_engine::backend::{Chosen, Sequence, Step, Work};
use kedge_engine::generate::sample::{Change, Draw, NotFinite, WHOLE};
use kedge_engine::graph::{Builder, Graph, Op};
use kedge_engine::plan::{Plan, Shape};
use kedge_engine::{Backend, Cpu, EngineError, Reference};
use kedge_formats::Tensor;
use proptest::prelude::*;

const NEVER: f32 = f32::NEG_INFINITY;

/// A graph whose answers are these vectors, by token.
fn graph(vectors: &[Vec<f32>]) -> Arc<Graph> {
    let (mut g, width) = (Builder::default(), vectors[0].len());
    let words = g.weight(Tensor::of_f32(&[vectors.len(), width], &vectors.concat()));
    let x = g.per_row(width);
    g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: x });
    let out = g.take(x);
    Arc::new(g.finish(out, None))
}

fn chosen(graph: &Arc<Graph>, backend: &dyn Backend, ids: &[u32], draws: &[Draw]) -> Result<Vec<Chosen>, EngineError> {
    let rows = ids.len();
    let sequences = vec![Sequence { rows, past: 0, pages: vec![] }];
    let step = Step { ids: ids.to_vec(), types: vec![], sequences, outputs: (0..rows as u32).collect() };
    let plan = Plan::new(graph, Shape { rows: rows + 3, outputs: rows + 2 });
    let (mut room, mut choices) = (Vec::new(), Vec::new());
    let prepared = backend.prepare(graph.clone(), 0)?;
    // Twice, so that what is left from before is in the way.
    for _ in 0..2 {
        prepared.choose(Work { plan: &plan, step: &step, draws }, &mut room, &mut choices)?;
    }
    Ok(choices)
}

/// All vectors, each with its draw; what is chosen, which all devices agree on.
fn check(vectors: &[Vec<f32>], draws: &[Draw]) -> Vec<Chosen> {
    let (graph, ids) = (graph(vectors), (0..vectors.len() as u32).collect::<Vec<_>>());
    let expected = chosen(&graph, &Reference, &ids, draws).unwrap();
    for Tested { name, backend, .. } in each() {
        let found = chosen(&graph, &*backend, &ids, draws).unwrap();
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "{name}: {:?}", draws[index]);
        }
        // Alone, too.
        let last = ids.len() - 1;
        let alone = chosen(&graph, &*backend, &ids[last..], &draws[last..]).unwrap();
        assert_eq!(alone[0], expected[last], "{name}, alone");
    }
    expected
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    // Near enough to what models say: most tokens are far below the few that matter.
    (0..count).map(|_| (next() + next() + next() - 1.5) * 8.0).collect()
}

fn plain() -> Draw {
    Draw { sharpness: 1.0, top_p: 1.0, random: 0x8765_4321_0fed_cba9, ..Draw::default() }
}

#[test]
fn every_setting() {
    let width = 1500;
    let change = |token, bias, by, off| Change { token, bias, by, off };
    let draws = [
        Draw { sharpness: 0.0, ..plain() },
        Draw { sharpness: 0.0, told: Some(0), ..plain() },
        plain(),
        Draw { random: 0, ..plain() },
        Draw { random: u64::MAX, ..plain() },
        Draw { sharpness: f32::MAX, ..plain() },
        Draw { sharpness: f32::MIN_POSITIVE, ..plain() },
        Draw { top_k: 1, ..plain() },
        Draw { top_k: 40, sharpness: 0.3, ..plain() },
        Draw { top_k: 5000, told: Some(3), ..plain() },
        Draw { top_p: 0.9, ..plain() },
        Draw { top_p: 0.0, ..plain() },
        Draw { top_p: f32::NAN, ..plain() },
        Draw { top_p: 0.5, top_k: 30, ..plain() },
        Draw { least: WHOLE / 20, ..plain() },
        Draw { least: WHOLE, ..plain() },
        Draw { least: WHOLE / 100, top_p: 0.99, top_k: 200, sharpness: 0.7, told: Some(20), ..plain() },
        Draw {
            changes: vec![change(0, 5.0, 1.3, 0.0), change(7, 0.0, 1.3, 0.5), change(1499, 30.0, 1.0, 0.1)],
            ..plain()
        },
        Draw {
            sharpness: 0.0,
            changes: vec![change(700, 1e9, 1.0, 0.0), change(9000, 1e10, 1.0, 0.0)],
            told: Some(5),
            ..plain()
        },
        Draw { told: Some(100), ..plain() },
    ];
    // One of them tells more than the kernel does: then all are chosen by the host.
    for draws in [&draws[..draws.len() - 1], &draws] {
        let vectors: Vec<_> = (0..draws.len()).map(|seed| numbers(width, seed as u64)).collect();
        assert!(check(&vectors, draws).iter().all(Result::is_ok));
    }
}

#[test]
fn vectors_of_every_kind() {
    let some = Draw { top_k: 3, top_p: 0.8, told: Some(4), ..plain() };
    for width in [1, 2, 31, 33, 1024, 1025, 2500] {
        let at = |index: usize, value: f32, others: f32| {
            let mut all = vec![others; width];
            all[index % width] = value;
            all
        };
        let vectors = [
            vec![0.25; width],
            vec![-0.0; width],
            (0..width).map(|index| if index % 2 == 0 { 0.0 } else { -0.0 }).collect(),
            at(width / 2, -3.0, NEVER),
            at(width - 1, f32::MAX, f32::MIN),
            at(0, 1.0, 1.0 - 1e-6),
            numbers(width, 5).into_iter().map(f32::round).collect(),
        ];
        for draw in [plain(), some.clone(), Draw { sharpness: 0.0, ..plain() }, Draw { top_p: 0.3, ..plain() }] {
            assert!(check(&vectors, &vec![draw; vectors.len()]).iter().all(Result::is_ok));
        }
    }
}

#[test]
fn a_vocabulary_of_many() {
    let width = 70_001;
    let draws = [
        Draw { random: u64::MAX / 7 * 5, sharpness: 0.01, ..plain() },
        Draw { random: u64::MAX / 3, sharpness: 0.05, top_k: 50_000, top_p: 0.97, ..plain() },
        Draw { random: u64::MAX, sharpness: 0.2, least: WHOLE / 1000, ..plain() },
    ];
    let mut vectors: Vec<Vec<f32>> = (0..3).map(|seed| numbers(width, seed)).collect();
    // Many equals, in all runs.
    vectors[1] = vectors[1].iter().map(|logit| logit.round()).collect();
    assert!(
        check(&vectors, &draws).iter().all(|choice| choice.as_ref().unwrap().token > 4096),
        "far from the beginning"
    );
}

#[test]
fn what_is_no_number_is_found_and_harms_nobody_else() {
    let width = 70;
    let with = |index: usize, bad: f32| {
        let mut all = numbers(width, 3);
        all[index] = bad;
        all
    };
    let vectors = [
        with(0, f32::NAN),
        with(69, -f32::NAN),
        with(33, f32::INFINITY),
        vec![NEVER; width],
        with(3, NEVER),
        with(3, 1.0),
    ];
    let mut draws = vec![Draw { told: Some(2), ..plain() }; vectors.len()];
    let change = |token, bias| Change { token, bias, by: 1.0, off: 0.0 };
    draws[0].changes = vec![change(0, 1.0)];
    draws[5].changes = vec![change(2, 1.0), change(9, f32::INFINITY)];
    let found = check(&vectors, &draws);
    assert_eq!(found.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, false, false, false, true, false]);
    assert_eq!(found[5], Err(NotFinite), "a setting made it so");
}

#[test]
fn a_draw_for_each_answer() {
    let graph = graph(&[vec![1.0, 2.0]]);
    let mut all: Vec<(String, Arc<dyn Backend>)> =
        vec![("plain".into(), Arc::new(Reference)), ("CPU".into(), Arc::new(Cpu::new(Some(1)).unwrap()))];
    all.extend(each().into_iter().map(|Tested { name, backend, .. }| (name, backend as Arc<dyn Backend>)));
    for (name, backend) in all {
        for draws in [0, 1, 3, 4] {
            let said = chosen(&graph, &*backend, &[0, 0], &vec![plain(); draws]).map_err(|error| error.to_string());
            let expected = Err(format!("running a plan for 2 draws: got {draws}"));
            assert_eq!(said, expected, "{name}");
        }
    }
}

type Settings = (f32, usize, f32, f64, u64, Option<usize>, BTreeMap<u32, (f32, f32, f32)>);

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_settings_for_any_logits(
        width in 1usize..2200, seed: u64, whole: bool,
        settings in proptest::collection::vec(
            (0f32..3.0, 0usize..80, 0f32..1.3, 0f64..0.3, any::<u64>(), proptest::option::of(0usize..9),
             proptest::collection::btree_map(0u32..2200, (-4f32..4.0, 0.5f32..2.0, -2f32..2.0), 0..9)),
            1..6,
        ),
    ) {
        let draw = |(sharpness, top_k, top_p, min_p, random, told, changes): Settings| Draw {
            sharpness: if sharpness < 0.3 { 0.0 } else { sharpness },
            top_k,
            top_p,
            least: if min_p < 0.1 { 0 } else { (min_p * WHOLE as f64) as u64 },
            random,
            told,
            changes: changes.into_iter().map(|(token, (bias, by, off))| Change { token, bias, by, off }).collect(),
        };
        let draws: Vec<Draw> = settings.into_iter().map(draw).collect();
        let vector = |index: usize| {
            let all = numbers(width, seed.wrapping_add(index as u64));
            if whole { all.into_iter().map(f32::round).collect() } else { all }
        };
        let vectors: Vec<Vec<f32>> = (0..draws.len()).map(vector).collect();
        check(&vectors, &draws);
    }
}

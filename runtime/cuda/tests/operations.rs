//! Each operation alone, at small and odd sizes: the PTX that ships, interpreted, and every level of the CPU, against the
//! plain backend.

#![allow(clippy::unwrap_used, reason = "a test")]

mod devices;

use std::sync::Arc;

use devices::{Tested, each};
use kedge_engine::backend::{Sequence, Step};
use kedge_engine::graph::{
    Activation, Builder, Expert, Graph, Heads, Norm, Op, Pages, Pairs, Part, Pooling, Rope, Value, Weight,
};
use kedge_engine::plan::{Plan, Shape};
use kedge_engine::{Backend, Cpu, Reference};
use kedge_formats::{Dtype, Tensor, quant};
use proptest::prelude::*;

/// Relative distance allowed to what is computed in 32 bits.
const FLOAT: f64 = 1e-5;
/// To vectors rounded to 16-bit floats under a power of two.
const HALF: f64 = 5e-4;
/// To keys and values in 16-bit floats.
const STORED: f64 = 2e-3;
/// To products of experts: rounded twice.
const EXPERTS: f64 = 1e-3;
/// To rows that were rounded to bytes, in blocks.
const BYTES: f64 = 1e-2;

const WORDS: usize = 60;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn tensor(dtype: Dtype, shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::of_bytes(dtype, shape, quant::quantize(dtype, values)).unwrap()
}

fn random(g: &mut Builder, dtype: Dtype, shape: &[usize], seed: u32) -> Weight {
    g.weight(tensor(dtype, shape, &numbers(shape.iter().product(), seed)))
}

/// Vectors that go in: rows of a table.
fn given(g: &mut Builder, width: usize, values: &[f32]) -> Value {
    let words = g.weight(Tensor::of_f32(&[values.len() / width.max(1), width], values));
    let out = g.per_row(width);
    g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out });
    out
}

fn given_random(g: &mut Builder, width: usize, seed: u32) -> Value {
    given(g, width, &numbers(WORDS * width, seed))
}

/// A step of sequences of these lengths, whose tokens are in some order; all rows are answered.
fn step(lengths: &[usize]) -> Step {
    let rows = lengths.iter().sum::<usize>();
    let mut first = 0;
    let sequences = lengths.iter().map(|rows| {
        let pages = (0..rows.div_ceil(32)).map(|page| (first + page * 7) as u32 % 16).collect::<Vec<_>>();
        first += 3;
        Sequence { rows: *rows, past: 0, pages }
    });
    let sequences = sequences.collect();
    Step {
        ids: (0..rows).map(|row| (row * 37 % WORDS) as u32).collect(),
        types: (0..rows).map(|row| (row % 2) as u32).collect(),
        sequences,
        outputs: (0..rows as u32).collect(),
    }
}

fn run(graph: &Arc<Graph>, backend: &dyn Backend, step: &Step) -> Vec<f32> {
    // Room for more than comes, as plans have.
    let plan = Plan::new(graph, Shape { rows: step.ids.len() + 3, outputs: step.ids.len() + 2 });
    let mut answers = Vec::new();
    backend.prepare(graph.clone(), 16).unwrap().run(&plan, step, &mut answers).unwrap();
    answers
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let off: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (off / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

/// Compares a graph's answers for all rows of a step, or of each sequence where it pools.
fn check(name: &str, tolerance: f64, lengths: &[usize], build: impl FnOnce(&mut Builder) -> Value) {
    check_with_pages(name, tolerance, lengths, None, build);
}

fn check_with_pages(
    name: &str,
    tolerance: f64,
    lengths: &[usize],
    pages: Option<Pages>,
    build: impl FnOnce(&mut Builder) -> Value,
) {
    let mut g = Builder::default();
    let result = build(&mut g);
    let graph = Arc::new(g.finish(result, pages));
    let step = step(lengths);
    let expected = run(&graph, &Reference, &step);
    assert!(expected.iter().all(|value| value.is_finite()), "{name}");
    for Tested { name: on, backend, .. } in each() {
        let off = distance(&run(&graph, &*backend, &step), &expected);
        assert!(off <= tolerance, "{name} on {on}: {off}");
    }
    // Beside quantised weights rows become bytes there.
    let is_quantised = graph.weights.iter().any(|weight| weight.dtype.block().0 > 1);
    let tolerance = if is_quantised { tolerance.max(BYTES) } else { tolerance };
    for level in Cpu::levels(Some(2)).unwrap() {
        let off = distance(&run(&graph, &level, &step), &expected);
        assert!(off <= tolerance, "{name} on {:?}: {off}", level.capabilities());
    }
}

#[test]
fn embedding_of_every_type() {
    for dtype in Dtype::READABLE {
        let width = if dtype.block().0 == 1 { 24 } else { 256 };
        check(dtype.name(), FLOAT, &[5, 2], |g| {
            let words = random(g, dtype, &[WORDS, width], 1);
            let positions = Some(random(g, dtype, &[6, width], 2));
            let types = Some(random(g, Dtype::F32, &[2, width], 3));
            let out = g.per_row(width);
            g.push(Op::Embed { words, positions, types, scale: 2.5, out });
            g.take(out)
        });
    }
}

#[test]
fn a_table_that_is_a_matrix_too() {
    for dtype in Dtype::READABLE {
        // Not a multiple of the chunks of 16-bit floats.
        let width = if dtype.block().0 == 1 { 24 } else { 512 };
        for multiplied in [false, true] {
            check(dtype.name(), if multiplied { 1e-2 } else { FLOAT }, &[5, 2], |g| {
                let words = random(g, dtype, &[WORDS, width], 1);
                let x = g.per_row(width);
                g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: x });
                let products = g.linear(x, vec![Part { weight: words, bias: None }], None);
                g.take(if multiplied { products } else { x })
            });
        }
    }
}

#[test]
fn norms() {
    for width in [24, 300, 2100] {
        for (layer, plus_one, residual) in
            [(true, false, false), (true, false, true), (false, false, true), (false, true, false)]
        {
            check("norm", FLOAT, &[5], |g| {
                let x = given_random(g, width, 1);
                let gamma = random(g, Dtype::F32, &[width], 2);
                let beta = random(g, Dtype::F16, &[width], 3);
                let norm = if layer { Norm::Layer { gamma, beta } } else { Norm::Rms { gamma, plus_one } };
                if !residual {
                    let out = g.norm(x, norm, 1e-5);
                    return g.take(out);
                }
                let more = given_random(g, width, 4);
                let (sum, out) = g.add_norm(x, more, norm, 1e-5);
                // Both results are looked at.
                let both = g.add(sum, out);
                g.take(both)
            });
        }
    }
}

/// A product with one matrix, or with two of different types side by side.
fn product(
    g: &mut Builder,
    x: Value,
    dtypes: &[Dtype],
    inputs: usize,
    outputs: usize,
    activation: Option<Activation>,
) -> Value {
    let parts = dtypes.iter().enumerate().map(|(index, dtype)| {
        let weight = random(g, *dtype, &[outputs + index, inputs], 10 + index as u32);
        let bias = (index == 0).then(|| random(g, Dtype::F32, &[outputs + index], 20));
        Part { weight, bias }
    });
    let parts = parts.collect();
    let out = g.linear(x, parts, activation);
    g.take(out)
}

#[test]
fn products_with_floats() {
    for (dtypes, inputs, outputs, tolerance) in [
        (&[Dtype::F32][..], 24, 20, FLOAT),
        (&[Dtype::F32], 37, 5, FLOAT),
        (&[Dtype::F32], 300, 1, FLOAT),
        (&[Dtype::F16], 24, 33, HALF),
        (&[Dtype::Bf16], 200, 16, HALF),
        (&[Dtype::Bf16, Dtype::F32, Dtype::F16], 40, 17, HALF),
    ] {
        for (rows, activation) in
            [(1, None), (9, Some(Activation::Gelu)), (35, Some(Activation::GeluTanh)), (8, Some(Activation::Silu))]
        {
            check(&format!("{dtypes:?} {inputs}x{outputs}, {rows} rows"), tolerance, &[rows], |g| {
                let x = given_random(g, inputs, 1);
                product(g, x, dtypes, inputs, outputs, activation)
            });
        }
    }
}

/// Numbers that bytes hold exactly: each 32 have one of largest size, and the others are whole shares of it.
fn roundable(count: usize, seed: u32) -> Vec<f32> {
    let byte = |(index, value): (usize, f32)| {
        let size = (index / 32 % 5 + 1) as f32 * 0.3;
        let whole = if index % 32 == 7 { 127.0 } else { (value * 127.0).round() };
        whole * (size / 127.0)
    };
    numbers(count, seed).into_iter().enumerate().map(byte).collect()
}

#[test]
fn products_with_quantised_weights() {
    for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K] {
        let inputs = if dtype.block().0 == 32 { 96 } else { 512 };
        for (rows, outputs) in [(1, 33), (9, 16), (35, 70)] {
            check(&format!("{} {inputs}x{outputs}, {rows} rows", dtype.name()), FLOAT, &[rows], |g| {
                let x = given(g, inputs, &roundable(WORDS * inputs, 1));
                product(g, x, &[dtype, dtype], inputs, outputs, None)
            });
        }
    }
}

#[test]
fn vectors_too_large_for_16_bits_keep_their_size() {
    for scale in [1e9, 1e-9] {
        check("large and small", HALF, &[3], |g| {
            let values: Vec<f32> = numbers(WORDS * 40, 1).into_iter().map(|value| value * scale).collect();
            let x = given(g, 40, &values);
            product(g, x, &[Dtype::F16], 40, 17, None)
        });
    }
}

#[test]
fn what_is_no_number_does_not_become_one() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Q8_0] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut g = Builder::default();
            let mut values = numbers(WORDS * 64, 1);
            values[5] = bad;
            let x = given(&mut g, 64, &values);
            let result = product(&mut g, x, &[dtype], 64, 20, None);
            let graph = Arc::new(g.finish(result, None));
            for Tested { backend, .. } in each() {
                let answers = run(&graph, &*backend, &step(&[2]));
                assert!(answers[..20].iter().all(|value| !value.is_finite()), "{dtype:?} {bad}: {answers:?}");
                assert!(answers[20..].iter().all(|value| value.is_finite()), "{dtype:?} {bad}: {answers:?}");
            }
        }
    }
}

#[test]
fn attention_to_what_is_no_number_is_none() {
    let heads = Heads { query: 1, key: 1, width: 16 };
    for paged in [false, true] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut g = Builder::default();
            // The second token's key.
            let mut values = numbers(WORDS * heads.qkv(), 1);
            values[37 * heads.qkv() + 20] = bad;
            let qkv = given(&mut g, heads.qkv(), &values);
            let out = if paged {
                let (q, out) = (g.per_row(16), g.per_row(16));
                g.push(Op::Place { qkv, heads, norms: None, epsilon: 1e-5, rope: None, layer: 0, out: q });
                g.push(Op::Paged { q, heads, scale: 0.4, window: None, softcap: None, layer: 0, out });
                out
            } else {
                g.attend(qkv, heads)
            };
            let result = g.take(out);
            let pages = paged.then_some(Pages { layers: 1, heads: 1, width: 16 });
            let graph = Arc::new(g.finish(result, pages));
            for Tested { backend, .. } in each() {
                let answers = run(&graph, &*backend, &step(&[3]));
                let sees = if paged { 16 } else { 0 };
                assert!(answers[..sees].iter().all(|value| value.is_finite()), "{paged} {bad}: {answers:?}");
                assert!(answers[sees..].iter().all(|value| !value.is_finite()), "{paged} {bad}: {answers:?}");
            }
        }
    }
}

#[test]
fn attention_within_sequences() {
    for heads in [
        Heads { query: 2, key: 1, width: 10 },
        Heads { query: 3, key: 3, width: 8 },
        Heads { query: 1, key: 1, width: 130 },
    ] {
        check("attend", FLOAT, &[1, 5, 70, 33], |g| {
            let qkv = given_random(g, heads.qkv(), 1);
            let out = g.attend(qkv, heads);
            g.take(out)
        });
    }
}

/// Attention to pages of what is given.
fn paged(heads: Heads, window: Option<usize>, values: &[f32]) -> Arc<Graph> {
    let (mut g, width) = (Builder::default(), heads.query * heads.width);
    let qkv = given(&mut g, heads.qkv(), values);
    let (q, out) = (g.per_row(width), g.per_row(width));
    g.push(Op::Place { qkv, heads, norms: None, epsilon: 1e-5, rope: None, layer: 0, out: q });
    g.push(Op::Paged { q, heads, scale: 0.4, window, softcap: None, layer: 0, out });
    let result = g.take(out);
    Arc::new(g.finish(result, Some(Pages { layers: 1, heads: heads.key, width: heads.width })))
}

#[test]
fn values_that_16_bits_do_not_hold_are_seen_only_by_who_sees_them() {
    let heads = Heads { query: 2, key: 1, width: 16 };
    let good = numbers(WORDS * heads.qkv(), 1);
    let step = step(&[25, 3]);
    for bad in [f32::NAN, f32::NEG_INFINITY, 1e6] {
        for at in [2 * 16 + 5, 3 * 16 + 5] {
            let mut values = good.clone();
            // The key or the value of the sixth token.
            values[step.ids[5] as usize * heads.qkv() + at] = bad;
            let [whole, broken] = [&good, &values].map(|values| paged(heads, None, values));
            for Tested { name: on, backend, .. } in each() {
                let [whole, broken] = [&whole, &broken].map(|graph| run(graph, &*backend, &step));
                let same = |row: usize| whole[row * 32..][..32] == broken[row * 32..][..32];
                assert!((0..5).chain(25..28).all(same), "{bad} at {at} on {on}: who does not see it");
                let sees = &broken[5 * 32..25 * 32];
                assert!(sees.iter().all(|value| !value.is_finite()), "{bad} at {at} on {on}: {sees:?}");
            }
        }
    }
}

#[test]
fn long_attention_has_the_same_bits_in_whole_and_in_pieces() {
    for (heads, window, lengths) in [
        // More pages than there are streams, and a tile with rows of both sequences.
        (Heads { query: 2, key: 1, width: 8 }, None, [1090usize, 13]),
        (Heads { query: 6, key: 2, width: 136 }, Some(40), [75, 31]),
        (Heads { query: 20, key: 1, width: 72 }, None, [50, 40]),
    ] {
        let graph = paged(heads, window, &numbers(WORDS * heads.qkv(), 1));
        let width = heads.query * heads.width;
        let pages = |index: usize| {
            let own = lengths[index].div_ceil(32);
            (0..own).map(|page| (index * lengths[0].div_ceil(32) + own - 1 - page) as u32).collect::<Vec<_>>()
        };
        let count = lengths[0].div_ceil(32) + lengths[1].div_ceil(32);
        // Each sequence up to some place, a step after the other; answers by sequence and place.
        let steps = |backend: &dyn Backend, ends: &[[usize; 2]]| {
            let prepared = backend.prepare(graph.clone(), count).unwrap();
            let (mut past, mut all) = ([0, 0], [Vec::new(), Vec::new()]);
            for end in ends {
                let mut step = Step::default();
                for index in (0..2).filter(|index| past[*index] < end[*index]) {
                    let rows = end[index] - past[index];
                    step.ids.extend((past[index]..end[index]).map(|at| ((at * 37 + index * 11) % WORDS) as u32));
                    step.sequences.push(Sequence { rows, past: past[index], pages: pages(index) });
                }
                step.outputs = (0..step.ids.len() as u32).collect();
                let plan = Plan::new(&graph, Shape { rows: step.ids.len(), outputs: step.ids.len() });
                let mut answers = Vec::new();
                prepared.run(&plan, &step, &mut answers).unwrap();
                let mut answers = answers.as_slice();
                for index in 0..2 {
                    let (own, rest) = answers.split_at((end[index] - past[index]) * width);
                    all[index].extend_from_slice(own);
                    answers = rest;
                }
                past = *end;
            }
            all
        };
        let [long, short] = lengths;
        let expected = steps(&Reference, &[[long, short]]);
        for Tested { name: on, backend, .. } in each() {
            let whole = steps(&*backend, &[[long, short]]);
            for (whole, expected) in whole.iter().zip(&expected) {
                let off = distance(whole, expected);
                assert!(off <= STORED, "{heads:?} on {on}: {off}");
            }
            let pieces = [[long - 42, 0], [long - 41, 1], [long - 30, 2], [long - 1, 9], [long, short]];
            assert!(steps(&*backend, &pieces) == whole, "{heads:?} on {on}");
        }
    }
}

struct Paged {
    heads: Heads,
    norms: Option<bool>,
    rope: Option<Pairs>,
    window: Option<usize>,
    softcap: Option<f64>,
}

#[test]
fn attention_to_pages() {
    let heads = |query, key, width| Heads { query, key, width };
    let plain = |heads| Paged { heads, norms: None, rope: Some(Pairs::Halves), window: None, softcap: None };
    for (index, case) in [
        plain(heads(4, 2, 16)),
        Paged { rope: None, ..plain(heads(1, 1, 6)) },
        Paged { rope: Some(Pairs::Neighbours), norms: Some(true), ..plain(heads(18, 2, 12)) },
        Paged { norms: Some(false), window: Some(33), softcap: Some(2.0), ..plain(heads(3, 1, 20)) },
        Paged { window: Some(1), ..plain(heads(2, 2, 256)) },
    ]
    .into_iter()
    .enumerate()
    {
        let Paged { heads, norms, rope, window, softcap } = case;
        // Two layers, of which the second one is looked at.
        let pages = Some(Pages { layers: 2, heads: heads.key, width: heads.width });
        check_with_pages(&format!("case {index}"), STORED, &[1, 70, 33], pages, |g| {
            let qkv = given_random(g, heads.qkv(), 1);
            let mut norm = |seed: u32, layer: bool| {
                let gamma = random(g, Dtype::F32, &[heads.width], seed);
                let beta = random(g, Dtype::F32, &[heads.width], seed + 1);
                if layer { Norm::Layer { gamma, beta } } else { Norm::Rms { gamma, plus_one: seed == 7 } }
            };
            let norms = norms.map(|layer| (norm(5, layer), norm(7, layer)));
            let rope = rope.map(|pairs| Rope {
                frequencies: (0..heads.width / 2 - 1).map(|i| 1.7 / (i + 1) as f64).collect(),
                pairs,
                magnitude: 1.25,
            });
            let width = heads.query * heads.width;
            let (q, out) = (g.per_row(width), g.per_row(width));
            g.push(Op::Place { qkv, heads, norms, epsilon: 1e-5, rope, layer: 1, out: q });
            g.push(Op::Paged { q, heads, scale: 0.4, window, softcap, layer: 1, out });
            g.take(out)
        });
    }
}

#[test]
fn mixtures_of_experts() {
    for (dtype, width, inner, normalize) in
        [(Dtype::F32, 24, 20, true), (Dtype::F16, 24, 40, false), (Dtype::Q8_0, 64, 32, true)]
    {
        let tolerance = match dtype {
            Dtype::F32 => FLOAT,
            Dtype::F16 => EXPERTS,
            // What comes out of the gate is rounded to bytes.
            _ => 1e-2,
        };
        for rows in [1, 30] {
            check(&format!("{}, {rows} rows", dtype.name()), tolerance, &[rows], |g| {
                let x = given(g, width, &roundable(WORDS * width, 1));
                let router = given_random(g, 5, 2);
                let mut seed = 30;
                let mut matrix = |shape: &[usize]| {
                    seed += 1;
                    random(g, dtype, shape, seed)
                };
                let experts = (0..5).map(|_| Expert {
                    gate: matrix(&[inner, width]),
                    up: matrix(&[inner, width]),
                    down: matrix(&[width, inner]),
                });
                let experts = experts.collect();
                let out = g.like(x);
                g.push(Op::Experts { x, router, experts, used: 3, normalize, activation: Activation::Silu, out });
                g.take(out)
            });
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let mixture = |g: &mut Builder, x: Value, dtype: Dtype| {
        let router = given_random(g, 3, 2);
        let mut matrix = |seed: u32| random(g, dtype, &[256, 256], seed);
        let experts = (0..3).map(|i| Expert { gate: matrix(40 + i), up: matrix(50 + i), down: matrix(60 + i) });
        let experts = experts.collect();
        let out = g.like(x);
        g.push(Op::Experts { x, router, experts, used: 2, normalize: true, activation: Activation::Silu, out });
        out
    };
    for (dtype, is_mixture) in
        Dtype::READABLE.map(|dtype| (dtype, false)).into_iter().chain([(Dtype::Bf16, true), (Dtype::Q4K, true)])
    {
        let mut g = Builder::default();
        let x = given_random(&mut g, 256, 1);
        let result = if is_mixture {
            let out = mixture(&mut g, x, dtype);
            g.take(out)
        } else {
            product(&mut g, x, &[dtype], 256, 20, Some(Activation::Gelu))
        };
        let width = g.width(result);
        let graph = Arc::new(g.finish(result, None));
        for Tested { name: on, backend, .. } in each() {
            let company = step(&[70]);
            let few = step(&[20]);
            let together = run(&graph, &*backend, &company);
            let some = run(&graph, &*backend, &few);
            assert!(some == together[..some.len()], "{} {is_mixture} {on}", dtype.name());
            for row in [0, 9, 69] {
                let mut lonely = step(&[1]);
                lonely.ids[0] = company.ids[row];
                let alone = run(&graph, &*backend, &lonely);
                assert!(alone == together[row * width..][..width], "{} {is_mixture} {on}", dtype.name());
            }
        }
    }
}

#[test]
fn numbers_one_by_one() {
    for width in [24, 520] {
        check("gate", FLOAT, &[5], |g| {
            let x = given_random(g, 2 * width, 1);
            let out = g.gate(x, Activation::GeluTanh);
            g.take(out)
        });
        check("softcap", FLOAT, &[5], |g| {
            let x = given_random(g, width, 1);
            let out = g.softcap(x, 0.5);
            g.take(out)
        });
        check("normalize", FLOAT, &[5], |g| {
            let x = given_random(g, width, 1);
            let out = g.normalize(x);
            g.take(out)
        });
    }
}

#[test]
fn pooling() {
    for pooling in [Pooling::Mean, Pooling::Cls, Pooling::Last, Pooling::Max] {
        check(&format!("{pooling:?}"), FLOAT, &[1, 5, 20], |g| {
            let x = given_random(g, 40, 1);
            g.pool(x, pooling)
        });
    }
}

#[test]
fn what_the_kernels_do_not_take_is_refused_by_name() {
    let refusal = |build: &dyn Fn(&mut Builder) -> Value| {
        let mut g = Builder::default();
        let result = build(&mut g);
        let graph = Arc::new(g.finish(result, Some(Pages { layers: 1, heads: 1, width: 8 })));
        each()[0].backend.prepare(graph, 0).err().unwrap().to_string()
    };
    let attend = |g: &mut Builder, width: usize| {
        let heads = Heads { query: 1, key: 1, width };
        let qkv = given_random(g, heads.qkv(), 1);
        let out = g.attend(qkv, heads);
        g.take(out)
    };
    let turned = |g: &mut Builder, pairs: usize| {
        let heads = Heads { query: 1, key: 1, width: 8 };
        let (qkv, q) = (given_random(g, heads.qkv(), 1), g.per_row(8));
        let rope = Some(Rope { frequencies: vec![1.0; pairs], pairs: Pairs::Halves, magnitude: 1.0 });
        g.push(Op::Place { qkv, heads, norms: None, epsilon: 1e-5, rope, layer: 0, out: q });
        g.take(q)
    };
    let empty = |g: &mut Builder| {
        let x = given_random(g, 8, 1);
        let weight = g.weight(Tensor::of_f32(&[0, 8], &[]));
        let out = g.linear(x, vec![Part { weight, bias: None }], None);
        g.take(out)
    };
    for (said, expected) in [
        (refusal(&|g| attend(g, 300)), "heads of width 300; even ones to 256 are taken"),
        (refusal(&|g| attend(g, 0)), "vectors or weights of width 0"),
        (refusal(&|g| turned(g, 0)), "heads of width 8 of which 0 pairs are turned"),
        (refusal(&|g| turned(g, 5)), "heads of width 8 of which 5 pairs are turned"),
        (refusal(&empty), "vectors or weights of width 0"),
    ] {
        assert_eq!(said, format!("interpreter: the model has {expected}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_of_any_shape(
        kind in 0usize..8, chunks in 1usize..12, outputs in 1usize..70, rows in 1usize..75, off in 0usize..16,
    ) {
        let dtype = Dtype::READABLE[kind];
        let inputs = match dtype.block().0 {
            // Not whole chunks, either.
            1 => chunks * 16 + off,
            32 => chunks * 32,
            block => chunks.div_ceil(6) * block,
        };
        // Few numbers may be small by chance.
        let tolerance = 4.0 * if matches!(dtype, Dtype::F16 | Dtype::Bf16) { HALF } else { FLOAT };
        check(&format!("{} {inputs}x{outputs}, {rows} rows", dtype.name()), tolerance, &[rows], |g| {
            let whole = roundable(WORDS * inputs, 1);
            let x = given(g, inputs, &whole);
            product(g, x, &[dtype, dtype], inputs, outputs, None)
        });
    }

    #[test]
    fn attention_of_any_shape(
        key in 1usize..4, each in 1usize..11, half in 1usize..20, lengths in proptest::collection::vec(1usize..70, 1..4),
        window in proptest::option::of(1usize..80), softcap in proptest::option::of(0.5f64..4.0), halves: bool,
    ) {
        let heads = Heads { query: key * each, key, width: 2 * half };
        let pages = Some(Pages { layers: 1, heads: key, width: heads.width });
        let width = heads.query * heads.width;
        let name = format!("{heads:?} {lengths:?} {window:?} {softcap:?}");
        check_with_pages(&name, STORED, &lengths, pages, |g| {
            let qkv = given_random(g, heads.qkv(), 1);
            let rope = Some(Rope {
                frequencies: (0..half).map(|i| 0.9 / (i + 1) as f64).collect(),
                pairs: if halves { Pairs::Halves } else { Pairs::Neighbours },
                magnitude: 1.0,
            });
            let (q, out) = (g.per_row(width), g.per_row(width));
            g.push(Op::Place { qkv, heads, norms: None, epsilon: 1e-5, rope, layer: 0, out: q });
            g.push(Op::Paged { q, heads, scale: 0.5, window, softcap, layer: 0, out });
            g.take(out)
        });
        check(&name, FLOAT, &lengths, |g| {
            let qkv = given_random(g, heads.qkv(), 1);
            let out = g.attend(qkv, heads);
            g.take(out)
        });
    }
}

//! From a plan to launches: which kernels, with how many blocks and threads, and their arguments. Pure.
//!
//! A launch depends on widths, weights and on the most vectors that it may meet. How many there really are, their places
//! and pages are read by the kernels from the step's table (`places`), so that launches made for a whole plan can be
//! captured once and run for every step of it. What must hold: threads of a block and order of sums depend on widths
//! only, never on how many vectors there are.

mod product;

use kedge_engine::graph::{Graph, Heads, Norm, Op, Pairs, Per, Pooling};
use kedge_engine::plan::{Plan, Shape};

use crate::arguments as a;
use crate::constants::{self as c, QUERIES, SPLITS, WARPS};
use crate::model::{Model, Product};
use crate::places::{List, PARTIAL_ROWS_MAX, PARTS, Part, Places, Table};
use product::{Rounding, Who, number};

/// The most rows that have their attention computed one by one: there is more to read than to compute, and more blocks read
/// faster.
const LONELY_ROWS_MAX: usize = 16;
/// Threads of kernels with a thread for each number.
const PLAIN: usize = 256;

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond what the kernel itself says.
    pub shared: u32,
    /// The parameter block.
    pub arguments: Vec<u8>,
}

/// The launches of a plan for at most so many vectors, in order.
pub(crate) fn launches(graph: &Graph, model: &Model, plan: &Plan, most: Shape, places: &Places) -> Vec<Launch> {
    let mut writer = Writer { graph, model, plan, most, places, ready: None, launches: Vec::new() };
    for (index, (rope, frequencies)) in model.ropes.iter().enumerate() {
        let pairs = rope.frequencies.len();
        let arguments = a::Angles {
            places: writer.list(List::Positions),
            frequencies: *frequencies,
            out: places.scratch[PARTS + index],
            count: writer.count(Per::Row),
            pairs: pairs as u32,
            magnitude: rope.magnitude as f32,
        };
        writer.plain("kedge_angles", pairs, most.rows, arguments.bytes());
    }
    for index in 0..plan.ops.len() {
        writer.op(index);
    }
    writer.launches
}

struct Writer<'a> {
    graph: &'a Graph,
    model: &'a Model,
    plan: &'a Plan,
    most: Shape,
    places: &'a Places,
    /// How the operation before has rounded what the next one multiplies.
    ready: Option<Rounding>,
    launches: Vec<Launch>,
}

/// Threads of a block that has a vector of that width to itself.
fn threads(width: usize, most: usize) -> usize {
    width.div_ceil(4).next_multiple_of(32).clamp(32, most)
}

impl Writer<'_> {
    fn push(&mut self, kernel: &'static str, grid: [usize; 3], threads: usize, shared: usize, arguments: Vec<u8>) {
        if grid.contains(&0) {
            return;
        }
        let grid = grid.map(|blocks| blocks as u32);
        self.launches.push(Launch { kernel, grid, block: [threads as u32, 1, 1], shared: shared as u32, arguments });
    }

    /// A thread for each number.
    fn plain(&mut self, kernel: &'static str, width: usize, rows: usize, arguments: Vec<u8>) {
        let threads = width.next_multiple_of(32).min(PLAIN);
        self.push(kernel, [rows, width.div_ceil(threads), 1], threads, 0, arguments);
    }

    fn buffer(&self, buffer: usize) -> u64 {
        self.places.buffers[buffer]
    }

    fn scratch(&self, part: Part) -> u64 {
        self.places.scratch[part as usize]
    }

    /// A list of the step's table.
    fn list(&self, list: List) -> u64 {
        self.places.table + 4 * Table::new(self.plan.shape).list(list) as u64
    }

    /// Where the table says how many vectors there are.
    fn count(&self, per: Per) -> u64 {
        self.places.table + if per == Per::Row { 0 } else { 4 }
    }

    fn op(&mut self, index: usize) {
        let (plan, model) = (self.plan, self.model);
        let size = plan.sizes[index];
        let (width, rows, count) = (size.width, self.most.count(size.per), self.count(size.per));
        let narrow = width as u32;
        let ready = self.ready.take();
        match &plan.ops[index] {
            Op::Embed { words, positions, types, scale, out } => {
                let table = |weight: Option<usize>| weight.map(|weight| model.table(weight)).unwrap_or_default();
                let (words, positions, types) = (table(Some(*words)), table(*positions), table(*types));
                let arguments = a::Embed {
                    words: words.address,
                    units: words.units,
                    positions: positions.address,
                    types: types.address,
                    ids: self.list(List::Ids),
                    places: self.list(List::Positions),
                    kinds_of_tokens: self.list(List::Types),
                    out: self.buffer(*out),
                    count,
                    kind_of_words: words.kind,
                    chunks: words.chunks,
                    kind_of_positions: positions.kind,
                    kind_of_types: types.kind,
                    width: narrow,
                    scale: *scale as f32,
                };
                self.push("kedge_embed", [rows, 1, 1], threads(width, 512), 0, arguments.bytes());
            }
            Op::Norm { x, residual, norm, epsilon, sum, out } => {
                let (gamma, beta, more) = self.norm(*norm);
                let rounding = self.next_wants(index, *out);
                let (kind_of_rounded, padded) = rounding.map_or((0, 0), |to| (to.kind, to.padded as u32));
                self.ready = rounding;
                let arguments = a::Norms {
                    x: self.buffer(*x),
                    residual: residual.map_or(0, |residual| self.buffer(residual)),
                    gamma,
                    beta,
                    sum: sum.map_or(0, |sum| self.buffer(sum)),
                    out: self.buffer(*out),
                    rounded: self.scratch(Part::Rounded),
                    scales: self.scratch(Part::Scales),
                    count,
                    width: narrow,
                    kind_of_rounded,
                    padded,
                    scales_step: plan.shape.count(size.per) as u32,
                    epsilon: *epsilon as f32,
                    more,
                };
                self.push("kedge_norm", [rows, 1, 1], threads(width, 1024), 0, arguments.bytes());
            }
            Op::Linear { x, parts, activation, out } => {
                let vectors = plan.shape.count(size.per);
                let who = Who { count, most: rows, likely: rows, lists: None, divide: 1, vectors };
                let activation = number(*activation);
                let inputs = parts.first().map_or(0, |part| self.graph.weights[part.weight].columns());
                let (mut first, mut rounded) = (0, ready);
                for Product { matrix, bias } in &model.products[index] {
                    if let Some(to) = Rounding::of(*matrix)
                        && rounded != Some(to)
                    {
                        self.round(self.buffer(*x), to, inputs, who, 1);
                        rounded = Some(to);
                    }
                    self.product(self.buffer(*x), *matrix, *bias, self.buffer(*out), width, first, activation, who);
                    first += matrix.outputs;
                }
            }
            Op::Attend { qkv, heads, out } => {
                let arguments = a::Attend {
                    qkv: self.buffer(*qkv),
                    out: self.buffer(*out),
                    sequences: self.list(List::Sequences),
                    firsts: self.list(List::FirstRows),
                    count,
                    query_heads: heads.query as u32,
                    key_heads: heads.key as u32,
                    width: heads.width as u32,
                    scale: (1.0 / (heads.width as f64).sqrt()) as f32,
                };
                let shared = heads.width.next_multiple_of(4) + WARPS * (2 + heads.width);
                self.push("kedge_attend", [rows, heads.query, 1], 32 * WARPS, 4 * shared, arguments.bytes());
            }
            Op::Place { qkv, heads, norms, epsilon, rope, layer, out } => {
                let ((q_gamma, q_beta, q_more), (k_gamma, k_beta, k_more)) =
                    norms.map_or_else(Default::default, |(q, k)| (self.norm(q), self.norm(k)));
                let index = rope.as_ref().map(|rope| {
                    let known = model.ropes.iter().position(|(known, _)| known == rope);
                    PARTS + known.expect("all ropes were gathered")
                });
                let arguments = a::Place {
                    qkv: self.buffer(*qkv),
                    q_gamma,
                    q_beta,
                    k_gamma,
                    k_beta,
                    angles: index.map_or(0, |index| self.places.scratch[index]),
                    queries: self.buffer(*out),
                    store: self.places.store,
                    places: self.list(List::Positions),
                    sequences: self.list(List::Sequences),
                    firsts: self.list(List::FirstPages),
                    pages: self.places.pages,
                    count,
                    query_heads: heads.query as u32,
                    key_heads: heads.key as u32,
                    width: heads.width as u32,
                    layers: self.layers(),
                    layer: *layer as u32,
                    norm: match norms {
                        None => 0,
                        Some((Norm::Rms { .. }, _)) => c::NORM_RMS as u32,
                        Some((Norm::Layer { .. }, _)) => c::NORM_LAYER as u32,
                    },
                    pairing: match rope.as_ref().map(|rope| rope.pairs) {
                        None => 0,
                        Some(Pairs::Halves) => c::PAIRS_HALVES as u32,
                        Some(Pairs::Neighbours) => c::PAIRS_NEIGHBOURS as u32,
                    },
                    pairs: rope.as_ref().map_or(0, |rope| rope.frequencies.len()) as u32,
                    epsilon: *epsilon as f32,
                    q_more,
                    k_more,
                };
                let warps = (heads.query + 2 * heads.key).min(8);
                self.push("kedge_place", [rows, 1, 1], 32 * warps, 4 * warps * heads.width, arguments.bytes());
            }
            Op::Paged { q, heads, scale, window, softcap, layer, out } => {
                let Heads { query, key, width } = *heads;
                let heads = (query / key).min(QUERIES);
                let groups = (query / key).div_ceil(QUERIES);
                let rows_each = if rows <= LONELY_ROWS_MAX { 1 } else { QUERIES / heads };
                let is_whole = rows > PARTIAL_ROWS_MAX;
                let (kernel, wide) = match (width, is_whole) {
                    (..=64, false) => ("kedge_paged_64", 64),
                    (..=64, true) => ("kedge_paged_whole_64", 64),
                    (65..=128, false) => ("kedge_paged_128", 128),
                    (65..=128, true) => ("kedge_paged_whole_128", 128),
                    (_, false) => ("kedge_paged_256", 256),
                    (_, true) => ("kedge_paged_whole_256", 256),
                };
                // Queries as 16-bit floats, and sums of the warps; where a block does all, those of its splits, too.
                let sums = if is_whole { 2 } else { 1 };
                let shared = 2 * QUERIES * (wide + 32) + sums * 4 * QUERIES * width;
                let out = self.buffer(*out);
                let arguments = a::Paged {
                    queries: self.buffer(*q),
                    store: self.places.store,
                    places: self.list(List::Positions),
                    sequences: self.list(List::Sequences),
                    firsts: self.list(List::FirstPages),
                    pages: self.places.pages,
                    out: if is_whole { out } else { self.scratch(Part::Partial) },
                    count,
                    rows_each: rows_each as u32,
                    query_heads: query as u32,
                    key_heads: key as u32,
                    width: width as u32,
                    layers: self.layers(),
                    layer: *layer as u32,
                    window: window.unwrap_or(0) as u32,
                    scale: *scale as f32,
                    bound: softcap.unwrap_or(0.0) as f32,
                };
                let grid = [rows.div_ceil(rows_each), key * groups, if is_whole { 1 } else { SPLITS }];
                self.push(kernel, grid, 32 * WARPS, shared, arguments.bytes());
                if !is_whole {
                    let arguments = a::PagedMerge {
                        partial: self.scratch(Part::Partial),
                        out,
                        count,
                        query_heads: query as u32,
                        width: width as u32,
                    };
                    let threads = width.next_multiple_of(32);
                    self.push("kedge_paged_merge", [rows, query, 1], threads, 0, arguments.bytes());
                }
            }
            Op::Gate { x, activation, out } => {
                let rounding = self.next_wants(index, *out).filter(|to| to.is_to_bytes());
                let (x, out, vectors) = (self.buffer(*x), self.buffer(*out), plan.shape.count(size.per));
                self.gate(x, out, count, rows, width, *activation, 1, rounding, vectors);
                self.ready = rounding;
            }
            Op::Experts { x, router, experts, used, normalize, activation, out } => {
                let mixture = model.mixture(index);
                let inner = mixture.gate.outputs;
                let (choice, weights) = (self.scratch(Part::Choice), self.scratch(Part::Weights));
                let (counts, list) = (self.scratch(Part::Counts), self.scratch(Part::List));
                let list_step = plan.shape.rows * used;
                let narrow_used = *used as u32;
                let arguments = a::Route {
                    router: self.buffer(*router),
                    choice,
                    weights,
                    count,
                    experts: experts.len() as u32,
                    used: narrow_used,
                    normalize: u32::from(*normalize),
                };
                self.push("kedge_route", [rows, 1, 1], 32, 0, arguments.bytes());
                let arguments =
                    a::Lists { choice, list, counts, count, used: narrow_used, list_step: list_step as u32 };
                self.push("kedge_lists", [experts.len(), 1, 1], 32, 0, arguments.bytes());
                // A row chooses an expert at most once.
                let who = Who {
                    count: counts,
                    most: rows,
                    likely: (rows * used).div_ceil(experts.len()),
                    lists: Some((list, list_step, experts.len())),
                    divide: *used,
                    vectors: plan.shape.rows,
                };
                let all = Who { count, most: rows, likely: rows, lists: None, divide: 1, vectors: plan.shape.rows };
                let (both, gated) = (self.scratch(Part::Both), self.scratch(Part::Inner));
                let mut rounded = None;
                for (matrix, first) in [(mixture.gate, 0), (mixture.up, inner)] {
                    if let Some(to) = Rounding::of(matrix)
                        && rounded != Some(to)
                    {
                        self.round(self.buffer(*x), to, width, all, 1);
                        rounded = Some(to);
                    }
                    self.product(self.buffer(*x), matrix, 0, both, 2 * inner, first, 0, who);
                }
                let pairs = list_step;
                let wanted = Rounding::of(mixture.down);
                let at_once = wanted.filter(|to| to.is_to_bytes());
                self.gate(both, gated, count, rows, inner, *activation, *used, at_once, pairs);
                if let Some(to) = wanted
                    && at_once.is_none()
                {
                    self.round(gated, to, inner, Who { vectors: pairs, ..all }, *used);
                }
                let answers = self.scratch(Part::Answers);
                self.product(gated, mixture.down, 0, answers, width, 0, 0, Who { divide: 1, vectors: pairs, ..who });
                let arguments =
                    a::Mix { answers, weights, out: self.buffer(*out), count, width: narrow, used: narrow_used };
                self.plain("kedge_mix", width, rows, arguments.bytes());
            }
            Op::Add { x, y, out } => {
                let (x, y, out) = (self.buffer(*x), self.buffer(*y), self.buffer(*out));
                self.plain("kedge_add", width, rows, a::Add { x, y, out, count, width: narrow }.bytes());
            }
            Op::Take { x, out } => {
                let (x, out, taken) = (self.buffer(*x), self.buffer(*out), self.list(List::Outputs));
                let arguments = a::Take { x, rows: taken, out, count, width: narrow };
                self.plain("kedge_take", width, rows, arguments.bytes());
            }
            Op::Softcap { x, bound, out } => {
                let (x, out) = (self.buffer(*x), self.buffer(*out));
                let arguments = a::Softcap { x, out, count, width: narrow, bound: *bound as f32 };
                self.plain("kedge_softcap", width, rows, arguments.bytes());
            }
            Op::Pool { x, pooling, out } => {
                let pooling = match pooling {
                    Pooling::Mean => c::POOL_MEAN,
                    Pooling::Cls => c::POOL_CLS,
                    Pooling::Last => c::POOL_LAST,
                    Pooling::Max => c::POOL_MAX,
                };
                let (x, out, firsts) = (self.buffer(*x), self.buffer(*out), self.list(List::FirstRows));
                let arguments = a::Pool { x, firsts, out, count, width: narrow, pooling: pooling as u32 };
                self.plain("kedge_pool", width, rows, arguments.bytes());
            }
            Op::Normalize { x, out } => {
                let (x, out) = (self.buffer(*x), self.buffer(*out));
                let arguments = a::Normalize { x, out, count, width: narrow };
                self.push("kedge_normalize", [rows, 1, 1], threads(width, 512), 0, arguments.bytes());
            }
        }
    }

    fn layers(&self) -> u32 {
        self.graph.pages.map_or(0, |pages| pages.layers) as u32
    }

    /// Scale, shift, and what is added to the scale.
    fn norm(&self, norm: Norm) -> (u64, u64, f32) {
        match norm {
            Norm::Rms { gamma, plus_one } => (self.model.vector(gamma), 0, if plus_one { 1.0 } else { 0.0 }),
            Norm::Layer { gamma, beta } => (self.model.vector(gamma), self.model.vector(beta), 0.0),
        }
    }

    /// How the next operation wants an operation's result rounded, if it multiplies it.
    fn next_wants(&self, index: usize, out: usize) -> Option<Rounding> {
        match self.plan.ops.get(index + 1) {
            Some(Op::Linear { x, .. }) if *x == out => Rounding::of(self.model.products[index + 1].first()?.matrix),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use kedge_engine::graph::{Activation, Builder, Pages, Part};
    use kedge_formats::{Dtype, Tensor, quant};

    use super::*;
    use crate::constants::{HEAD_MAX, SHARES};
    use crate::pack::Format;
    use crate::places::scratch;

    fn matrix(g: &mut Builder, dtype: Dtype, outputs: usize, inputs: usize) -> Part {
        let bytes = quant::quantize(dtype, &vec![0.5; outputs * inputs]);
        Part { weight: g.weight(Tensor::of_bytes(dtype, &[outputs, inputs], bytes).unwrap()), bias: None }
    }

    /// A layer of a decoder with matrices of that type, 64 wide.
    fn layer(dtype: Dtype) -> Graph {
        layer_with(dtype, Heads { query: 2, key: 1, width: 32 })
    }

    fn layer_with(dtype: Dtype, heads: Heads) -> Graph {
        let mut g = Builder::default();
        let matrix = |g: &mut Builder, outputs: usize, inputs: usize| matrix(g, dtype, outputs, inputs);
        let gamma = g.weight(Tensor::of_f32(&[64], &[1.0; 64]));
        let norm = Norm::Rms { gamma, plus_one: false };
        let (wide, narrow) = (heads.query * heads.width, heads.key * heads.width);
        let (x, q, seen) = (g.per_row(64), g.per_row(wide), g.per_row(wide));
        let words = matrix(&mut g, 9, 64).weight;
        g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: x });
        let normed = g.norm(x, norm, 1e-5);
        let parts = [wide, narrow, narrow].map(|outputs| matrix(&mut g, outputs, 64)).to_vec();
        let qkv = g.linear(normed, parts, None);
        g.push(Op::Place { qkv, heads, norms: None, epsilon: 1e-5, rope: None, layer: 0, out: q });
        g.push(Op::Paged { q, heads, scale: 1.0, window: None, softcap: None, layer: 0, out: seen });
        let parts = vec![matrix(&mut g, 64, wide)];
        let mixed = g.linear(seen, parts, None);
        let (_, normed) = g.add_norm(mixed, x, norm, 1e-5);
        let parts = vec![matrix(&mut g, 128, 64), matrix(&mut g, 128, 64)];
        let both = g.linear(normed, parts, None);
        let gated = g.gate(both, Activation::Silu);
        let parts = vec![matrix(&mut g, 64, 128)];
        let out = g.linear(gated, parts, None);
        let result = g.take(out);
        g.finish(result, Some(Pages { layers: 1, heads: heads.key, width: heads.width }))
    }

    /// Attention in both directions.
    fn attention(heads: Heads) -> Graph {
        let mut g = Builder::default();
        let (x, out) = (g.per_row(64), g.per_row(heads.query * heads.width));
        let words = matrix(&mut g, Dtype::F32, 9, 64).weight;
        g.push(Op::Embed { words, positions: None, types: None, scale: 1.0, out: x });
        let part = matrix(&mut g, Dtype::F32, heads.qkv(), 64);
        let qkv = g.linear(x, vec![part], None);
        g.push(Op::Attend { qkv, heads, out });
        let result = g.take(out);
        g.finish(result, None)
    }

    /// The most registers of a thread and the most shared memory that a kernel takes by itself, on any device.
    fn taken(kernel: &str) -> (u32, u32) {
        let lines = include_str!("../../ptx/ledger.tsv").lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let own: Vec<_> = lines.filter(|fields| fields[2] == kernel).collect();
        let most = |index: usize| own.iter().map(|fields| fields[index].parse().unwrap()).max();
        (most(3).expect("all kernels are there"), most(4).expect("all kernels are there"))
    }

    fn written(graph: &Graph, rows: usize) -> Vec<Launch> {
        let mut address = 0;
        let put = &mut |bytes: Vec<u8>| {
            address += bytes.len().next_multiple_of(256) as u64;
            Ok::<u64, ()>(address)
        };
        let model = Model::new(graph, put).unwrap();
        let plan = Plan::new(graph, Shape { rows, outputs: 1 });
        let scratch = scratch(graph, &model, &plan).iter().map(|_| 1 << 40).collect();
        let places = Places { buffers: vec![1 << 41; plan.buffers.len()], scratch, ..Places::default() };
        launches(graph, &model, &plan, plan.shape, &places)
    }

    fn kernels(launches: &[Launch]) -> String {
        launches.iter().map(|launch| launch.kernel.trim_start_matches("kedge_")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_layer_is_few_launches() {
        for (dtype, rows, expected) in [
            (
                Dtype::Q8_0,
                1,
                "embed norm linear_q8_0_8 place paged_64 paged_merge round_bytes linear_q8_0_8 norm linear_q8_0_8 gate linear_q8_0_8 take",
            ),
            (
                Dtype::F16,
                20,
                "embed norm linear_half_32 place paged_64 paged_merge round_half linear_half_32 norm linear_half_32 gate round_half linear_half_32 take",
            ),
            (
                Dtype::F32,
                100,
                "embed norm linear_f32 place paged_whole_64 linear_f32 norm linear_f32 gate linear_f32 take",
            ),
        ] {
            assert_eq!(kernels(&written(&layer(dtype), rows)), expected, "{}", dtype.name());
        }
    }

    #[test]
    fn launches_are_what_devices_take() {
        let mut met = std::collections::BTreeSet::new();
        for heads in [(2, 1, 32), (16, 1, HEAD_MAX), (3, 3, HEAD_MAX), (4, 2, 128)] {
            let heads = Heads { query: heads.0, key: heads.1, width: heads.2 };
            let graphs = [Dtype::Q8_0, Dtype::F16, Dtype::F32].map(|dtype| layer_with(dtype, heads));
            for (graph, rows) in
                graphs.iter().chain([&attention(heads)]).flat_map(|graph| [1, 20, 3000].map(|n| (graph, n)))
            {
                for Launch { kernel, grid, block, shared, .. } in written(graph, rows) {
                    let threads: u32 = block.iter().product();
                    let (registers, own) = taken(kernel);
                    assert!(threads.is_multiple_of(32) && threads <= 1024, "{kernel}: {block:?}");
                    assert!(registers.next_multiple_of(8) * threads <= 1 << 16, "{kernel}: {registers} of {threads}");
                    assert!(grid[0] < 1 << 31 && grid[1] < 1 << 16 && grid[2] < 1 << 16, "{kernel}: {grid:?}");
                    assert!(shared + own <= 48 << 10, "{kernel}: {shared} and {own}");
                    met.insert(kernel);
                }
            }
        }
        for kernel in ["attend", "place", "paged_256", "paged_whole_256", "paged_merge"] {
            assert!(met.contains(&*format!("kedge_{kernel}")), "{kernel} is not among {met:?}");
        }
    }

    #[test]
    fn shares_and_splits_follow_from_widths_alone() {
        for dtype in [Dtype::Q8_0, Dtype::F16, Dtype::F32] {
            let graph = layer(dtype);
            let chunk = Format::of(dtype).unwrap().facts().chunk;
            let of = |rows| {
                let mut found = Vec::new();
                for Launch { kernel, grid, block, arguments, .. } in written(&graph, rows) {
                    let warps = block[0] as usize / 32;
                    if kernel.contains("linear") {
                        // Behind ten addresses and steps; by these alone kernels for many vectors count shares themselves.
                        let [inputs, outputs] =
                            [80, 84].map(|at| u32::from_le_bytes(arguments[at..at + 4].try_into().unwrap()));
                        let shares = (inputs as usize / chunk).clamp(1, SHARES);
                        let each_a_warp = kernel.ends_with("_8") || kernel.ends_with("_32") && dtype != Dtype::F32;
                        assert!(!each_a_warp || warps == shares, "{kernel} of {rows} rows: {warps}, not {shares}");
                        found.push((
                            inputs as usize,
                            outputs as usize,
                            if dtype == Dtype::F32 { warps } else { shares },
                        ));
                    } else if kernel.contains("paged_merge") {
                        assert!(rows <= PARTIAL_ROWS_MAX, "{rows} rows");
                    } else if kernel.contains("paged") {
                        let splits = if kernel.contains("whole") { SPLITS } else { grid[2] as usize };
                        found.push((warps, splits, 0));
                    }
                }
                found
            };
            let few = of(1);
            assert_eq!(few.iter().find(|(.., shares)| *shares == 0), Some(&(WARPS, SPLITS, 0)));
            for rows in [8, 9, 16, 17, 32, 33, PARTIAL_ROWS_MAX, PARTIAL_ROWS_MAX + 1, 3000] {
                assert_eq!(of(rows), few, "{} of {rows} rows", dtype.name());
            }
        }
    }

    #[test]
    fn threads_of_other_kernels_do_not_depend_on_how_many_rows_there_are() {
        for dtype in [Dtype::Q8_0, Dtype::F16, Dtype::F32] {
            let of = |rows| {
                let plain = |launch: &Launch| !launch.kernel.contains("linear") && !launch.kernel.contains("paged");
                let all = written(&layer(dtype), rows);
                all.iter().filter(|launch| plain(launch)).map(|l| (l.kernel, l.block)).collect::<Vec<_>>()
            };
            assert_eq!(of(1), of(200), "{}", dtype.name());
        }
    }
}

//! A graph's weights as a device holds them: which of them is needed in which form, and where each was put.

use kedge_engine::graph::{Graph, Norm, Op, Part, Rope};
use kedge_formats::{Dtype, Tensor};

use crate::constants::{self as c, EXPERTS_MAX, HEAD_MAX};
use crate::pack::{Format, Packed};

/// A table of vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Table {
    pub(crate) address: u64,
    /// How it lies: one of the numbers of `constants`.
    pub(crate) kind: u32,
    /// Of a packed one.
    pub(crate) units: u64,
    pub(crate) chunks: u32,
}

/// A packed matrix; of a mixture the first expert's, the others following `weights_step` apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) format: Format,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) weights: u64,
    /// Zero where there are none.
    pub(crate) units: u64,
    pub(crate) weights_step: u64,
    pub(crate) units_step: u64,
}

impl Matrix {
    /// Its rows as vectors.
    fn table(self) -> Table {
        let facts = self.format.facts();
        let (kind, chunks) = (facts.table as u32, (self.inputs / facts.chunk) as u32);
        Table { address: self.weights, kind, units: self.units, chunks }
    }
}

/// Whether a table of words is the matrix of a product, too.
fn is_multiplied(graph: &Graph, weight: usize) -> bool {
    let by = |op: &Op| matches!(op, Op::Linear { parts, .. } if parts.iter().any(|part| part.weight == weight));
    graph.ops.iter().any(by)
}

/// The matrices of a mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Mixture {
    pub(crate) gate: Matrix,
    pub(crate) up: Matrix,
    pub(crate) down: Matrix,
}

/// A matrix that a vector is multiplied with, and what is added; zero where nothing is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Product {
    pub(crate) matrix: Matrix,
    pub(crate) bias: u64,
}

/// Matrices of one type and width as one.
fn stacked<'a>(parts: impl Iterator<Item = &'a Tensor> + Clone) -> Tensor {
    let (first, rows) = (parts.clone().next().expect("there are parts"), parts.clone().map(Tensor::rows).sum());
    let bytes = parts.map(Tensor::bytes).collect::<Vec<_>>().concat();
    Tensor::of_bytes(first.dtype, &[rows, first.columns()], bytes).expect("rows are whole blocks")
}

/// What is added to the products of parts, as 32-bit floats; none where nothing is.
fn biases(graph: &Graph, parts: &[Part]) -> Option<Vec<u8>> {
    parts.iter().any(|part| part.bias.is_some()).then(|| {
        let of = |part: &Part| match part.bias {
            Some(bias) => graph.weights[bias].to_f32(),
            None => vec![0.0; graph.weights[part.weight].rows()],
        };
        parts.iter().flat_map(of).flat_map(f32::to_le_bytes).collect()
    })
}

/// Where everything of a graph lies.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// By weight, where it is needed as such.
    pub(crate) tables: Vec<Option<Table>>,
    /// 32-bit floats.
    pub(crate) vectors: Vec<Option<u64>>,
    matrices: Vec<Option<Matrix>>,
    /// By operation.
    pub(crate) products: Vec<Vec<Product>>,
    pub(crate) mixtures: Vec<Option<Mixture>>,
    /// The distinct ways of turning, and where their frequencies lie.
    pub(crate) ropes: Vec<(Rope, u64)>,
}

impl Model {
    /// Puts what a graph needs on a device: `put` takes bytes there and says where they are.
    pub(crate) fn new<E>(graph: &Graph, put: &mut dyn FnMut(Vec<u8>) -> Result<u64, E>) -> Result<Self, E> {
        let none = graph.weights.len();
        let mut model = Self {
            tables: vec![None; none],
            vectors: vec![None; none],
            matrices: vec![None; none],
            products: vec![Vec::new(); graph.ops.len()],
            mixtures: vec![None; graph.ops.len()],
            ropes: Vec::new(),
        };
        for (index, op) in graph.ops.iter().enumerate() {
            match op {
                Op::Embed { words, positions, types, .. } => {
                    for weight in [Some(words), positions.as_ref(), types.as_ref()].into_iter().flatten() {
                        if model.tables[*weight].is_some() {
                            continue;
                        }
                        let tensor = &graph.weights[*weight];
                        model.tables[*weight] = Some(if weight == words && is_multiplied(graph, *weight) {
                            model.keep_matrix(graph, *weight, put)?.table()
                        } else {
                            Table {
                                address: put(tensor.bytes().to_vec())?,
                                kind: kind(tensor.dtype),
                                units: 0,
                                chunks: 0,
                            }
                        });
                    }
                }
                Op::Norm { norm, .. } => model.keep_norm(graph, *norm, put)?,
                Op::Place { norms, rope, .. } => {
                    for norm in norms.iter().flat_map(|(q, k)| [q, k]) {
                        model.keep_norm(graph, *norm, put)?;
                    }
                    if let Some(rope) = rope
                        && !model.ropes.iter().any(|(known, _)| known == rope)
                    {
                        let bytes: Vec<u8> = rope.frequencies.iter().flat_map(|value| value.to_le_bytes()).collect();
                        model.ropes.push((rope.clone(), put(bytes)?));
                    }
                }
                Op::Linear { parts, .. } => {
                    // Neighbours of one type are one matrix: fewer launches, each with more to do.
                    for run in parts.chunk_by(|a, b| graph.weights[a.weight].dtype == graph.weights[b.weight].dtype) {
                        let matrix = match run {
                            [only] => model.keep_matrix(graph, only.weight, put)?,
                            _ => place(&[&stacked(run.iter().map(|part| &graph.weights[part.weight]))], put)?,
                        };
                        let bias = biases(graph, run).map(&mut *put).transpose()?.unwrap_or_default();
                        model.products[index].push(Product { matrix, bias });
                    }
                }
                Op::Experts { experts, .. } => {
                    let mut of = |pick: fn(&kedge_engine::graph::Expert) -> usize| {
                        let all: Vec<&Tensor> = experts.iter().map(|expert| &graph.weights[pick(expert)]).collect();
                        place(&all, put)
                    };
                    let (gate, up, down) = (of(|e| e.gate)?, of(|e| e.up)?, of(|e| e.down)?);
                    model.mixtures[index] = Some(Mixture { gate, up, down });
                }
                Op::Attend { .. }
                | Op::Paged { .. }
                | Op::Gate { .. }
                | Op::Add { .. }
                | Op::Take { .. }
                | Op::Softcap { .. }
                | Op::Pool { .. }
                | Op::Normalize { .. } => {}
            }
        }
        Ok(model)
    }

    fn keep_norm<E>(
        &mut self,
        graph: &Graph,
        norm: Norm,
        put: &mut dyn FnMut(Vec<u8>) -> Result<u64, E>,
    ) -> Result<(), E> {
        match norm {
            Norm::Rms { gamma, .. } => self.keep_vector(graph, gamma, put),
            Norm::Layer { gamma, beta } => {
                self.keep_vector(graph, gamma, put)?;
                self.keep_vector(graph, beta, put)
            }
        }
    }

    fn keep_vector<E>(
        &mut self,
        graph: &Graph,
        weight: usize,
        put: &mut dyn FnMut(Vec<u8>) -> Result<u64, E>,
    ) -> Result<(), E> {
        if self.vectors[weight].is_none() {
            let bytes: Vec<u8> = graph.weights[weight].to_f32().iter().flat_map(|value| value.to_le_bytes()).collect();
            self.vectors[weight] = Some(put(bytes)?);
        }
        Ok(())
    }

    fn keep_matrix<E>(
        &mut self,
        graph: &Graph,
        weight: usize,
        put: &mut dyn FnMut(Vec<u8>) -> Result<u64, E>,
    ) -> Result<Matrix, E> {
        if let Some(matrix) = self.matrices[weight] {
            return Ok(matrix);
        }
        let matrix = place(&[&graph.weights[weight]], put)?;
        self.matrices[weight] = Some(matrix);
        Ok(matrix)
    }

    pub(crate) fn table(&self, weight: usize) -> Table {
        self.tables[weight].expect("tables were put as such")
    }

    pub(crate) fn vector(&self, weight: usize) -> u64 {
        self.vectors[weight].expect("vectors were put as such")
    }

    pub(crate) fn mixture(&self, op: usize) -> Mixture {
        self.mixtures[op].expect("mixtures were put as such")
    }
}

/// Packs matrices of one kind and puts them one after the other.
fn place<E>(all: &[&Tensor], put: &mut dyn FnMut(Vec<u8>) -> Result<u64, E>) -> Result<Matrix, E> {
    let format = Format::of(all[0].dtype).expect("what cannot be multiplied was refused");
    if let [Tensor { dtype: Dtype::F32, .. }] = all {
        let (inputs, outputs) = (all[0].columns(), all[0].rows());
        let weights = put(all[0].bytes().to_vec())?;
        return Ok(Matrix { format, inputs, outputs, weights, units: 0, weights_step: 0, units_step: 0 });
    }
    let mut packed = Packed::new(all[0], format);
    // Each expert's begins where a whole vector may be read.
    let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(16), 0);
    if all.len() > 1 {
        align(&mut packed.weights);
        align(&mut packed.units);
    }
    let (weights_step, units_step) = (packed.weights.len() as u64, packed.units.len() as u64);
    for tensor in &all[1..] {
        let more = Packed::new(tensor, format);
        packed.weights.extend(more.weights);
        packed.units.extend(more.units);
        align(&mut packed.weights);
        align(&mut packed.units);
    }
    let Packed { inputs, outputs, weights, units, .. } = packed;
    let weights = put(weights)?;
    let units = if units.is_empty() { 0 } else { put(units)? };
    Ok(Matrix { format, inputs, outputs, weights, units, weights_step, units_step })
}

fn kind(dtype: Dtype) -> u32 {
    let kind = match dtype {
        Dtype::F32 => c::STORED_F32,
        Dtype::F16 => c::STORED_F16,
        Dtype::Bf16 => c::STORED_BF16,
        Dtype::Q8_0 => c::STORED_Q8_0,
        Dtype::Q4_0 => c::STORED_Q4_0,
        Dtype::Q4K => c::STORED_Q4_K,
        Dtype::Q5K => c::STORED_Q5_K,
        Dtype::Q6K => c::STORED_Q6_K,
        Dtype::Other { .. } => unreachable!("what cannot be read was refused"),
    };
    kind as u32
}

/// What of a graph the kernels do not take; none when they take all of it.
pub(crate) fn refusal(graph: &Graph) -> Option<String> {
    if let Some(tensor) = graph.weights.iter().find(|tensor| Format::of(tensor.dtype).is_none()) {
        return Some(format!("a weight of shape {:?} has a type that cannot be read", tensor.shape));
    }
    if graph.values.iter().any(|value| value.width == 0) || graph.weights.iter().any(|weight| weight.shape.contains(&0))
    {
        return Some("vectors or weights of width 0".into());
    }
    for op in &graph.ops {
        if let Op::Place { heads, rope: Some(rope), .. } = op
            && !(1..=heads.width / 2).contains(&rope.frequencies.len())
        {
            let pairs = rope.frequencies.len();
            return Some(format!("heads of width {} of which {pairs} pairs are turned", heads.width));
        }
        match op {
            Op::Attend { heads, .. } | Op::Place { heads, .. } | Op::Paged { heads, .. } => {
                if heads.width > HEAD_MAX || heads.width % 2 != 0 {
                    return Some(format!("heads of width {}; even ones to {HEAD_MAX} are taken", heads.width));
                }
                if heads.key == 0 || heads.query % heads.key != 0 {
                    return Some(format!("{} query heads cannot share {} key heads", heads.query, heads.key));
                }
            }
            Op::Experts { experts, used, .. } => {
                if experts.is_empty() || experts.len() > EXPERTS_MAX || *used == 0 || *used > experts.len() {
                    return Some(format!("{used} of {} experts; {EXPERTS_MAX} are taken", experts.len()));
                }
                let same = |pick: fn(&kedge_engine::graph::Expert) -> usize| {
                    let first = &graph.weights[pick(&experts[0])];
                    experts
                        .iter()
                        .map(|e| &graph.weights[pick(e)])
                        .all(|w| w.dtype == first.dtype && w.shape == first.shape)
                };
                if !(same(|e| e.gate) && same(|e| e.up) && same(|e| e.down)) {
                    return Some("experts whose matrices differ in type or shape".into());
                }
            }
            Op::Embed { .. }
            | Op::Norm { .. }
            | Op::Linear { .. }
            | Op::Gate { .. }
            | Op::Add { .. }
            | Op::Take { .. }
            | Op::Softcap { .. }
            | Op::Pool { .. }
            | Op::Normalize { .. } => {}
        }
    }
    None
}

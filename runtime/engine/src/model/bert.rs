//! The weights of a BERT or RoBERTa encoder, gathered by the names transformers gives them, and the graph they make.
//!
//! What must hold: every tensor has the shape the configuration asks for. A prefix with the family's name (task models) is
//! understood.

use std::path::Path;

use kedge_formats::{Tensor, Tensors};

use super::config::EncoderConfig;
use crate::EngineError;
use crate::graph::{Activation, Builder, Graph, Heads, Norm, Op, Part, Weight};

/// The graph of the encoder whose weights are the safetensors file at `path`.
pub fn read(path: &Path, config: &EncoderConfig) -> Result<Graph, EngineError> {
    build(&Source::open(path, true)?, config)
}

/// Whether the file at `path` has all the tensors that [`read`] needs, in their shapes; their numbers are not looked at.
pub fn check(path: &Path, config: &EncoderConfig) -> Result<(), EngineError> {
    build(&Source::open(path, false)?, config).map(drop)
}

fn build(source: &Source, config: &EncoderConfig) -> Result<Graph, EngineError> {
    let (d, epsilon) = (config.hidden, config.epsilon);
    let mut g = Builder::default();
    let words = g.weight(source.tensor("embeddings.word_embeddings.weight", &[config.vocabulary, d])?);
    let table = config.first_position + config.positions;
    let table = source.tensor("embeddings.position_embeddings.weight", &[table, d])?;
    let positions = Some(g.weight(table.slice_rows(config.first_position..table.rows())));
    let types = Some(g.weight(source.tensor("embeddings.token_type_embeddings.weight", &[config.types, d])?));
    let sum = g.per_row(d);
    g.push(Op::Embed { words, positions, types, scale: 1.0, out: sum });
    let norm = source.norm(&mut g, "embeddings.LayerNorm", d)?;
    let mut x = g.norm(sum, norm, epsilon);
    let heads = Heads { query: config.heads, key: config.heads, width: d / config.heads };
    for layer in 0..config.layers {
        let at = |part: &str| format!("encoder.layer.{layer}.{part}");
        let mut qkv = Vec::new();
        for part in ["query", "key", "value"] {
            qkv.push(source.linear(&mut g, &at(&format!("attention.self.{part}")), d, d)?);
        }
        let qkv = g.linear(x, qkv, None);
        let mixed = g.attend(qkv, heads);
        let projection = source.linear(&mut g, &at("attention.output.dense"), d, d)?;
        let projected = g.linear(mixed, vec![projection], None);
        let norm = source.norm(&mut g, &at("attention.output.LayerNorm"), d)?;
        let attended = after(&mut g, projected, x, norm, epsilon);
        let up = source.linear(&mut g, &at("intermediate.dense"), d, config.intermediate)?;
        let wide = g.linear(attended, vec![up], Some(Activation::Gelu));
        let down = source.linear(&mut g, &at("output.dense"), config.intermediate, d)?;
        let narrow = g.linear(wide, vec![down], None);
        let norm = source.norm(&mut g, &at("output.LayerNorm"), d)?;
        x = after(&mut g, narrow, attended, norm, epsilon);
    }
    let mut result = g.pool(x, config.pooling);
    if config.normalize {
        result = g.normalize(result);
    }
    Ok(g.finish(result, None))
}

/// The norm of a sum that nobody needs but for its norm.
fn after(g: &mut Builder, x: usize, residual: usize, norm: Norm, epsilon: f64) -> usize {
    let out = g.like(x);
    g.push(Op::Norm { x, residual: Some(residual), norm, epsilon, sum: None, out });
    out
}

struct Source {
    tensors: Tensors,
    prefix: &'static str,
    /// Whether numbers are looked at.
    reads: bool,
}

impl Source {
    fn open(path: &Path, reads: bool) -> Result<Self, EngineError> {
        let tensors = Tensors::open_safetensors(path)?;
        let has = |prefix: &&str| tensors.has(&format!("{prefix}embeddings.word_embeddings.weight"));
        let prefix = ["bert.", "roberta."].into_iter().find(has).unwrap_or_default();
        Ok(Self { tensors, prefix, reads })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let name = format!("{}{name}", self.prefix);
        if self.reads {
            self.tensors.values(&name, shape)?;
        }
        Ok(self.tensors.get(&name, shape)?)
    }

    fn linear(&self, g: &mut Builder, name: &str, inputs: usize, outputs: usize) -> Result<Part, EngineError> {
        let weight = g.weight(self.tensor(&format!("{name}.weight"), &[outputs, inputs])?);
        let bias: Weight = g.weight(self.tensor(&format!("{name}.bias"), &[outputs])?);
        Ok(Part { weight, bias: Some(bias) })
    }

    fn norm(&self, g: &mut Builder, name: &str, width: usize) -> Result<Norm, EngineError> {
        let gamma = g.weight(self.tensor(&format!("{name}.weight"), &[width])?);
        let beta = g.weight(self.tensor(&format!("{name}.bias"), &[width])?);
        Ok(Norm::Layer { gamma, beta })
    }
}

//! The weights of a BERT or RoBERTa encoder, gathered by the names transformers or GGUF gives them, and the graph they make.
//!
//! What must hold: every tensor has the shape the configuration asks for. A prefix with the family's name (task models) is
//! understood. Of GGUF every tensor is used: one more would be of a model that is not this.

use std::path::Path;

use kedge_formats::{Gguf, Tensor, Tensors};

use super::config::EncoderConfig;
use super::source::Source;
use crate::EngineError;
use crate::graph::{Activation, Builder, Graph, Heads, Norm, Op, Part, Weight};

/// The graph of the encoder whose weights are the safetensors file at `path`: every tensor by its shape, and where `reads`
/// says so its numbers.
pub fn read(path: &Path, config: &EncoderConfig, reads: bool) -> Result<Graph, EngineError> {
    let tensors = Tensors::open_safetensors(path)?;
    let has = |prefix: &&str| tensors.has(&format!("{prefix}embeddings.word_embeddings.weight"));
    let prefix = ["bert.", "roberta."].into_iter().find(has).unwrap_or_default();
    build(&Reader { source: Source::folder(tensors), prefix, reads }, config)
}

/// The same of a GGUF file.
pub fn of_gguf(file: &Gguf, config: &EncoderConfig, reads: bool) -> Result<Graph, EngineError> {
    let reader = Reader { source: Source::gguf(file), prefix: "", reads };
    let graph = build(&reader, config)?;
    reader.source.all_used(&[], "is in the file, and an encoder that makes vectors has none")?;
    Ok(graph)
}

fn build(source: &Reader, config: &EncoderConfig) -> Result<Graph, EngineError> {
    let (d, epsilon) = (config.hidden, config.epsilon);
    let mut g = Builder::default();
    let words = g.weight(source.tensor("embeddings.word_embeddings.weight", &[config.vocabulary, d])?);
    let table = config.first_position + config.positions;
    let table = source.tensor("embeddings.position_embeddings.weight", &[table, d])?;
    let positions = Some(g.weight(table.slice_rows(config.first_position..table.rows())));
    let types = match config.types {
        0 => None,
        types => Some(g.weight(source.tensor("embeddings.token_type_embeddings.weight", &[types, d])?)),
    };
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

/// Reads tensors by the names that transformers has for them.
struct Reader {
    source: Source,
    /// What names of safetensors begin with.
    prefix: &'static str,
    /// Whether numbers are looked at.
    reads: bool,
}

/// What GGUF calls them (llama.cpp's `tensor_mapping.py`), in a layer and outside.
const GGUF_NAMES: [(&str, &str); 12] = [
    ("embeddings.word_embeddings", "token_embd"),
    ("embeddings.position_embeddings", "position_embd"),
    ("embeddings.token_type_embeddings", "token_types"),
    ("embeddings.LayerNorm", "token_embd_norm"),
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
    ("output.LayerNorm", "layer_output_norm"),
];

impl Reader {
    fn name(&self, name: &str) -> String {
        if !self.source.is_gguf {
            return format!("{}{name}", self.prefix);
        }
        let (place, kind) = name.rsplit_once('.').unwrap_or((name, "weight"));
        let (before, part) = match place.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => (format!("blk.{layer}."), part),
            None => (String::new(), place),
        };
        let found = GGUF_NAMES.iter().find(|(known, _)| *known == part);
        let (_, new) = found.expect("every tensor that is asked for has a name");
        format!("{before}{new}.{kind}")
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let name = self.name(name);
        if self.reads {
            self.source.tensors.values(&name, shape)?;
        }
        self.source.tensor(&name, shape)
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

//! The weights of a BERT encoder, gathered by the names transformers gives them.
//!
//! What must hold: every tensor has the shape the configuration asks for. Query, key and value are joined into one
//! matrix here, so that a layer's first product is one product. A `bert.` prefix (task models) is understood.

use std::path::Path;

use super::config::EncoderConfig;
use super::safetensors::SafetensorsFile;
use crate::EngineError;

/// A matrix of `outputs` rows by `inputs` columns and its bias: `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Row-major, one row for each output.
    pub weight: Vec<f32>,
    /// One for each output.
    pub bias: Vec<f32>,
    /// Width of what goes in.
    pub inputs: usize,
    /// Width of what comes out.
    pub outputs: usize,
}

/// Scale and shift of a layer norm.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The scale.
    pub gamma: Vec<f32>,
    /// The shift.
    pub beta: Vec<f32>,
}

/// One layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Query, key and value, joined: `3 · hidden` outputs.
    pub qkv: Linear,
    /// After attention.
    pub attention_output: Linear,
    /// After attention and its residual.
    pub attention_norm: Norm,
    /// The widening half of the feed-forward part.
    pub up: Linear,
    /// The narrowing half.
    pub down: Linear,
    /// At the end of the layer.
    pub output_norm: Norm,
}

/// All of them.
#[derive(Clone, Debug)]
pub struct EncoderWeights {
    /// One row for each token id.
    pub words: Vec<f32>,
    /// One row for each position.
    pub positions: Vec<f32>,
    /// One row for each token type.
    pub types: Vec<f32>,
    /// After the sum of the three.
    pub embedding_norm: Norm,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
}

impl EncoderWeights {
    /// Reads them from the safetensors file at `path`.
    pub fn read(path: &Path, config: &EncoderConfig) -> Result<Self, EngineError> {
        Self::take(&Source::open(path, true)?, config)
    }

    fn take(source: &Source, config: &EncoderConfig) -> Result<Self, EngineError> {
        let d = config.hidden;
        Ok(Self {
            words: source.tensor("embeddings.word_embeddings.weight", &[config.vocabulary, d])?,
            positions: source.tensor("embeddings.position_embeddings.weight", &[config.positions, d])?,
            types: source.tensor("embeddings.token_type_embeddings.weight", &[config.types, d])?,
            embedding_norm: source.norm("embeddings.LayerNorm", d)?,
            layers: (0..config.layers).map(|index| source.layer(index, config)).collect::<Result<_, _>>()?,
        })
    }

    /// Whether the file at `path` has all the tensors that [`EncoderWeights::read`] needs, in their shapes, without
    /// reading any.
    pub fn check(path: &Path, config: &EncoderConfig) -> Result<(), EngineError> {
        Self::take(&Source::open(path, false)?, config).map(drop)
    }
}

struct Source {
    file: SafetensorsFile,
    prefix: &'static str,
    /// Whether numbers are read; otherwise every tensor that fits is empty.
    reads: bool,
}

impl Source {
    fn open(path: &Path, reads: bool) -> Result<Self, EngineError> {
        let file = SafetensorsFile::open(path)?;
        let prefix = if file.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        Ok(Self { file, prefix, reads })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        let name = format!("{}{name}", self.prefix);
        if self.reads { self.file.tensor(&name, shape) } else { self.file.check(&name, shape).map(|_| Vec::new()) }
    }

    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<Linear, EngineError> {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok(Linear { weight, bias: self.tensor(&format!("{name}.bias"), &[outputs])?, inputs, outputs })
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, EngineError> {
        Ok(Norm {
            gamma: self.tensor(&format!("{name}.weight"), &[width])?,
            beta: self.tensor(&format!("{name}.bias"), &[width])?,
        })
    }

    fn layer(&self, index: usize, config: &EncoderConfig) -> Result<Layer, EngineError> {
        let (d, wide) = (config.hidden, config.intermediate);
        let at = |part: &str| format!("encoder.layer.{index}.{part}");
        let mut qkv = self.linear(&at("attention.self.query"), d, d)?;
        for part in ["key", "value"] {
            let more = self.linear(&at(&format!("attention.self.{part}")), d, d)?;
            qkv.weight.extend(more.weight);
            qkv.bias.extend(more.bias);
            qkv.outputs += d;
        }
        Ok(Layer {
            qkv,
            attention_output: self.linear(&at("attention.output.dense"), d, d)?,
            attention_norm: self.norm(&at("attention.output.LayerNorm"), d)?,
            up: self.linear(&at("intermediate.dense"), d, wide)?,
            down: self.linear(&at("output.dense"), wide, d)?,
            output_norm: self.norm(&at("output.LayerNorm"), d)?,
        })
    }
}

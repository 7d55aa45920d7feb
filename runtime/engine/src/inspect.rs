//! What a folder holds, without loading it: whether this engine could serve it, and why not.
#![allow(clippy::disallowed_methods, reason = "a shell: a model's own files, read and never written")]

use std::fs::File;
use std::path::Path;

use crate::EngineError;
use crate::encoder::locate;
use crate::model::{EncoderConfig, EncoderWeights};

/// The format of the model at `path` (a folder, or its `.safetensors` file), such as `bert`. Reads its settings and the
/// headers of its weights; numbers in the weights are looked at when the model is opened.
pub fn inspect(path: &Path) -> Result<String, EngineError> {
    let (directory, weights) = locate(path);
    let config = EncoderConfig::read(&directory)?;
    EncoderWeights::check(&weights, &config)?;
    let tokenizer = directory.join("tokenizer.json");
    match File::open(&tokenizer) {
        Ok(_) => Ok("bert".into()),
        Err(source) => Err(EngineError::Read { path: tokenizer, source }),
    }
}

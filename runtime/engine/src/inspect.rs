//! What a folder holds, without loading it: whether this engine could serve it, and why not.

use std::path::Path;

use crate::EngineError;
use crate::encoder::{locate, read_tokenizer};
use crate::model::{EncoderConfig, bert};

/// The format of the model at `path` (a folder, or its `.safetensors` file), such as `bert`. Reads its settings and the
/// tokenizer, and the header of its weights: every tensor by its shape. The numbers are looked at when the model is opened.
pub fn inspect(path: &Path) -> Result<String, EngineError> {
    let (directory, weights) = locate(path);
    let config = EncoderConfig::read(&directory)?;
    bert::check(&weights, &config)?;
    read_tokenizer(&directory.join("tokenizer.json"), &config)?;
    Ok("bert".into())
}

//! What a folder holds, without loading it: whether this engine could serve it, and why not.

use std::path::Path;

use crate::EngineError;
use crate::encoder::{locate, read_tokenizer};
use crate::generate::Decoder;
use crate::model::config::{ENCODERS, read_json};
use crate::model::{EncoderConfig, bert, gguf_file};

/// Whether the model at `path` says of itself that it turns texts into vectors.
pub fn is_encoder(path: &Path) -> bool {
    let (directory, _) = locate(path);
    let settings = read_json::<serde_json::Value>(&directory.join("config.json"));
    gguf_file(path).is_none()
        && settings.is_ok_and(|settings| ENCODERS.iter().any(|family| settings["model_type"] == *family))
}

/// The format of the model at `path` (a folder, or its `.safetensors` file), such as `bert`. Reads its settings and the
/// tokenizer, and the header of its weights: every tensor by its shape. The numbers are looked at when the model is opened.
pub fn inspect(path: &Path) -> Result<String, EngineError> {
    // What says nothing of itself is told what an encoder lacks, as before there were others.
    if gguf_file(path).is_some() || is_decoder(path) {
        return Decoder::inspect(path);
    }
    let (directory, weights) = locate(path);
    let config = EncoderConfig::read(&directory)?;
    bert::check(&weights, &config)?;
    read_tokenizer(&directory.join("tokenizer.json"), &config)?;
    Ok(config.family.into())
}

/// Whether the model at `path` names the class of a decoder.
fn is_decoder(path: &Path) -> bool {
    let (directory, _) = locate(path);
    let settings = read_json::<serde_json::Value>(&directory.join("config.json"));
    settings
        .is_ok_and(|settings| settings["architectures"][0].as_str().is_some_and(|name| name.ends_with("ForCausalLM")))
}

//! What a folder holds, without loading it: whether this engine could serve it, and why not.

use std::path::Path;

use kedge_formats::Gguf;

use crate::EngineError;
use crate::encoder::{locate, read};
use crate::generate::Decoder;
use crate::model::config::{ENCODERS, GGUF_ENCODER, read_json};
use crate::model::gguf_file;

/// Whether the model at `path` says of itself that it turns texts into vectors.
pub fn is_encoder(path: &Path) -> bool {
    if let Some(path) = gguf_file(path) {
        return Gguf::open(&path)
            .is_ok_and(|file| file.text("general.architecture").is_ok_and(|name| name == GGUF_ENCODER));
    }
    let (directory, _) = locate(path);
    let settings = read_json::<serde_json::Value>(&directory.join("config.json"));
    settings.is_ok_and(|settings| ENCODERS.iter().any(|family| settings["model_type"] == *family))
}

/// The format of the model at `path` (a folder, or its file), such as `bert`. Reads its settings and the tokenizer, and the
/// header of its weights: every tensor by its shape. The numbers are looked at when the model is opened.
pub fn inspect(path: &Path) -> Result<String, EngineError> {
    // What says nothing of itself is told what an encoder lacks, as before there were others.
    if gguf_file(path).is_some() && !is_encoder(path) || is_decoder(path) {
        return Decoder::inspect(path);
    }
    let (config, ..) = read(path, false)?;
    Ok(config.family.into())
}

/// Whether the model at `path` names the class of a decoder.
fn is_decoder(path: &Path) -> bool {
    let (directory, _) = locate(path);
    let settings = read_json::<serde_json::Value>(&directory.join("config.json"));
    gguf_file(path).is_none()
        && settings.is_ok_and(|settings| {
            settings["architectures"][0].as_str().is_some_and(|name| name.ends_with("ForCausalLM"))
        })
}

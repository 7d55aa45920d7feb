//! What a model is, without loading it: its kind, whether this engine could serve it, and why not.

use std::path::Path;

use kedge_formats::Gguf;
use serde_json::Value;

use crate::EngineError;
use crate::encoder::read;
use crate::generate::Decoder;
use crate::model::Location;
use crate::model::config::{ENCODERS, GGUF_ENCODER};
use crate::model::settings::read_json;

/// What a model makes of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Vectors.
    Encoder,
    /// More text.
    Decoder,
}

/// What the model at `path` says that it is. A class of decoders counts more than the family, some of which have both; a
/// folder that names no architecture is checked as an encoder.
fn kind(path: &Path) -> Result<Kind, EngineError> {
    let at = Location::of(path)?;
    let is_encoder = if at.is_gguf() {
        Gguf::open(&at.weights)?.text("general.architecture")? == GGUF_ENCODER
    } else {
        let settings: Value = read_json(&at.folder.join("config.json"))?;
        let is_family = ENCODERS.iter().any(|family| settings["model_type"] == *family);
        settings["architectures"][0].as_str().is_none_or(|class| is_family && !class.ends_with("ForCausalLM"))
    };
    Ok(if is_encoder { Kind::Encoder } else { Kind::Decoder })
}

/// Whether the model at `path` says of itself that it turns texts into vectors.
pub fn is_encoder(path: &Path) -> bool {
    kind(path).is_ok_and(|kind| kind == Kind::Encoder)
}

/// The format of the model at `path` (a folder, or its file), such as `bert`. Reads its settings and the tokenizer, and the
/// header of its weights: every tensor by its shape. The numbers are looked at when the model is opened.
pub fn inspect(path: &Path) -> Result<String, EngineError> {
    match kind(path)? {
        Kind::Encoder => Ok(read(path, false)?.0.family.into()),
        Kind::Decoder => Decoder::inspect(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is served as an encoder, and what is said of its files; what is served is what is looked at.
    fn check(files: &[(&str, &str)], encodes: bool, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            #[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(is_encoder(folder.path()), encodes, "{files:?}");
        let said = inspect(folder.path()).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }

    #[test]
    fn a_model_is_served_as_what_it_is_looked_at() {
        let class = |family: &str, class: &str| format!(r#"{{"model_type":{family:?},"architectures":[{class:?}]}}"#);
        let settings = |text: &str, encodes, expected| check(&[("config.json", text)], encodes, expected);
        settings(&class("bert", "BertModel"), true, "config.json: hidden_act: ");
        settings(&class("xlm-roberta", "XLMRobertaForMaskedLM"), true, "config.json: hidden_act: ");
        settings(
            &class("xlm-roberta", "XLMRobertaForCausalLM"),
            false,
            "\"XLMRobertaForCausalLM\" is not supported; Llama",
        );
        settings(&class("t5", "T5Model"), false, "architectures: \"T5Model\" is not supported; Llama");
        settings(&class("qwen3", "Qwen3ForCausalLM"), false, "config.json: num_attention_heads: ");
        settings(r#"{"model_type":"bert"}"#, true, "config.json: hidden_act: ");
        settings("{}", true, "config.json: model_type: null is not supported; bert or roberta");
        check(&[], false, "config.json: No such file");
        let modules =
            r#"[{"type":"sentence_transformers.models.Transformer"},{"type":"sentence_transformers.models.Pooling"}]"#;
        let folder = [("config.json", &*class("qwen3", "Qwen3ForCausalLM")), ("modules.json", modules)];
        check(&folder, false, "modules.json: [1].type: Pooling makes a vector of a text");
    }
}

//! The small JSON files beside the weights: `config.json`, `sentence_bert_config.json`, `modules.json` and
//! `1_Pooling/config.json`, as transformers and sentence-transformers write them; and the metadata of an encoder in GGUF, as
//! llama.cpp's converter writes it (`conversion/bert.py`).
//!
//! What must hold: a setting that would change the numbers and is not supported is refused, never passed over.

use std::path::{Component, Path};

use kedge_formats::Gguf;
use serde_json::Value;

use super::settings::{Fields, Keys, if_there};
use crate::EngineError;
use crate::graph::Pooling;

/// Families of encoders: BERT (MiniLM, BGE, E5 are such), and RoBERTa, whose positions begin later (multilingual E5, BGE-M3).
pub(crate) const ENCODERS: [&str; 3] = ["bert", "roberta", "xlm-roberta"];

/// What GGUF files call all of them.
pub(crate) const GGUF_ENCODER: &str = "bert";

/// The shape of an encoder and what surrounds it.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// The family, as `model_type` names it.
    pub family: &'static str,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Attention heads in a layer.
    pub heads: usize,
    /// Width inside the feed-forward part.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Longest sequence the position table knows.
    pub positions: usize,
    /// The row of the table that the first token has.
    pub first_position: usize,
    /// Number of token types (segments); zero where there are none.
    pub types: usize,
    /// Added to the variance in layer norm.
    pub epsilon: f64,
    /// How a text's vector comes out of its tokens'.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length one.
    pub normalize: bool,
    /// Longest sequence, the special tokens included; what is over it is cut off.
    pub sequence_max: usize,
}

impl EncoderConfig {
    /// Reads the settings of the model in `directory`.
    pub fn read(directory: &Path) -> Result<Self, EngineError> {
        let file = Fields::open(&directory.join("config.json"))?;
        file.must_be("model_type", &ENCODERS)?;
        let family = ENCODERS.into_iter().find(|family| file.json["model_type"] == *family).expect("it is one of them");
        file.must_be("hidden_act", &["gelu"])?;
        file.must_be_or_absent("position_embedding_type", &["absolute"])?;
        let (hidden, vocabulary) = (file.number("hidden_size")?, file.number("vocab_size")?);
        let (pooling, normalize) = read_modules(directory, hidden)?;
        // RoBERTa's first token has the position behind that of padding, and those before it are never met.
        let first_position = match (family, &*file.tokens("pad_token_id", vocabulary)?) {
            ("bert", _) => 0,
            (_, []) => 2,
            (_, [padding, ..]) => *padding as usize + 1,
        };
        let table = file.number("max_position_embeddings")?;
        let positions = table.checked_sub(first_position).filter(|positions| *positions > 0).ok_or_else(|| {
            file.wrong("max_position_embeddings", format!("{table} leaves none behind position {first_position}"))
        })?;
        let config = Self {
            family,
            hidden,
            layers: file.number("num_hidden_layers")?,
            heads: file.number("num_attention_heads")?,
            intermediate: file.number("intermediate_size")?,
            vocabulary,
            positions,
            first_position,
            types: file.number("type_vocab_size")?,
            epsilon: file.epsilon("layer_norm_eps")?,
            pooling,
            normalize,
            sequence_max: read_sequence_max(directory)?.unwrap_or(positions).min(positions),
        };
        config.check(["num_attention_heads", "hidden_size"], |field, reason| file.wrong(field, reason))
    }

    /// From the metadata of a GGUF file. It says neither whether vectors are scaled to length one, which llama.cpp does, nor
    /// sentence-transformers' longest sequence, for which `sentence_bert_config.json` may lie beside it.
    pub fn of_gguf(file: &Gguf) -> Result<Self, EngineError> {
        let keys = Keys { file, prefix: GGUF_ENCODER };
        let name = file.text("general.architecture")?;
        if name != GGUF_ENCODER {
            let reason = format!("{name:?} is not supported; {GGUF_ENCODER} is");
            return Err(Keys { file, prefix: "general" }.wrong("architecture", reason));
        }
        let epsilon = keys.epsilon("attention.layer_norm_epsilon")?;
        if keys.maybe("attention.causal", Gguf::flag)? == Some(true) {
            return Err(keys.wrong("attention.causal", "true is not supported; every token looks at all others"));
        }
        let pooling = match keys.maybe("pooling_type", Gguf::number)? {
            // None is as of a bare model in a folder.
            None | Some(1) => Pooling::Mean,
            Some(2) => Pooling::Cls,
            Some(3) => Pooling::Last,
            Some(other) => {
                let reason = format!("{other} is not supported; 1 (mean), 2 (first token) and 3 (last token) are");
                return Err(keys.wrong("pooling_type", reason));
            }
        };
        let positions = keys.number("context_length")?;
        let folder = file.tensors.path().parent().filter(|parent| !parent.as_os_str().is_empty());
        let sequence_max = read_sequence_max(folder.unwrap_or(Path::new(".")))?;
        let of_all = Keys { file, prefix: "tokenizer.ggml" };
        let types = if file.tensors.has("token_types.weight") { of_all.number("token_type_count")? } else { 0 };
        let config = Self {
            family: GGUF_ENCODER,
            hidden: keys.number("embedding_length")?,
            layers: keys.number("block_count")?,
            heads: keys.number("attention.head_count")?,
            intermediate: keys.number("feed_forward_length")?,
            vocabulary: keys.vocabulary()?,
            positions,
            // The table of positions of a RoBERTa has lost what stands before the first.
            first_position: 0,
            types,
            epsilon,
            pooling,
            normalize: true,
            sequence_max: sequence_max.unwrap_or(positions).min(positions),
        };
        config.check(["attention.head_count", &keys.at("embedding_length")], |key, reason| keys.wrong(key, reason))
    }

    /// `heads` and `hidden` are what the file calls those.
    fn check(
        self,
        [heads, hidden]: [&str; 2],
        wrong: impl Fn(&str, String) -> EngineError,
    ) -> Result<Self, EngineError> {
        if !self.hidden.is_multiple_of(self.heads) {
            let reason = format!("{} does not divide {hidden} {}", self.heads, self.hidden);
            return Err(wrong(heads, reason));
        }
        Ok(self)
    }
}

/// The type of a module of sentence-transformers', and the last part of its name.
fn module_type(module: &Fields) -> Result<(&str, &str), EngineError> {
    let kind = module.text("type")?.unwrap_or_default();
    Ok((kind, kind.rsplit('.').next().unwrap_or_default()))
}

/// Refuses a decoder that sentence-transformers makes vectors with (Qwen3-Embedding): its folder names the class of one that
/// makes text, and `modules.json` what becomes of it.
pub(super) fn refuse_pooled(directory: &Path) -> Result<(), EngineError> {
    let modules = if_there(Fields::open_list(&directory.join("modules.json")))?;
    for module in modules.iter().flatten() {
        if module_type(module)?.1 == "Pooling" {
            let all = ENCODERS.join(", ");
            let reason = format!("Pooling makes a vector of a text; of such models {all} are supported");
            return Err(module.wrong("type", reason));
        }
    }
    Ok(())
}

/// Pooling and normalisation from `modules.json`. A bare transformers model has none: it is pooled by mean,
/// as sentence-transformers does when it meets one.
fn read_modules(directory: &Path, hidden: usize) -> Result<(Pooling, bool), EngineError> {
    let path = directory.join("modules.json");
    let Some(modules) = if_there(Fields::open_list(&path))? else { return Ok((Pooling::Mean, false)) };
    let (mut pooling, mut normalize) = (None, false);
    for module in &modules {
        let (kind, last) = module_type(module)?;
        match last {
            "Transformer" => {}
            "Pooling" => {
                let folder = Path::new(module.text("path")?.unwrap_or("1_Pooling"));
                if !folder.components().all(|part| matches!(part, Component::Normal(_))) {
                    return Err(module.wrong("path", format!("{folder:?} is no folder of the model")));
                }
                pooling = Some(read_pooling(&directory.join(folder).join("config.json"), hidden)?);
            }
            "Normalize" => normalize = true,
            _ => {
                let reason = format!("{kind:?} is not supported; Transformer, Pooling and Normalize are");
                return Err(module.wrong("type", reason));
            }
        }
    }
    let pooling = pooling.ok_or_else(|| EngineError::Field {
        path,
        field: "[].type".into(),
        reason: "no Pooling module: one vector for each text needs one".into(),
    })?;
    Ok((pooling, normalize))
}

fn read_pooling(path: &Path, hidden: usize) -> Result<Pooling, EngineError> {
    let file = Fields::open(path)?;
    let width = &file.json["word_embedding_dimension"];
    if !width.is_null() && width != hidden {
        return Err(file.wrong("word_embedding_dimension", format!("{width} is not the model's hidden_size {hidden}")));
    }
    let known = [
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let mut chosen = None;
    for (field, on) in file.json.as_object().into_iter().flatten() {
        match on {
            _ if !field.starts_with("pooling_mode_") => continue,
            Value::Bool(false) => continue,
            Value::Bool(true) => {}
            other => return Err(file.wrong(field, format!("must be true or false, is {other}"))),
        }
        let pooling = known.iter().find(|(name, _)| name == field).map(|(_, pooling)| *pooling);
        let others = "is not supported; cls_token, mean_tokens, max_tokens and lasttoken are";
        let pooling = pooling.ok_or_else(|| file.wrong(field, others))?;
        if chosen.replace(pooling).is_some() {
            return Err(file.wrong(field, "a second pooling mode is on; joined poolings are not supported"));
        }
    }
    chosen.ok_or_else(|| file.wrong("pooling_mode_mean_tokens", "no pooling mode is on"))
}

fn read_sequence_max(directory: &Path) -> Result<Option<usize>, EngineError> {
    let file = Fields::open_if_there(&directory.join("sentence_bert_config.json"))?;
    if file.json["max_seq_length"].is_null() {
        return Ok(None);
    }
    let length = file.number("max_seq_length")?;
    if length < 3 {
        return Err(
            file.wrong("max_seq_length", format!("{length} leaves no room for a token between the special ones"))
        );
    }
    Ok(Some(length))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
mod tests {
    use super::*;

    fn check(config: &str, pooling: &str, expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("1_Pooling")).unwrap();
        std::fs::write(directory.path().join("config.json"), config).unwrap();
        std::fs::write(directory.path().join("modules.json"), r#"[{"type":"sentence_transformers.models.Transformer","path":""},{"type":"sentence_transformers.models.Pooling","path":"1_Pooling"}]"#).unwrap();
        std::fs::write(directory.path().join("1_Pooling/config.json"), pooling).unwrap();
        let said = match EncoderConfig::read(directory.path()) {
            Ok(config) => format!("{:?} {}", config.pooling, config.sequence_max),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }

    const GOOD: &str = r#"{"model_type":"bert","hidden_act":"gelu","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,"intermediate_size":16,"vocab_size":9,"max_position_embeddings":12,"type_vocab_size":2,"layer_norm_eps":1e-12}"#;

    #[test]
    fn settings_are_taken_or_refused_by_name() {
        let mean = r#"{"pooling_mode_mean_tokens":true}"#;
        check(GOOD, mean, "Mean 12");
        check(GOOD, r#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#, "Cls 12");
        check(GOOD, r#"{"pooling_mode_cls_token":true,"pooling_mode_max_tokens":true}"#, "joined poolings");
        check(GOOD, r#"{"pooling_mode_lasttoken":true}"#, "Last 12");
        let weighted = r#"{"pooling_mode_weightedmean_tokens":true}"#;
        check(GOOD, weighted, "1_Pooling/config.json: pooling_mode_weightedmean_tokens: is not supported; cls_token");
        check(&GOOD.replace("\"gelu\"", "\"relu\""), mean, "config.json: hidden_act: \"relu\" is not supported");
        check(&GOOD.replace("\"bert\"", "\"llama\""), mean, "config.json: model_type");
        check(&GOOD.replace("heads\":2", "heads\":3"), mean, "num_attention_heads: 3 does not divide");
        check(
            &GOOD.replace("\"vocab_size\":9", "\"vocab_size\":-9"),
            mean,
            "vocab_size: must be a whole number, is -9",
        );
        check(&GOOD.replace("1e-12", "0"), mean, "layer_norm_eps");
        check("{", mean, "config.json: EOF while parsing");
        check(&GOOD.replace("1e-12", "7"), mean, "config.json: layer_norm_eps: 7 is not between 0 and 1");
        check(
            GOOD,
            r#"{"pooling_mode_mean_tokens":"yes"}"#,
            "pooling_mode_mean_tokens: must be true or false, is \"yes\"",
        );
        let width = r#"{"word_embedding_dimension":16,"pooling_mode_mean_tokens":true}"#;
        check(GOOD, width, "word_embedding_dimension: 16 is not the model's hidden_size 8");
        check(GOOD, &width.replace("16", "8"), "Mean 12");
        // RoBERTa's positions begin behind that of padding.
        let roberta = |padding: &str| {
            GOOD.replace("\"bert\"", "\"roberta\"")
                .replace("\"hidden_act", &format!("\"pad_token_id\":{padding},\"hidden_act"))
        };
        check(&roberta("null"), mean, "Mean 10");
        check(&roberta("1"), mean, "Mean 10");
        check(&roberta("0"), mean, "Mean 11");
        check(&roberta("9"), mean, "config.json: pad_token_id: 9 is no token; their ids are below 9");
        check(&roberta("-1"), mean, "config.json: pad_token_id: -1 is no token");
    }

    #[test]
    fn the_folder_of_pooling_is_one_of_the_model() {
        for (place, expected) in [
            ("1_Pooling", "1_Pooling/config.json"),
            ("a/b", "a/b/config.json"),
            ("../m", "modules.json: [0].path: \"../m\" is no folder of the model"),
            ("/etc", "modules.json: [0].path: \"/etc\" is no folder of the model"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let modules = serde_json::json!([{"type": "x.Pooling", "path": place}]);
            std::fs::write(directory.path().join("modules.json"), modules.to_string()).unwrap();
            let said = read_modules(directory.path(), 8).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }
}

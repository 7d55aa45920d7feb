//! Decoders: their settings from `config.json` or GGUF metadata.
//!
//! A family that is not in the table (`family.rs`) is refused by name. What must hold: a setting that would change the
//! numbers and is not supported is refused, never passed over. Sources: transformers' `configuration_*.py`; ggml's `gguf.md`
//! and llama.cpp's `llama-arch.cpp` for the keys of GGUF. Not here: the graph (`decoder_graph.rs`).

use std::path::Path;

use kedge_formats::Gguf;
use serde_json::Value as Json;

use super::config::refuse_pooled;
use super::family::{FAMILIES, Family, Window};
use super::rope::Turning;
use super::settings::{Fields, Keys};
use crate::EngineError;
use crate::generate::sample::VOCABULARY_MAX;
use crate::graph::{Activation, Heads, Rope};

/// The widest head; the widest there is has an eighth of it.
const HEAD_MAX: usize = 1 << 12;

/// The shape of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// The family.
    pub family: &'static Family,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Heads of attention.
    pub heads: Heads,
    /// Width inside the feed-forward part, of one expert where there are such.
    pub intermediate: usize,
    /// Number of token ids.
    pub vocabulary: usize,
    /// Most tokens that prompt and answer may have together.
    pub context: usize,
    /// Added to the mean square in norms.
    pub epsilon: f64,
    /// What products of queries and keys are multiplied by.
    pub scale: f64,
    /// How queries and keys are turned.
    pub rope: Rope,
    /// How they are turned in layers with a window, where that differs (Gemma 3).
    pub rope_window: Option<Rope>,
    /// How far back layers with a window look.
    pub window: Option<usize>,
    /// Bound of the products of queries and keys.
    pub softcap: Option<f64>,
    /// Bound of the logits.
    pub softcap_logits: Option<f64>,
    /// Inside the feed-forward part.
    pub activation: Activation,
    /// Experts, where there are such.
    pub experts: Option<Experts>,
    /// Whether the matrix of the logits is that of the embeddings.
    pub tied: bool,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many each token is sent to.
    pub used: usize,
    /// Whether the weights of those are scaled to a sum of one.
    pub normalize: bool,
}

impl DecoderConfig {
    /// From the `config.json` at `path`.
    pub fn of_json(path: &Path) -> Result<Self, EngineError> {
        let file = Fields::open(path)?;
        let name = file.list("architectures")?.first().and_then(Json::as_str).unwrap_or_default();
        let family = Family::of_class(name).ok_or_else(|| {
            let known = FAMILIES.each_ref().map(|family| family.hugging_face).join(", ");
            file.wrong(
                "architectures",
                format!("{name:?} is not supported; {known}, BertModel, RobertaModel and XLMRobertaModel are"),
            )
        })?;
        refuse_pooled(path.parent().unwrap_or(Path::new("")))?;
        let heads = file.number("num_attention_heads")?;
        let hidden = file.number("hidden_size")?;
        let width = file.number_or("head_dim", family.head_dim.unwrap_or(hidden / heads))?;
        if width > HEAD_MAX {
            return Err(file.wrong("head_dim", format!("heads of {width} are wider than every model's")));
        }
        let context = file.number("max_position_embeddings")?;
        let turning = Turning::of_json(&file, width, context)?;
        // Queries that look back less, and layers of two kinds, are not here.
        for (field, harmless) in [("use_sliding_window", Json::from(false)), ("decoder_sparse_step", Json::from(1))] {
            if !file.json[field].is_null() && file.json[field] != harmless {
                return Err(file.wrong(field, format!("{} is not supported", file.json[field])));
            }
        }
        let experts = ["num_local_experts", "num_experts"].into_iter().find(|field| !file.json[*field].is_null());
        let experts = match experts {
            None => None,
            Some(field) => Some(Experts {
                count: file.number(field)?,
                used: file.number("num_experts_per_tok")?,
                normalize: file.flag("norm_topk_prob")?.unwrap_or(family.normalize),
            }),
        };
        let inner = if experts.is_some() && !file.json["moe_intermediate_size"].is_null() {
            "moe_intermediate_size"
        } else {
            "intermediate_size"
        };
        if experts.is_some() && !file.list("mlp_only_layers")?.is_empty() {
            return Err(file.wrong("mlp_only_layers", "layers without experts among others are not supported"));
        }
        let config = Self {
            family,
            hidden,
            layers: file.number("num_hidden_layers")?,
            heads: Heads { query: heads, key: file.number_or("num_key_value_heads", heads)?, width },
            intermediate: file.number(inner)?,
            vocabulary: file.number("vocab_size")?,
            context,
            epsilon: file.epsilon("rms_norm_eps")?,
            scale: file.positive_if_there("query_pre_attn_scalar")?.unwrap_or(width as f64).powf(-0.5),
            rope: turning.all,
            rope_window: turning.window,
            window: file.window(family)?,
            softcap: file.positive_if_there("attn_logit_softcapping")?,
            softcap_logits: file.positive_if_there("final_logit_softcapping")?,
            activation: activation(&file)?,
            experts,
            tied: file.flag("tie_word_embeddings")?.unwrap_or(family.gemma),
        };
        config.check(|(field, _), reason| file.wrong(field, reason))
    }

    /// From the metadata of a GGUF file.
    pub fn of_gguf(file: &Gguf) -> Result<Self, EngineError> {
        let name = file.text("general.architecture")?;
        let keys = Keys { file, prefix: name };
        let window = keys.maybe("attention.sliding_window", Gguf::number)?;
        let family = Family::of_gguf(name, window.is_some_and(|window| window > 0)).ok_or_else(|| {
            let mut known = FAMILIES.each_ref().map(|family| family.gguf).to_vec();
            known.dedup();
            let reason = format!("{name:?} is not supported; {} and bert are", known.join(", "));
            Keys { file, prefix: "general" }.wrong("architecture", reason)
        })?;
        let (hidden, heads) = (keys.number("embedding_length")?, keys.number("attention.head_count")?);
        let width = keys.number_or("attention.key_length", hidden / heads)?;
        let turned = keys.number_or("rope.dimension_count", width)?;
        if width > HEAD_MAX {
            let reason = format!("heads of {width} are wider than every model's");
            let key = if keys.has("attention.key_length") { "attention.key_length" } else { "embedding_length" };
            return Err(keys.wrong(key, reason));
        }
        if turned > width {
            let reason = format!("{turned} numbers of a head of {width} cannot be turned");
            return Err(keys.wrong("rope.dimension_count", reason));
        }
        let context = keys.number("context_length")?;
        let turning = Turning::of_gguf(file, family, turned, context)?;
        let experts = match keys.number_or("expert_count", 0)? {
            0 => None,
            count => {
                let normalize = keys.maybe("expert_weights_norm", Gguf::flag)?.unwrap_or(true);
                Some(Experts { count, used: keys.number("expert_used_count")?, normalize })
            }
        };
        if let Some(pooling) = keys.maybe("pooling_type", Gguf::number)?.filter(|pooling| *pooling != 0) {
            let reason = format!(
                "{pooling} is that of an encoder, which makes a vector of a text; of encoders in GGUF bert is supported"
            );
            return Err(keys.wrong("pooling_type", reason));
        }
        for (key, harmless) in HARMLESS {
            let either = |file: &Gguf, key: &str| file.float(key).or(file.flag(key).map(f64::from));
            if let Some(told) = keys.maybe(key, either)?.filter(|told| *told != harmless) {
                return Err(keys.wrong(key, format!("{told} is not supported; {harmless} is")));
            }
        }
        let inner = if experts.is_some() && keys.has("expert_feed_forward_length") {
            "expert_feed_forward_length"
        } else {
            "feed_forward_length"
        };
        // Files do not say by what width they scale; llama.cpp knows those that are special by their layers.
        let layers = keys.number("block_count")?;
        let is_largest = family.layers_largest == Some(layers);
        let scale = (if is_largest { hidden / heads } else { width } as f64).powf(-0.5);
        let config = Self {
            family,
            hidden,
            layers,
            heads: Heads { query: heads, key: keys.number_or("attention.head_count_kv", heads)?, width },
            intermediate: keys.number(inner)?,
            vocabulary: keys.vocabulary()?,
            context,
            epsilon: keys.epsilon("attention.layer_norm_rms_epsilon")?,
            scale,
            rope: turning.all,
            rope_window: turning.window,
            window: keys.window(family, layers, window.unwrap_or(family.gguf_window))?,
            softcap: keys.positive("attn_logit_softcapping")?,
            softcap_logits: keys.positive("final_logit_softcapping")?,
            activation: if family.gemma { Activation::GeluTanh } else { Activation::Silu },
            experts,
            tied: !file.tensors.has("output.weight"),
        };
        config.check(|(_, key), reason| match key.strip_prefix("tokenizer.") {
            Some(key) => Keys { file, prefix: "tokenizer" }.wrong(key, reason),
            None => keys.wrong(key, reason),
        })
    }

    /// Errors name a field of `config.json`, or that key of the architecture in GGUF.
    fn check(self, wrong: impl Fn((&str, &str), String) -> EngineError) -> Result<Self, EngineError> {
        let Heads { query, key, width } = self.heads;
        if query % key != 0 {
            let field = ("num_key_value_heads", "attention.head_count_kv");
            return Err(wrong(field, format!("{key} does not divide the {query} heads")));
        }
        if self.vocabulary > VOCABULARY_MAX {
            let reason =
                format!("{} tokens are more than {VOCABULARY_MAX}, of which one can be chosen", self.vocabulary);
            return Err(wrong(("vocab_size", "tokenizer.ggml.tokens"), reason));
        }
        for rope in [Some(&self.rope), self.rope_window.as_ref()].into_iter().flatten() {
            let pairs = rope.frequencies.len();
            if pairs == 0 || 2 * pairs > width || rope.frequencies.iter().any(|f| !f.is_finite()) {
                return Err(wrong(("rope", "rope"), format!("{pairs} pairs of a head of {width} cannot be turned")));
            }
            if !rope.magnitude.is_finite() {
                return Err(wrong(("rope", "rope"), format!("what is turned is multiplied by {}", rope.magnitude)));
            }
        }
        if self.experts.is_some_and(|experts| experts.used == 0 || experts.used > experts.count) {
            let field = ("num_experts_per_tok", "expert_used_count");
            return Err(wrong(field, "is not between 1 and the number of experts".into()));
        }
        for (field, size, most) in [
            (("num_hidden_layers", "block_count"), self.layers.saturating_mul(self.heads.qkv()), 1 << 28),
            (("hidden_size", "embedding_length"), self.hidden, 1 << 20),
        ] {
            if size > most {
                return Err(wrong(field, "is far above every model there is".into()));
            }
        }
        Ok(self)
    }

    /// The window of a layer.
    pub(super) fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| self.family.is_windowed(layer))
    }
}

impl Fields {
    fn window(&self, family: &Family) -> Result<Option<usize>, EngineError> {
        if family.window == Window::Never || self.json["sliding_window"].is_null() {
            return Ok(None);
        }
        if let Window::AllBut(every) = family.window {
            let pattern = self.number_or("sliding_window_pattern", every)?;
            let mut types = self.list("layer_types")?.iter().enumerate();
            let expected = |layer| if family.is_windowed(layer) { "sliding_attention" } else { "full_attention" };
            if pattern != every || types.any(|(layer, kind)| kind != expected(layer)) {
                return Err(
                    self.wrong("layer_types", format!("only full attention in each {every}th layer is supported"))
                );
            }
        }
        self.number("sliding_window").map(Some)
    }
}

/// Keys of an architecture with the only value that is supported: with any other, numbers would change.
const HARMLESS: [(&str, f64); 15] = [
    ("attention.causal", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.scale", 0.0),
    ("attention.shared_kv_layers", 0.0),
    ("embedding_scale", 1.0),
    ("residual_scale", 1.0),
    ("logit_scale", 1.0),
    ("expert_gating_func", 1.0),
    ("expert_group_count", 0.0),
    ("expert_shared_count", 0.0),
    ("expert_shared_feed_forward_length", 0.0),
    ("expert_weights_scale", 1.0),
    ("leading_dense_block_count", 0.0),
    ("moe_every_n_layers", 0.0),
    ("use_parallel_residual", 0.0),
];

impl Keys<'_> {
    /// How far back layers look of which the family says that they have a window, given what was told; zero is none.
    fn window(&self, family: &Family, layers: usize, told: u64) -> Result<Option<usize>, EngineError> {
        let key = "attention.sliding_window";
        if told == 0 {
            return Ok(None);
        }
        if family.window == Window::Never {
            return Err(self.wrong(key, format!("{told} is not supported; models of this architecture have none")));
        }
        // A list says which layers have it; a number, each how many'th has none, and zero that all have it.
        let fits = |file: &Gguf, key: &str| match file.number(key) {
            Ok(every) => {
                Ok((0..layers).all(|layer| family.is_windowed(layer) != (layer as u64 + 1).is_multiple_of(every)))
            }
            Err(_) => file.floats(key).map(|list| {
                list.len() == layers
                    && list.iter().enumerate().all(|(layer, on)| family.is_windowed(layer) == (*on != 0.0))
            }),
        };
        let pattern = "attention.sliding_window_pattern";
        if self.maybe(pattern, fits)? == Some(false) {
            return Err(self.wrong(pattern, "is another than models of this architecture have"));
        }
        match usize::try_from(told) {
            Ok(window) if window <= 1 << 24 => Ok(Some(window)),
            _ => Err(self.wrong(key, format!("{told} is not between 0 and {}", 1 << 24))),
        }
    }
}

fn activation(file: &Fields) -> Result<Activation, EngineError> {
    let field = if file.json["hidden_activation"].is_null() { "hidden_act" } else { "hidden_activation" };
    match file.text(field)? {
        Some("silu") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::Gelu),
        _ => {
            Err(file
                .wrong(field, format!("{} is not supported; silu, gelu and gelu_pytorch_tanh are", file.json[field])))
        }
    }
}

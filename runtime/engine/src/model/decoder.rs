//! Decoders: their settings from `config.json` or GGUF metadata, and the graph they make.
//!
//! A family that is not in the table ([`super::family`]) is refused by name. What must hold: a setting that would change the numbers and is not supported is refused, never
//! passed over. Sources: transformers' `configuration_*.py` for the settings and `modeling_*.py` for the order of
//! operations; ggml's `gguf.md` and llama.cpp's `llama-arch.cpp` for the keys and names of tensors in GGUF.

use std::collections::BTreeSet;
use std::path::Path;

use kedge_formats::{Gguf, Tensor, Tensors};
use serde_json::Value as Json;

use super::config::{Fields, read_json, refuse_pooled};
use super::family::{FAMILIES, Family, Window};
use super::rope::Turning;
use crate::EngineError;
use crate::generate::sample::VOCABULARY_MAX;
use crate::graph::{Activation, Builder, Expert, Graph, Heads, Norm, Op, Pages, Part, Rope};

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

/// Where a decoder is read from.
pub(crate) enum Source {
    /// A folder as Hugging Face has it: settings and safetensors.
    Folder(Tensors),
    /// One GGUF file.
    Gguf(Gguf),
}

impl DecoderConfig {
    /// From the `config.json` at `path`.
    pub fn of_json(path: &Path) -> Result<Self, EngineError> {
        let file = Fields { json: read_json(path)?, path: path.to_owned() };
        let name = file.json["architectures"][0].as_str().unwrap_or_default().to_owned();
        let family = Family::of_class(&name).ok_or_else(|| {
            let known = FAMILIES.each_ref().map(|family| family.hugging_face).join(", ");
            file.wrong("architectures", format!("{name:?} is not supported; {known} and BertModel are"))
        })?;
        refuse_pooled(path.parent().unwrap_or(Path::new("")))?;
        let heads = file.number("num_attention_heads")?;
        let hidden = file.number("hidden_size")?;
        let width = file.number_or("head_dim", family.head_dim.unwrap_or(hidden / heads))?;
        let optional = |field: &str| if file.json[field].is_null() { Ok(None) } else { file.positive(field).map(Some) };
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
                normalize: file.json["norm_topk_prob"].as_bool().unwrap_or(family.normalize),
            }),
        };
        let inner = if experts.is_some() && !file.json["moe_intermediate_size"].is_null() {
            "moe_intermediate_size"
        } else {
            "intermediate_size"
        };
        if experts.is_some() && file.json["mlp_only_layers"].as_array().is_some_and(|layers| !layers.is_empty()) {
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
            epsilon: file.positive("rms_norm_eps")?,
            scale: optional("query_pre_attn_scalar")?.unwrap_or(width as f64).powf(-0.5),
            rope: turning.all,
            rope_window: turning.window,
            window: file.window(family)?,
            softcap: optional("attn_logit_softcapping")?,
            softcap_logits: optional("final_logit_softcapping")?,
            activation: activation(&file)?,
            experts,
            tied: file.json["tie_word_embeddings"].as_bool().unwrap_or(family.gemma),
        };
        config.check(|(field, _), reason| file.wrong(field, reason))
    }

    /// From the metadata of a GGUF file.
    pub fn of_gguf(file: &Gguf) -> Result<Self, EngineError> {
        let wrong = |key: &str, reason: String| EngineError::Field {
            path: file.tensors.path().to_owned(),
            field: key.to_owned(),
            reason,
        };
        let name = file.text("general.architecture")?;
        let at = |key: &str| format!("{name}.{key}");
        let key = at("attention.sliding_window");
        let window = if file.has(&key) { Some(file.number(&key)?) } else { None };
        let family = Family::of_gguf(name, window.is_some_and(|window| window > 0)).ok_or_else(|| {
            let mut known = FAMILIES.each_ref().map(|family| family.gguf).to_vec();
            known.dedup();
            wrong("general.architecture", format!("{name:?} is not supported; {} and bert are", known.join(", ")))
        })?;
        let number = |key: &str| -> Result<usize, EngineError> {
            let value = file.number(&at(key))?;
            if value == 0 || value > 1 << 24 {
                return Err(wrong(&at(key), format!("{value} is not between 1 and {}", 1 << 24)));
            }
            Ok(value as usize)
        };
        let number_or = |key: &str, other: usize| if file.has(&at(key)) { number(key) } else { Ok(other) };
        let float = |key: &str| if file.has(&at(key)) { file.float(&at(key)).map(Some) } else { Ok(None) };
        let (hidden, heads) = (number("embedding_length")?, number("attention.head_count")?);
        let width = number_or("attention.key_length", hidden / heads)?;
        let turned = number_or("rope.dimension_count", width)?;
        if width > HEAD_MAX {
            let reason = format!("heads of {width} are wider than every model's");
            let key = if file.has(&at("attention.key_length")) { "attention.key_length" } else { "embedding_length" };
            return Err(wrong(&at(key), reason));
        }
        if turned > width {
            let reason = format!("{turned} numbers of a head of {width} cannot be turned");
            return Err(wrong(&at("rope.dimension_count"), reason));
        }
        let context = number("context_length")?;
        let turning = Turning::of_gguf(file, family, turned, context)?;
        let count = number_or("expert_count", 0)?;
        let experts = match count {
            0 => None,
            count => {
                let key = at("expert_weights_norm");
                let normalize = if file.has(&key) { file.flag(&key)? } else { true };
                Some(Experts { count, used: number("expert_used_count")?, normalize })
            }
        };
        let key = at("pooling_type");
        let pooling = if file.has(&key) { file.number(&key)? } else { 0 };
        if pooling != 0 {
            let reason = format!(
                "{pooling} is that of an encoder, which makes a vector of a text; of encoders in GGUF bert is supported"
            );
            return Err(wrong(&key, reason));
        }
        for (key, harmless) in HARMLESS {
            let key = at(key);
            let told = if !file.has(&key) { harmless } else { file.float(&key).or(file.flag(&key).map(f64::from))? };
            if told != harmless {
                return Err(wrong(&key, format!("{told} is not supported; {harmless} is")));
            }
        }
        let inner = if experts.is_some() && file.has(&at("expert_feed_forward_length")) {
            "expert_feed_forward_length"
        } else {
            "feed_forward_length"
        };
        // Files do not say by what width they scale; llama.cpp knows those that are special by their layers.
        let layers = number("block_count")?;
        let is_largest = family.layers_largest == Some(layers);
        let scale = (if is_largest { hidden / heads } else { width } as f64).powf(-0.5);
        let config = Self {
            family,
            hidden,
            layers,
            heads: Heads { query: heads, key: number_or("attention.head_count_kv", heads)?, width },
            intermediate: number(inner)?,
            vocabulary: file.texts("tokenizer.ggml.tokens")?.len(),
            context,
            epsilon: file.float(&at("attention.layer_norm_rms_epsilon"))?,
            scale,
            rope: turning.all,
            rope_window: turning.window,
            window: gguf_window(file, family, layers, window.unwrap_or(family.gguf_window))?,
            softcap: float("attn_logit_softcapping")?,
            softcap_logits: float("final_logit_softcapping")?,
            activation: if family.gemma { Activation::GeluTanh } else { Activation::Silu },
            experts,
            tied: !file.tensors.has("output.weight"),
        };
        let of_all = |key: &str| key.starts_with("tokenizer.");
        config.check(|(_, key), reason| wrong(&if of_all(key) { key.to_owned() } else { at(key) }, reason))
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
        if self.layers.saturating_mul(self.heads.qkv()) > 1 << 28 || self.hidden > 1 << 20 {
            return Err(wrong(("hidden_size", "embedding_length"), "is far above every model there is".into()));
        }
        Ok(self)
    }

    /// The window of a layer.
    pub(super) fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| self.family.is_windowed(layer))
    }
}

impl Fields {
    fn number_or(&self, field: &str, other: usize) -> Result<usize, EngineError> {
        if self.json[field].is_null() { Ok(other) } else { self.number(field) }
    }

    fn window(&self, family: &Family) -> Result<Option<usize>, EngineError> {
        if family.window == Window::Never || self.json["sliding_window"].is_null() {
            return Ok(None);
        }
        if let Window::AllBut(every) = family.window {
            let pattern = self.number_or("sliding_window_pattern", every)?;
            let types = self.json["layer_types"].as_array().into_iter().flatten().enumerate();
            let expected = |layer| if family.is_windowed(layer) { "sliding_attention" } else { "full_attention" };
            if pattern != every || types.clone().any(|(layer, kind)| kind != expected(layer)) {
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

/// How far back layers look of which the family says that they have a window, given what was told; zero is none.
fn gguf_window(file: &Gguf, family: &Family, layers: usize, told: u64) -> Result<Option<usize>, EngineError> {
    let at = |key: &str| format!("{}.attention.{key}", family.gguf);
    let wrong =
        |key: &str, reason: String| EngineError::Field { path: file.tensors.path().to_owned(), field: at(key), reason };
    if told == 0 {
        return Ok(None);
    }
    if family.window == Window::Never {
        return Err(wrong("sliding_window", format!("{told} is not supported; models of this architecture have none")));
    }
    let key = "sliding_window_pattern";
    if file.has(&at(key)) {
        // A list says which layers have it; a number, each how many'th has none, and zero that all have it.
        let fits = match file.number(&at(key)) {
            Ok(every) => (0..layers).all(|layer| family.is_windowed(layer) != (layer as u64 + 1).is_multiple_of(every)),
            Err(_) => {
                let list = file.floats(&at(key))?;
                list.len() == layers
                    && list.iter().enumerate().all(|(layer, on)| family.is_windowed(layer) == (*on != 0.0))
            }
        };
        if !fits {
            return Err(wrong(key, "is another than models of this architecture have".into()));
        }
    }
    match usize::try_from(told) {
        Ok(window) if window <= 1 << 24 => Ok(Some(window)),
        _ => Err(wrong("sliding_window", format!("{told} is not between 0 and {}", 1 << 24))),
    }
}

fn activation(file: &Fields) -> Result<Activation, EngineError> {
    let field = if file.json["hidden_activation"].is_null() { "hidden_act" } else { "hidden_activation" };
    match file.json[field].as_str() {
        Some("silu") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::Gelu),
        _ => {
            Err(file
                .wrong(field, format!("{} is not supported; silu, gelu and gelu_pytorch_tanh are", file.json[field])))
        }
    }
}

/// What a tensor is for, in the two ways of naming.
impl Source {
    pub(crate) fn tensors(&self) -> &Tensors {
        match self {
            Self::Folder(tensors) => tensors,
            Self::Gguf(file) => &file.tensors,
        }
    }

    fn name(&self, hugging_face: &str, gguf: &str) -> String {
        match self {
            Self::Folder(_) => hugging_face.to_owned(),
            Self::Gguf(_) => gguf.to_owned(),
        }
    }

    fn is_gguf(&self) -> bool {
        matches!(self, Self::Gguf(_))
    }
}

/// Writes the graph down, layer by layer.
struct Writer<'a> {
    g: Builder,
    source: &'a Source,
    config: &'a DecoderConfig,
    family: &'static Family,
    /// Names of the tensors that are used.
    used: BTreeSet<String>,
}

/// The graph of a decoder.
pub(crate) fn graph(source: &Source, config: &DecoderConfig) -> Result<Graph, EngineError> {
    let mut w = Writer { g: Builder::default(), source, config, family: config.family, used: BTreeSet::new() };
    let d = config.hidden;
    let table = source.name("model.embed_tokens.weight", "token_embd.weight");
    let words = w.weight(&table, &[config.vocabulary, d])?;
    let mut x = w.g.per_row(d);
    let scale = if w.family.gemma { (d as f64).sqrt() } else { 1.0 };
    w.g.push(Op::Embed { words, positions: None, types: None, scale, out: x });
    let norm = w.layer_norm(0, "input_layernorm", "attn_norm")?;
    let mut normed = w.g.norm(x, norm, config.epsilon);
    for layer in 0..config.layers {
        let attended = w.attention(layer, normed)?;
        let before = if w.family.gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let norm = w.layer_norm(layer, before, "ffn_norm")?;
        (x, normed) = w.g.add_norm(attended, x, norm, config.epsilon);
        let fed = w.feed_forward(layer, normed)?;
        let norm = if layer + 1 < config.layers {
            w.layer_norm(layer + 1, "input_layernorm", "attn_norm")?
        } else {
            let name = source.name("model.norm.weight", "output_norm.weight");
            w.norm(&name, d)?
        };
        (x, normed) = w.g.add_norm(fed, x, norm, config.epsilon);
    }
    let last = w.g.take(normed);
    let weight = if config.tied {
        words
    } else {
        w.weight(&source.name("lm_head.weight", "output.weight"), &[config.vocabulary, d])?
    };
    let mut logits = w.g.linear(last, vec![Part { weight, bias: None }], None);
    if let Some(bound) = config.softcap_logits {
        logits = w.g.softcap(logits, bound);
    }
    // Files of Hugging Face have tensors that nobody needs. In GGUF each has a use, if only for a model that is not this; who
    // read how to turn has looked at those that say it.
    if source.is_gguf() {
        w.used.extend(super::rope::TENSORS.map(str::to_owned));
        if let Some(name) = source.tensors().names().find(|name| !w.used.contains(*name)) {
            let reason = format!("is in the file, and models of the architecture {} have none", config.family.gguf);
            return Err(source.tensors().wrong(name, reason).into());
        }
    }
    let pages = Pages { layers: config.layers, heads: config.heads.key, width: config.heads.width };
    Ok(w.g.finish(logits, Some(pages)))
}

impl Writer<'_> {
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, EngineError> {
        let tensor = self.source.tensors().get(name, shape)?;
        self.used.insert(name.to_owned());
        Ok(tensor)
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<usize, EngineError> {
        let tensor = self.tensor(name, shape)?;
        Ok(self.g.weight(tensor))
    }

    fn in_layer(&self, layer: usize, hugging_face: &str, gguf: &str) -> String {
        self.source.name(&format!("model.layers.{layer}.{hugging_face}"), &format!("blk.{layer}.{gguf}"))
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm, EngineError> {
        self.source.tensors().values(name, &[width])?;
        let gamma = self.weight(name, &[width])?;
        // Files in GGUF have the one added already.
        Ok(Norm::Rms { gamma, plus_one: self.family.gemma && !self.source.is_gguf() })
    }

    fn layer_norm(&mut self, layer: usize, hugging_face: &str, gguf: &str) -> Result<Norm, EngineError> {
        let name = self.in_layer(layer, &format!("{hugging_face}.weight"), &format!("{gguf}.weight"));
        self.norm(&name, self.config.hidden)
    }

    /// A matrix of a layer with its bias, where the file has one.
    fn part(
        &mut self,
        layer: usize,
        names: (&str, &str),
        outputs: usize,
        inputs: usize,
        bias: bool,
    ) -> Result<Part, EngineError> {
        let at = |kind: &str| self.in_layer(layer, &format!("{}.{kind}", names.0), &format!("{}.{kind}", names.1));
        let (weight_name, bias_name) = (at("weight"), at("bias"));
        if !bias && self.source.tensors().has(&bias_name) {
            let reason = "is in the file, and models of this family have none";
            return Err(self.source.tensors().wrong(&bias_name, reason).into());
        }
        let weight = self.weight(&weight_name, &[outputs, inputs])?;
        let bias = if bias { Some(self.weight(&bias_name, &[outputs])?) } else { None };
        Ok(Part { weight, bias })
    }

    fn attention(&mut self, layer: usize, x: usize) -> Result<usize, EngineError> {
        let (config, heads) = (self.config, self.config.heads);
        let (d, bias) = (config.hidden, self.family.bias);
        let parts = if self.family.fused {
            vec![self.part(layer, ("self_attn.qkv_proj", "attn_qkv"), heads.qkv(), d, false)?]
        } else {
            let (query, key) = (heads.query * heads.width, heads.key * heads.width);
            vec![
                self.part(layer, ("self_attn.q_proj", "attn_q"), query, d, bias)?,
                self.part(layer, ("self_attn.k_proj", "attn_k"), key, d, bias)?,
                self.part(layer, ("self_attn.v_proj", "attn_v"), key, d, bias)?,
            ]
        };
        let qkv = self.g.linear(x, parts, None);
        let norms = if self.family.head_norms {
            let at = |w: &Self, hugging_face: &str, gguf: &str| w.in_layer(layer, hugging_face, gguf);
            let q = at(self, "self_attn.q_norm.weight", "attn_q_norm.weight");
            let k = at(self, "self_attn.k_norm.weight", "attn_k_norm.weight");
            Some((self.norm(&q, heads.width)?, self.norm(&k, heads.width)?))
        } else {
            None
        };
        let window = config.window_of(layer);
        let local = config.rope_window.as_ref().filter(|_| window.is_some());
        let rope = Some(local.unwrap_or(&config.rope).clone());
        let (q, sums) = (self.g.per_row(heads.query * heads.width), self.g.per_row(heads.query * heads.width));
        self.g.push(Op::Place { qkv, heads, norms, epsilon: config.epsilon, rope, layer, out: q });
        self.g.push(Op::Paged { q, heads, scale: config.scale, window, softcap: config.softcap, layer, out: sums });
        let output = self.part(layer, ("self_attn.o_proj", "attn_output"), d, heads.query * heads.width, false)?;
        let out = self.g.linear(sums, vec![output], None);
        if !self.family.gemma {
            return Ok(out);
        }
        let norm = self.layer_norm(layer, "post_attention_layernorm", "post_attention_norm")?;
        Ok(self.g.norm(out, norm, config.epsilon))
    }

    fn feed_forward(&mut self, layer: usize, x: usize) -> Result<usize, EngineError> {
        let config = self.config;
        let (d, wide) = (config.hidden, config.intermediate);
        if let Some(experts) = config.experts {
            return self.experts(layer, x, experts);
        }
        let parts = if self.family.fused {
            vec![self.part(layer, ("mlp.gate_up_proj", "ffn_up"), 2 * wide, d, false)?]
        } else {
            vec![
                self.part(layer, ("mlp.gate_proj", "ffn_gate"), wide, d, false)?,
                self.part(layer, ("mlp.up_proj", "ffn_up"), wide, d, false)?,
            ]
        };
        let both = self.g.linear(x, parts, None);
        let gated = self.g.gate(both, config.activation);
        let down = self.part(layer, ("mlp.down_proj", "ffn_down"), d, wide, false)?;
        let out = self.g.linear(gated, vec![down], None);
        if !self.family.gemma {
            return Ok(out);
        }
        let norm = self.layer_norm(layer, "post_feedforward_layernorm", "post_ffw_norm")?;
        Ok(self.g.norm(out, norm, config.epsilon))
    }

    fn experts(&mut self, layer: usize, x: usize, experts: Experts) -> Result<usize, EngineError> {
        let (d, wide) = (self.config.hidden, self.config.intermediate);
        let [block, gate, up, down] = self.family.experts;
        let router = self.part(layer, (&format!("{block}.gate"), "ffn_gate_inp"), experts.count, d, false)?;
        let router = self.g.linear(x, vec![router], None);
        let mut all = Vec::new();
        for expert in 0..experts.count {
            let mut one = |gguf: &str, part: &str, outputs: usize, inputs: usize| -> Result<usize, EngineError> {
                if self.source.is_gguf() {
                    let name = format!("blk.{layer}.{gguf}.weight");
                    let stacked = self.tensor(&name, &[experts.count, outputs, inputs])?;
                    return Ok(self.g.weight(stacked.slice_rows(expert * outputs..(expert + 1) * outputs)));
                }
                self.weight(&format!("model.layers.{layer}.{block}.experts.{expert}.{part}.weight"), &[outputs, inputs])
            };
            all.push(Expert {
                gate: one("ffn_gate_exps", gate, wide, d)?,
                up: one("ffn_up_exps", up, wide, d)?,
                down: one("ffn_down_exps", down, d, wide)?,
            });
        }
        let out = self.g.like(x);
        let (used, normalize, activation) = (experts.used, experts.normalize, self.config.activation);
        self.g.push(Op::Experts { x, router, experts: all, used, normalize, activation, out });
        Ok(out)
    }
}

//! The graph of a decoder, layer by layer, from its settings and the tensors of either kind of file.
//!
//! Sources: transformers' `modeling_*.py` for the order of operations, llama.cpp's `llama-arch.cpp` for the names of tensors
//! in GGUF. What must hold: of GGUF every tensor is used: one more would be of a model that is not this.

use super::decoder::{DecoderConfig, Experts};
use super::family::Family;
use super::source::Source;
use crate::EngineError;
use crate::graph::{Builder, Expert, Graph, Norm, Op, Pages, Part};

/// Writes the graph down, layer by layer.
struct Writer<'a> {
    g: Builder,
    source: &'a Source,
    config: &'a DecoderConfig,
    family: &'static Family,
}

/// The graph of a decoder.
pub(crate) fn graph(source: &Source, config: &DecoderConfig) -> Result<Graph, EngineError> {
    let mut w = Writer { g: Builder::default(), source, config, family: config.family };
    let d = config.hidden;
    let table = w.name("model.embed_tokens.weight", "token_embd.weight");
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
            let name = w.name("model.norm.weight", "output_norm.weight");
            w.norm(&name, d)?
        };
        (x, normed) = w.g.add_norm(fed, x, norm, config.epsilon);
    }
    let last = w.g.take(normed);
    let weight = if config.tied {
        words
    } else {
        w.weight(&w.name("lm_head.weight", "output.weight"), &[config.vocabulary, d])?
    };
    let mut logits = w.g.linear(last, vec![Part { weight, bias: None }], None);
    if let Some(bound) = config.softcap_logits {
        logits = w.g.softcap(logits, bound);
    }
    // Who read how to turn has looked at those that say it.
    let reason = format!("is in the file, and models of the architecture {} have none", config.family.gguf);
    source.all_used(&super::rope::TENSORS, &reason)?;
    let pages = Pages { layers: config.layers, heads: config.heads.key, width: config.heads.width };
    Ok(w.g.finish(logits, Some(pages)))
}

impl Writer<'_> {
    /// Its name in the source's kind of file.
    fn name(&self, hugging_face: &str, gguf: &str) -> String {
        if self.source.is_gguf { gguf.to_owned() } else { hugging_face.to_owned() }
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<usize, EngineError> {
        let tensor = self.source.tensor(name, shape)?;
        Ok(self.g.weight(tensor))
    }

    fn in_layer(&self, layer: usize, hugging_face: &str, gguf: &str) -> String {
        self.name(&format!("model.layers.{layer}.{hugging_face}"), &format!("blk.{layer}.{gguf}"))
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm, EngineError> {
        self.source.tensors.values(name, &[width])?;
        let gamma = self.weight(name, &[width])?;
        // Files in GGUF have the one added already.
        Ok(Norm::Rms { gamma, plus_one: self.family.gemma && !self.source.is_gguf })
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
        if !bias && self.source.tensors.has(&bias_name) {
            let reason = "is in the file, and models of this family have none";
            return Err(self.source.tensors.wrong(&bias_name, reason).into());
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
                if self.source.is_gguf {
                    let name = format!("blk.{layer}.{gguf}.weight");
                    let stacked = self.source.tensor(&name, &[experts.count, outputs, inputs])?;
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

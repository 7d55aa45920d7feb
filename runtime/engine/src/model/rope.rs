//! How queries and keys are turned by their positions: frequencies, stretched for contexts longer than those a model was
//! first trained on.
//!
//! Sources: transformers' `modeling_rope_utils.py`, and llama.cpp's `ggml_rope_yarn` for what GGUF files mean. What a
//! scaling does not say and transformers has a default for is that default. What must hold: a kind that is not here is
//! refused by name. Not here: scalings that change with the length of a text (`dynamic`; LongRoPE's short factors are for
//! models whose context is no longer than the one they were trained on, as in vLLM).

use kedge_formats::Gguf;
use serde_json::Value as Json;

use super::family::Family;
use super::settings::{Fields, Keys, positive};
use crate::EngineError;
use crate::graph::{Pairs, Rope};

/// What frequencies are without a word on them.
const THETA: f64 = 10_000.0;

/// Tensors that say how a model in GGUF turns; [`Turning::of_gguf`] refuses those that it does not read.
pub(super) const TENSORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// How a decoder turns.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turning {
    /// In most layers.
    pub(super) all: Rope,
    /// In layers with a window, where that differs.
    pub(super) window: Option<Rope>,
}

/// How frequencies are stretched.
enum Scaling {
    None,
    Linear(f64),
    /// Llama 3: slow ones are divided by `factor`, fast ones kept, those between blended.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
    /// YaRN: the same by pairs, counted from the one that turns `fast` times in the original context to the one that
    /// turns `slow` times; and all is multiplied by `magnitude`.
    Yarn {
        factor: f64,
        original: f64,
        fast: f64,
        slow: f64,
        whole: bool,
        magnitude: f64,
    },
    /// Each frequency has a divisor of its own (LongRoPE, and Llama 3 in GGUF).
    Divisors {
        divisors: Vec<f64>,
        magnitude: f64,
    },
}

impl Scaling {
    /// The turning of the first `turned` numbers of a head.
    fn rope(&self, theta: f64, turned: usize, pairs: Pairs) -> Rope {
        let base = (0..turned / 2).map(|i| theta.powf(-2.0 * i as f64 / turned as f64));
        let scaled = base.enumerate().map(|(index, frequency)| match self {
            Self::None => frequency,
            Self::Linear(factor) => frequency / factor,
            Self::Divisors { divisors, .. } => frequency / divisors[index],
            Self::Llama3 { factor, low, high, original } => {
                let turns = original * frequency / std::f64::consts::TAU;
                blend(frequency, *factor, ((turns - low) / (high - low)).clamp(0.0, 1.0))
            }
            Self::Yarn { factor, original, fast, slow, whole, .. } => {
                let pair_of =
                    |turns: f64| turned as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
                let (mut first, mut last) = (pair_of(*fast), pair_of(*slow));
                if *whole {
                    (first, last) = (first.floor(), last.ceil());
                }
                let (first, last) = (first.max(0.0), last.min(turned as f64 - 1.0));
                let stretched = ((index as f64 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                blend(frequency, *factor, 1.0 - stretched)
            }
        });
        let magnitude = match self {
            Self::Yarn { magnitude, .. } | Self::Divisors { magnitude, .. } => *magnitude,
            _ => 1.0,
        };
        Rope { frequencies: scaled.collect(), pairs, magnitude }
    }
}

/// A share of the frequency as it is, the rest divided.
fn blend(frequency: f64, factor: f64, share: f64) -> f64 {
    frequency * (share + (1.0 - share) / factor)
}

/// What YaRN multiplies by for a context so many times longer.
fn yarn_magnitude(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// What LongRoPE multiplies by.
fn long_magnitude(factor: f64, original: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() }
}

/// Settings of one kind of layer.
impl Fields {
    /// A divisor for each pair.
    fn divisors(&self, field: &str, pairs: usize) -> Result<Vec<f64>, EngineError> {
        let all = self.list(field)?.iter().map(Json::as_f64).collect::<Option<Vec<_>>>();
        let all = all.filter(|all| all.len() == pairs && all.iter().all(|divisor| positive(Some(*divisor)).is_ok()));
        all.ok_or_else(|| self.wrong(field, format!("must be {pairs} numbers above zero, one for each pair")))
    }

    /// The scaling; `pairs` are turned, and texts may be as long as `context`. Some of it may be at the `top` of the file.
    fn scaling(&self, top: &Self, pairs: usize, context: f64) -> Result<Scaling, EngineError> {
        let original = "original_max_position_embeddings";
        let original = self.positive_if_there(original)?.or(top.positive_if_there(original)?);
        Ok(match self.text("rope_type")?.or(self.text("type")?) {
            Some("default") => Scaling::None,
            None if self.place == "rope_parameters" => Scaling::None,
            Some("linear") => Scaling::Linear(self.positive("factor")?),
            Some("llama3") => Scaling::Llama3 {
                factor: self.positive("factor")?,
                low: self.positive("low_freq_factor")?,
                high: self.positive("high_freq_factor")?,
                original: self.positive("original_max_position_embeddings")?,
            },
            Some("yarn") => {
                let factor = self.positive("factor")?;
                let magnitude = match (self.positive_if_there("mscale")?, self.positive_if_there("mscale_all_dim")?) {
                    (Some(own), Some(all)) => yarn_magnitude(factor, own) / yarn_magnitude(factor, all),
                    _ => yarn_magnitude(factor, 1.0),
                };
                Scaling::Yarn {
                    factor,
                    original: original.unwrap_or(context),
                    fast: self.positive_if_there("beta_fast")?.unwrap_or(32.0),
                    slow: self.positive_if_there("beta_slow")?.unwrap_or(1.0),
                    whole: self.flag("truncate")?.unwrap_or(true),
                    magnitude: self.positive_if_there("attention_factor")?.unwrap_or(magnitude),
                }
            }
            Some("longrope" | "su") => {
                let original =
                    original.ok_or_else(|| self.wrong("original_max_position_embeddings", "is not there"))?;
                let factor = self.positive_if_there("factor")?.unwrap_or(context / original);
                let long = context > original;
                Scaling::Divisors {
                    divisors: self.divisors(if long { "long_factor" } else { "short_factor" }, pairs)?,
                    magnitude: self.positive_if_there("attention_factor")?.unwrap_or(long_magnitude(factor, original)),
                }
            }
            kind => {
                let kind = kind.map_or_else(|| "a scaling without a type".to_owned(), |kind| format!("{kind:?}"));
                let reason = format!("{kind} is not supported; default, linear, llama3, yarn and longrope are");
                return Err(top.wrong(&self.place, reason));
            }
        })
    }
}

impl Turning {
    /// From `config.json`: `rope_parameters` as newer files have it, of all layers or by their kind; else `rope_theta`
    /// and `rope_scaling`. Heads are `width` wide.
    pub(super) fn of_json(file: &Fields, width: usize, context: usize) -> Result<Self, EngineError> {
        let one = |settings: Option<&Fields>, theta: Option<f64>| -> Result<Rope, EngineError> {
            let own = |field: &str| settings.map_or(Ok(None), |settings| settings.positive_if_there(field));
            let share = own("partial_rotary_factor")?.or(file.positive_if_there("partial_rotary_factor")?);
            let share = share.unwrap_or(1.0);
            if share > 1.0 {
                let reason = format!("{share} is more than the whole head");
                return Err(settings.unwrap_or(file).wrong("partial_rotary_factor", reason));
            }
            let turned = (width as f64 * share) as usize;
            let scaling = settings.map(|settings| settings.scaling(file, turned / 2, context as f64)).transpose()?;
            let theta = own("rope_theta")?.or(theta).unwrap_or(THETA);
            Ok(scaling.unwrap_or(Scaling::None).rope(theta, turned, Pairs::Halves))
        };
        let theta = file.positive_if_there("rope_theta")?;
        let local = file.positive_if_there("rope_local_base_freq")?;
        let plain = |theta: f64| one(None, Some(theta));
        let newer = file.object("rope_parameters")?;
        if let Some(newer) = &newer
            && let Some(full) = newer.object("full_attention")?
        {
            let window = match newer.object("sliding_attention")? {
                None => local.map(plain).transpose()?,
                Some(own) => Some(one(Some(&own), local)?),
            };
            return Ok(Self { all: one(Some(&full), theta)?, window });
        }
        let settings = if newer.is_some() { newer } else { file.object("rope_scaling")? };
        Ok(Self { all: one(settings.as_ref(), theta)?, window: local.map(plain).transpose()? })
    }

    /// From the metadata of a GGUF file of that family; its first `turned` numbers of a head are turned.
    pub(super) fn of_gguf(file: &Gguf, family: &Family, turned: usize, context: usize) -> Result<Self, EngineError> {
        let prefix = format!("{}.rope", family.gguf);
        let keys = Keys { file, prefix: &prefix };
        let pairs = if family.neighbours { Pairs::Neighbours } else { Pairs::Halves };
        // Each has a meaning in llama.cpp for other architectures, and turns nothing when it is this.
        for (key, harmless) in
            [("scaling.yarn_ext_factor", 1.0), ("scaling.yarn_log_multiplier", 0.0), ("scaling.alpha", 0.0)]
        {
            if keys.maybe(key, Gguf::float)?.is_some_and(|told| told != harmless) {
                return Err(keys.wrong(key, format!("only {harmless} is supported")));
            }
        }
        // The second is what the key was called at first.
        let factor_key = if keys.has("scaling.factor") { "scaling.factor" } else { "scale_linear" };
        let factor = keys.positive(factor_key)?.unwrap_or(1.0);
        let original = keys.maybe("scaling.original_context_length", Gguf::number)?;
        // Zero is as good as none to llama.cpp.
        let original = original.filter(|tokens| *tokens > 0).map_or(context as f64, |tokens| tokens as f64);
        let attention = keys.positive("scaling.attn_factor")?;
        let kind = if keys.has("scaling.type") { file.text(&keys.at("scaling.type"))? } else { "linear" };
        let divisors = |tensor: &str, factor: f64, magnitude: f64| -> Result<Scaling, EngineError> {
            let divisors = file.tensors.values(tensor, &[turned / 2])?;
            if divisors.iter().any(|divisor| *divisor <= 0.0) {
                return Err(file.tensors.wrong(tensor, "has a divisor that is not above zero").into());
            }
            let divisors = divisors.into_iter().map(|divisor| f64::from(divisor) * factor).collect();
            Ok(Scaling::Divisors { divisors, magnitude })
        };
        let is_long = file.tensors.has("rope_factors_long.weight");
        let read = if is_long { &TENSORS[1..] } else { &TENSORS[..1] };
        if let Some(name) = TENSORS.iter().find(|name| file.tensors.has(name) && !read.contains(name)) {
            let reason = if is_long { "beside rope_factors_long.weight" } else { "without rope_factors_long.weight" };
            return Err(file.tensors.wrong(name, format!("{reason} it is not supported")).into());
        }
        let scaling = if is_long {
            if !["none", "linear", "longrope"].contains(&kind) {
                let reason = format!("{kind:?} is not supported beside rope_factors_long.weight");
                return Err(keys.wrong("scaling.type", reason));
            }
            if kind != "none" && factor != 1.0 {
                let reason = format!("{factor} is not supported beside rope_factors_long.weight; 1 is");
                return Err(keys.wrong(factor_key, reason));
            }
            let long = context as f64 > original;
            let magnitude = if attention.is_some() { 1.0 } else { long_magnitude(context as f64 / original, original) };
            divisors(if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" }, 1.0, magnitude)?
        } else {
            match kind {
                "none" | "linear" => {
                    let factor = if kind == "none" { 1.0 } else { factor };
                    if file.tensors.has("rope_freqs.weight") {
                        divisors("rope_freqs.weight", factor, 1.0)?
                    } else {
                        Scaling::Linear(factor)
                    }
                }
                "yarn" if !file.tensors.has("rope_freqs.weight") => Scaling::Yarn {
                    factor,
                    original,
                    fast: keys.positive("scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    slow: keys.positive("scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    whole: true,
                    magnitude: keys.positive("scaling.yarn_attn_factor")?.unwrap_or(yarn_magnitude(factor, 1.0)),
                },
                "longrope" => {
                    let reason = "\"longrope\" is not supported without rope_factors_long.weight".to_owned();
                    return Err(keys.wrong("scaling.type", reason));
                }
                other => {
                    let reason = format!("{other:?} is not supported here; none, linear, yarn and longrope are");
                    return Err(keys.wrong("scaling.type", reason));
                }
            }
        };
        let mut all = scaling.rope(keys.positive("freq_base")?.unwrap_or(THETA), turned, pairs);
        all.magnitude *= attention.unwrap_or(1.0);
        // Gemma 3: windowed layers keep the unscaled frequencies; older GGUF files omit them.
        let local = keys.positive("freq_base_swa")?.or(family.unscaled_window.then_some(THETA));
        let window = local.map(|theta| Scaling::None.rope(theta, turned, pairs));
        Ok(Self { all, window })
    }
}

#[cfg(test)]
mod tests {
    use kedge_formats::gguf::write::{self, Value as Meta};
    use kedge_formats::{Gguf, Tensor};
    use serde_json::json;

    use super::*;

    fn of_json(settings: Json) -> Turning {
        Turning::of_json(&Fields { json: settings, path: "config.json".into(), place: String::new() }, 16, 256).unwrap()
    }

    fn of_gguf(metadata: &[(&str, Meta)], tensors: &[(&str, &[f32])]) -> Turning {
        read_gguf(metadata, tensors).unwrap()
    }

    fn read_gguf(metadata: &[(&str, Meta)], tensors: &[(&str, &[f32])]) -> Result<Turning, EngineError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let metadata: Vec<_> =
            metadata.iter().map(|(key, value)| (format!("llama.rope.{key}"), value.clone())).collect();
        let tensors: Vec<_> =
            tensors.iter().map(|(name, values)| ((*name).into(), Tensor::of_f32(&[values.len()], values))).collect();
        #[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
        std::fs::write(&path, write::to_bytes(&metadata, &tensors)).unwrap();
        Turning::of_gguf(&Gguf::open(&path).unwrap(), Family::of_gguf("llama", false).unwrap(), 16, 256)
    }

    fn near(a: &Turning, b: &Turning, what: &str) {
        let pairs = a.all.frequencies.iter().zip(&b.all.frequencies);
        for (a, b) in pairs.chain([(&a.all.magnitude, &b.all.magnitude)]) {
            assert!((a / b - 1.0).abs() < 1e-6, "{what}: {a} is not {b}");
        }
    }

    #[test]
    fn both_kinds_of_files_mean_the_same() {
        let text = |text: &str| Meta::Text(text.into());
        near(
            &of_gguf(&[("scaling.type", text("linear")), ("scaling.factor", Meta::Float(4.0))], &[]),
            &of_json(json!({"rope_scaling": {"type": "linear", "factor": 4.0}})),
            "linear",
        );
        let yarn = [
            ("scaling.type", text("yarn")),
            ("scaling.factor", Meta::Float(4.0)),
            ("scaling.original_context_length", Meta::Unsigned(64)),
            ("freq_base", Meta::Float(5000.0)),
        ];
        // Without a word on its kind a factor stretches all, as llama.cpp has it; the other key is the older one.
        for key in ["scaling.factor", "scale_linear"] {
            let stretched = of_json(json!({"rope_scaling": {"type": "linear", "factor": 4.0}}));
            near(&of_gguf(&[(key, Meta::Float(4.0))], &[]), &stretched, key);
        }
        let both = of_gguf(&[("scaling.factor", Meta::Float(4.0))], &[("rope_freqs.weight", &[2.0; 8])]);
        near(&both, &of_json(json!({"rope_scaling": {"type": "linear", "factor": 8.0}})), "a factor and divisors");
        let none = [("scaling.type", text("none")), ("scaling.factor", Meta::Float(4.0))];
        near(&of_gguf(&none, &[]), &of_json(json!({})), "none");
        let told = [
            ("scaling.yarn_beta_fast", Meta::Float(8.0)),
            ("scaling.yarn_beta_slow", Meta::Float(2.0)),
            ("scaling.yarn_attn_factor", Meta::Float(1.5)),
        ];
        near(
            &of_gguf(&[&yarn[..], &told[..]].concat(), &[]),
            &of_json(json!({
                "rope_theta": 5000.0,
                "rope_scaling": {
                    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0,
                    "beta_slow": 2.0, "attention_factor": 1.5,
                },
            })),
            "yarn, told more",
        );
        near(
            &of_gguf(&yarn, &[]),
            &of_json(json!({
                "rope_theta": 5000.0,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            })),
            "yarn",
        );
        let (short, long) =
            ([1.0_f32, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5], [2.0_f32, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        let tensors: [(&str, &[f32]); 2] = [("rope_factors_short.weight", &short), ("rope_factors_long.weight", &long)];
        for original in [64, 256] {
            near(
                &of_gguf(&[("scaling.original_context_length", Meta::Unsigned(original))], &tensors),
                &of_json(json!({
                    "original_max_position_embeddings": original,
                    "rope_scaling": {"type": "longrope", "short_factor": short, "long_factor": long},
                })),
                "longrope",
            );
        }
        let told =
            [("scaling.original_context_length", Meta::Unsigned(64)), ("scaling.attn_factor", Meta::Float(1.25))];
        assert!((of_gguf(&told, &tensors).all.magnitude - 1.25).abs() < 1e-6);
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        let (text, ones) = (|text: &str| Meta::Text(text.into()), &[1.0_f32; 8][..]);
        let [freqs, long, short] = TENSORS;
        let refused = |metadata: &[(&str, Meta)], names: &[&str], expected: &str| {
            let tensors: Vec<_> = names.iter().map(|name| (*name, ones)).collect();
            let said = read_gguf(metadata, &tensors).map(drop).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        };
        refused(&[], &[short], "tensor rope_factors_short.weight: without rope_factors_long.weight");
        refused(&[], &[freqs, short], "tensor rope_factors_short.weight: without");
        refused(&[], &[freqs, long, short], "tensor rope_freqs.weight: beside rope_factors_long.weight");
        let kind = |kind: &str| ("scaling.type", text(kind));
        refused(&[kind("longrope")], &[], "llama.rope.scaling.type: \"longrope\" is not supported without");
        refused(&[kind("yarn")], &[long, short], "llama.rope.scaling.type: \"yarn\" is not supported beside");
        for kind in [kind("linear"), kind("longrope"), ("scaling.original_context_length", Meta::Unsigned(64))] {
            for key in ["scaling.factor", "scale_linear"] {
                let factor = (key, Meta::Float(4.0));
                let expected = format!("llama.rope.{key}: 4 is not supported beside");
                refused(&[kind.clone(), factor], &[long, short], &expected);
            }
            read_gguf(&[kind, ("scaling.factor", Meta::Float(1.0))], &[(long, ones), (short, ones)]).unwrap();
        }
    }

    /// Where the ends lie: the first pair turns often and is left, the last hardly at all and is stretched whole.
    #[test]
    fn yarn_leaves_fast_pairs_and_stretches_slow_ones() {
        let plain = of_json(json!({})).all;
        let yarn = of_json(json!({
            "rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 4096},
        }));
        let shares: Vec<f64> = plain.frequencies.iter().zip(&yarn.all.frequencies).map(|(a, b)| a / b).collect();
        assert_eq!(shares[0], 1.0);
        assert!((shares[7] - 8.0).abs() < 1e-9 && shares.is_sorted(), "{shares:?}");
        assert!((yarn.all.magnitude - (0.1 * 8.0_f64.ln() + 1.0)).abs() < 1e-12);
    }
}

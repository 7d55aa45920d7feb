//! Families of decoders: a table of where each differs from Llama. A name of one is nowhere else in the engine.

/// Where a family of decoders differs from Llama.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// `architectures` of `config.json`.
    pub hugging_face: &'static str,
    /// `general.architecture` of GGUF, which some share.
    pub gguf: &'static str,
    /// Queries, keys and values have biases.
    pub(super) bias: bool,
    /// Query and key heads have a norm each.
    pub(super) head_norms: bool,
    /// Width of a head where `config.json` does not say it; none for a part of the whole for each head.
    pub(super) head_dim: Option<usize>,
    /// Norms also after attention and feed-forward, a scale of one plus the stored one, scaled embeddings (Gemma).
    pub(super) gemma: bool,
    /// Query, key and value are one matrix, gate and up another.
    pub(super) fused: bool,
    /// GGUF files have the numbers of a head as neighbours.
    pub(super) neighbours: bool,
    /// Which layers look back only as far as the window.
    pub(super) window: Window,
    /// How far back those look where GGUF does not say it; zero where that means that there is none.
    pub(super) gguf_window: u64,
    /// Windowed layers keep the unscaled frequencies; older GGUF files omit them.
    pub(super) unscaled_window: bool,
    /// Layers of its largest model in GGUF, which scales by the width of the whole for each head.
    pub(super) layers_largest: Option<usize>,
    /// What a folder calls the block of experts, their gate, up and down.
    pub(super) experts: [&'static str; 4],
    /// Weights of experts are scaled to a sum of one where `config.json` does not say it.
    pub(super) normalize: bool,
}

/// Which layers have a window, where a model has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// None: a window in the settings is for another use.
    Never,
    /// All.
    Every,
    /// All but each so many'th.
    AllBut(usize),
}

const LLAMA: Family = Family {
    hugging_face: "LlamaForCausalLM",
    gguf: "llama",
    bias: false,
    head_norms: false,
    head_dim: None,
    gemma: false,
    fused: false,
    neighbours: true,
    window: Window::Never,
    gguf_window: 0,
    unscaled_window: false,
    layers_largest: None,
    experts: ["mlp", "gate_proj", "up_proj", "down_proj"],
    normalize: false,
};

pub(super) static FAMILIES: [Family; 9] = [
    LLAMA,
    Family { hugging_face: "MistralForCausalLM", window: Window::Every, ..LLAMA },
    Family {
        hugging_face: "MixtralForCausalLM",
        window: Window::Every,
        experts: ["block_sparse_moe", "w1", "w3", "w2"],
        normalize: true,
        ..LLAMA
    },
    Family { hugging_face: "Qwen2ForCausalLM", gguf: "qwen2", bias: true, neighbours: false, ..LLAMA },
    Family {
        hugging_face: "Qwen3ForCausalLM",
        gguf: "qwen3",
        head_norms: true,
        head_dim: Some(128),
        neighbours: false,
        ..LLAMA
    },
    Family { hugging_face: "Qwen3MoeForCausalLM", gguf: "qwen3moe", head_norms: true, neighbours: false, ..LLAMA },
    Family {
        hugging_face: "Phi3ForCausalLM",
        gguf: "phi3",
        fused: true,
        neighbours: false,
        window: Window::Every,
        ..LLAMA
    },
    Family {
        hugging_face: "Gemma2ForCausalLM",
        gguf: "gemma2",
        gemma: true,
        head_dim: Some(256),
        neighbours: false,
        window: Window::AllBut(2),
        gguf_window: 4096, // llama.cpp's `gemma2.cpp`
        layers_largest: Some(46),
        ..LLAMA
    },
    Family {
        hugging_face: "Gemma3ForCausalLM",
        gguf: "gemma3",
        gemma: true,
        head_dim: Some(256),
        head_norms: true,
        neighbours: false,
        window: Window::AllBut(6),
        unscaled_window: true,
        layers_largest: Some(62),
        ..LLAMA
    },
];

impl Family {
    /// That of a class in `config.json`.
    pub(super) fn of_class(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.hugging_face == name)
    }

    /// That of an architecture in GGUF. Where several share it, one that has windows if the file has: a `llama` with a
    /// window is a Mistral.
    pub(super) fn of_gguf(name: &str, has_window: bool) -> Option<&'static Self> {
        let all = || FAMILIES.iter().filter(|family| family.gguf == name);
        all().find(|family| has_window == (family.window != Window::Never)).or_else(|| all().next())
    }

    /// Whether a layer looks back only as far as the window.
    pub(super) fn is_windowed(&self, layer: usize) -> bool {
        match self.window {
            Window::AllBut(every) => !(layer + 1).is_multiple_of(every),
            Window::Every => true,
            Window::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_several_families_is_of_the_one_that_has_what_it_says() {
        for (name, has_window, expected) in [
            ("llama", false, Some("LlamaForCausalLM")),
            ("llama", true, Some("MistralForCausalLM")),
            ("phi3", false, Some("Phi3ForCausalLM")),
            ("qwen2", true, Some("Qwen2ForCausalLM")),
            ("falcon", false, None),
        ] {
            assert_eq!(Family::of_gguf(name, has_window).map(|family| family.hugging_face), expected, "{name}");
        }
    }
}

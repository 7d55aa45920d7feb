//! What each kernel takes, field by field: the same parameters in the same order as in `kernels/*.cu`.
//!
//! What must hold: a structure's bytes are the kernel's parameter block, which a test reads from the PTX that ships.

/// Defines structures of arguments; `of` names the kernels that take them.
macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident of [$($kernel:literal),*] { $($field:ident: $kind:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, PartialEq)]
            pub(crate) struct $name { $(pub(crate) $field: $kind,)* }

            impl $name {
                /// The parameter block.
                pub(crate) fn bytes(self) -> Vec<u8> {
                    let mut bytes = Vec::with_capacity(size_of::<Self>());
                    $(
                        bytes.resize(std::mem::offset_of!(Self, $field), 0);
                        bytes.extend_from_slice(&self.$field.to_le_bytes());
                    )*
                    bytes
                }
            }
        )*

        /// Each kernel with the offset and size of each of its parameters, by name.
        pub fn layouts() -> Vec<(&'static str, Vec<(&'static str, usize, usize)>)> {
            let mut all = Vec::new();
            $(
                let fields = vec![$((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$kind>()),)*];
                for kernel in [$($kernel),*] {
                    all.push((kernel, fields.clone()));
                }
            )*
            all
        }
    };
}

arguments! {
    /// Vectors of tokens.
    Embed of ["kedge_embed"] {
        words: u64, units: u64, positions: u64, types: u64, ids: u64, places: u64, kinds_of_tokens: u64, out: u64,
        count: u64, kind_of_words: u32, chunks: u32, kind_of_positions: u32, kind_of_types: u32, width: u32, scale: f32,
    }
    /// A norm.
    Norms of ["kedge_norm"] {
        x: u64, residual: u64, gamma: u64, beta: u64, sum: u64, out: u64, rounded: u64, scales: u64, count: u64,
        width: u32, kind_of_rounded: u32, padded: u32, scales_step: u32, epsilon: f32, more: f32,
    }
    /// A sum.
    Add of ["kedge_add"] { x: u64, y: u64, out: u64, count: u64, width: u32, }
    /// Bending.
    Softcap of ["kedge_softcap"] { x: u64, out: u64, count: u64, width: u32, bound: f32, }
    /// A gate.
    Gate of ["kedge_gate"] {
        x: u64, out: u64, rounded: u64, scales: u64, count: u64, width: u32, activation: u32, times: u32,
        kind_of_rounded: u32, padded: u32, scales_step: u32,
    }
    /// Rows picked.
    Take of ["kedge_take"] { x: u64, rows: u64, out: u64, count: u64, width: u32, }
    /// Pooling.
    Pool of ["kedge_pool"] { x: u64, firsts: u64, out: u64, count: u64, width: u32, pooling: u32, }
    /// Length one.
    Normalize of ["kedge_normalize"] { x: u64, out: u64, count: u64, width: u32, }
    /// Vectors to 16-bit floats or bytes.
    Round of ["kedge_round_half", "kedge_round_bytes"] {
        x: u64, rounded: u64, scales: u64, count: u64, width: u32, times: u32, kind_of_rounded: u32, padded: u32,
        scales_step: u32,
    }
    /// A product.
    Linear of [
        "kedge_linear_f32", "kedge_linear_half_8", "kedge_linear_half_32", "kedge_linear_half_64",
        "kedge_linear_q8_0_8", "kedge_linear_q8_0_32", "kedge_linear_q8_0_64", "kedge_linear_q4_0_8",
        "kedge_linear_q4_0_32", "kedge_linear_q4_0_64", "kedge_linear_q4_k_8", "kedge_linear_q4_k_32",
        "kedge_linear_q4_k_64", "kedge_linear_q5_k_8", "kedge_linear_q5_k_32", "kedge_linear_q5_k_64",
        "kedge_linear_q6_k_8", "kedge_linear_q6_k_32", "kedge_linear_q6_k_64"
    ] {
        x: u64, scales: u64, weights: u64, units: u64, bias: u64, out: u64, count: u64, list: u64, weights_step: u64,
        units_step: u64, inputs: u32, outputs: u32, width: u32, first: u32, divide: u32, activation: u32,
        list_step: u32, scales_step: u32,
    }
    /// Cosines and sines.
    Angles of ["kedge_angles"] { places: u64, frequencies: u64, out: u64, count: u64, pairs: u32, magnitude: f32, }
    /// Keys and values to their pages, queries turned.
    Place of ["kedge_place"] {
        qkv: u64, q_gamma: u64, q_beta: u64, k_gamma: u64, k_beta: u64, angles: u64, queries: u64, store: u64,
        places: u64, sequences: u64, firsts: u64, pages: u64, count: u64, query_heads: u32, key_heads: u32, width: u32,
        layers: u32, layer: u32, norm: u32, pairing: u32, pairs: u32, epsilon: f32, q_more: f32, k_more: f32,
    }
    /// Attention to pages, in parts or whole.
    Paged of [
        "kedge_paged_64", "kedge_paged_128", "kedge_paged_256", "kedge_paged_whole_64", "kedge_paged_whole_128",
        "kedge_paged_whole_256"
    ] {
        queries: u64, store: u64, places: u64, sequences: u64, firsts: u64, pages: u64, out: u64, count: u64,
        rows_each: u32, query_heads: u32, key_heads: u32, width: u32, layers: u32, layer: u32, window: u32, scale: f32,
        bound: f32,
    }
    /// Those parts put together.
    PagedMerge of ["kedge_paged_merge"] { partial: u64, out: u64, count: u64, query_heads: u32, width: u32, }
    /// Attention within sequences.
    Attend of ["kedge_attend"] {
        qkv: u64, out: u64, sequences: u64, firsts: u64, count: u64, query_heads: u32, key_heads: u32, width: u32,
        scale: f32,
    }
    /// The choice of experts.
    Route of ["kedge_route"] {
        router: u64, choice: u64, weights: u64, count: u64, experts: u32, used: u32, normalize: u32,
    }
    /// Who chose each expert.
    Lists of ["kedge_lists"] { choice: u64, list: u64, counts: u64, count: u64, used: u32, list_step: u32, }
    /// Experts' answers added.
    Mix of ["kedge_mix"] { answers: u64, weights: u64, out: u64, count: u64, width: u32, used: u32, }
    /// Tokens chosen.
    Choose of ["kedge_choose"] { logits: u64, draws: u64, changes: u64, found: u64, width: u32, found_step: u32, }
}

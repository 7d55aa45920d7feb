//! What this crate and its kernels both know. `cargo xtask kernels` reads this file too, and defines all of it for the
//! kernels' compiler: so each is written once.

/// Defines constants, and the list of them.
macro_rules! constants {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub(crate) const $name: usize = $value;)*

        /// All of them by name.
        #[allow(dead_code, reason = "only who compiles the kernels reads it")]
        pub(crate) const ALL: &[(&str, usize)] = &[$((stringify!($name), $value),)*];
    };
}

constants! {
    /// Tokens of a page of keys and values.
    PAGE = 32;
    /// Warps of a block in which attention is shared out.
    WARPS = 4;
    /// Parts that the pages of a query are shared out to: of few rows each is a block's, of many one block takes all.
    SPLITS = 8;
    /// The widest head that the attention kernels take.
    HEAD_MAX = 256;
    /// The most experts that the routing kernel takes.
    EXPERTS_MAX = 1024;
    /// Queries of a warp.
    QUERIES = 16;
    /// Outputs of a tile of a packed matrix.
    OUTPUTS = 16;
    /// Vectors of a tile of a product.
    COLUMNS = 8;
    /// Shares of a product's inputs, and the most warps of its blocks.
    SHARES = 8;
    /// Outputs of a warp of the product with 32-bit floats.
    F32_EACH = 4;
    /// Warps of a block that chooses a token.
    CHOOSERS = 32;
    /// The mass of the likeliest token is two to the power of this.
    WHOLE_BITS = 40;
    /// Numbers of 32 bits of a draw, and of one of its changes.
    DRAW_NUMBERS = 10;
    CHANGE_NUMBERS = 4;
    /// Numbers of 64 bits of what is found, before the likeliest tokens.
    FOUND_NUMBERS = 3;
    /// Activations; none is zero.
    ACTIVATION_GELU = 1;
    ACTIVATION_GELU_TANH = 2;
    ACTIVATION_SILU = 3;
    /// How vectors are rounded; not at all is zero.
    ROUNDED_HALVES = 1;
    ROUNDED_BYTES = 2;
    /// Norms of heads; none is zero.
    NORM_RMS = 1;
    NORM_LAYER = 2;
    /// What is a pair of a head's numbers; where nothing is turned, zero.
    PAIRS_HALVES = 1;
    PAIRS_NEIGHBOURS = 2;
    /// Poolings.
    POOL_MEAN = 0;
    POOL_CLS = 1;
    POOL_LAST = 2;
    POOL_MAX = 3;
    /// How a table lies: as stored, or packed for products.
    STORED_F32 = 0;
    STORED_F16 = 1;
    STORED_BF16 = 2;
    STORED_Q8_0 = 3;
    STORED_Q4_0 = 4;
    STORED_Q4_K = 5;
    STORED_Q5_K = 6;
    STORED_Q6_K = 7;
    PACKED_HALF = 8;
    PACKED_Q8_0 = 9;
    PACKED_Q4_0 = 10;
    PACKED_Q4_K = 11;
    PACKED_Q5_K = 12;
    PACKED_Q6_K = 13;
}

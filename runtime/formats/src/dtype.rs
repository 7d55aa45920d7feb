//! The types of stored numbers: how many bytes hold how many values.

/// How the values of a tensor are stored. Block formats are those of ggml (`ggml-common.h`, `ggml.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, IEEE 754.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
    /// Blocks of 32: a 16-bit scale and signed bytes.
    Q8_0,
    /// Blocks of 32: a 16-bit scale and four bits, less 8.
    Q4_0,
    /// Blocks of 256: eight parts with a scale and a minimum of six bits each, and four bits.
    Q4K,
    /// As [`Dtype::Q4K`], with five bits.
    Q5K,
    /// Blocks of 256: sixteen parts with a signed byte of scale each, and six bits, less 32.
    Q6K,
    /// Anything else a file may hold: its bytes are there, its values are not read.
    Other {
        /// Values in a block.
        values: u16,
        /// Bytes of a block.
        bytes: u16,
    },
}

impl Dtype {
    /// All whose values can be read.
    pub const READABLE: [Dtype; 8] =
        [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4K, Dtype::Q5K, Dtype::Q6K];

    /// Values in a block, and the bytes they take.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Dtype::F32 => (1, 4),
            Dtype::F16 | Dtype::Bf16 => (1, 2),
            Dtype::Q8_0 => (32, 34),
            Dtype::Q4_0 => (32, 18),
            Dtype::Q4K => (256, 144),
            Dtype::Q5K => (256, 176),
            Dtype::Q6K => (256, 210),
            Dtype::Other { values, bytes } => (values as usize, bytes as usize),
        }
    }

    /// Bytes that so many values take; none when they do not fill whole blocks or memory cannot hold them.
    pub fn bytes_of(self, values: usize) -> Option<usize> {
        let (block, bytes) = self.block();
        values.is_multiple_of(block).then(|| (values / block).checked_mul(bytes)).flatten()
    }

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::Q8_0 => "Q8_0",
            Dtype::Q4_0 => "Q4_0",
            Dtype::Q4K => "Q4_K",
            Dtype::Q5K => "Q5_K",
            Dtype::Q6K => "Q6_K",
            Dtype::Other { .. } => "another type",
        }
    }

    /// The type with that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::READABLE.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_blocks_are_whole() {
        for dtype in Dtype::READABLE {
            assert_eq!(Dtype::of_name(dtype.name()), Some(dtype));
            let (values, bytes) = dtype.block();
            assert_eq!(dtype.bytes_of(3 * values), Some(3 * bytes));
            assert_eq!(dtype.bytes_of(values + 1).is_some(), values == 1, "{}", dtype.name());
        }
        assert_eq!(Dtype::F32.bytes_of(usize::MAX), None);
        assert_eq!(Dtype::of_name("Q9"), None);
    }
}

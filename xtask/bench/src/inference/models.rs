//! Models with random weights at the shapes of real ones: they say how fast, never how well.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kedge_formats::gguf::write::{Value, to_bytes};
use kedge_formats::{Dtype, Tensor, quant};

/// The widths of a Llama.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Its name in tables and file names.
    pub(crate) name: &'static str,
    width: usize,
    layers: usize,
    heads: usize,
    key_heads: usize,
    inner: usize,
}

/// The width of a head, the words, and the context, of all shapes.
const HEAD: usize = 64;
const WORDS: usize = 32_000;
const CONTEXT: u32 = 4096;
/// The token that ends a text.
const END: usize = 6;

/// A quarter of a billion weights.
pub(crate) const SMALL: Shape = Shape { name: "0.25 B", width: 1024, layers: 16, heads: 16, key_heads: 8, inner: 2816 };
/// The shape of TinyLlama.
pub(crate) const MIDDLE: Shape = Shape { name: "1.1 B", width: 2048, layers: 22, heads: 32, key_heads: 4, inner: 5632 };

impl Shape {
    /// Every matrix but the table of words: rows and columns.
    fn matrices(self) -> Vec<(String, [usize; 2])> {
        let (width, keys) = (self.width, self.key_heads * HEAD);
        let mut all = vec![("output.weight".into(), [WORDS, width])];
        for layer in 0..self.layers {
            for (part, shape) in [
                ("attn_q", [self.heads * HEAD, width]),
                ("attn_k", [keys, width]),
                ("attn_v", [keys, width]),
                ("attn_output", [width, self.heads * HEAD]),
                ("ffn_gate", [self.inner, width]),
                ("ffn_up", [self.inner, width]),
                ("ffn_down", [width, self.inner]),
            ] {
                all.push((format!("blk.{layer}.{part}.weight"), shape));
            }
        }
        all
    }

    /// Bytes of weights that are read for a token.
    pub(crate) fn bytes_read(self, dtype: Dtype) -> u64 {
        let values: usize = self.matrices().iter().map(|(_, shape)| shape[0] * shape[1]).sum();
        dtype.bytes_of(values).expect("rows are whole blocks") as u64
    }
}

/// Numbers that look random: a multiplicative step and its upper bits.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// About normal, of deviation 0.02: the sum of a few uniform ones.
    fn weight(&mut self) -> f32 {
        let sum: f32 = (0..6).map(|_| self.next() as f32 / (1u64 << 31) as f32 - 0.5).sum();
        sum * 0.028
    }
}

/// The file of that shape and type in `folder`, written if it is not there.
pub(crate) fn file(folder: &Path, shape: Shape, dtype: Dtype) -> Result<PathBuf> {
    let path = folder.join(format!("{}-{}.gguf", shape.name.replace(' ', ""), dtype.name()));
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let bytes = to_bytes(&metadata(shape), &tensors(shape, dtype)?);
    // Under its name only once it is whole.
    let part = path.with_extension("part");
    std::fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
    std::fs::rename(&part, &path)?;
    Ok(path)
}

fn metadata(shape: Shape) -> Vec<(String, Value)> {
    let number = |key: &str, value: usize| (format!("llama.{key}"), Value::Unsigned(value as u32));
    // Every byte is a word, so that any text can be read; the other words are never met.
    let byte = |byte: u8| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        0..=0x20 => char::from_u32(0x100 + u32::from(byte)).expect("a letter"),
        0x7f..=0xa0 => char::from_u32(0x100 + 33 + u32::from(byte - 0x7f)).expect("a letter"),
        0xad => '\u{143}',
    };
    let mut words: Vec<String> = (0..=255u8).map(|b| byte(b).to_string()).collect();
    let merged = format!("{}{}", words[33], words[34]);
    let merge = format!("{} {}", words[33], words[34]);
    words.push(merged);
    words.extend((words.len()..WORDS).map(|index| format!("word{index:05}")));
    vec![
        ("general.architecture".into(), Value::Text("llama".into())),
        number("embedding_length", shape.width),
        number("block_count", shape.layers),
        number("attention.head_count", shape.heads),
        number("attention.head_count_kv", shape.key_heads),
        number("feed_forward_length", shape.inner),
        number("rope.dimension_count", HEAD),
        number("vocab_size", WORDS),
        ("llama.context_length".into(), Value::Unsigned(CONTEXT)),
        ("llama.attention.layer_norm_rms_epsilon".into(), Value::Float(1e-5)),
        ("llama.rope.freq_base".into(), Value::Float(10_000.0)),
        ("tokenizer.ggml.model".into(), Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::Text("gpt-2".into())),
        ("tokenizer.ggml.token_type".into(), Value::Signed(vec![1; WORDS])),
        ("tokenizer.ggml.tokens".into(), Value::Texts(words)),
        ("tokenizer.ggml.merges".into(), Value::Texts(vec![merge])),
        ("tokenizer.ggml.bos_token_id".into(), Value::Unsigned(5)),
        ("tokenizer.ggml.eos_token_id".into(), Value::Unsigned(END as u32)),
    ]
}

fn tensors(shape: Shape, dtype: Dtype) -> Result<Vec<(String, Tensor)>> {
    // A million weights are rounded once; matrices are put together from pieces of those.
    let mut numbers = Numbers(11);
    let values: Vec<f32> = (0..1 << 20).map(|_| numbers.weight()).collect();
    let pool = quant::quantize(dtype, &values);
    let piece = dtype.bytes_of(4096).context("a piece is whole blocks")?;
    let mut matrix = |shape: [usize; 2]| -> Result<Tensor> {
        let length = dtype.bytes_of(shape[0] * shape[1]).context("a matrix is whole blocks")?;
        let mut bytes = Vec::with_capacity(length + piece);
        while bytes.len() < length {
            let from = numbers.next() as usize % (pool.len() / piece) * piece;
            bytes.extend_from_slice(&pool[from..from + piece]);
        }
        bytes.truncate(length);
        Tensor::of_bytes(dtype, &shape, bytes).context("the bytes are those of the shape")
    };
    let norm = |name: String| (name, Tensor::of_f32(&[shape.width], &vec![1.0; shape.width]));
    let mut all =
        vec![("token_embd.weight".to_owned(), matrix([WORDS, shape.width])?), norm("output_norm.weight".into())];
    for layer in 0..shape.layers {
        all.extend(["attn_norm", "ffn_norm"].map(|part| norm(format!("blk.{layer}.{part}.weight"))));
    }
    for (name, shape) in shape.matrices() {
        let mut made = matrix(shape)?;
        if name == "output.weight" {
            // A row of zeros is never the best of so many: no engine ends before it is told to.
            let row = dtype.bytes_of(shape[1]).context("a row is whole blocks")?;
            let mut bytes = made.bytes().to_vec();
            bytes[END * row..(END + 1) * row].fill(0);
            made = Tensor::of_bytes(dtype, &shape, bytes).context("the bytes are those of the shape")?;
        }
        all.push((name, made));
    }
    Ok(all)
}

//! What each target does with an input: whatever it says ends in a model, an answer or an error. The engine's test
//! `fuzzed.rs` takes this file, too, and runs what was found.

use std::path::PathBuf;

use kedge_engine::generate::{ChatTemplate, TextStream, TextTokenizer};
use kedge_engine::model::{DecoderConfig, EncoderConfig};
use kedge_engine::{Decoder, Encoder, Reference, inspect, is_encoder};
use kedge_formats::gguf::write::{Value as Meta, to_bytes};
use kedge_formats::{Dtype, Gguf, Tensor, Tensors};

/// What is done with an input.
pub type Target = fn(&[u8]);

macro_rules! targets {
    ($($name:ident: $bytes_max:expr,)*) => {
        /// The targets by their names.
        pub const TARGETS: &[(&str, Target)] = &[$((stringify!($name), $name)),*];
    };
}

include!("table.rs");

/// A folder of this thread's own, in memory where the system has that; it goes with the thread, and that of `cargo xtask fuzz`
/// with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let parent = std::env::var_os("KEDGE_FUZZ_FOLDER").map_or(parent, PathBuf::from);
        let thread = format!("{:?}", std::thread::current().id()).replace(|c: char| !c.is_ascii_digit(), "");
        let folder = parent.join(format!("kedge-fuzz-{}-{thread}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("there is room");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

thread_local! {
    static FOLDER: Folder = Folder::new();
}

/// A file in that folder.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let folder = FOLDER.with(|folder| folder.0.clone());
    let path = folder.join(name);
    // A new file each time: the old one is mapped as long as anybody has it.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).expect("there is room");
    path
}

/// Values of a tensor that are looked at.
const VALUES_MAX: usize = 1 << 16;

fn look_at(tensors: &Tensors) {
    for name in tensors.names() {
        let tensor = tensors.any(name).expect("it is there");
        if tensor.shape.iter().product::<usize>() <= VALUES_MAX {
            let _ = tensors.values(name, &tensor.shape);
        }
        if let Ok(tensor) = tensors.get(name, &tensor.shape)
            && tensor.rows() > 0
        {
            let last = tensor.rows() - 1;
            assert_eq!(tensor.slice_rows(last..last + 1).bytes(), tensor.row(last));
        }
    }
}

/// The bytes of a file of weights; and the same as an index of its shards.
pub fn safetensors(input: &[u8]) {
    let path = file("model.safetensors", input);
    if let Ok(tensors) = Tensors::open_safetensors(&path) {
        look_at(&tensors);
    }
    let _ = Tensors::open_safetensors(&file("model.safetensors.index.json", input));
}

/// The bytes of a file.
pub fn gguf(input: &[u8]) {
    let path = file("model.gguf", input);
    if let Ok(file) = Gguf::open(&path) {
        look_at(&file.tensors);
        let _ = file.texts("tokenizer.ggml.tokens");
        let _ = file.floats("tokenizer.ggml.scores");
    }
    let _ = inspect(&path);
    if is_encoder(&path) {
        let _ = Encoder::open(&path, &Reference);
    } else {
        let _ = Decoder::read(&path);
    }
}

/// `config.json`.
pub fn config(input: &[u8]) {
    let path = file("config.json", input);
    let _ = DecoderConfig::of_json(&path);
    let folder = path.parent().expect("it lies in a folder");
    let _ = EncoderConfig::read(folder);
    let _ = inspect(folder);
}

const TEXTS: [&str; 4] = ["", "a box runs größer", "w1 w2 <|end|> 日本 😀\u{301}", " \n\t  'll  1234 [SEP] ##s"];

fn speak(tokenizer: &TextTokenizer) {
    for text in TEXTS {
        let ids = tokenizer.encode(text, true).unwrap_or_default();
        let _ = tokenizer.decode(&ids);
        let mut stream = TextStream::default();
        for id in ids.into_iter().chain([0, 7, u32::MAX]) {
            let _ = stream.push(tokenizer, id);
        }
        let _ = stream.finish(tokenizer);
    }
    let _ = (tokenizer.size(), tokenizer.token(3), tokenizer.id("a"));
}

/// `tokenizer.json`, of a decoder, and beside an encoder.
pub fn tokenizer(input: &[u8]) {
    let path = file("tokenizer.json", input);
    if let Ok(tokenizer) = TextTokenizer::of_file(&path) {
        speak(&tokenizer);
    }
    vectors("bert", "default", Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let _ = std::fs::remove_file(path);
}

/// Lines: the kind of tokenizer, how text is cut first, tokens (a letter for their kind, one for their score, and
/// themselves), an empty line, merges. They become the metadata of a GGUF file.
pub fn gguf_tokenizer(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.split('\n');
    let model = lines.next().unwrap_or_default().to_owned();
    let pre = lines.next().unwrap_or_default().to_owned();
    let (mut tokens, mut kinds, mut scores) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let mut letters = line.chars();
        kinds.push(letters.next().map_or(1, |letter| letter as i32 - 48));
        scores.push(letters.next().map_or(0.0, |letter| letter as u32 as f32 - 80.0));
        tokens.push(letters.as_str().to_owned());
    }
    let merges = lines.map(str::to_owned).collect();
    vectors(&model, &pre, tokens, kinds, scores, merges);
}

/// An encoder with a tokenizer, as far as it goes; without tokens there are some that are taken from beside it.
fn vectors(model: &str, pre: &str, mut tokens: Vec<String>, kinds: Vec<i32>, scores: Vec<f32>, merges: Vec<String>) {
    if tokens.is_empty() {
        tokens = (0..64).map(|id| format!("t{id}")).collect();
    }
    let count = tokens.len();
    let number = |key: &str, value: u32| (key.to_owned(), Meta::Unsigned(value));
    let metadata = [
        ("general.architecture".into(), Meta::Text("bert".into())),
        number("bert.block_count", 1),
        number("bert.context_length", 16),
        number("bert.embedding_length", 2),
        number("bert.feed_forward_length", 2),
        number("bert.attention.head_count", 1),
        ("bert.attention.layer_norm_epsilon".into(), Meta::Float(1e-6)),
        ("tokenizer.ggml.model".into(), Meta::Text(model.into())),
        ("tokenizer.ggml.pre".into(), Meta::Text(pre.into())),
        ("tokenizer.ggml.tokens".into(), Meta::Texts(tokens)),
        ("tokenizer.ggml.token_type".into(), Meta::Signed(kinds)),
        ("tokenizer.ggml.scores".into(), Meta::Floats(scores)),
        ("tokenizer.ggml.merges".into(), Meta::Texts(merges)),
        number("tokenizer.ggml.bos_token_id", 1),
        number("tokenizer.ggml.seperator_token_id", 2),
        number("tokenizer.ggml.unknown_token_id", 0),
    ];
    let mut tensors =
        vec![("token_embd.weight".to_owned(), vec![count, 2]), ("position_embd.weight".into(), vec![16, 2])];
    for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"] {
        tensors.push((format!("blk.0.{part}.weight"), vec![2, 2]));
        tensors.push((format!("blk.0.{part}.bias"), vec![2]));
    }
    for norm in ["token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"] {
        tensors.extend(["weight", "bias"].map(|kind| (format!("{norm}.{kind}"), vec![2])));
    }
    let zeros = |(name, shape): (String, Vec<usize>)| {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        (name, Tensor::of_bytes(Dtype::F32, &shape, bytes).expect("as many as the shape has"))
    };
    let tensors: Vec<_> = tensors.into_iter().map(zeros).collect();
    let path = file("model.gguf", &to_bytes(&metadata, &tensors));
    if let Ok(tokenizer) = Gguf::open(&path).map_err(Into::into).and_then(|file| TextTokenizer::of_gguf(&file)) {
        speak(&tokenizer);
    }
    if let Ok(encoder) = Encoder::open(&path, &Reference) {
        for text in TEXTS {
            let _ = encoder.tokenize(0, text);
        }
    }
}

/// A chat template, as a server reads it. What it does when it runs, it does in a process with bounds.
pub fn template(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = ChatTemplate::new(text, "<s>", "</s>");
}

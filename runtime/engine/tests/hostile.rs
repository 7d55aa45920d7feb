//! Files that were cut, changed or made up: whatever they say, opening a model ends with it or with an error, and takes
//! no more memory than the files have, many times over at most.
//!
//! Each case is a number: it says which model, which of its files, and what happens to it. `KEDGE_HOSTILE_CASES` asks for
//! more of them, `KEDGE_HOSTILE_FIRST` for others; a failure names its case.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]
#![allow(unsafe_code, reason = "an allocator that counts")]

mod tiny_bert;
mod tiny_decoders;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kedge_engine::backend::{Sequence, Step};
use kedge_engine::generate::TextTokenizer;
use kedge_engine::plan::{Plan, Shape};
use kedge_engine::{Backend, Cpu, Decoder, Encoder};
use kedge_formats::Dtype;
use serde_json::{Value, json};
use tiny_decoders::{write_gguf, write_model};

/// The largest piece of memory that was asked for.
struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's layout.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: the caller's pointer and layout.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's pointer and layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Above this a piece of memory is not the tokenizer's or the test's own; the models have less than a tenth of it.
const PIECE_MAX: usize = 16 << 20;

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 29) ^ (self.0 >> 47)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Numbers that are likely to be believed wrongly.
const EXTREMES: [u64; 12] = [
    0,
    1,
    u64::MAX,
    u64::MAX - 7,
    i64::MAX as u64,
    1 << 62,
    1 << 40,
    u32::MAX as u64,
    i32::MAX as u64,
    1 << 31,
    1 << 24,
    0xffff,
];

/// Changes bytes: single ones, numbers, pieces moved, a cut.
fn change_bytes(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        // Mostly where the structure is.
        let length = bytes.len();
        let reach = if numbers.below(4) == 0 { length } else { length.min(2_000) };
        let at = numbers.below(reach);
        let extreme = EXTREMES[numbers.below(EXTREMES.len())];
        match numbers.below(6) {
            0 => bytes[at] = numbers.next() as u8,
            1 => bytes[at] ^= 1 << numbers.below(8),
            2 => bytes.iter_mut().skip(at).zip(extreme.to_le_bytes()).for_each(|(byte, new)| *byte = new),
            3 => bytes.iter_mut().skip(at).zip((extreme as u32).to_le_bytes()).for_each(|(byte, new)| *byte = new),
            4 => {
                let (from, count) = (numbers.below(length), numbers.below(64));
                let piece: Vec<u8> = bytes.iter().skip(from).take(count).copied().collect();
                bytes.splice(at..at, piece);
            }
            _ => bytes.truncate(at.max(1)),
        }
        if bytes.is_empty() {
            return;
        }
    }
}

/// Changes what JSON says: one value somewhere becomes another, or is gone.
fn change_json(value: &mut Value, numbers: &mut Numbers) {
    let depth = numbers.below(6);
    let mut here = value;
    for _ in 0..depth {
        let count = match here {
            Value::Array(list) => list.len(),
            Value::Object(map) => map.len(),
            _ => 0,
        };
        if count == 0 {
            break;
        }
        let which = numbers.below(count);
        here = match here {
            Value::Array(list) => &mut list[which],
            Value::Object(map) => map.values_mut().nth(which).unwrap(),
            _ => unreachable!("it has members"),
        };
    }
    let extreme = EXTREMES[numbers.below(EXTREMES.len())];
    *here = match numbers.below(9) {
        0 => Value::Null,
        1 => json!(extreme),
        2 => json!(-(numbers.below(1_000) as i64)),
        3 => json!(1e308),
        4 => json!(""),
        5 => json!("\u{fffd}\u{0}/../.."),
        6 => json!([]),
        7 => json!({}),
        _ => json!(vec![json!(extreme); 3]),
    };
}

/// What a file may be used for: whatever happens is an error or an answer.
fn use_it(path: &Path, cpu: &Cpu) {
    let _ = kedge_engine::inspect(path);
    if kedge_engine::is_encoder(path) {
        if let Ok(encoder) = Encoder::open(path, cpu) {
            let _ = encoder.encode(&["a box runs"]);
        }
        return;
    }
    if let Ok((config, graph)) = Decoder::read(path) {
        let graph = Arc::new(graph);
        if let Ok(prepared) = cpu.prepare(graph.clone(), 2) {
            let plan = Plan::new(&graph, Shape { rows: 4, outputs: 1 });
            let sequences = vec![Sequence { rows: 3, past: 0, pages: vec![1] }];
            let most = config.vocabulary.saturating_sub(1) as u32;
            let step = Step { ids: vec![0, 1.min(most), most], types: vec![], sequences, outputs: vec![2] };
            let _ = prepared.run(&plan, &step, &mut Vec::new());
        }
    }
    let tokenizer = if path.is_dir() {
        TextTokenizer::of_file(&path.join("tokenizer.json"))
    } else {
        kedge_formats::Gguf::open(path).map_err(Into::into).and_then(|file| TextTokenizer::of_gguf(&file))
    };
    if let Ok(tokenizer) = tokenizer {
        let ids = tokenizer.encode("w1 w2 <|end|> größer", true).unwrap_or_default();
        let _ = tokenizer.decode(&ids);
        let _ = tokenizer.decode(&[0, 7, u32::MAX]);
    }
}

/// The models, each with the files that are changed.
fn models(folder: &Path) -> Vec<(PathBuf, Vec<PathBuf>)> {
    let mut all = Vec::new();
    for (index, (family, more)) in tiny_decoders::families().into_iter().enumerate() {
        let folder = folder.join(index.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        write_model(&folder, family, &more, Dtype::Bf16);
        let files = ["config.json", "tokenizer.json", "model.safetensors"].map(|name| folder.join(name)).to_vec();
        all.push((folder, files));
    }
    let bert = folder.join("bert");
    std::fs::create_dir_all(&bert).unwrap();
    tiny_bert::tiny(&bert, "mean_tokens");
    let files = ["config.json", "tokenizer.json", "model.safetensors", "modules.json", "1_Pooling/config.json"];
    all.push((bert.clone(), files.map(|name| bert.join(name)).to_vec()));
    let path = folder.join("bert.gguf");
    std::fs::write(&path, tiny_bert::as_gguf::bytes(&bert, Dtype::F32)).unwrap();
    all.push((path.clone(), vec![path]));
    for dtype in [Dtype::Q4K, Dtype::Q8_0, Dtype::F16] {
        let path = folder.join(format!("{}.gguf", dtype.name()));
        write_gguf(&path, dtype);
        all.push((path.clone(), vec![path]));
    }
    for (name, family, more) in tiny_decoders::as_gguf::cases() {
        let path = folder.join(format!("{name}.gguf"));
        tiny_decoders::as_gguf::write(&path, family, &more);
        all.push((path.clone(), vec![path]));
    }
    all
}

#[test]
fn whatever_files_say_ends_in_a_model_or_an_error() {
    let number = |name: &str, other: u64| std::env::var(name).ok().map_or(other, |text| text.parse().unwrap());
    let (cases, first) = (number("KEDGE_HOSTILE_CASES", 2_000), number("KEDGE_HOSTILE_FIRST", 0));
    let folder = tempfile::tempdir().unwrap();
    let models = models(folder.path());
    let cpu = Cpu::new(Some(1)).unwrap();
    for (model, _) in &models {
        kedge_engine::inspect(model).unwrap();
        use_it(model, &cpu);
    }
    for case in first..first + cases {
        let mut numbers = Numbers(case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        numbers.next();
        let (model, files) = &models[numbers.below(models.len())];
        let file = &files[numbers.below(files.len())];
        let whole = std::fs::read(file).unwrap();
        let mut changed = whole.clone();
        if file.extension().is_some_and(|kind| kind == "json") && numbers.below(3) > 0 {
            let mut value: Value = serde_json::from_slice(&whole).unwrap();
            (0..=numbers.below(2)).for_each(|_| change_json(&mut value, &mut numbers));
            changed = value.to_string().into_bytes();
        } else {
            change_bytes(&mut changed, &mut numbers);
        }
        std::fs::write(file, &changed).unwrap();
        LARGEST.store(0, Ordering::Relaxed);
        let survived = catch_unwind(AssertUnwindSafe(|| use_it(model, &cpu)));
        let largest = LARGEST.load(Ordering::Relaxed);
        let name = file.strip_prefix(folder.path()).unwrap().display();
        assert!(survived.is_ok(), "case {case}, {name}: panicked; what was said is above");
        assert!(largest <= PIECE_MAX, "case {case}, {name}: {largest} bytes at once");
        std::fs::write(file, &whole).unwrap();
    }
}

//! Where the packed matrices of a graph lie: one after the other in a region, which is a mapped file where there is a
//! folder for such files, so that the next start finds them packed and no memory of the process's own is taken.
//!
//! The file's name is a digest of all that its bytes follow from: this layout, types, shapes, and which files, as last
//! changed, hold the weights. What must hold: a file that cannot be had costs speed and memory, never the model.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use kedge_formats::region::{Filling, Region};
use sha2::{Digest, Sha256};

use super::Matrix;
use super::pool::Pool;
use crate::EngineError;
use crate::graph::{Graph, Weight};

/// To be raised whenever packing changes.
const LAYOUT: u32 = 1;
/// Every matrix begins at a multiple of this: a line of the cache.
const ALIGNMENT: usize = 64;
/// Bytes that one task packs, about.
const TASK_BYTES: usize = 1 << 20;

/// The bytes of one matrix.
pub(super) struct Part {
    region: Arc<Region>,
    range: Range<usize>,
}

impl Deref for Part {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.region.bytes()[self.range.clone()]
    }
}

/// Packs those weights, or finds them packed in `folder`: each with its matrix.
pub(super) fn matrices(
    graph: &Graph,
    weights: &BTreeSet<Weight>,
    pool: &Pool,
    folder: Option<&Path>,
) -> Result<Vec<(Weight, Matrix)>, EngineError> {
    let mut places = Vec::new();
    let mut length = 0;
    for weight in weights {
        let bytes = Matrix::packed_bytes(&graph.weights[*weight]);
        places.push((*weight, length..length + bytes));
        length = (length + bytes).next_multiple_of(ALIGNMENT);
    }
    let region = match folder.filter(|_| length > 0) {
        Some(folder) => in_file(graph, &places, length, pool, folder),
        None => None,
    };
    let region = match region {
        Some(region) => region,
        None => {
            let memory = |source| EngineError::Memory { bytes: length as u64, source };
            let mut filling = Region::in_memory(length).map_err(memory)?;
            pack(graph, &places, pool, &mut filling);
            filling.finish().map_err(memory)?
        }
    };
    let matrix = |(weight, range): (Weight, Range<usize>)| {
        (weight, Matrix::new(&graph.weights[weight], Part { region: region.clone(), range }))
    };
    Ok(places.into_iter().map(matrix).collect())
}

/// The region in a file, found or made; none when the folder cannot have it, which is told.
fn in_file(
    graph: &Graph,
    places: &[(Weight, Range<usize>)],
    length: usize,
    pool: &Pool,
    folder: &Path,
) -> Option<Arc<Region>> {
    let name = name(graph, places);
    let without = |error: std::io::Error| {
        tracing::warn!(folder = %folder.display(), %error, "packed weights are kept in memory, not in a file");
    };
    if let Some(region) = Region::open(folder, &name, length).map_err(without).ok()? {
        return Some(region);
    }
    let mut filling = Region::create(folder, &name, length).map_err(without).ok()?;
    pack(graph, places, pool, &mut filling);
    let region = filling.finish().map_err(without).ok()?;
    let (kept, path) = (region.clone(), folder.to_owned());
    // The disk may be slow, and the model need not wait for it.
    let keep = move || {
        if let Err(error) = kept.keep() {
            tracing::warn!(folder = %path.display(), %error, "packed weights could not be kept for the next start");
        }
    };
    std::thread::Builder::new().name("kedge-keep".into()).spawn(keep).map_err(without).ok()?;
    Some(region)
}

fn name(graph: &Graph, places: &[(Weight, Range<usize>)]) -> String {
    let mut digest = Sha256::new();
    digest.update(LAYOUT.to_le_bytes());
    for (weight, range) in places {
        let tensor = &graph.weights[*weight];
        digest.update(format!("\n{} {:?} {range:?} ", tensor.dtype.name(), tensor.shape));
        tensor.identify(&mut |bytes| digest.update(bytes));
    }
    digest.finalize().iter().fold(String::new(), |mut name, byte| {
        write!(name, "{byte:02x}").expect("a text takes what is written");
        name
    })
}

/// Fills the region, on all threads.
fn pack(graph: &Graph, places: &[(Weight, Range<usize>)], pool: &Pool, filling: &mut Filling) {
    let mut tasks = Vec::new();
    let (mut rest, mut at) = (filling.bytes(), 0);
    for (weight, range) in places {
        let (tensor, panels) = (&graph.weights[*weight], Matrix::panels_of(&graph.weights[*weight]));
        let panel_bytes = range.len() / panels.max(1);
        let chunk = (TASK_BYTES / panel_bytes.max(1)).max(1);
        for first in (0..panels).step_by(chunk) {
            let panels = first..panels.min(first + chunk);
            let (from, length) = (range.start + first * panel_bytes, panels.len() * panel_bytes);
            let (_, behind) = rest.split_at_mut(from - at);
            let (own, behind) = behind.split_at_mut(length);
            (rest, at) = (behind, from + length);
            tasks.push(Mutex::new(Some((tensor, panels, own))));
        }
    }
    pool.run(&[tasks.len()], &|_, task| {
        let taken = tasks[task].lock().unwrap_or_else(PoisonError::into_inner).take();
        let (tensor, panels, out) = taken.expect("each task runs once");
        let length = out.len() / panels.len();
        panels.zip(out.chunks_exact_mut(length)).for_each(|(panel, out)| Matrix::pack(tensor, panel, out));
    });
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
pub(super) mod tests {
    use kedge_formats::{Dtype, Tensor};

    use super::*;
    use crate::graph::{Builder, Op, Part as Product};

    /// The packed bytes of a matrix by itself.
    pub(crate) fn packed(matrix: &Tensor) -> Part {
        let length = Matrix::packed_bytes(matrix);
        let mut filling = Region::in_memory(length).unwrap();
        let panels = Matrix::panels_of(matrix);
        let chunks = filling.bytes()[..length].chunks_exact_mut(length / panels);
        chunks.enumerate().for_each(|(panel, out)| Matrix::pack(matrix, panel, out));
        Part { region: filling.finish().unwrap(), range: 0..length }
    }

    fn graph(weights: Vec<Tensor>) -> Graph {
        let mut g = Builder::default();
        let x = g.per_row(64);
        let out = g.per_row(64);
        g.push(Op::Embed { words: 0, positions: None, types: None, scale: 1.0, out: x });
        let parts = weights.into_iter().map(|tensor| Product { weight: g.weight(tensor), bias: None }).collect();
        g.push(Op::Linear { x, parts, activation: None, out });
        let last = g.take(out);
        g.finish(last, None)
    }

    fn weights(first: f32) -> Vec<Tensor> {
        let values: Vec<f32> = (0..64 * 70).map(|i| first + i as f32 / 4480.0).collect();
        let of = |dtype| Tensor::of_bytes(dtype, &[70, 64], kedge_formats::quant::quantize(dtype, &values)).unwrap();
        vec![of(Dtype::Q8_0), of(Dtype::F32), of(Dtype::Q4_0), of(Dtype::Bf16)]
    }

    /// Once the thread that keeps them has done so.
    fn files(folder: &Path, count: usize) -> Vec<std::path::PathBuf> {
        for _ in 0..2_000 {
            let found: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            if found.len() == count {
                return found;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("there are not {count} files");
    }

    #[test]
    fn packed_weights_are_found_again_and_those_of_other_weights_are_not() {
        let (folder, pool) = (tempfile::tempdir().unwrap(), Pool::new(2).unwrap());
        let (one, other) = (graph(weights(0.0)), graph(weights(1.0)));
        let all = (0..4).collect();
        let bytes = |graph: &Graph, folder| -> Vec<u8> {
            let made = matrices(graph, &all, &pool, folder).unwrap();
            let part = |matrix: &Matrix| match matrix {
                Matrix::Dense(dense) => dense.packed().to_vec(),
                Matrix::Quant(quant) => quant.packed().to_vec(),
            };
            made.iter().flat_map(|(_, matrix)| part(matrix)).collect()
        };
        let expected: Vec<u8> = one.weights.iter().flat_map(|tensor| packed(tensor).to_vec()).collect();
        assert_eq!(bytes(&one, None), expected);
        assert_eq!(bytes(&one, Some(folder.path())), expected);
        let file = files(folder.path(), 1).remove(0);
        // What is found is used as it is: a byte changed on the disk is seen.
        let mut changed = std::fs::read(&file).unwrap();
        changed[0] ^= 1;
        std::fs::write(&file, &changed).unwrap();
        let found = bytes(&one, Some(folder.path()));
        assert!(found[0] == expected[0] ^ 1 && found[1..] == expected[1..]);
        assert_ne!(bytes(&other, Some(folder.path())), found);
        files(folder.path(), 2);
    }

    #[test]
    fn without_the_folder_weights_are_packed_in_memory() {
        let (folder, pool) = (tempfile::tempdir().unwrap(), Pool::new(1).unwrap());
        let no_folder = folder.path().join("file");
        std::fs::write(&no_folder, "").unwrap();
        let made = matrices(&graph(weights(0.0)), &(0..4).collect(), &pool, Some(&no_folder)).unwrap();
        assert_eq!(made.len(), 4);
    }
}

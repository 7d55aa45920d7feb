//! Where the packed matrices of a graph lie: one after the other in a region, which is a mapped file where there is a
//! folder for such files, so that the next start finds them packed and no memory of the process's own is taken.
//!
//! The file's name is a digest of all that its bytes follow from: this layout, types, shapes, and which files, as last
//! changed, hold the weights. Behind the matrices lies a [`digest`] of each MiB of them. It is checked whenever a file is
//! found, on all threads: 250 MB that are in memory take two threads about 10 ms, and those that are not must be read for the
//! first answer anyway. What must hold: a file that cannot be had, or would take more than half of the disk's room, costs speed
//! and memory, never the model; one that a disk or anybody else has changed is packed again, before it is used.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kedge_formats::region::{Filling, Region};
use sha2::{Digest, Sha256};

use super::pool::Pool;
use super::weights::Matrix;
use crate::EngineError;
use crate::graph::{Graph, Weight};

/// To be raised whenever packing changes.
const LAYOUT: u32 = 2;
/// Every matrix begins at a multiple of this: a line of the cache.
const ALIGNMENT: usize = 64;
/// Bytes that have a digest of their own.
const DIGESTED_BYTES: usize = 1 << 20;
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
    let whole = length + length.div_ceil(DIGESTED_BYTES) * size_of::<u64>();
    let found = Region::open(folder, &name, whole).map_err(without).ok()?;
    if let Some(region) = found {
        if is_sound(region.bytes(), length, pool) {
            return Some(region);
        }
        // What another process has put there meanwhile stays.
        if let Some(path) = region.remove().map_err(without).ok()? {
            tracing::warn!(file = %path.display(), "packed weights are damaged; they are removed and packed again");
        }
    }
    let mut filling = Region::create(folder, &name, whole).map_err(without).ok()?;
    pack(graph, places, pool, &mut filling);
    let digests = digests(&filling.bytes()[..length], pool);
    let places = filling.bytes()[length..].chunks_exact_mut(size_of::<u64>());
    places.zip(digests).for_each(|(place, digest)| place.copy_from_slice(&digest.to_le_bytes()));
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

/// Whether what lies behind the first `length` bytes are their digests.
fn is_sound(bytes: &[u8], length: usize, pool: &Pool) -> bool {
    let (matrices, stored) = bytes.split_at(length);
    digests(matrices, pool).iter().flat_map(|digest| digest.to_le_bytes()).eq(stored.iter().copied())
}

/// That of each MiB, made on all threads.
fn digests(bytes: &[u8], pool: &Pool) -> Vec<u64> {
    let parts: Vec<(&[u8], AtomicU64)> = bytes.chunks(DIGESTED_BYTES).map(|part| (part, AtomicU64::new(0))).collect();
    pool.run(&[parts.len()], &|_, task| parts[task].1.store(digest(parts[task].0), Ordering::Relaxed));
    parts.into_iter().map(|(_, digest)| digest.into_inner()).collect()
}

/// Tells bytes from those that chance made of them, as fast as they are read. Whole lanes are multiplied by odd numbers,
/// turned and mixed, all of which can be undone: what differs in one word differs in the end. Who wants two files of one digest
/// can make them; files of others are not read.
fn digest(bytes: &[u8]) -> u64 {
    const BY: u64 = 0x9fb2_1c65_1e98_df25;
    let mut lanes: [u64; 8] = std::array::from_fn(|lane| BY.wrapping_mul(2 * lane as u64 + 1));
    let mut take = |part: &[u8; 64]| {
        let (words, _) = part.as_chunks::<8>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(BY).rotate_left(29);
        }
    };
    let (parts, rest) = bytes.as_chunks::<64>();
    parts.iter().for_each(&mut take);
    let mut last = [0; 64];
    last[..rest.len()].copy_from_slice(rest);
    take(&last);
    lanes.into_iter().fold(bytes.len() as u64, |sum, lane| {
        let mixed = (sum ^ lane).wrapping_mul(BY);
        mixed ^ mixed >> 32
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

    /// All packed bytes of a graph's weights.
    fn bytes(graph: &Graph, pool: &Pool, folder: Option<&Path>) -> Vec<u8> {
        let made = matrices(graph, &(0..graph.weights.len()).collect(), pool, folder).unwrap();
        let part = |matrix: &Matrix| match matrix {
            Matrix::Dense(dense) => dense.packed().to_vec(),
            Matrix::Quant(quant) => quant.packed().to_vec(),
        };
        made.iter().flat_map(|(_, matrix)| part(matrix)).collect()
    }

    /// Waits until that is what lies there, and nothing else is in the folder.
    fn lies_there(file: &Path, expected: &[u8]) {
        for _ in 0..2_000 {
            if std::fs::read(file).is_ok_and(|found| found == expected) {
                assert_eq!(files(file.parent().unwrap(), 1), [file]);
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{} is not as it was", file.display());
    }

    #[test]
    fn packed_weights_are_found_again_and_those_of_other_weights_are_not() {
        use std::os::unix::fs::MetadataExt;
        let (folder, pool) = (tempfile::tempdir().unwrap(), Pool::new(2).unwrap());
        let (one, other) = (graph(weights(0.0)), graph(weights(1.0)));
        let expected: Vec<u8> = one.weights.iter().flat_map(|tensor| packed(tensor).to_vec()).collect();
        assert_eq!(bytes(&one, &pool, None), expected);
        assert_eq!(bytes(&one, &pool, Some(folder.path())), expected);
        let file = files(folder.path(), 1).remove(0);
        let made = std::fs::metadata(&file).unwrap().ino();
        assert_eq!(bytes(&one, &pool, Some(folder.path())), expected);
        assert_eq!(std::fs::metadata(&file).unwrap().ino(), made, "what was found is used");
        assert_ne!(bytes(&other, &pool, Some(folder.path())), expected);
        files(folder.path(), 2);
    }

    #[test]
    fn damaged_files_are_packed_again() {
        let (folder, pool) = (tempfile::tempdir().unwrap(), Pool::new(2).unwrap());
        // More than a digest is for.
        let values: Vec<f32> = (0..700 * 1024).map(|i| i as f32).collect();
        let stored = kedge_formats::quant::quantize(Dtype::F32, &values);
        let large = Tensor::of_bytes(Dtype::F32, &[700, 1024], stored).unwrap();
        let graph = graph(weights(0.0).into_iter().chain([large]).collect());
        let expected = bytes(&graph, &pool, Some(folder.path()));
        let file = files(folder.path(), 1).remove(0);
        let sound = std::fs::read(&file).unwrap();
        assert!(sound.len() > 2 * DIGESTED_BYTES);
        let flipped = |at: usize| {
            let mut bytes = sound.clone();
            bytes[at] ^= 4;
            bytes
        };
        for (what, damaged) in [
            ("the first byte", flipped(0)),
            ("a byte in the middle", flipped(sound.len() / 2)),
            ("the last matrix", flipped(sound.len() - 8 * 4)),
            ("a digest", flipped(sound.len() - 1)),
            ("zeros", vec![0; sound.len()]),
            ("cut", sound[..sound.len() / 2].to_vec()),
            ("longer", [&sound[..], &[0]].concat()),
            ("empty", vec![]),
        ] {
            std::fs::write(&file, damaged).unwrap();
            assert!(bytes(&graph, &pool, Some(folder.path())) == expected, "{what}");
            lies_there(&file, &sound);
        }
    }

    #[test]
    fn two_that_find_a_damaged_file_at_once_both_have_their_weights() {
        let folder = tempfile::tempdir().unwrap();
        let one = graph(weights(0.0));
        let expected = bytes(&one, &Pool::new(1).unwrap(), Some(folder.path()));
        let file = files(folder.path(), 1).remove(0);
        let sound = std::fs::read(&file).unwrap();
        for _ in 0..20 {
            std::fs::write(&file, vec![0; sound.len()]).unwrap();
            std::thread::scope(|scope| {
                let both = [(); 2].map(|()| scope.spawn(|| bytes(&one, &Pool::new(2).unwrap(), Some(folder.path()))));
                both.into_iter().for_each(|found| assert!(found.join().unwrap() == expected));
            });
            lies_there(&file, &sound);
        }
    }

    #[test]
    fn digests_differ_in_every_byte_and_length() {
        let bytes: Vec<u8> = (0..200).collect();
        let mut all = BTreeSet::new();
        for length in [0, 1, 63, 64, 65, 128, 200] {
            assert!(all.insert(digest(&bytes[..length])) && all.insert(digest(&vec![0; 300 + length])), "{length}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x80;
            assert!(all.insert(digest(&changed)), "byte {at}");
        }
    }

    #[test]
    fn on_a_full_disk_weights_are_packed_in_memory() {
        use nix::mount::{MsFlags, mount};
        let folder = tempfile::tempdir().unwrap();
        let one = graph(weights(0.0));
        let expected = bytes(&one, &Pool::new(1).unwrap(), None);
        // What a thread mounts in a namespace of its own goes with it.
        let done = std::thread::scope(|scope| {
            let on_small_disk = || -> nix::Result<Vec<u8>> {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
                mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
                mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some("size=16k"))?;
                let found = bytes(&one, &Pool::new(1).unwrap(), Some(folder.path()));
                assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
                Ok(found)
            };
            scope.spawn(on_small_disk).join().unwrap()
        });
        match done {
            Ok(found) => assert!(found == expected && found.len() > 16 << 10),
            Err(error) => {
                assert!(std::env::var_os("KEDGE_TEST_REQUIRE_CONTAINERD").is_none(), "mounting needs root: {error}");
                println!("skipped: there is no leave to mount a small disk: {error}");
            }
        }
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

//! A safetensors file, checked before one number of it is used, and its shards.
//!
//! The format (huggingface/safetensors `README.md`): eight bytes of header length, little endian, a JSON object of
//! `name: {dtype, shape, data_offsets}`, then the data. What must hold: every tensor's bytes lie inside the file and are
//! exactly as many as its shape and type need; tensors do not overlap and leave no gap. The header is parsed in place and
//! nothing is allocated by a number the file claims. An index (`model.safetensors.index.json`, transformers) names the
//! shard of each tensor; shards lie beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::tensor::{Mapped, Tensor, Tensors};
use crate::{Dtype, FormatError, file};

/// The largest header that is parsed, as in the reference implementation.
const HEADER_BYTES_MAX: u64 = 100_000_000;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

#[derive(Deserialize)]
struct Index {
    weight_map: Once<String>,
}

/// An object whose names are there once each: of two, readers of this format pick one or the other.
struct Once<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Once<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Names<T> {
            type Value = Once<T>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Once<T>, A::Error> {
                let mut found = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if let Some((name, _)) = found.get_key_value(&name) {
                        return Err(A::Error::custom(format!("{name:?} is there twice")));
                    }
                    found.insert(name, value);
                }
                Ok(Once(found))
            }
        }
        deserializer.deserialize_map(Names(PhantomData))
    }
}

pub(crate) fn open(path: &Path) -> Result<Tensors, FormatError> {
    if path.extension().is_some_and(|extension| extension == "json") { open_shards(path) } else { open_file(path) }
}

fn open_file(path: &Path) -> Result<Tensors, FormatError> {
    let file = Mapped::open(path)?;
    let (data_start, entries) = parse(&file.bytes, path)?;
    let tensors = entries.into_iter().map(|(name, entry)| {
        let (start, end) = entry.data_offsets;
        let (dtype, _) = dtype(&entry.dtype).expect("types were checked");
        (name, Tensor::mapped(dtype, entry.shape, &file, data_start + start..data_start + end))
    });
    Ok(Tensors { path: path.to_owned(), named: tensors.collect() })
}

/// The shard of each tensor, by an index: the names of files beside it.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, FormatError> {
    let wrong = |reason: String| FormatError::File { path: path.to_owned(), reason };
    let read = |source| FormatError::Read { path: path.to_owned(), source };
    let index: Index = serde_json::from_slice(&file::read(path, HEADER_BYTES_MAX).map_err(read)?)
        .map_err(|error| wrong(format!("is no index of shards: {error}")))?;
    let shards = index.weight_map.0;
    match shards.iter().find(|(_, shard)| shard.is_empty() || shard.contains('/') || shard.starts_with('.')) {
        Some((name, shard)) => {
            let reason = format!("is said to lie in {shard:?}, which is no file beside the index");
            Err(FormatError::Tensor { path: path.to_owned(), tensor: name.clone(), reason })
        }
        None => Ok(shards),
    }
}

/// The files that [`open`] maps.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>, FormatError> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok(vec![path.to_owned()]);
    }
    let shards: BTreeSet<String> = read_index(path)?.into_values().collect();
    Ok(shards.iter().map(|shard| path.with_file_name(shard)).collect())
}

fn open_shards(path: &Path) -> Result<Tensors, FormatError> {
    let (mut shards, mut named) = (BTreeMap::new(), BTreeMap::new());
    for (name, shard) in read_index(path)? {
        if !shards.contains_key(&shard) {
            let opened = open_file(&path.with_file_name(&shard))?;
            shards.insert(shard.clone(), opened);
        }
        let tensor = shards[&shard].named.get(&name).ok_or_else(|| FormatError::Tensor {
            path: path.with_file_name(&shard),
            tensor: name.clone(),
            reason: "is not in the file, though the index says so".into(),
        })?;
        named.insert(name, tensor.clone());
    }
    Ok(Tensors { path: path.to_owned(), named })
}

/// A type by its name in the header, and the bytes of one value.
fn dtype(name: &str) -> Option<(Dtype, usize)> {
    let other = |bytes: u16| Some((Dtype::Other { values: 1, bytes }, usize::from(bytes)));
    match name {
        "F32" => Some((Dtype::F32, 4)),
        "F16" => Some((Dtype::F16, 2)),
        "BF16" => Some((Dtype::Bf16, 2)),
        "F64" | "I64" | "U64" => other(8),
        "I32" | "U32" => other(4),
        "I16" | "U16" => other(2),
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => other(1),
        _ => None,
    }
}

/// Header to table, with every claim checked against the length of the file.
fn parse(bytes: &[u8], path: &Path) -> Result<(usize, BTreeMap<String, Entry>), FormatError> {
    let broken = |reason: String| FormatError::File { path: path.to_owned(), reason };
    let length = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    let length = length.ok_or_else(|| {
        broken(format!("is {} bytes long; a safetensors file starts with 8 bytes of header length", bytes.len()))
    })?;
    if length > HEADER_BYTES_MAX || length > bytes.len() as u64 - 8 {
        return Err(broken(format!("claims a header of {length} bytes, and has {} after the length", bytes.len() - 8)));
    }
    let data_start = 8 + length as usize;
    let Once(mut raw): Once<serde_json::Value> = serde_json::from_slice(&bytes[8..data_start])
        .map_err(|error| broken(format!("header is no sound JSON object: {error}")))?;
    raw.remove("__metadata__");
    let mut tensors = BTreeMap::new();
    for (name, value) in raw {
        let wrong = |reason: String| FormatError::Tensor { path: path.to_owned(), tensor: name.clone(), reason };
        let entry: Entry = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        let ((start, end), length) = (entry.data_offsets, bytes.len() - data_start);
        if end > length {
            let reason = format!("tensor {name}: claims bytes {start}..{end} of {length}; the file may be cut short");
            return Err(broken(reason));
        }
        check_entry(&entry).map_err(wrong)?;
        tensors.insert(name, entry);
    }
    check_order(&tensors, bytes.len() - data_start, path)?;
    Ok((data_start, tensors))
}

fn check_entry(entry: &Entry) -> Result<(), String> {
    let (_, width) = dtype(&entry.dtype).ok_or_else(|| format!("has the unknown type {:?}", entry.dtype))?;
    let (start, end) = entry.data_offsets;
    if start > end {
        return Err(format!("claims bytes {start}..{end}"));
    }
    let needed = entry.shape.iter().try_fold(width, |product: usize, size| product.checked_mul(*size));
    match needed {
        Some(needed) if needed == end - start => Ok(()),
        Some(needed) => Err(format!(
            "shape {:?} of {} needs {needed} bytes, and {} are claimed",
            entry.shape,
            entry.dtype,
            end - start
        )),
        None => Err(format!("shape {:?} is larger than memory can be", entry.shape)),
    }
}

/// Tensors lie end to end: no overlap, no hole, nothing after the last.
fn check_order(tensors: &BTreeMap<String, Entry>, data_length: usize, path: &Path) -> Result<(), FormatError> {
    let mut order: Vec<_> = tensors.iter().map(|(name, entry)| (entry.data_offsets, name)).collect();
    order.sort();
    let mut next = 0;
    for ((start, end), name) in order {
        if start != next {
            return Err(FormatError::Tensor {
                path: path.to_owned(),
                tensor: name.clone(),
                reason: format!("starts at byte {start}, and the one before it ends at {next}"),
            });
        }
        next = end;
    }
    if next != data_length {
        return Err(FormatError::File {
            path: path.to_owned(),
            reason: format!("has {data_length} bytes of data, and its tensors take {next}"),
        });
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the tests write files")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn check(bytes: &[u8], expected: &str) {
        let said = match parse(bytes, Path::new("m.safetensors")) {
            Ok((_, tensors)) => format!("{} tensors", tensors.len()),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }

    #[test]
    fn a_lying_file_is_refused_by_name() {
        let good = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[],"data_offsets":[8,10]}}"#;
        check(&file(good, &[0; 10]), "2 tensors");
        check(&file(good, &[0; 9]), "m.safetensors: tensor b: claims bytes 8..10 of 9");
        check(&file(good, &[0; 11]), "has 11 bytes of data, and its tensors take 10");
        check(b"short", "is 5 bytes long");
        check(&u64::MAX.to_le_bytes(), "claims a header of 18446744073709551615 bytes, and has 0");
        check(&file("[", b""), "header is no sound JSON object");
        check(&file(&good.replace("[2]", "[3]"), &[0; 10]), "tensor a: shape [3] of F32 needs 12 bytes");
        check(
            &file(&good.replace("[2]", "[4294967296,4294967296]"), &[0; 10]),
            "tensor a: shape [4294967296, 4294967296] is larger",
        );
        check(&file(&good.replace("[8,10]", "[6,8]"), &[0; 10]), "tensor b: starts at byte 6");
        check(&file(&good.replace("F16", "Q4"), &[0; 10]), "tensor b: has the unknown type \"Q4\"");
        check(&file(&good.replace("[0,8]", "[8,0]"), &[0; 10]), "tensor a: claims bytes 8..0");
        check(&file(r#"{"a":7}"#, b""), "tensor a: invalid type");
        check(&file(&good.replace("\"b\"", "\"a\""), &[0; 10]), "\"a\" is there twice");
    }

    #[test]
    fn the_reference_writer_is_understood() {
        let data = 1.5f32.to_le_bytes();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 1], &data).unwrap();
        let bytes = safetensors::serialize([("w", view)], None).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let file = open(&path).unwrap();
        assert_eq!(file.values("w", &[1, 1]).unwrap(), [1.5]);
        assert!(file.get("w", &[1]).unwrap_err().to_string().contains("tensor w: has shape [1, 1]"));
        assert!(file.get("v", &[1]).unwrap_err().to_string().contains("tensor v: is not in the file"));
    }

    #[test]
    fn shards_are_one_set_and_stay_beside_their_index() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
        let header = |name: &str| format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        write("one.safetensors", &file(&header("a"), &1f32.to_le_bytes()));
        write("two.safetensors", &file(&header("b"), &2f32.to_le_bytes()));
        let check = |map: &str, expected: &str| {
            write("i.json", format!(r#"{{"weight_map":{map}}}"#).as_bytes());
            let said = match open(&directory.path().join("i.json")) {
                Ok(all) => {
                    format!("{:?}", all.names().map(|name| all.values(name, &[1]).unwrap()[0]).collect::<Vec<_>>())
                }
                Err(error) => error.to_string(),
            };
            assert!(said.contains(expected), "{said}");
        };
        check(r#"{"a":"one.safetensors","b":"two.safetensors"}"#, "[1.0, 2.0]");
        check(r#"{"a":"two.safetensors"}"#, "two.safetensors: tensor a: is not in the file, though");
        check(r#"{"a":"../one.safetensors"}"#, "i.json: tensor a: is said to lie in");
        check(r#"{"a":"none.safetensors"}"#, "reading");
        check(
            r#"{"a":"one.safetensors","a":"two.safetensors"}"#,
            "i.json: is no index of shards: \"a\" is there twice",
        );
        check(r#"{"a":"/etc/passwd"}"#, "i.json: tensor a: is said to lie in \"/etc/passwd\", which is no file beside");
        std::os::unix::fs::symlink("two.safetensors", directory.path().join("link.safetensors")).unwrap();
        check(r#"{"a":"one.safetensors","b":"link.safetensors"}"#, "[1.0, 2.0]");
        std::os::unix::fs::symlink("/dev/zero", directory.path().join("zeros.safetensors")).unwrap();
        check(r#"{"a":"zeros.safetensors"}"#, "zeros.safetensors: it is no regular file");
        nix::unistd::mkfifo(&directory.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        check(r#"{"a":"pipe"}"#, "pipe: it is no regular file");
        check("[]", "is no index of shards");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(header in "[{}\\[\\]\":,a-z0-9]{0,60}", data in proptest::collection::vec(any::<u8>(), 0..40), length in any::<u64>()) {
            let _ = parse(&file(&header, &data), Path::new("x"));
            let _ = parse(&[&length.to_le_bytes()[..], &data].concat(), Path::new("x"));
        }
    }
}

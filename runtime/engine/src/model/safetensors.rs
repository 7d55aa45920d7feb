//! A safetensors file, mapped and checked before one number of it is used.
//!
//! The format (huggingface/safetensors `README.md`): eight bytes of header length, little endian, a JSON object of
//! `name: {dtype, shape, data_offsets}`, then the data. What must hold: after [`SafetensorsFile::open`] every
//! tensor's bytes lie inside the file and are exactly as many as its shape and type need; tensors do not overlap and
//! leave no gap. The header is parsed in place and nothing is allocated by a number the file claims.
//! Not here: sharded files with an index.

#![allow(unsafe_code, reason = "a file is mapped into memory")]
#![allow(clippy::disallowed_methods, reason = "this file is the shell that maps a weights file")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;

use crate::EngineError;

/// The largest header that is parsed, as in the reference implementation.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// A mapped file of tensors.
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl SafetensorsFile {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let read = |source| EngineError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        // SAFETY: the map is only read, as bytes. A file that is changed under us may change the numbers, as would a
        // changed file read in any other way; a file that is cut short under us ends the process with SIGBUS, which
        // is why models are installed by rename and never edited in place.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let (data_start, tensors) = parse(&map, path)?;
        Ok(Self { path: path.to_owned(), map, data_start, tensors })
    }

    /// Whether [`SafetensorsFile::tensor`] could read the tensor of that name in that shape.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), EngineError> {
        self.entry(name, shape).map(drop)
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry, EngineError> {
        let wrong = |reason: String| self.wrong(name, reason);
        let entry = self.tensors.get(name).ok_or_else(|| wrong("is not in the file".into()))?;
        if entry.shape != shape {
            return Err(wrong(format!("has shape {:?}, and the configuration needs {shape:?}", entry.shape)));
        }
        match entry.dtype.as_str() {
            "F32" | "F16" | "BF16" => Ok(entry),
            other => Err(wrong(format!("has type {other}; F32, F16 and BF16 are supported"))),
        }
    }

    fn wrong(&self, name: &str, reason: String) -> EngineError {
        EngineError::Tensor { path: self.path.clone(), tensor: name.into(), reason }
    }

    /// The tensor of that name as 32-bit floats; it must have that shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        let entry = self.entry(name, shape)?;
        let (start, end) = entry.data_offsets;
        let bytes = &self.map[self.data_start + start..self.data_start + end];
        let values: Vec<f32> = match entry.dtype.as_str() {
            "F32" => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            "F16" => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(self.wrong(name, format!("value {index} is {}, not a finite number", values[index]))),
            None => Ok(values),
        }
    }

    /// Whether a tensor of that name is in the file.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

/// Header to table, with every claim checked against the length of the file.
fn parse(bytes: &[u8], path: &Path) -> Result<(usize, BTreeMap<String, Entry>), EngineError> {
    let broken = |reason: String| EngineError::Weights { path: path.to_owned(), reason };
    let length = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    let length = length.ok_or_else(|| {
        broken(format!("is {} bytes long; a safetensors file starts with 8 bytes of header length", bytes.len()))
    })?;
    if length > HEADER_BYTES_MAX || length > bytes.len() as u64 - 8 {
        return Err(broken(format!("claims a header of {length} bytes, and has {} after the length", bytes.len() - 8)));
    }
    let data_start = 8 + length as usize;
    let mut raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes[8..data_start])
        .map_err(|error| broken(format!("header is not a JSON object: {error}")))?;
    raw.remove("__metadata__");
    let mut tensors = BTreeMap::new();
    for (name, value) in raw {
        let wrong = |reason: String| EngineError::Tensor { path: path.to_owned(), tensor: name.clone(), reason };
        let entry: Entry = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        check_entry(&entry, bytes.len() - data_start).map_err(wrong)?;
        tensors.insert(name, entry);
    }
    check_order(&tensors, bytes.len() - data_start, path)?;
    Ok((data_start, tensors))
}

fn check_entry(entry: &Entry, data_length: usize) -> Result<(), String> {
    let width = match entry.dtype.as_str() {
        "F64" | "I64" | "U64" => 8,
        "F32" | "I32" | "U32" => 4,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => 1,
        other => return Err(format!("has the unknown type {other:?}")),
    };
    let (start, end) = entry.data_offsets;
    if start > end || end > data_length {
        return Err(format!("claims bytes {start}..{end} of {data_length}"));
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
fn check_order(tensors: &BTreeMap<String, Entry>, data_length: usize, path: &Path) -> Result<(), EngineError> {
    let mut order: Vec<_> = tensors.iter().map(|(name, entry)| (entry.data_offsets, name)).collect();
    order.sort();
    let mut next = 0;
    for ((start, end), name) in order {
        if start != next {
            return Err(EngineError::Tensor {
                path: path.to_owned(),
                tensor: name.clone(),
                reason: format!("starts at byte {start}, and the one before it ends at {next}"),
            });
        }
        next = end;
    }
    if next != data_length {
        return Err(EngineError::Weights {
            path: path.to_owned(),
            reason: format!("has {data_length} bytes of data, and its tensors take {next}"),
        });
    }
    Ok(())
}

#[cfg(test)]
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
        check(&file("[", b""), "header is not a JSON object");
        check(&file(&good.replace("[2]", "[3]"), &[0; 10]), "tensor a: shape [3] of F32 needs 12 bytes");
        check(
            &file(&good.replace("[2]", "[4294967296,4294967296]"), &[0; 10]),
            "tensor a: shape [4294967296, 4294967296] is larger",
        );
        check(&file(&good.replace("[8,10]", "[6,8]"), &[0; 10]), "tensor b: starts at byte 6");
        check(&file(&good.replace("F16", "Q4"), &[0; 10]), "tensor b: has the unknown type \"Q4\"");
        check(&file(&good.replace("[0,8]", "[8,0]"), &[0; 10]), "tensor a: claims bytes 8..0");
        check(&file(r#"{"a":7}"#, b""), "tensor a: invalid type");
    }

    #[test]
    fn the_reference_writer_is_understood() {
        let data = 1.5f32.to_le_bytes();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1, 1], &data).unwrap();
        let bytes = safetensors::serialize([("w", view)], None).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.tensor("w", &[1, 1]).unwrap(), [1.5]);
        assert!(file.tensor("w", &[1]).unwrap_err().to_string().contains("tensor w: has shape [1, 1]"));
        assert!(file.tensor("v", &[1]).unwrap_err().to_string().contains("tensor v: is not in the file"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(header in "[{}\\[\\]\":,a-z0-9]{0,60}", data in proptest::collection::vec(any::<u8>(), 0..40), length in any::<u64>()) {
            let _ = parse(&file(&header, &data), Path::new("x"));
            let _ = parse(&[&length.to_le_bytes()[..], &data].concat(), Path::new("x"));
        }
    }
}

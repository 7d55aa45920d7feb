//! Tensors as bytes in mapped files.

#![allow(unsafe_code, reason = "a file is mapped into memory")]
#![allow(clippy::disallowed_methods, reason = "this file is the shell that maps weights")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Dtype, FormatError, file, quant, safetensors};

/// A mapped file.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) bytes: Mmap,
    /// What tells the file from every other: device, inode, length, and when it was changed in seconds and nanoseconds.
    identity: [u64; 7],
}

impl Mapped {
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>, FormatError> {
        let read = |source| FormatError::Read { path: path.to_owned(), source };
        let file = file::open(path).map_err(read)?;
        // SAFETY: the map is only read, as bytes. A file that is changed under us may change the numbers, as would a
        // changed file read in any other way; a file that is cut short under us ends the process with SIGBUS, which
        // is why models are installed by rename and never edited in place.
        let bytes = unsafe { Mmap::map(&file) }.map_err(read)?;
        let about = file.metadata().map_err(read)?;
        let times = [about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec()].map(|time| time as u64);
        let identity = [about.dev(), about.ino(), about.len(), times[0], times[1], times[2], times[3]];
        Ok(Arc::new(Self { bytes, identity }))
    }
}

/// A tensor: bytes of a mapped file, or of memory. Cloning it copies no values.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// How its values are stored.
    pub dtype: Dtype,
    /// Its size, outermost dimension first: a matrix is `[outputs, inputs]`.
    pub shape: Vec<usize>,
    bytes: Bytes,
}

#[derive(Clone, Debug)]
enum Bytes {
    Mapped(Arc<Mapped>, Range<usize>),
    Owned(Arc<[u8]>),
}

impl Tensor {
    /// A tensor of these values, in memory.
    pub fn of_f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "the values fill the shape");
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_owned(), bytes: Bytes::Owned(bytes.into()) }
    }

    /// A tensor of stored bytes, in memory; none when they are not as many as the shape needs.
    pub fn of_bytes(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Option<Self> {
        let fits = dtype.bytes_of(shape.iter().product()) == Some(bytes.len());
        fits.then(|| Self { dtype, shape: shape.to_owned(), bytes: Bytes::Owned(bytes.into()) })
    }

    pub(crate) fn mapped(dtype: Dtype, shape: Vec<usize>, file: &Arc<Mapped>, range: Range<usize>) -> Self {
        Self { dtype, shape, bytes: Bytes::Mapped(file.clone(), range) }
    }

    /// Its stored bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(file, range) => &file.bytes[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }

    /// Tells what may stand for its bytes, piece by piece: of a mapped file which file it is, as it was last changed, and
    /// where in it; of memory the bytes themselves.
    pub fn identify(&self, tell: &mut dyn FnMut(&[u8])) {
        match &self.bytes {
            Bytes::Mapped(file, range) => {
                file.identity.iter().for_each(|number| tell(&number.to_le_bytes()));
                [range.start, range.end].iter().for_each(|place| tell(&(*place as u64).to_le_bytes()));
            }
            Bytes::Owned(bytes) => tell(bytes),
        }
    }

    /// Number of rows: everything but the innermost dimension.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Length of a row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The bytes of one row.
    pub fn row(&self, index: usize) -> &[u8] {
        let length = self.dtype.bytes_of(self.columns()).expect("rows are whole blocks, or the file was refused");
        &self.bytes()[index * length..(index + 1) * length]
    }

    /// The values of one row.
    pub fn row_f32(&self, index: usize, out: &mut [f32]) {
        quant::dequantize(self.dtype, self.row(index), out);
    }

    /// All values.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        quant::dequantize(self.dtype, self.bytes(), &mut out);
        out
    }

    /// Rows `range` of it, as a matrix; of a mapped file nothing is copied.
    pub fn slice_rows(&self, range: Range<usize>) -> Self {
        let length = self.dtype.bytes_of(self.columns()).expect("rows are whole blocks, or the file was refused");
        assert!(range.start <= range.end && range.end <= self.rows(), "the rows are there");
        let shape = vec![range.len(), self.columns()];
        let bytes = match &self.bytes {
            Bytes::Mapped(file, whole) => {
                Bytes::Mapped(file.clone(), whole.start + range.start * length..whole.start + range.end * length)
            }
            Bytes::Owned(bytes) => Bytes::Owned(bytes[range.start * length..range.end * length].into()),
        };
        Self { dtype: self.dtype, shape, bytes }
    }
}

/// Named tensors, and where they came from.
#[derive(Clone, Debug)]
pub struct Tensors {
    pub(crate) path: PathBuf,
    pub(crate) named: BTreeMap<String, Tensor>,
}

impl Tensors {
    /// Those of a safetensors file, or of all the shards that an index (`*.safetensors.index.json`) names.
    pub fn open_safetensors(path: &Path) -> Result<Self, FormatError> {
        safetensors::open(path)
    }

    /// The files that hold what is at `path`: itself, or the shards that an index names.
    pub fn files(path: &Path) -> Result<Vec<PathBuf>, FormatError> {
        safetensors::files(path)
    }

    /// The file they came from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a tensor of that name is there.
    pub fn has(&self, name: &str) -> bool {
        self.named.contains_key(name)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// The tensor of that name, whatever it is.
    pub fn any(&self, name: &str) -> Option<&Tensor> {
        self.named.get(name)
    }

    /// The tensor of that name; it must have that shape and a type whose values can be read.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, FormatError> {
        let tensor = self.named.get(name).ok_or_else(|| self.wrong(name, "is not in the file"))?;
        if tensor.shape != shape {
            let reason = format!("has shape {:?}, and the configuration needs {shape:?}", tensor.shape);
            return Err(self.wrong(name, reason));
        }
        if matches!(tensor.dtype, Dtype::Other { .. }) {
            let known = Dtype::READABLE.map(Dtype::name).join(", ");
            return Err(self.wrong(name, format!("has a type that is not supported; {known} are")));
        }
        if tensor.dtype.bytes_of(tensor.columns()).is_none() {
            let (block, _) = tensor.dtype.block();
            let reason =
                format!("rows of {} values are no whole blocks of {block} ({})", tensor.columns(), tensor.dtype.name());
            return Err(self.wrong(name, reason));
        }
        Ok(tensor.clone())
    }

    /// The values of the tensor of that name and shape, all of them finite.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
        let values = self.get(name, shape)?.to_f32();
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(self.wrong(name, format!("value {index} is {}, not a finite number", values[index]))),
            None => Ok(values),
        }
    }

    /// A complaint about one tensor.
    pub fn wrong(&self, name: &str, reason: impl Into<String>) -> FormatError {
        FormatError::Tensor { path: self.path.clone(), tensor: name.to_owned(), reason: reason.into() }
    }
}

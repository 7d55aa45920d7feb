//! Weights as files, and the formats that numbers are stored in.
//!
//! [`Tensors`] is a set of named [`Tensor`]s in mapped files: a safetensors file, its shards, or a [`Gguf`] file, which
//! carries metadata too. A tensor is bytes of a [`Dtype`] until somebody asks for numbers. What must hold: a file is
//! hostile until proven otherwise, every claim is checked against the file's length before it is believed, nothing is
//! allocated by a number the file claims, and every refusal names the file and the tensor or key at fault.
//! A [`Region`] holds weights that were put in another order, in a file beside them.
//! Not here: what the tensors are for, and fast arithmetic on them.

mod dtype;
mod error;
pub mod file;
pub mod gguf;
pub mod quant;
pub mod region;
mod safetensors;
mod tensor;

pub use dtype::Dtype;
pub use error::FormatError;
pub use gguf::Gguf;
pub use region::Region;
pub use tensor::{Tensor, Tensors};

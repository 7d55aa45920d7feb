//! The inference engine: model files in, vectors out.
//!
//! [`Encoder`] is the front door. It reads a BERT-family model directory ([`model`]), turns texts into tokens,
//! plans a fixed list of operations for each (batch, sequence) shape ([`plan`]), and has a [`backend::Backend`]
//! run that plan. Planning never sees a device, and a backend never sees a tokenizer.
//!
//! What must hold: a model file is hostile until proven otherwise, and every refusal names the file and the field
//! or tensor at fault; the same text gives the same vector (within rounding) whatever batch it came in.
//! Not here: HTTP (see `kedge-serve`), decoders and sampling, quantised weights, accelerators.

pub mod backend;
pub mod encoder;
pub mod error;
mod inspect;
pub mod model;
pub mod plan;

pub use backend::{Backend, cpu::Cpu, reference::Reference};
pub use encoder::{Embedding, Encoder, Tokens};
pub use error::EngineError;
pub use inspect::inspect;

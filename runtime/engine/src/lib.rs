//! Model files in; vectors (`Encoder`) or text (`Decoder`) out. Both build a graph, plan it for a shape, and run it on a
//! backend.
//!
//! [`model`] reads the files, which become a [`graph`] of operations and then a [`plan`]; a [`backend::Backend`] runs that.
//! [`generate`] schedules the steps of those who want text. Graphs and plans never see a device, and a backend never sees a
//! tokenizer.
//!
//! What must hold: a model file is hostile until proven otherwise, and every refusal names the file and the field
//! or tensor at fault; the same text gives the same vector (within rounding) whatever batch it came in.
//! Not here: HTTP (see `kedge-serve`), files of weights (see `kedge-formats`), accelerators.

pub mod backend;
pub mod encoder;
pub mod error;
pub mod generate;
pub mod graph;
mod guarded;
mod inspect;
mod memory;
pub mod model;
pub mod plan;

pub use backend::{Backend, Capabilities, cpu::Cpu, reference::Reference, spare::WithSpare};
pub use encoder::{Embedding, Encoder, Tokens};
pub use error::EngineError;
pub use generate::{Decoder, DecoderOptions};
pub use inspect::{inspect, is_encoder};
pub use memory::{bytes_free, trim};

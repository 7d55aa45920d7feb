//! The inference engine: model files in, vectors out.
//!
//! [`Encoder`] is the front door. It reads a BERT-family model directory ([`model`]), which becomes a [`graph`] of
//! operations; it turns texts into tokens, plans the graph for a shape ([`plan`]), and has a [`backend::Backend`] run
//! that plan. Graphs and plans never see a device, and a backend never sees a tokenizer.
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

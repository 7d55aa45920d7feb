//! A model on disk: what its files say, checked before anything is computed with it.
//!
//! What must hold: no allocation is larger than the file that asked for it, but for the widening of 16-bit weights.

pub mod bert;
pub mod config;
pub mod decoder;
pub(crate) mod decoder_graph;
mod family;
mod location;
mod rope;
pub(crate) mod settings;
pub(crate) mod source;

pub use config::EncoderConfig;
pub use decoder::DecoderConfig;
pub use family::Family;
pub use location::Location;

//! Making text: tokens in, tokens out, for many at once.
//!
//! [`Decoder`] is the front door: a model with a thread of its own that takes [`Request`]s and answers each with a
//! stream of [`Event`]s. What to do next is decided by [`schedule`] and [`pages`], which know no device and no clock;
//! [`sample`] chooses tokens from logits; [`text`] and [`chat`] are the ways between text and tokens.

pub mod chat;
pub mod decoder;
mod defaults;
pub(crate) mod gguf_tokenizer;
pub mod pages;
pub mod sample;
pub mod schedule;
mod share;
pub mod text;

pub use chat::{ChatTemplate, Message};
pub use decoder::{Decoder, DecoderOptions, Figures};
pub use defaults::Defaults;
pub use sample::{Choice, Sampling};
pub use schedule::{End, Event, Request};
pub use share::Client;
pub use text::{TextStream, TextTokenizer};

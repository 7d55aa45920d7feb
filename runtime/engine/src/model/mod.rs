//! A model on disk: what its files say, checked before anything is computed with it.
//!
//! What must hold: no allocation is larger than the file that asked for it, but for the widening of 16-bit weights.

pub mod bert;
pub mod config;
pub mod decoder;
mod rope;

use std::path::{Path, PathBuf};

pub use config::EncoderConfig;
pub use decoder::DecoderConfig;

/// The GGUF file that `path` means: itself, or the only one in a folder without settings.
#[allow(clippy::disallowed_methods, reason = "this is part of the shell that reads a model directory")]
pub(crate) fn gguf_file(path: &Path) -> Option<PathBuf> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension == "gguf");
    if is_gguf(path) {
        return Some(path.to_owned());
    }
    if !path.is_dir() || path.join("config.json").exists() {
        return None;
    }
    let entries = std::fs::read_dir(path).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let mut files = entries.filter(|path| is_gguf(path));
    files.next().filter(|_| files.next().is_none())
}

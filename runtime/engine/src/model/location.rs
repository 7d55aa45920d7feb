//! Where the files of a model lie: one rule for encoders, decoders, and whoever asks how old a model is.

#![allow(clippy::disallowed_methods, reason = "this is part of the shell that reads a model directory")]

use std::path::{Path, PathBuf};

use kedge_formats::{FormatError, Tensors};

use crate::EngineError;

/// Where a model lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The folder of its settings and tokenizer.
    pub folder: PathBuf,
    /// Its weights: a `.safetensors` file, an index of such, or a `.gguf` file. They need not be there.
    pub weights: PathBuf,
}

impl Location {
    /// What `path` means. A file is the weights, whatever else lies beside it. In a folder they are an index of shards, else
    /// `model.safetensors`; in one without settings the only `.gguf` file, and several are refused by their names.
    pub fn of(path: &Path) -> Result<Self, EngineError> {
        // It may be named and not there, or no model: then the settings beside it are not what is missing.
        let about = path.metadata().map_err(|source| EngineError::Read { path: path.to_owned(), source })?;
        if about.is_dir() {
            let index = path.join("model.safetensors.index.json");
            let plain = || if index.is_file() { index } else { path.join("model.safetensors") };
            return Ok(Self { folder: path.to_owned(), weights: only_gguf(path)?.unwrap_or_else(plain) });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !about.is_file() || ![".safetensors", INDEX, ".gguf"].iter().any(|kind| name.ends_with(kind)) {
            let reason = "is no model: a folder, a .safetensors file, an index of such and a .gguf file are".into();
            return Err(EngineError::File { path: path.to_owned(), reason });
        }
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { folder: folder.to_owned(), weights: path.to_owned() })
    }

    /// The files that are mapped while the model is used: the weights, or the shards of their index.
    pub fn mapped(&self) -> Result<Vec<PathBuf>, EngineError> {
        Ok(Tensors::files(&self.weights)?)
    }

    /// Whether one file is all of it.
    pub fn is_gguf(&self) -> bool {
        is_gguf(&self.weights)
    }
}

/// How the name of an index ends.
const INDEX: &str = ".safetensors.index.json";

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gguf")
}

/// The only GGUF file of a folder without settings.
fn only_gguf(folder: &Path) -> Result<Option<PathBuf>, FormatError> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    if folder.join("config.json").exists() {
        return Ok(None);
    }
    let mut files: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    if files.len() > 1 {
        files.sort();
        let names: Vec<_> = files.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        let reason = format!("holds several .gguf files ({}); name one", names.join(", "));
        return Err(FormatError::File { path: folder.to_owned(), reason });
    }
    Ok(files.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_what_is_meant() {
        for (files, named, expected) in [
            ("m/config.json m/model.safetensors", "m", "m/model.safetensors"),
            ("m/config.json m/model.safetensors m/tuned.safetensors", "m/tuned.safetensors", "m/tuned.safetensors"),
            ("m/model.safetensors.index.json", "m", "m/model.safetensors.index.json"),
            ("m/model.safetensors.index.json m/b.safetensors", "m/b.safetensors", "m/b.safetensors"),
            ("m/config.json m/b.safetensors.index.json", "m/b.safetensors.index.json", "m/b.safetensors.index.json"),
            ("m/a.gguf", "m", "m/a.gguf"),
            ("m/a.gguf m/b.gguf", "m/b.gguf", "m/b.gguf"),
            ("m/b.gguf m/a.gguf", "m", "m: holds several .gguf files (a.gguf, b.gguf); name one"),
            ("m/config.json m/a.gguf m/b.gguf", "m", "m/model.safetensors"),
            ("m/config.json m/a.gguf", "m", "m/model.safetensors"),
            ("m/config.json m/a.gguf", "m/a.gguf", "m/a.gguf"),
            ("m/config.json", "m", "m/model.safetensors"),
            ("m/config.json", "m/config.json", "is no model: a folder"),
            ("m/model.bin", "m/model.bin", "is no model: a folder"),
            ("m/config.json", "m/lost.safetensors", "No such file"),
        ] {
            let root = tempfile::tempdir().unwrap();
            std::fs::create_dir(root.path().join("m")).unwrap();
            files.split(' ').for_each(|name| std::fs::write(root.path().join(name), "").unwrap());
            match Location::of(&root.path().join(named)) {
                Ok(Location { folder, weights }) => {
                    assert_eq!(weights, root.path().join(expected), "{named} of {files}");
                    assert_eq!(folder, root.path().join("m"), "{named} of {files}");
                }
                Err(error) => assert!(error.to_string().contains(expected), "{error}"),
            }
        }
    }

    #[test]
    fn what_is_no_model_is_told_by_its_own_name() {
        for (path, says) in [
            ("/nowhere/model", "reading /nowhere/model: No such file"),
            ("/nowhere/model.gguf", "reading /nowhere/model.gguf: No such file"),
            ("/dev/null", "/dev/null: is no model"),
        ] {
            let error = Location::of(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert_eq!(
            Location::of(Path::new("Cargo.toml")).unwrap_err().to_string().split(": ").next(),
            Some("Cargo.toml")
        );
    }
}

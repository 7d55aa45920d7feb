//! What a model consists of: its files, and the digest of every piece of them.
//!
//! The manifest's canonical bytes have the model's digest, so one digest covers names, lengths and contents, and any
//! range of a file can be verified alone as soon as the manifest is.

use std::collections::BTreeSet;

use kedge_content::Digest;
use serde::{Deserialize, Serialize};

/// Files are verified, sent and resumed in pieces of this many bytes; the last piece of a file may be shorter.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// More files than any published model has.
pub const FILES_MAX: usize = 10_000;
/// The longest name of a file with its folders, in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// The largest manifest that is read: enough for a model of 900 GB.
pub const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its name below the model's folder, with `/` between folders.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// The digest of each [`CHUNK_BYTES`] of it, in order; none for an empty file.
    pub chunks: Vec<Digest>,
}

impl FileEntry {
    /// How many bytes piece `index` has.
    pub fn chunk_len(&self, index: usize) -> u64 {
        let start = index as u64 * CHUNK_BYTES;
        CHUNK_BYTES.min(self.size.saturating_sub(start))
    }
}

/// All files of a model, in order of their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The files.
    pub files: Vec<FileEntry>,
}

/// What is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Its bytes are no manifest.
    #[error("the manifest cannot be read: {0}")]
    Syntax(String),
    /// Its bytes have another digest.
    #[error("the manifest has the digest {actual}, not {expected}")]
    Digest {
        /// What was asked for.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// It is larger than [`MANIFEST_BYTES_MAX`], or names more than [`FILES_MAX`] files.
    #[error("the manifest is too large")]
    Large,
    /// It names no file.
    #[error("the model has no files")]
    Empty,
    /// The name of a file leaves the model's folder or is no name.
    #[error(
        "the file name {0:?} is not allowed: names stay below the model's folder, without \".\", \"..\" and control characters"
    )]
    Path(String),
    /// Names are not in order, or one occurs twice, or is a file and a folder at once.
    #[error("the file {0:?} is out of order, named twice, or a file and a folder at once")]
    Order(String),
    /// The pieces are not as many as the length needs.
    #[error("the file {0:?} has not as many pieces as its length needs")]
    Chunks(String),
}

impl Manifest {
    /// The canonical bytes, which [`Manifest::digest`] is of: JSON without white space, fields in a fixed order.
    pub fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is plain data")
    }

    /// The model's digest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes())
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).fold(0, u64::saturating_add)
    }

    /// Reads a manifest that somebody sent: it must have the digest `expected`, and everything it says is checked
    /// before anybody acts on it.
    pub fn read(bytes: &[u8], expected: &Digest) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::Large);
        }
        let actual = Digest::of(bytes);
        if actual != *expected {
            return Err(ManifestError::Digest { expected: expected.clone(), actual });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| ManifestError::Syntax(error.to_string()))?;
        manifest.check()?;
        if manifest.bytes() != bytes {
            return Err(ManifestError::Syntax("it is not in canonical form".into()));
        }
        Ok(manifest)
    }

    /// Whether everything it says makes sense.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.files.is_empty() {
            return Err(ManifestError::Empty);
        }
        if self.files.len() > FILES_MAX {
            return Err(ManifestError::Large);
        }
        let mut previous: Option<&str> = None;
        let mut names = BTreeSet::new();
        for file in &self.files {
            check_path(&file.path)?;
            if previous.is_some_and(|previous| previous >= file.path.as_str()) {
                return Err(ManifestError::Order(file.path.clone()));
            }
            previous = Some(&file.path);
            names.insert(file.path.as_str());
            if file.chunks.len() as u64 != file.size.div_ceil(CHUNK_BYTES) {
                return Err(ManifestError::Chunks(file.path.clone()));
            }
        }
        for file in &self.files {
            for (at, _) in file.path.match_indices('/') {
                if names.contains(&file.path[..at]) {
                    return Err(ManifestError::Order(file.path[..at].to_owned()));
                }
            }
        }
        Ok(())
    }
}

/// Whether `path` is a plain name below a folder.
pub fn check_path(path: &str) -> Result<(), ManifestError> {
    let part = |part: &str| !part.is_empty() && part.len() <= 255 && part != "." && part != "..";
    let good = path.len() <= PATH_BYTES_MAX && path.split('/').all(part) && !path.chars().any(char::is_control);
    if good { Ok(()) } else { Err(ManifestError::Path(path.to_owned())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(path: &str, size: u64) -> FileEntry {
        let chunks = (0..size.div_ceil(CHUNK_BYTES)).map(|_| Digest::of(b"")).collect();
        FileEntry { path: path.into(), size, chunks }
    }

    #[test]
    fn the_digest_covers_names_lengths_and_contents() {
        let of = |path: &str, size| Manifest { files: vec![file(path, size)] }.digest();
        assert_ne!(of("a", 1), of("b", 1));
        assert_ne!(of("a", 1), of("a", 2));
        let manifest = Manifest { files: vec![file("a", 1), file("b/c", CHUNK_BYTES + 1)] };
        assert_eq!(Manifest::read(&manifest.bytes(), &manifest.digest()), Ok(manifest));
    }

    #[test]
    fn what_does_not_make_sense_is_refused() {
        let check = |files: Vec<FileEntry>| Manifest { files }.check().unwrap_err();
        assert_eq!(check(vec![]), ManifestError::Empty);
        for path in ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "a\nb"] {
            assert_eq!(check(vec![file(path, 1)]), ManifestError::Path(path.into()), "{path:?}");
        }
        assert_eq!(check(vec![file("b", 1), file("a", 1)]), ManifestError::Order("a".into()));
        assert_eq!(check(vec![file("a", 1), file("a", 1)]), ManifestError::Order("a".into()));
        assert_eq!(check(vec![file("a", 1), file("a/b", 1)]), ManifestError::Order("a".into()));
        let short = FileEntry { path: "a".into(), size: 1, chunks: vec![] };
        assert_eq!(check(vec![short]), ManifestError::Chunks("a".into()));
        let huge = FileEntry { path: "a".into(), size: u64::MAX, chunks: vec![] };
        assert_eq!(check(vec![huge]), ManifestError::Chunks("a".into()));
    }

    #[test]
    fn bytes_of_another_digest_or_another_form_are_refused() {
        let manifest = Manifest { files: vec![file("a", 1)] };
        let wrong = Digest::of(b"x");
        assert!(matches!(Manifest::read(&manifest.bytes(), &wrong), Err(ManifestError::Digest { .. })));
        let spaced = serde_json::to_vec_pretty(&manifest).unwrap();
        assert!(matches!(Manifest::read(&spaced, &Digest::of(&spaced)), Err(ManifestError::Syntax(_))));
        let unknown = br#"{"files":[],"more":1}"#;
        assert!(matches!(Manifest::read(unknown, &Digest::of(unknown)), Err(ManifestError::Syntax(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::read(&bytes, &Digest::of(&bytes));
        }
    }
}

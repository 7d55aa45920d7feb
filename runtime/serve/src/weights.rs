//! The files that a model was opened from, which are mapped while it is served: somebody may change them in place.
//!
//! What must hold: whoever is answered out of changed weights could be told anything, so nobody is. Another file in the place
//! of one changes nothing, since the one that was opened is still what is mapped.

#![allow(clippy::disallowed_methods, reason = "this is the shell that reads which files are a model's")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kedge_engine::model::Location;
use serde::Deserialize;

use crate::files::{self, LOOK_EVERY, Mark};

/// Which shard has which tensor.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, PathBuf>,
}

/// The files of the weights at `model`: the one there, or what an index of shards names. Where they cannot be read, opening
/// them says so.
pub(crate) fn files(model: &Path) -> Vec<PathBuf> {
    let Ok(Location { weights, .. }) = Location::of(model) else { return Vec::new() };
    if weights.extension().is_none_or(|kind| kind != "json") {
        return vec![weights];
    }
    let index = std::fs::read(&weights).ok().and_then(|text| serde_json::from_slice::<Index>(&text).ok());
    let shards = index.map_or_else(BTreeSet::new, |index| index.weight_map.into_values().collect());
    shards.into_iter().map(|shard| weights.with_file_name(shard)).collect()
}

/// Weights, as they were.
#[derive(Debug)]
pub(crate) struct Weights(Vec<(PathBuf, Mark)>);

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Same,
    /// It is gone, or there is another in its place.
    Replaced,
    Changed,
}

fn fate(was: Mark, is: Mark) -> Fate {
    match (was, is) {
        _ if was == is => Fate::Same,
        (Some((.., was)), Some((.., is))) if was == is => Fate::Changed,
        _ => Fate::Replaced,
    }
}

impl Weights {
    /// As they are now.
    pub(crate) fn of(files: &[PathBuf]) -> Self {
        Self(files.iter().map(|file| (file.clone(), files::mark(file))).collect())
    }

    /// Looks at them again; the first that was changed in place.
    fn look(&mut self) -> Option<PathBuf> {
        let mut changed = None;
        self.0.retain(|(file, was)| match fate(*was, files::mark(file)) {
            Fate::Same => true,
            Fate::Replaced => {
                tracing::info!(?file, "is no longer the file that is served; that one is until the next start");
                false
            }
            Fate::Changed => {
                changed.get_or_insert_with(|| file.clone());
                false
            }
        });
        changed
    }

    /// Resolves with a file that was changed in place.
    pub(crate) async fn changed(mut self) -> PathBuf {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // A file system that does not answer must not stop the requests.
            let looked = tokio::task::spawn_blocking(move || (self.look(), self)).await;
            let (changed, rest) = looked.expect("looking at files does not panic");
            if let Some(file) = changed {
                return file;
            }
            self = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_file_is_another_by_its_inode_and_changed_by_its_time_or_length() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let was = Some((at(1), 10, 7));
        for (name, is, expected) in [
            ("nothing", was, Fate::Same),
            ("written", Some((at(2), 10, 7)), Fate::Changed),
            ("cut", Some((at(1), 9, 7)), Fate::Changed),
            ("renamed over", Some((at(2), 9, 8)), Fate::Replaced),
            ("gone", None, Fate::Replaced),
        ] {
            assert_eq!(fate(was, is), expected, "{name}");
        }
    }

    #[test]
    fn shards_are_files_of_the_weights() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(files(&at("none")), Vec::<PathBuf>::new());
        fs::write(at("a.gguf"), "GGUF").unwrap();
        assert_eq!((files(&at("a.gguf")), files(folder.path())), (vec![at("a.gguf")], vec![at("a.gguf")]));
        let index = r#"{"metadata":{},"weight_map":{"x":"2.safetensors","y":"1.safetensors","z":"2.safetensors"}}"#;
        fs::write(at("config.json"), "{}").unwrap();
        assert_eq!(files(folder.path()), [at("model.safetensors")]);
        fs::write(at("model.safetensors.index.json"), index).unwrap();
        assert_eq!(files(folder.path()), [at("1.safetensors"), at("2.safetensors")]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_file_is_no_change_and_a_write_into_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let all = ["1", "2", "3"].map(at);
        all.iter().for_each(|file| fs::write(file, "a").unwrap());
        let changed = tokio::spawn(Weights::of(&all).changed());
        fs::write(at("new"), "b").unwrap();
        fs::rename(at("new"), at("1")).unwrap();
        fs::remove_file(at("2")).unwrap();
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert!(!changed.is_finished());
        fs::write(at("1"), "longer, but it is not what is served").unwrap();
        tokio::time::sleep(3 * LOOK_EVERY).await;
        assert!(!changed.is_finished());
        fs::write(at("3"), "longer").unwrap();
        assert_eq!(changed.await.unwrap(), at("3"));
    }
}

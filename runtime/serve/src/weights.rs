//! The files that a model was opened from, which are mapped while it is served: somebody may change them in place.
//!
//! What must hold: whoever is answered out of changed weights could be told anything, so nobody is. Another file in the place
//! of one changes nothing, since the one that was opened is still what is mapped.

#![allow(clippy::disallowed_methods, reason = "this is the shell that reads which files are a model's")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use kedge_engine::model::Location;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use serde::Deserialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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

/// Watches the files themselves, and not their names.
pub(crate) struct Weights {
    inotify: AsyncFd<Watch>,
    files: Vec<(WatchDescriptor, PathBuf)>,
}

struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Weights {
    /// From now on; files that are not there are not watched, since opening them says so. Wants a runtime around it.
    pub(crate) fn watch(files: &[PathBuf]) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let watch = |file: &PathBuf| match inotify.add_watch(file, AddWatchFlags::IN_MODIFY) {
            Ok(watched) => Some(Ok((watched, file.clone()))),
            Err(Errno::ENOENT) => None,
            Err(error) => Some(Err(error)),
        };
        let files = files.iter().filter_map(watch).collect::<Result<_, _>>()?;
        #[allow(deprecated, reason = "sound here: the registration owns the descriptor, so it cannot be closed before")]
        let inotify = AsyncFd::with_interest(Watch(inotify), Interest::READABLE)?;
        Ok(Self { inotify, files })
    }

    /// Resolves with a file into which somebody wrote, or which was cut.
    pub(crate) async fn changed(self) -> io::Result<PathBuf> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let events = match ready.get_inner().0.read_events() {
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                events => events?,
            };
            // What is gone altogether is an event, too.
            let changed = events.iter().filter(|event| event.mask.contains(AddWatchFlags::IN_MODIFY));
            let changed = changed.flat_map(|event| self.files.iter().find(|(watched, _)| *watched == event.wd));
            if let Some((_, file)) = changed.into_iter().next() {
                return Ok(file.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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

    #[tokio::test]
    async fn another_file_is_no_change_and_a_write_into_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for how in ["written", "cut"] {
            let all = ["1", "2", "3"].map(at);
            all.iter().for_each(|file| fs::write(file, "abc").unwrap());
            let opened = fs::OpenOptions::new().write(true).open(at("3")).unwrap();
            std::os::unix::fs::symlink(at("3"), at(how)).unwrap();
            let weights = Weights::watch(&[at("1"), at("2"), at(how), at("none")]).unwrap();
            fs::write(at("new"), "b").unwrap();
            fs::rename(at("new"), at("1")).unwrap();
            fs::remove_file(at("2")).unwrap();
            fs::write(at("1"), "longer, but it is not what is served").unwrap();
            fs::read(at("3")).unwrap();
            if how == "cut" {
                opened.set_len(1).unwrap()
            } else {
                fs::write(at("3"), "x").unwrap()
            }
            assert_eq!(weights.changed().await.unwrap(), at(how));
        }
    }
}

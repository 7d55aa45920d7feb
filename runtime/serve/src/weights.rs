//! The files that a model was opened from, which are mapped while it is served: somebody may write into them.
//!
//! What must hold: nobody is answered out of weights that were changed, since it could be anything: the server ends. Another
//! file in the place of one changes nothing: the one that was opened is still what is mapped. Not seen are writes by another
//! machine that shares the file system, and those of whoever has mapped the file.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kedge_engine::model::Location;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The files of the model at that path. Where they cannot be read, opening them says so.
pub(crate) fn files(model: &Path) -> Vec<PathBuf> {
    Location::of(model).and_then(|at| at.mapped()).unwrap_or_default()
}

/// Watches files themselves, and not their names.
pub(crate) struct Weights {
    inotify: AsyncFd<Watch>,
    watched: Vec<(WatchDescriptor, PathBuf)>,
}

struct Watch(Inotify);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Weights {
    /// Watches none. Wants a runtime around it.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[allow(deprecated, reason = "sound here: the registration owns the descriptor, so it cannot be closed before")]
        let inotify = AsyncFd::with_interest(Watch(inotify), Interest::READABLE)?;
        Ok(Self { inotify, watched: Vec::new() })
    }

    /// Watches the files of these names, or those of packed weights in folders of these names, beside those that it watches.
    /// One that is not there is none.
    pub(crate) fn watch(&mut self, files: &[PathBuf]) -> io::Result<()> {
        for file in files {
            match self.inotify.get_ref().0.add_watch(file, AddWatchFlags::IN_MODIFY) {
                Ok(descriptor) => self.watched.push((descriptor, file.clone())),

                Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Resolves with a file into which somebody wrote, or which was cut.
    pub(crate) async fn changed(&self) -> io::Result<PathBuf> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let events = match ready.get_inner().0.read_events() {
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                events => events?,
            };
            // That a file is gone is an event, too.
            let written = events.iter().filter(|event| event.mask.contains(AddWatchFlags::IN_MODIFY));
            let of = |event: &InotifyEvent| {
                let (_, path) = self.watched.iter().find(|(descriptor, _)| *descriptor == event.wd)?;
                let Some(name) = &event.name else { return Some(path.clone()) };
                let file = path.join(name);
                is_mapped(&file).then_some(file)
            };
            if let Some(file) = written.filter_map(of).next() {
                return Ok(file);
            }
        }
    }
}

/// Whether this process computes with the file, which is mapped then: of packed weights in one folder others are other
/// models'. (`proc_pid_maps(5)`; a file that had no name when it was mapped is told by its number alone.)
#[allow(clippy::disallowed_methods, reason = "this file is the shell that asks the system about weights")]
fn is_mapped(file: &Path) -> bool {
    // One that is gone again is nobody's any more.
    let Ok(about) = std::fs::metadata(file) else { return false };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let number = about.ino().to_string();
    maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&number))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
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
        fs::write(at("model.safetensors.index.json"), index.replace("2.s", "/etc/2.s")).unwrap();
        assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn another_file_is_no_change_and_a_write_into_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for how in ["written", "cut", "packed"] {
            let all = ["1", "2", "3"].map(at);
            all.iter().for_each(|file| fs::write(file, "abc").unwrap());
            let opened = fs::OpenOptions::new().write(true).open(at("3")).unwrap();
            std::os::unix::fs::symlink(at("3"), at(how)).unwrap();
            let kept = at("kept");
            fs::create_dir_all(&kept).unwrap();
            fs::write(kept.join("a.packed"), "abc").unwrap();
            let mapped = kedge_formats::region::Region::open(&kept, "a", 3).unwrap();
            assert!(mapped.is_some());
            let mut weights = Weights::new().unwrap();
            weights.watch(&[at("1"), at("2"), at("none")]).unwrap();
            weights.watch(&[at("2"), at(how), kept.clone()]).unwrap();
            fs::write(kept.join("new"), "abc").unwrap();
            fs::write(kept.join(format!("of-another-{how}.packed")), "abc").unwrap();
            fs::write(at("new"), "b").unwrap();
            fs::rename(at("new"), at("1")).unwrap();
            fs::remove_file(at("2")).unwrap();
            fs::write(at("1"), "longer, but it is not what is served").unwrap();
            fs::read(at("3")).unwrap();
            if how == "packed" {
                fs::write(kept.join("a.packed"), "x").unwrap();
                assert_eq!(weights.changed().await.unwrap(), kept.join("a.packed"));
                continue;
            }
            if how == "cut" {
                opened.set_len(1).unwrap()
            } else {
                fs::write(at("3"), "x").unwrap()
            }
            assert_eq!(weights.changed().await.unwrap(), at(how));
        }
    }
}

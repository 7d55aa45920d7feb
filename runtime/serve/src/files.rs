//! Files that are read again when they change: keys and certificates.

#![allow(
    clippy::disallowed_methods,
    reason = "this is the shell that reads files people keep; nothing here is written"
)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::signal::unix::Signal;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The longest file that is read: far above any list of keys or chain of certificates.
const BYTES_MAX: u64 = 4 << 20;

/// What comes from files.
pub(crate) trait FromFiles: Send + Sync {
    /// Which files.
    fn files(&self) -> Vec<PathBuf>;
    /// Reads them again; what was read before stays when they cannot be used.
    fn read_again(&self) -> Result<(), String>;
}

/// All of a file; the error is what the system says.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, String> {
    kedge_formats::file::read(path, BYTES_MAX).map_err(|error| error.to_string())
}

/// What changes when somebody writes a file or puts another in its place: when it was written, its length and its inode. None
/// where there is none.
type Mark = Option<(SystemTime, u64, u64)>;

fn mark(file: &Path) -> Mark {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Reads things again whenever their files change or the signal comes; never ends.
pub(crate) async fn follow(things: Vec<Arc<dyn FromFiles>>, mut hangup: Signal) {
    // A file system that does not answer must not stop the requests.
    let marks = || {
        let things = things.clone();
        let of = |thing: &Arc<dyn FromFiles>| thing.files().iter().map(|file| mark(file)).collect::<Vec<_>>();
        let looked = tokio::task::spawn_blocking(move || things.iter().map(of).collect::<Vec<_>>());
        async { looked.await.expect("looking at files does not panic") }
    };
    let mut seen = marks().await;
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        let now = marks().await;
        for ((thing, before), now) in things.iter().zip(&seen).zip(&now) {
            if !asked && before == now {
                continue;
            }
            let files = thing.files();
            let (this, again) = (thing.clone(), |this: Arc<dyn FromFiles>| move || this.read_again());
            match tokio::task::spawn_blocking(again(this)).await.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(()) => tracing::info!(?files, "read again"),
                Err(error) => tracing::warn!(?files, error, "cannot be used; what was read before stays"),
            }
        }
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::signal::unix::{SignalKind, signal};

    use super::*;

    struct Counted(PathBuf, AtomicUsize);

    impl FromFiles for Counted {
        fn files(&self) -> Vec<PathBuf> {
            vec![self.0.clone()]
        }

        fn read_again(&self) -> Result<(), String> {
            self.1.fetch_add(1, Ordering::Relaxed);
            read(&self.0).map(drop)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_again_when_another_is_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("keys"), folder.path().join("new"));
        std::fs::write(&path, "a").unwrap();
        let thing = Arc::new(Counted(path.clone(), AtomicUsize::new(0)));
        let hangup = signal(SignalKind::hangup()).unwrap();
        tokio::spawn(follow(vec![thing.clone()], hangup));
        for (step, expected) in [("nothing", 0), ("other", 1), ("nothing", 1), ("gone", 2), ("other", 3)] {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match step {
                "other" => {
                    std::fs::write(&new, "b").unwrap();
                    std::fs::rename(&new, &path).unwrap();
                }
                "gone" => std::fs::remove_file(&path).unwrap(),
                _ => {}
            }
            tokio::time::sleep(3 * LOOK_EVERY).await;
            assert_eq!(thing.1.load(Ordering::Relaxed), expected, "{step}");
        }
    }
}

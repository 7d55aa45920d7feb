//! Whether the node's disks have room: the DiskPressure condition, and which images go when there is little left.
//! (`pkg/kubelet/eviction`, `pkg/kubelet/images/image_gc_manager.go`.)
//!
//! The kubelet's percentages, but of a large disk no more than some gibibytes: a tenth of a terabyte is no trouble. Looked
//! at when the Lease is renewed, so that nothing wakes for it. Images go that were pulled and that no container has used
//! for a while; one that was imported cannot be had again and stays. Nothing here evicts running pods.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kedge_runtimes::{Image, RuntimeError};
use parking_lot::Mutex;

use crate::agent::Shared;

const GIB: u64 = 1 << 30;
/// `evictionPressureTransitionPeriod`: pressure holds for so long after it was seen last.
const TRANSITION: Duration = Duration::from_secs(300);
/// `imageMinimumGCAge`: so long an image must have been unused.
const UNUSED_MIN: Duration = Duration::from_secs(120);
/// Not more often than the kubelet's housekeeping.
const PERIOD: Duration = Duration::from_secs(10);

/// What a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    bytes: u64,
    free_bytes: u64,
    /// 0 where they are not counted.
    inodes: u64,
    free_inodes: u64,
}

impl Room {
    fn of(path: &Path) -> io::Result<Self> {
        let found = nix::sys::statvfs::statvfs(path)?;
        let size = found.fragment_size();
        Ok(Self {
            bytes: found.blocks() * size,
            free_bytes: found.blocks_available() * size,
            inodes: found.files(),
            free_inodes: found.files_available(),
        })
    }

    /// `nodefs.available` < 10 % and `nodefs.inodesFree` < 5 %; at most 2 GiB.
    fn is_pressed(&self) -> bool {
        self.free_bytes < (self.bytes / 10).min(2 * GIB) || self.free_inodes < self.inodes / 20
    }

    /// What images are to give: from 85 % on down to 80 % used (`imageGCHighThresholdPercent`, `…Low…`); at most from
    /// 3 GiB left up to 4.
    fn wanted_of_images(&self) -> u64 {
        let (high, low) = ((self.bytes / 20 * 3).min(3 * GIB), (self.bytes / 5).min(4 * GIB));
        if self.free_bytes < high { low.saturating_sub(self.free_bytes) } else { 0 }
    }
}

/// Notices that the namespace of the pods' network was removed, or another put in its place.
#[derive(Debug, Default)]
pub(crate) struct NamespaceWatch(Option<(u64, u64)>);

impl NamespaceWatch {
    /// Looks at the file that pins it; where there is none, pods share the machine's network.
    #[allow(clippy::disallowed_methods, reason = "a namespace is a file of the kernel")]
    pub(crate) fn look(&mut self, shared: &Shared) {
        use std::os::unix::fs::MetadataExt;
        let Some(path) = &shared.settings.network_namespace else { return };
        let found = std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let gone = self.is_gone(found);
        shared.network_gone.send_if_modified(|said| std::mem::replace(said, gone) != gone);
    }

    fn is_gone(&mut self, found: Option<(u64, u64)>) -> bool {
        let first = *self.0.get_or_insert(found.unwrap_or_default());
        found != Some(first)
    }
}

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    next: Duration,
    /// Pressure holds until then.
    until: Option<Duration>,
    /// Since when images are known to be unused.
    unused: Arc<Mutex<BTreeMap<String, Duration>>>,
}

impl Watch {
    /// Looks at the node's disks, if it is time to.
    pub(crate) fn look(&mut self, shared: &Arc<Shared>) {
        let now = shared.world.clock.monotonic();
        if now < self.next {
            return;
        }
        self.next = now + PERIOD - Duration::from_millis(500); // The Lease's own pause must not miss it.
        let images = shared.runtime.image_folder();
        let room =
            |path: &Path| Room::of(path).map_err(|error| tracing::debug!(%error, ?path, "no room is known")).ok();
        let settings = &shared.settings;
        let of_images = images.as_deref().and_then(room);
        let rooms = [room(&settings.data_dir), room(&settings.log_dir), of_images];
        let pressed = self.holds(rooms.iter().flatten().any(Room::is_pressed), now);
        shared.disk_pressure.send_if_modified(|said| std::mem::replace(said, pressed) != pressed);
        match of_images.map_or(0, |room| room.wanted_of_images()) {
            0 => self.unused.lock().clear(),
            wanted => drop(tokio::spawn(collect(shared.clone(), self.unused.clone(), wanted))),
        }
    }

    fn holds(&mut self, pressed: bool, now: Duration) -> bool {
        if pressed {
            self.until = Some(now + TRANSITION);
        }
        self.until.is_some_and(|until| now < until)
    }
}

async fn collect(shared: Arc<Shared>, unused: Arc<Mutex<BTreeMap<String, Duration>>>, wanted: u64) {
    if let Err(error) = collect_some(&shared, &unused, wanted).await {
        tracing::warn!(%error, "cannot remove images that nobody uses");
    }
}

async fn collect_some(
    shared: &Shared,
    unused: &Mutex<BTreeMap<String, Duration>>,
    wanted: u64,
) -> Result<(), RuntimeError> {
    let images = shared.runtime.pulled_images().await?;
    let observed = shared.runtime.observe().await?;
    let used: BTreeSet<String> = observed.containers.into_iter().map(|container| container.image_id).collect();
    let chosen = choose(images, &used, &mut unused.lock(), shared.world.clock.monotonic(), wanted);
    for image in chosen {
        shared.runtime.remove_image(&image.id).await?;
        tracing::info!(
            image = image.names.first().unwrap_or(&image.id),
            size = image.size_bytes,
            "removed an unused image"
        );
    }
    Ok(())
}

/// The images to remove: the largest first, so that few are fetched again.
fn choose(
    images: Vec<Image>,
    used: &BTreeSet<String>,
    unused: &mut BTreeMap<String, Duration>,
    now: Duration,
    wanted: u64,
) -> Vec<Image> {
    let mut idle: Vec<Image> = images.into_iter().filter(|image| !used.contains(&image.id)).collect();
    let before = std::mem::take(unused);
    unused.extend(idle.iter().map(|image| (image.id.clone(), before.get(&image.id).copied().unwrap_or(now))));
    idle.retain(|image| now.saturating_sub(unused[&image.id]) >= UNUSED_MIN);
    idle.sort_by_key(|image| std::cmp::Reverse(image.size_bytes));
    let mut given = 0;
    idle.retain(|image| {
        let more = given < wanted;
        given += if more { image.size_bytes } else { 0 };
        more
    });
    idle
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_runtimes::ImageConfig;

    #[test]
    fn a_tenth_is_kept_and_of_a_large_disk_two_gibibytes() {
        let check = |bytes: u64, free_bytes: u64, pressed: bool, wanted: u64| {
            let room = Room { bytes, free_bytes, inodes: 0, free_inodes: 0 };
            assert_eq!((room.is_pressed(), room.wanted_of_images()), (pressed, wanted), "{room:?}");
        };
        check(10 * GIB, 2 * GIB, false, 0);
        check(10 * GIB, GIB, false, GIB);
        check(10 * GIB, GIB - 1, true, GIB + 1);
        check(1000 * GIB, 3 * GIB, false, 0);
        check(1000 * GIB, 2 * GIB, false, 2 * GIB);
        check(1000 * GIB, 2 * GIB - 1, true, 2 * GIB + 1);
        check(10 * GIB, 0, true, 2 * GIB);
        let few = Room { bytes: GIB, free_bytes: GIB, inodes: 1000, free_inodes: 49 };
        assert!(few.is_pressed() && !Room { free_inodes: 50, ..few }.is_pressed());
    }

    #[test]
    fn another_namespace_is_not_the_one_that_was() {
        let mut watch = NamespaceWatch::default();
        let looks =
            [(Some((4, 1)), false), (Some((4, 1)), false), (None, true), (Some((4, 2)), true), (Some((4, 1)), false)];
        for (found, expected) in looks {
            assert_eq!(watch.is_gone(found), expected, "{found:?}");
        }
    }

    #[test]
    fn pressure_holds_for_a_while_after_it_was_seen() {
        let mut watch = Watch::default();
        let at = Duration::from_secs;
        for (pressed, now, expected) in [
            (false, 0, false),
            (true, 10, true),
            (false, 20, true),
            (true, 30, true),
            (false, 329, true),
            (false, 330, false),
        ] {
            assert_eq!(watch.holds(pressed, at(now)), expected, "{now}");
        }
    }

    #[test]
    fn images_that_nobody_has_used_for_a_while_go_the_largest_first() {
        let image = |id: &str, size_bytes: u64| Image {
            id: id.to_owned(),
            names: vec![],
            digests: vec![],
            size_bytes,
            config: ImageConfig::default(),
        };
        let all = || vec![image("small", 1), image("used", 9), image("large", 5), image("middle", 3)];
        let mut unused = BTreeMap::new();
        let mut check = |now: u64, used: &[&str], wanted: u64, expected: &[&str]| {
            let used = used.iter().map(|id| (*id).to_owned()).collect();
            let chosen = choose(all(), &used, &mut unused, Duration::from_secs(now), wanted);
            assert_eq!(chosen.iter().map(|image| image.id.as_str()).collect::<Vec<_>>(), expected, "{now}");
        };
        check(10, &["used"], 6, &[]);
        check(100, &["used", "middle"], 6, &[]);
        // Used in between: its time begins again.
        check(131, &["used"], 6, &["large", "small"]);
        check(251, &["used"], 6, &["large", "middle"]);
        check(251, &["used"], 1, &["large"]);
    }
}

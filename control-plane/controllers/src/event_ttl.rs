//! Events are kept for an hour after they were last written. (`--event-ttl` of kube-apiserver, which upstream leaves
//! to its store.)
//!
//! Only the metadata of events is watched, and of that only names and times are kept.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_client::{Context, Key, Queue};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};

use crate::write::is;

/// How long an event is kept.
const KEPT: Duration = Duration::from_secs(60 * 60);

/// When each event is to go, on the monotonic clock.
#[derive(Debug, Default)]
struct Due {
    of: HashMap<Key, (Duration, String)>,
    queue: Queue,
}

impl Due {
    fn put(&mut self, key: Key, revision: String, time: Duration) {
        self.queue.add(key.clone(), time);
        self.of.insert(key, (time, revision));
    }

    /// The next event whose time has come, and the revision at which it had; one that was written again waits.
    fn take(&mut self, now: Duration) -> Option<(Key, String)> {
        while let Some(key) = self.queue.take(now) {
            match self.of.get(&key) {
                Some((time, _)) if *time > now => self.queue.done(&key, Some(*time)),
                Some((_, revision)) => return Some((key, revision.clone())),
                None => self.queue.done(&key, None),
            }
        }
        None
    }
}

/// Deletes what is too old, for ever.
pub(crate) async fn run(context: Context) {
    let client = context.informers.client().clone();
    let events = watcher(Api::<PartialObjectMeta<Event>>::all(client.clone()), watcher::Config::default());
    let mut events = pin!(events.default_backoff());
    let mut due = Due::default();
    loop {
        let now = context.world.clock.monotonic();
        while let Some((key, revision)) = due.take(now) {
            match delete(&client, &key, revision).await {
                Ok(()) => {
                    due.of.remove(&key);
                    due.queue.done(&key, None);
                }
                Err(error) => {
                    tracing::debug!(event = %key, %error, "an old event cannot be deleted yet");
                    due.queue.failed(&key, now);
                }
            }
        }
        let wait = due.queue.next_due().map(|time| time.saturating_sub(now));
        tokio::select! {
            seen = events.next() => match seen {
                Some(Ok(watcher::Event::Apply(event) | watcher::Event::InitApply(event))) => {
                    let (wall, now) = (context.world.clock.wall(), context.world.clock.monotonic());
                    let age = Duration::try_from(wall.duration_since(written(&event.metadata, wall))).unwrap_or_default();
                    let revision = event.metadata.resource_version.clone().unwrap_or_default();
                    due.put(key(&event), revision, now + KEPT.saturating_sub(age));
                }
                Some(Ok(watcher::Event::Delete(event))) => drop(due.of.remove(&key(&event))),
                Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                Some(Err(error)) => tracing::debug!(%error, "the watch on events is starting again"),
                None => return,
            },
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
        }
    }
}

fn key(event: &PartialObjectMeta<Event>) -> Key {
    let meta = &event.metadata;
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// When an event was last written.
fn written(meta: &ObjectMeta, now: Timestamp) -> Timestamp {
    let fields = meta.managed_fields.iter().flatten().filter_map(|entry| entry.time.as_ref());
    fields.chain(&meta.creation_timestamp).map(|time| time.0).max().unwrap_or(now)
}

/// Deletes an event at this revision; one that was written again meanwhile stays.
async fn delete(client: &kube::Client, key: &Key, revision: String) -> kube::Result<()> {
    let preconditions = Some(Preconditions { uid: None, resource_version: Some(revision) });
    let parameters = DeleteParams { preconditions, ..DeleteParams::default() };
    let api: Api<Event> = Api::namespaced(client.clone(), &key.namespace);
    match api.delete(&key.name, &parameters).await {
        Err(error) if !is(&error, 404) && !is(&error, 409) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_is_written_again_stays_longer() {
        let at = Duration::from_secs;
        let key = Key::new("n", "e");
        let mut due = Due::default();
        due.put(key.clone(), "1".into(), at(10));
        due.put(key.clone(), "2".into(), at(20));
        assert_eq!(due.take(at(10)), None);
        assert_eq!(due.queue.next_due(), Some(at(20)));
        assert_eq!(due.take(at(20)), Some((key, "2".into())));
    }
}

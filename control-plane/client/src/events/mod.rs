//! Events for `kubectl describe`: told at once, written when the API takes them.
//!
//! Telling never waits: what is told goes into a bounded queue, and one task correlates ([`correlate`]) and writes. What
//! the API does not take for minutes, and what finds the queue full, is dropped and counted.
//! (`k8s.io/client-go/tools/record/event.go`.)

mod correlate;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use kedge_world::World;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;

pub use correlate::Told;
use correlate::{Correlator, Write};

/// Events waiting to be written (`maxQueuedEvents`).
const QUEUE_MAX: usize = 1000;
/// Attempts at one event, and the pause between them (`maxTriesPerEvent`, `defaultSleepDuration`).
const TRIES_MAX: u32 = 12;
const PAUSE: Duration = Duration::from_secs(10);
/// How long one attempt may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);

impl Told {
    /// Something that happened to `object` as a whole.
    pub fn of<O: Resource<DynamicType = ()>>(object: &O, warning: bool, reason: &str, message: String) -> Self {
        let about = ObjectReference {
            api_version: Some(O::api_version(&()).into_owned()),
            kind: Some(O::kind(&()).into_owned()),
            name: object.meta().name.clone(),
            namespace: object.meta().namespace.clone(),
            uid: object.meta().uid.clone(),
            resource_version: object.meta().resource_version.clone(),
            field_path: None,
        };
        Self { about, warning, reason: reason.to_owned(), message, action: None }
    }
}

/// Where one part of the cluster tells what happens. Cheap to clone; when all clones are gone its task ends.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<(Told, Timestamp)>,
    dropped: Arc<AtomicU64>,
    world: World,
}

impl Recorder {
    /// A recorder whose events say that `source` tells them.
    pub fn start(client: Client, world: World, source: EventSource) -> Self {
        let (queue, told) = mpsc::channel(QUEUE_MAX);
        let this = Self { queue, dropped: Arc::default(), world };
        tokio::spawn(write_all(client, this.world.clone(), source, told, this.dropped.clone()));
        this
    }

    /// Tells something that happened now.
    pub fn tell(&self, told: Told) {
        if self.queue.try_send((told, self.world.clock.wall())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn write_all(
    client: Client,
    world: World,
    source: EventSource,
    mut told: mpsc::Receiver<(Told, Timestamp)>,
    dropped: Arc<AtomicU64>,
) {
    let mut correlator = Correlator::new(source);
    while let Some((told, wall)) = told.recv().await {
        let Some(write) = correlator.take(told, wall, world.clock.monotonic()) else { continue };
        if !write_one(&client, &write).await {
            dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "events were dropped while the API did not take them");
        }
    }
}

/// Writes one event, with patience; false when the API does not answer.
async fn write_one(client: &Client, write: &Write) -> bool {
    let api: Api<Event> =
        Api::namespaced(client.clone(), write.event.metadata.namespace.as_deref().unwrap_or_default());
    for attempt in 1..=TRIES_MAX {
        let error = match tokio::time::timeout(ANSWER_MAX, attempt_one(&api, write)).await {
            Ok(Ok(())) => return true,
            // An answer is an answer; that its namespace is going away is no trouble of the event's.
            Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
                tracing::debug!(reason = write.event.reason, error = status.message, "the API refuses an event");
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        tracing::debug!(attempt, error, "an event cannot be written yet");
        if attempt < TRIES_MAX {
            tokio::time::sleep(PAUSE).await;
        }
    }
    false
}

async fn attempt_one(api: &Api<Event>, write: &Write) -> kube::Result<()> {
    let event = &write.event;
    if write.known {
        let patch = json!({ "count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message });
        let name = event.metadata.name.as_deref().unwrap_or_default();
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            // It was too old, or never got there.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
    }
    api.create(&PostParams::default(), event).await.map(drop)
}

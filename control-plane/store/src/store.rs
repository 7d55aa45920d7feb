//! The store as the rest of the process sees it: reads from memory, writes through one thread.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::engine::EngineError;
use crate::entry::{Entry, ObjectKey, ResourceId};
use crate::state::{Page, State};
use crate::watch::{Gone, Watcher};
use crate::writer::{Action, Committed, Refusal, Verdict, Write, Writer};

/// Writes waiting for the disk; more make their callers wait.
const QUEUE_WRITES: usize = 4096;
/// What they may weigh together, in KiB: four thousand of the largest would be 12 GB.
const QUEUE_KIB: u32 = 64 << 10;
/// Writes made durable together; bounds the memory and the time of one group.
const GROUP_WRITES: usize = 512;

/// Why the store gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The write was refused; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store is shutting down; whether the write happened is not known.
    #[error("the store is shutting down")]
    Stopped,
}

struct Request {
    writes: Vec<Write>,
    answer: Answer,
}

struct Answer {
    verdict: oneshot::Sender<Verdict>,
    /// Room in the queue, given back once the write was answered.
    #[expect(dead_code, reason = "held, not read")]
    weight: OwnedSemaphorePermit,
}

/// A handle to the store. Cheap to clone; the writer thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Store {
    state: Arc<RwLock<State>>,
    queue: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    health: Arc<Mutex<Health>>,
}

/// How the store does.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Why the last group could not be made durable; none when it was.
    pub failure: Option<Arc<EngineError>>,
    /// Groups written so far.
    pub groups: u64,
    /// Transactions in them.
    pub transactions: u64,
}

impl Store {
    /// Starts the thread that owns the writer.
    pub fn start(writer: Writer) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_WRITES);
        let state = writer.state().clone();
        let health = Arc::new(Mutex::new(Health::default()));
        let told = health.clone();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || run(writer, requests, &told))
            .expect("a thread can be started at start-up");
        Self { state, queue, room: Arc::new(Semaphore::new(QUEUE_KIB as usize)), health }
    }

    /// What a writer without a thread shows: the revision and a collection. For simulations.
    pub fn peek(writer: &Writer, resource: &ResourceId) -> (u64, Vec<Arc<Entry>>) {
        let page = writer.state().read().page(resource, None, None, None, usize::MAX, &mut |_| true);
        let page = page.expect("the newest revision is never gone");
        (page.revision, page.entries)
    }

    /// How the store does; none once the thread that writes has ended.
    pub fn health(&self) -> Option<Health> {
        (!self.queue.is_closed()).then(|| self.health.lock().clone())
    }

    /// How many objects each collection has.
    pub fn counts(&self) -> Vec<(ResourceId, usize)> {
        self.state.read().counts()
    }

    /// The newest revision that is visible.
    pub fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// The object at `key`, as last acknowledged.
    pub fn get(&self, resource: &ResourceId, key: &ObjectKey) -> Option<Arc<Entry>> {
        self.state.read().get(resource, key).cloned()
    }

    /// Objects of a collection in key order that `keep` says yes to: all of them at one revision, the newest or
    /// `at`. With a `limit`, one more than that tells the caller that there are more.
    pub fn list(
        &self,
        resource: &ResourceId,
        namespace: Option<&str>,
        after: Option<&ObjectKey>,
        at: Option<u64>,
        limit: usize,
        mut keep: impl FnMut(&Entry) -> bool,
    ) -> Result<Page, Gone> {
        self.state.read().page(resource, namespace, after, at, limit, &mut keep)
    }

    /// How many objects a collection holds.
    pub fn count(&self, resource: &ResourceId) -> usize {
        self.state.read().shard(resource).map_or(0, |shard| shard.objects.len())
    }

    /// The revision of the newest change to any of `resources`; what is derived from them is current while this
    /// stands still.
    pub fn newest(&self, resources: &[ResourceId]) -> u64 {
        let state = self.state.read();
        resources
            .iter()
            .filter_map(|resource| state.shard(resource))
            .map(|shard| *shard.news.borrow())
            .max()
            .unwrap_or(0)
    }

    /// Reads changes of a collection after revision `from`.
    pub fn watch(&self, resource: &ResourceId, from: u64) -> Result<Watcher, Gone> {
        Watcher::new(self.state.clone(), resource.clone(), from)
    }

    /// Forgets the past of a collection up to `revision`.
    pub fn compact(&self, resource: &ResourceId, revision: u64) {
        self.state.write().shard_mut(resource).window.compact(revision);
    }

    /// Carries out one write.
    pub async fn write(&self, write: Write) -> Result<Arc<Entry>, StoreError> {
        let mut committed = self.transact(vec![write]).await?;
        Ok(committed.remove(0).entry)
    }

    /// Carries out several writes, all or nothing.
    pub async fn transact(&self, writes: Vec<Write>) -> Result<Vec<Committed>, StoreError> {
        let weight = self.room.clone().acquire_many_owned(weight(&writes)).await.map_err(|_| StoreError::Stopped)?;
        let (sender, verdict) = oneshot::channel();
        let answer = Answer { verdict: sender, weight };
        self.queue.send(Request { writes, answer }).await.map_err(|_| StoreError::Stopped)?;
        Ok(verdict.await.map_err(|_| StoreError::Stopped)??)
    }
}

/// In KiB; never more than there is.
fn weight(writes: &[Write]) -> u32 {
    let bytes: usize =
        writes.iter().map(|write| if let Action::Put(payload) = &write.action { payload.len() } else { 0 }).sum();
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX).min(QUEUE_KIB)
}

/// Takes what has queued up while the last group was written, writes it as one group, answers, again.
fn run(mut writer: Writer, mut requests: mpsc::Receiver<Request>, health: &Mutex<Health>) {
    while let Some(first) = requests.blocking_recv() {
        let mut group = vec![first.writes];
        let mut answers = vec![first.answer];
        while group.len() < GROUP_WRITES {
            let Ok(next) = requests.try_recv() else { break };
            group.push(next.writes);
            answers.push(next.answer);
        }
        let verdicts = writer.write(group);
        {
            let mut health = health.lock();
            health.groups += 1;
            health.transactions += verdicts.len() as u64;
            health.failure = verdicts.iter().find_map(|verdict| match verdict {
                Err(Refusal::Engine(error)) => Some(error.clone()),
                _ => None,
            });
        }
        for (answer, verdict) in answers.into_iter().zip(verdicts) {
            // A client that left does not undo its write.
            let _ = answer.verdict.send(verdict);
        }
    }
}

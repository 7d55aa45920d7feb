//! The queue between HTTP and the engine, and the one thread that empties it.
//!
//! Clients that wait when the thread becomes free share its next batch, each with as many texts as the others, and the
//! requests of one of them share its part, so that much does not hold up little. What must hold: the queue is bounded in
//! requests, and one request in texts, so memory is bounded; the thread ends when the last [`Queue`] is dropped, or
//! when the engine panics or its device is lost for good. The latter nobody mends from within: [`Queue::ended`] tells, and
//! the server ends too.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kedge_engine::backend::spare::FAILURES_MAX;
use kedge_engine::{Embedding, EngineError, Tokens};
use tokio::sync::{mpsc, oneshot};

use crate::ServeError;
use crate::intake::OPEN_MAX;

/// Most requests that wait: as many as are open. It is full where some were given up that the thread has not seen yet.
const QUEUE_REQUESTS_MAX: usize = OPEN_MAX;
/// Texts in one batch.
const BATCH_TEXTS: usize = 32;
/// Requests that the thread has taken: all that wait, so that it sees every client.
const TASKS_MAX: usize = QUEUE_REQUESTS_MAX;

type Answer = Result<Vec<Embedding>, String>;

struct Job {
    origin: String,
    inputs: Vec<Tokens>,
    answer: oneshot::Sender<Answer>,
}

/// Where requests wait. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Queue {
    jobs: mpsc::Sender<Job>,
    /// Requests that the thread has taken, and that have no part in its batch.
    idle: Arc<AtomicUsize>,
}

/// Why a request got no vectors.
#[derive(Debug)]
pub(crate) enum QueueError {
    /// As many wait as may.
    Full,
    /// The engine refused or failed.
    Failed(String),
}

impl Queue {
    /// Starts the thread, which computes with `encode`.
    pub(crate) fn start(
        encode: impl Fn(&[Tokens]) -> Result<Vec<Embedding>, EngineError> + Send + 'static,
    ) -> Result<Self, ServeError> {
        let (sender, jobs) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let idle = Arc::new(AtomicUsize::new(0));
        let told = idle.clone();
        let named = std::thread::Builder::new().name("kedge-infer".into());
        named.spawn(move || work(&encode, jobs, &told)).map_err(ServeError::Thread)?;
        Ok(Self { jobs: sender, idle })
    }

    /// Whether somebody computes.
    pub(crate) fn is_served(&self) -> bool {
        !self.jobs.is_closed()
    }

    /// Resolves when nobody computes any more.
    pub(crate) async fn ended(&self) {
        self.jobs.closed().await;
    }

    /// Vectors for those inputs of that client, in their order.
    pub(crate) async fn embed(&self, origin: &str, inputs: Vec<Tokens>) -> Result<Vec<Embedding>, QueueError> {
        let (answer, answered) = oneshot::channel();
        match self.jobs.try_send(Job { origin: origin.to_owned(), inputs, answer }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(QueueError::Full),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                return Err(QueueError::Failed("the inference thread has ended".into()));
            }
        }
        let ended = |_| QueueError::Failed("the inference thread ended before it answered".into());
        answered.await.map_err(ended)?.map_err(QueueError::Failed)
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity() + self.idle.load(Ordering::Relaxed)
    }
}

/// A request on its way through the engine.
struct Task {
    job: Job,
    vectors: Vec<Embedding>,
    /// The last batches that its client and itself had a part in; those that came in between count as had.
    turns: (u64, u64),
}

impl Task {
    /// One more beside those, before the batch of that number.
    fn new(job: Job, beside: &[Self], batch: u64) -> Self {
        let of_client = beside.iter().find(|task| task.job.origin == job.origin).map_or(batch, |task| task.turns.0);
        Self { vectors: Vec::with_capacity(job.inputs.len()), job, turns: (of_client, batch) }
    }

    /// What is still to be computed.
    fn rest(&self) -> &[Tokens] {
        &self.job.inputs[self.vectors.len()..]
    }
}

fn work(
    encode: &impl Fn(&[Tokens]) -> Result<Vec<Embedding>, EngineError>,
    mut jobs: mpsc::Receiver<Job>,
    idle: &AtomicUsize,
) {
    let mut tasks: Vec<Task> = Vec::new();
    let mut failures = 0;
    for batch in 0.. {
        if failures >= FAILURES_MAX {
            break;
        }
        if tasks.is_empty() {
            let Some(job) = jobs.blocking_recv() else { return };
            tasks.push(Task::new(job, &[], batch));
        }
        while tasks.len() < TASKS_MAX
            && let Ok(job) = jobs.try_recv()
        {
            tasks.push(Task::new(job, &tasks, batch));
        }
        // A client that went away is not computed for.
        tasks.retain(|task| !task.job.answer.is_closed());
        // Where there are more than texts in a batch, those are first that were not in the last ones.
        tasks.sort_by_key(|task| task.turns);
        let shares = shares(&tasks.iter().map(|task| (&*task.job.origin, task.rest().len())).collect::<Vec<_>>());
        idle.store(shares.iter().filter(|share| **share == 0).count(), Ordering::Relaxed);
        let parts = tasks.iter().zip(&shares).flat_map(|(task, share)| &task.rest()[..*share]);
        let inputs: Vec<Tokens> = parts.cloned().collect();
        match encode(&inputs) {
            Ok(vectors) => {
                failures = 0;
                let mut vectors = vectors.into_iter();
                let mut had = HashSet::new();
                for (task, share) in tasks.iter_mut().zip(&shares).filter(|(_, share)| **share > 0) {
                    task.vectors.extend(vectors.by_ref().take(*share));
                    task.turns.1 = batch + 1;
                    had.insert(task.job.origin.clone());
                }
                tasks
                    .iter_mut()
                    .filter(|task| had.contains(&task.job.origin))
                    .for_each(|task| task.turns.0 = batch + 1);
            }
            Err(error) => {
                failures += u32::from(matches!(error, EngineError::Device { .. }));
                let mut shares = shares.into_iter();
                for failed in tasks.extract_if(.., |_| shares.next() > Some(0)) {
                    // The receiver may have gone in the meantime; nobody is left to tell.
                    drop(failed.job.answer.send(Err(error.to_string())));
                }
            }
        }
        for done in tasks.extract_if(.., |task| task.rest().is_empty()) {
            drop(done.job.answer.send(Ok(done.vectors)));
        }
    }
    tracing::error!("the device is lost; the inference thread ends");
}

/// How many texts of each request go into the next batch, given whose it is and what it still has. Each text is of a client
/// that has the fewest in it so far, and of that client's requests one that has: who asks for thousands leaves room for others.
fn shares(tasks: &[(&str, usize)]) -> Vec<usize> {
    let mut shares = vec![0; tasks.len()];
    let mut of_client: HashMap<&str, usize> = HashMap::new();
    for _ in 0..BATCH_TEXTS {
        let has_more = |index: &usize| shares[*index] < tasks[*index].1;
        let had = |index: &usize| (of_client.get(tasks[*index].0).copied().unwrap_or(0), shares[*index]);
        let Some(next) = (0..tasks.len()).filter(has_more).min_by_key(had) else { break };
        shares[next] += 1;
        *of_client.entry(tasks[next].0).or_default() += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_token() -> Vec<Tokens> {
        texts(1, 1)
    }

    fn one_number(inputs: &[Tokens]) -> Result<Vec<Embedding>, EngineError> {
        Ok(inputs.iter().map(|tokens| Embedding { vector: vec![1.0], tokens: tokens.ids.len() }).collect())
    }

    #[tokio::test]
    async fn a_request_beyond_those_that_may_wait_is_refused_and_the_others_are_answered() {
        let (go, going) = std::sync::mpsc::channel::<()>();
        let (taken, mut began) = mpsc::unbounded_channel();
        let queue = Queue::start(move |inputs| {
            let _ = taken.send(());
            let _ = going.recv();
            one_number(inputs)
        });
        let queue = queue.unwrap();
        let ask = |queue: Queue| tokio::spawn(async move { queue.embed("a", one_token()).await });
        let first = ask(queue.clone());
        began.recv().await.unwrap();
        let waiting: Vec<_> = (0..QUEUE_REQUESTS_MAX).map(|_| ask(queue.clone())).collect();
        while queue.waiting() < QUEUE_REQUESTS_MAX {
            tokio::task::yield_now().await;
        }
        assert!(matches!(queue.embed("a", one_token()).await, Err(QueueError::Full)));
        drop(go);
        for answered in std::iter::once(first).chain(waiting) {
            assert_eq!(answered.await.unwrap().unwrap().len(), 1);
        }
    }

    #[test]
    fn clients_get_an_equal_share_then_their_requests_and_no_room_is_left() {
        for (tasks, expected) in [
            (&[("a", 5)][..], &[5][..]),
            (&[("a", 2000)], &[32]),
            (&[("a", 2000), ("a", 1)], &[31, 1]),
            (&[("a", 2000), ("a", 2000), ("a", 3)], &[15, 14, 3]),
            (&[("a", 2000), ("a", 2000), ("b", 2000)], &[8, 8, 16]),
            (&[("a", 2000), ("a", 2), ("b", 3)], &[27, 2, 3]),
            (&[("a", 0), ("a", 7)], &[0, 7]),
            (&[], &[]),
        ] {
            assert_eq!(shares(tasks), expected, "{tasks:?}");
        }
        let many = shares(&[("a", 3); 40]);
        assert_eq!((many.iter().sum::<usize>(), many[0], many[39]), (32, 1, 0));
    }

    /// A queue that says which texts, by their only token, are in a batch, and computes it when it is told to.
    fn watched() -> (Queue, mpsc::UnboundedReceiver<Vec<u32>>, std::sync::mpsc::Sender<()>) {
        let (began, begun) = mpsc::unbounded_channel();
        let (go, going) = std::sync::mpsc::channel::<()>();
        let queue = Queue::start(move |inputs| {
            let _ = began.send(inputs.iter().map(|tokens| tokens.ids[0]).collect());
            let _ = going.recv();
            one_number(inputs)
        });
        (queue.unwrap(), begun, go)
    }

    fn texts(token: u32, count: usize) -> Vec<Tokens> {
        vec![Tokens { ids: vec![token], types: vec![0] }; count]
    }

    #[tokio::test]
    async fn no_client_waits_for_all_requests_of_another_and_of_many_each_has_its_turn() {
        let (queue, mut begun, go) = watched();
        let ask = |origin: String, token, count| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.embed(&origin, texts(token, count)).await.unwrap().len() })
        };
        let waits = async |count| {
            while queue.waiting() < count {
                tokio::task::yield_now().await;
            }
        };
        let first = ask("many".into(), 0, 1);
        begun.recv().await.unwrap();
        let mut all: Vec<_> = (0..100).map(|_| ask("many".into(), 0, 2)).collect();
        waits(100).await;
        all.push(ask("other".into(), 1, 20));
        waits(101).await;
        go.send(()).unwrap();
        let batch = begun.recv().await.unwrap();
        assert_eq!(batch.iter().filter(|token| **token == 1).count(), 16, "half of it: {batch:?}");
        assert_eq!(queue.waiting(), 101 - 16 - 1);
        drop(go);
        for answered in all {
            assert!(answered.await.unwrap() > 1);
        }
        assert_eq!(first.await.unwrap(), 1);

        let (queue, mut begun, go) = watched();
        let ask = |token: u32| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.embed(&token.to_string(), texts(token, 9)).await.unwrap().len() })
        };
        let mut all = vec![ask(0)];
        begun.recv().await.unwrap();
        all.extend((1..48).map(ask));
        while queue.waiting() < 47 {
            tokio::task::yield_now().await;
        }
        let mut had = HashSet::new();
        for _ in 0..2 {
            go.send(()).unwrap();
            had.extend(begun.recv().await.unwrap());
        }
        assert_eq!(had.len(), 47, "nobody has two turns before another has one");
        drop(go);
        for answered in all {
            assert_eq!(answered.await.unwrap(), 9);
        }
    }

    #[tokio::test]
    async fn a_small_request_overtakes_a_large_one() {
        let (queue, mut begun, go) = watched();
        let large = texts(1, 100);
        let (slow, fast) = (queue.clone(), queue.clone());
        let slow = tokio::spawn(async move { slow.embed("a", large).await });
        assert_eq!(begun.recv().await.map(|batch| batch.len()), Some(32));
        let fast = tokio::spawn(async move { fast.embed("a", one_token()).await });
        while queue.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        assert_eq!(begun.recv().await.map(|batch| batch.len()), Some(32), "31 of the large one, and the small one");
        go.send(()).unwrap();
        assert_eq!(fast.await.unwrap().unwrap().len(), 1);
        assert!(!slow.is_finished());
        drop(go);
        assert_eq!(slow.await.unwrap().unwrap().len(), 100);
    }

    #[tokio::test]
    async fn an_error_is_of_those_alone_that_had_a_part_in_the_batch() {
        let (began, mut begun) = mpsc::unbounded_channel();
        let (go, going) = std::sync::mpsc::channel::<()>();
        let queue = Queue::start(move |inputs| {
            let _ = began.send(inputs.len());
            let _ = going.recv();
            let wrong = || EngineError::Tokens { index: 0, reason: "a defect".into() };
            if inputs.iter().any(|tokens| tokens.ids[0] == 9) { Err(wrong()) } else { one_number(inputs) }
        });
        let queue = queue.unwrap();
        let ask = |token| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.embed("a", texts(token, 1)).await.is_ok() })
        };
        let mut all = vec![ask(1)];
        begun.recv().await.unwrap();
        all.extend((0..40).map(|index| ask(if index == 7 { 9 } else { 1 })));
        while queue.waiting() < 40 {
            tokio::task::yield_now().await;
        }
        drop(go);
        let answered = futures::future::join_all(all).await.into_iter().filter(|answered| *answered.as_ref().unwrap());
        assert_eq!(answered.count(), 1 + 40 - BATCH_TEXTS);
    }

    #[tokio::test]
    async fn a_panic_of_the_engine_fails_the_request_and_is_told() {
        let queue = Queue::start(|inputs| if inputs.len() == 1 { panic!("a defect") } else { one_number(inputs) });
        let queue = queue.unwrap();
        assert!(queue.is_served());
        assert!(matches!(queue.embed("a", one_token()).await, Err(QueueError::Failed(_))));
        queue.ended().await;
        assert!(!queue.is_served());
    }
}

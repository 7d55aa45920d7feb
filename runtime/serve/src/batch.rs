//! The queue between HTTP and the engine, and the one thread that empties it.
//!
//! Requests that are waiting when the thread becomes free share its next batch, each with as many texts as the others, so
//! that a large one does not hold up small ones. What must hold: the queue is bounded in
//! requests, and one request in texts, so memory is bounded; the thread ends when the last [`Queue`] is dropped, or
//! when the engine panics. The latter nobody mends from within: [`Queue::ended`] tells, and the server ends too.

use kedge_engine::backend::spare::FAILURES_MAX;
use kedge_engine::{Embedding, EngineError, Tokens};
use tokio::sync::{mpsc, oneshot};

use crate::ServeError;

/// Most requests that wait.
const QUEUE_REQUESTS_MAX: usize = 256;
/// Texts in one batch.
const BATCH_TEXTS: usize = 32;
/// Requests that share a batch.
const TASKS_MAX: usize = BATCH_TEXTS;

type Answer = Result<Vec<Embedding>, String>;

struct Job {
    inputs: Vec<Tokens>,
    answer: oneshot::Sender<Answer>,
}

/// Where requests wait. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Queue(mpsc::Sender<Job>);

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
        let named = std::thread::Builder::new().name("kedge-infer".into());
        named.spawn(move || work(&encode, jobs)).map_err(ServeError::Thread)?;
        Ok(Self(sender))
    }

    /// Whether somebody computes.
    pub(crate) fn is_served(&self) -> bool {
        !self.0.is_closed()
    }

    /// Resolves when nobody computes any more.
    pub(crate) async fn ended(&self) {
        self.0.closed().await;
    }

    /// Vectors for those inputs, in their order.
    pub(crate) async fn embed(&self, inputs: Vec<Tokens>) -> Result<Vec<Embedding>, QueueError> {
        let (answer, answered) = oneshot::channel();
        match self.0.try_send(Job { inputs, answer }) {
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
        self.0.max_capacity() - self.0.capacity()
    }
}

/// A request on its way through the engine.
struct Task {
    inputs: Vec<Tokens>,
    vectors: Vec<Embedding>,
    answer: oneshot::Sender<Answer>,
}

impl Task {
    fn new(job: Job) -> Self {
        Self { vectors: Vec::with_capacity(job.inputs.len()), inputs: job.inputs, answer: job.answer }
    }

    /// What is still to be computed.
    fn rest(&self) -> &[Tokens] {
        &self.inputs[self.vectors.len()..]
    }
}

fn work(encode: &impl Fn(&[Tokens]) -> Result<Vec<Embedding>, EngineError>, mut jobs: mpsc::Receiver<Job>) {
    let mut tasks: Vec<Task> = Vec::new();
    let mut failures = 0;
    while failures < FAILURES_MAX {
        if tasks.is_empty() {
            let Some(job) = jobs.blocking_recv() else { return };
            tasks.push(Task::new(job));
        }
        while tasks.len() < TASKS_MAX
            && let Ok(job) = jobs.try_recv()
        {
            tasks.push(Task::new(job));
        }
        // A client that went away is not computed for.
        tasks.retain(|task| !task.answer.is_closed());
        let shares = shares(&tasks.iter().map(|task| task.rest().len()).collect::<Vec<_>>());
        let parts = tasks.iter().zip(&shares).flat_map(|(task, share)| &task.rest()[..*share]);
        let inputs: Vec<Tokens> = parts.cloned().collect();
        match encode(&inputs) {
            Ok(vectors) => {
                failures = 0;
                let mut vectors = vectors.into_iter();
                for (task, share) in tasks.iter_mut().zip(&shares) {
                    task.vectors.extend(vectors.by_ref().take(*share));
                }
            }
            Err(error) => {
                failures += u32::from(matches!(error, EngineError::Device { .. }));
                // The receiver may have gone in the meantime; nobody is left to tell.
                tasks.drain(..).for_each(|task| drop(task.answer.send(Err(error.to_string()))));
            }
        }
        for done in tasks.extract_if(.., |task| task.rest().is_empty()) {
            drop(done.answer.send(Ok(done.vectors)));
        }
    }
    tracing::error!("the device is lost; the inference thread ends");
}

/// How many texts of each request go into the next batch, given what each still has: a request of thousands leaves room
/// for those that came after it.
fn shares(rests: &[usize]) -> Vec<usize> {
    let mut shares = vec![0; rests.len()];
    let mut room = BATCH_TEXTS;
    while room > 0 && shares.iter().zip(rests).any(|(share, rest)| share < rest) {
        for (share, _) in shares.iter_mut().zip(rests).filter(|(share, rest)| **share < **rest) {
            if room > 0 {
                *share += 1;
                room -= 1;
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_token() -> Vec<Tokens> {
        vec![Tokens { ids: vec![1], types: vec![0] }]
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
        let ask = |queue: Queue| tokio::spawn(async move { queue.embed(one_token()).await });
        let first = ask(queue.clone());
        began.recv().await.unwrap();
        let waiting: Vec<_> = (0..QUEUE_REQUESTS_MAX).map(|_| ask(queue.clone())).collect();
        while queue.waiting() < QUEUE_REQUESTS_MAX {
            tokio::task::yield_now().await;
        }
        assert!(matches!(queue.embed(one_token()).await, Err(QueueError::Full)));
        drop(go);
        for answered in std::iter::once(first).chain(waiting) {
            assert_eq!(answered.await.unwrap().unwrap().len(), 1);
        }
    }

    #[test]
    fn everybody_gets_an_equal_share_and_no_room_is_left() {
        for (rests, expected) in [
            (&[5][..], &[5][..]),
            (&[2000], &[32]),
            (&[2000, 1], &[31, 1]),
            (&[2000, 2000, 3], &[15, 14, 3]),
            (&[0, 7], &[0, 7]),
            (&[], &[]),
        ] {
            assert_eq!(shares(rests), expected, "{rests:?}");
        }
        let many = shares(&[3; 40]);
        assert_eq!((many.iter().sum::<usize>(), many[0], many[39]), (32, 1, 0));
    }

    #[tokio::test]
    async fn a_small_request_overtakes_a_large_one() {
        let (began, mut begun) = mpsc::unbounded_channel();
        let (go, going) = std::sync::mpsc::channel::<()>();
        let queue = Queue::start(move |inputs| {
            let _ = began.send(inputs.len());
            let _ = going.recv();
            one_number(inputs)
        });
        let queue = queue.unwrap();
        let large: Vec<Tokens> = (0..100).flat_map(|_| one_token()).collect();
        let (slow, fast) = (queue.clone(), queue.clone());
        let slow = tokio::spawn(async move { slow.embed(large).await });
        assert_eq!(begun.recv().await, Some(32));
        let fast = tokio::spawn(async move { fast.embed(one_token()).await });
        while queue.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        assert_eq!(begun.recv().await, Some(32), "31 of the large one, and the small one");
        go.send(()).unwrap();
        assert_eq!(fast.await.unwrap().unwrap().len(), 1);
        assert!(!slow.is_finished());
        drop(go);
        assert_eq!(slow.await.unwrap().unwrap().len(), 100);
    }

    #[tokio::test]
    async fn a_panic_of_the_engine_fails_the_request_and_is_told() {
        let queue = Queue::start(|inputs| if inputs.len() == 1 { panic!("a defect") } else { one_number(inputs) });
        let queue = queue.unwrap();
        assert!(queue.is_served());
        assert!(matches!(queue.embed(one_token()).await, Err(QueueError::Failed(_))));
        queue.ended().await;
        assert!(!queue.is_served());
    }
}

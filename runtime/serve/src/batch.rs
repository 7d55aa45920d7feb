//! The queue between HTTP and the engine, and the one thread that empties it.
//!
//! Requests that are waiting when the thread becomes free go into one batch. What must hold: the queue is bounded in
//! requests, and one request in texts, so memory is bounded; the thread ends when the last [`Queue`] is dropped, or
//! when the engine panics. The latter nobody mends from within: [`Queue::ended`] tells, and the server ends too.

use kedge_engine::{Embedding, EngineError, Tokens};
use tokio::sync::{mpsc, oneshot};

use crate::ServeError;

/// Most requests that wait.
const QUEUE_REQUESTS_MAX: usize = 256;
/// A batch takes no further request once it has this many texts.
const BATCH_TEXTS: usize = 32;

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

fn work(encode: &impl Fn(&[Tokens]) -> Result<Vec<Embedding>, EngineError>, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut texts = first.inputs.len();
        let mut batch = vec![first];
        while texts < BATCH_TEXTS
            && let Ok(job) = jobs.try_recv()
        {
            texts += job.inputs.len();
            batch.push(job);
        }
        // A client that went away is not computed for.
        batch.retain(|job| !job.answer.is_closed());
        let inputs: Vec<Tokens> = batch.iter_mut().flat_map(|job| job.inputs.iter().cloned()).collect();
        match encode(&inputs) {
            Ok(vectors) => {
                let mut vectors = vectors.into_iter();
                for job in batch {
                    let part = vectors.by_ref().take(job.inputs.len()).collect();
                    // The receiver may have gone in the meantime; nobody is left to tell.
                    drop(job.answer.send(Ok(part)));
                }
            }
            Err(error) => batch.into_iter().for_each(|job| drop(job.answer.send(Err(error.to_string())))),
        }
    }
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

//! The queue between HTTP and the engine, and the one thread that empties it.
//!
//! Requests that are waiting when the thread becomes free go into one batch. What must hold: the queue is bounded in
//! requests, and one request in texts, so memory is bounded; the thread ends when the last [`Queue`] is dropped.

use std::sync::Arc;

use kedge_engine::{Embedding, Encoder, Tokens};
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
    /// Starts the thread.
    pub(crate) fn start(encoder: Arc<Encoder>) -> Result<Self, ServeError> {
        let (sender, jobs) = mpsc::channel(QUEUE_REQUESTS_MAX);
        let named = std::thread::Builder::new().name("kedge-infer".into());
        named.spawn(move || work(&encoder, jobs)).map_err(ServeError::Thread)?;
        Ok(Self(sender))
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

fn work(encoder: &Encoder, mut jobs: mpsc::Receiver<Job>) {
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
        match encoder.encode_tokens(&inputs) {
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

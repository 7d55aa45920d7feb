//! A model behind its queue: whatever protocol a request came in, this is what it is asked.

use std::sync::Arc;

use kedge_engine::{Capabilities, Embedding, Encoder};
use kedge_world::World;
use serde::Serialize;

use crate::ServeError;
use crate::api::{self, Item, Refusal};
use crate::batch::{Queue, QueueError};
use crate::completions::Kind;
use crate::intake::{Intake, Part};
use crate::metrics::Metrics;
use crate::server::{Model, ServeOptions};
use crate::talk::{Ask, Asked, Talk};
use crate::telemetry::Watch;
use crate::v2::{self, Infer, Task};

/// A model with what stands between it and requests. Cheap to clone.
#[derive(Clone)]
pub(crate) enum Engine {
    Encoder { encoder: Arc<Encoder>, queue: Queue },
    Decoder(Arc<Talk>),
}

impl Engine {
    /// Starts what computes.
    pub(crate) fn start(model: Model, options: &ServeOptions) -> Result<Self, ServeError> {
        Ok(match model {
            Model::Encoder(encoder) => {
                let computing = encoder.clone();
                let queue = Queue::start(move |inputs| computing.encode_tokens(inputs))?;
                Self::Encoder { encoder, queue }
            }
            Model::Decoder(decoder) => Self::Decoder(Arc::new(Talk::new(decoder, options, World::real()))),
        })
    }

    /// Whether somebody computes.
    pub(crate) fn is_served(&self) -> bool {
        match self {
            Self::Encoder { queue, .. } => queue.is_served(),
            Self::Decoder(talk) => talk.decoder.is_served(),
        }
    }

    /// Resolves when nobody computes any more.
    pub(crate) async fn ended(&self) {
        match self {
            Self::Encoder { queue, .. } => queue.ended().await,
            Self::Decoder(talk) => talk.ended().await,
        }
    }

    /// What the model is on now, and why that is not the device that was wanted, if it is not.
    pub(crate) fn on(&self) -> (Capabilities, Option<String>) {
        match self {
            Self::Encoder { encoder, .. } => encoder.on(),
            Self::Decoder(talk) => talk.decoder.on(),
        }
    }

    /// What the model does.
    pub(crate) fn task(&self) -> Task {
        match self {
            Self::Encoder { encoder, .. } => Task::Vectors(encoder.dimensions()),
            Self::Decoder(_) => Task::Text,
        }
    }

    /// Vectors for texts and lists of tokens.
    pub(crate) async fn vectors(
        &self,
        items: Vec<Item>,
        intake: &Intake,
        metrics: &Arc<Metrics>,
        watch: &Watch,
    ) -> Result<Vec<Embedding>, Refusal> {
        let Self::Encoder { encoder, queue } = self else {
            return Err(Refusal::plain(404, "this model makes text, not vectors"));
        };
        let encoder = encoder.clone();
        let tokens = intake.read(watch.origin(), move || api::tokens(&encoder, &items)).await?;
        let vectors = queue.embed(watch.origin(), tokens).await.map_err(|error| match error {
            QueueError::Full => Refusal::plain(429, "too many requests; try again"),
            QueueError::Failed(reason) => Refusal::plain(500, reason),
        })?;
        let tokens: usize = vectors.iter().map(|embedding| embedding.tokens).sum();
        metrics.prompt_tokens.inc_by(tokens as u64);
        watch.note(|notes| notes.input_tokens = Some(tokens));
        Ok(vectors)
    }

    /// What the Open Inference Protocol's `infer` gives, and the parameters that were left out of account.
    pub(crate) async fn infer(
        &self,
        mut asked: Infer,
        place: Part,
        intake: &Intake,
        metrics: &Arc<Metrics>,
        watch: &Arc<Watch>,
    ) -> Result<(Output, Vec<String>), Refusal> {
        match self {
            Self::Encoder { .. } => {
                let items = asked.texts.into_iter().map(Item::Text).collect();
                Ok((Output::Vectors(self.vectors(items, intake, metrics, watch).await?), asked.ignored))
            }
            Self::Decoder(talk) => {
                // The answer is a tensor of texts, with no place for probabilities.
                asked.ignored.extend(asked.parameters.remove("logprobs").map(|_| "logprobs".to_owned()));
                let body = Asked::Fields(asked.completion(&talk.name));
                let ask = Ask { kind: Kind::Text, body, asked_as: None, place, watch: watch.clone() };
                let named = |refusal| v2::refusal(refusal, "inputs[0].data");
                let mut running = talk.begin(ask, intake, metrics).await.map_err(named)?;
                let ignored = asked.ignored.into_iter().chain(std::mem::take(&mut running.ignored)).collect();
                Ok((Output::Texts(running.texts().await?), ignored))
            }
        }
    }
}

/// The elements of a tensor, one after the other.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Data<'a> {
    Numbers(Vec<f32>),
    Texts(&'a [String]),
}

/// What `infer` gives.
#[derive(Debug)]
pub(crate) enum Output {
    Vectors(Vec<Embedding>),
    Texts(Vec<String>),
}

impl Output {
    /// How many elements of the first dimension there are.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Vectors(vectors) => vectors.len(),
            Self::Texts(texts) => texts.len(),
        }
    }

    /// In the shape of REST.
    pub(crate) fn data(&self) -> Data<'_> {
        match self {
            Self::Vectors(vectors) => {
                Data::Numbers(vectors.iter().flat_map(|embedding| embedding.vector.iter().copied()).collect())
            }
            Self::Texts(texts) => Data::Texts(texts),
        }
    }
}

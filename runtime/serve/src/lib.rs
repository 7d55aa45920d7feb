//! Models over HTTP: OpenAI and Open Inference Protocol endpoints in front of the engine: vectors of encoders, text of
//! decoders.
//!
//! [`run`] opens a model and serves it until the process is told to stop; [`serve_once_open`] is the same with all of that
//! handed in, and [`serve`] with a model that is open. What must hold: nothing is computed on the async threads; every queue has a bound, and a
//! full one is said with 429 and `Retry-After`; a field that would change the answer and is not supported is refused by
//! name, any other that is not known is named in a warning.
//! Not here: several models; who a client is beyond whether it may ask.

mod answer;
mod api;
mod auth;
mod batch;
mod completions;
mod engine;
mod files;
mod grpc;
mod intake;
mod life;
mod metrics;
mod placement;
mod routes;
mod server;
mod socket;
mod talk;
mod telemetry;
mod templates;
mod tls;
mod trace;
mod v2;
mod weight;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use kedge_engine::model::Location;
use kedge_engine::{DecoderOptions, EngineError};
use kedge_world::{Net, RealNet};
use nix::sys::resource::{Resource, getrlimit};
use tokio::signal::unix::SignalKind;
use tokio::sync::oneshot;

use crate::files::FromFiles;

pub use auth::Keys;
pub use placement::{Candidate, Device, Opened, Placement, candidates, open};
pub use server::{Model, ServeOptions, serve, serve_once_open};
pub use telemetry::TelemetryOptions;
pub use templates::{TEMPLATE_VERB, TemplateError, TemplateProgram, Templates, template_main};
pub use tls::{Tls, TlsFiles};

/// Files that are open beside connections, with room to spare: the model's, the runtime's, those that are read again, and
/// connections that are refused.
const FILES_OF_ITS_OWN: usize = 64 + server::GOODBYES_MAX;

/// The part of the memory that is free which requests may take, at most.
const REQUESTS_PART: u64 = 4;

/// What `kedge infer` is told.
#[derive(Clone, Debug)]
pub struct InferOptions {
    /// The model directory, its `.safetensors` file, or a `.gguf` file.
    pub model: PathBuf,
    /// The name clients call it by.
    pub name: String,
    /// Where to listen, as `host:port`.
    pub listen: String,
    /// On what it computes.
    pub placement: Placement,
    /// How much a model that makes text does at once.
    pub decoder: DecoderOptions,
    /// Keys, one of which clients must show; read again when the file changes.
    pub api_key_file: Option<PathBuf>,
    /// Certificates; plain HTTP when absent. Read again when the files change.
    pub tls: Option<TlsFiles>,
    /// Where spans of requests are told; nowhere when absent.
    pub telemetry: Option<TelemetryOptions>,
    /// Longest time for an answer, whatever its client says; as long as the client waits when absent.
    pub request_timeout: Option<Duration>,
    /// Longest time for what was taken in to be answered after the stop signal.
    pub drain_timeout: Duration,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model could not be opened.
    #[error("opening the model: {0}")]
    Model(#[from] EngineError),
    /// A GPU was demanded.
    #[error("no GPU can be used: {0}")]
    NoGpu(String),
    /// A setting cannot be.
    #[error("{flag}: {reason}")]
    Flag {
        /// The flag that says it.
        flag: &'static str,
        /// Why.
        reason: String,
    },
    /// A file cannot be used.
    #[error("{path} ({flag}): {reason}", path = path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The address could not be taken, or the listener broke.
    #[error("serving on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(std::io::Error),
    /// Somebody wrote into the weights, and nobody can be answered out of them any more.
    #[error("{}: somebody wrote into it while it was served, or cut it", .0.display())]
    Changed(PathBuf),
    /// The engine panicked, or lost its device for good; what it was asked got an error.
    #[error("the inference thread has ended")]
    EngineEnded,
    /// The process cannot be told to stop.
    #[error("listening for the stop signal: {0}")]
    Signal(std::io::Error),
}

/// Opens the model and serves it until SIGTERM or SIGINT; requests under way are finished first.
pub async fn run(options: InferOptions) -> Result<(), ServeError> {
    let signal = |kind| tokio::signal::unix::signal(kind).map_err(ServeError::Signal);
    let keys = options.api_key_file.as_deref().map(Keys::open).transpose()?.map(Arc::new);
    let tls = options.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
    let listen = |source| ServeError::Listen { address: options.listen.clone(), source };
    let listener = RealNet.listen(&options.listen).await.map_err(listen)?;
    let address = listener.address().map_err(listen)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let signals = futures::stream::poll_fn(move |context| {
        let told = terminate.poll_recv(context).is_ready() | interrupt.poll_recv(context).is_ready();
        if told { Poll::Ready(Some(())) } else { Poll::Pending }
    });
    let mut followed: Vec<Arc<dyn FromFiles>> = Vec::new();
    followed.extend(keys.clone().map(|keys| keys as Arc<dyn FromFiles>));
    followed.extend(tls.clone().map(|tls| tls as Arc<dyn FromFiles>));
    // From here on it does not end the process.
    let hangup = signal(SignalKind::hangup())?;
    if !followed.is_empty() {
        tokio::spawn(files::follow(followed, hangup));
    }
    let defaults = ServeOptions::new(options.name.clone(), created(&options.model));
    let connections_max = defaults.connections_max.min(connections_possible());
    // Where memory is short, so is the room for requests; one of full length has some.
    let bodies_bytes_max = (kedge_engine::bytes_free() / REQUESTS_PART).min(defaults.bodies_bytes_max as u64);
    let bodies_bytes_max = (bodies_bytes_max as usize).max(2 * defaults.body_bytes_max);
    let InferOptions { model, name, placement, decoder, request_timeout, drain_timeout, telemetry, .. } = options;
    let mut model_files = weights::files(&model);
    model_files.extend(placement.cache_dir.clone());
    let options = ServeOptions {
        keys,
        tls,
        telemetry,
        model_files,
        connections_max,
        bodies_bytes_max,
        request_timeout,
        drain_timeout,
        ..defaults
    };
    let opening = async move {
        let (sender, opened) = oneshot::channel();
        // The runtime would wait for a task of its own, and whoever ends the process does not want to.
        let opening = std::thread::Builder::new().name("opening".into()).spawn(move || {
            // Nobody waits for it where the process ends.
            let _ = sender.send(open(&model, &placement, decoder));
        });
        opening.map_err(ServeError::Thread)?;
        let opened = opened.await.map_err(|_| ServeError::EngineEnded)??;
        tell(&opened, &name, &address);
        Ok(opened)
    };
    serve_once_open(options, opening, listener, signals).await
}

/// Says in the log what is served.
fn tell(Opened { model, on, .. }: &Opened, name: &str, address: &str) {
    let decoder = match model {
        Model::Decoder(decoder) => Some(decoder),
        Model::Encoder(_) => None,
    };
    // Under the names of the flags; what an encoder has not is not said.
    tracing::info!(
        model = name,
        address,
        backend = on.name,
        features = on.features,
        threads = on.threads,
        max_num_seqs = decoder.map(|one| one.limits().running_max),
        max_model_len = decoder.map(|one| one.limits().context),
        kv_cache_memory = decoder.map(|one| one.kept_bytes()),
        kv_cache_tokens = decoder.map(|one| one.figures().tokens_kept.load(Ordering::Relaxed)),
        "serving"
    );
}

/// Connections for which there are file descriptors.
fn connections_possible() -> usize {
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
    usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(FILES_OF_ITS_OWN).max(1)
}

/// When the weights were written, in seconds since 1970; 0 when nobody can tell.
fn created(model: &Path) -> u64 {
    let weights = Location::of(model).ok().map(|at| at.weights);
    let written = weights.and_then(|weights| weights.metadata().ok()?.modified().ok());
    written.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #[test]
    #[allow(clippy::disallowed_methods, reason = "tests use the real disk")]
    fn a_model_was_created_when_its_weights_were_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(super::created(&folder.path().join("none")), 0);
        let file = folder.path().join("any-Q8_0.gguf");
        std::fs::write(&file, "GGUF").unwrap();
        for path in [folder.path(), &file] {
            assert!(super::created(path) > 1_700_000_000, "{path:?}");
        }
    }
}

//! Models over HTTP: OpenAI and Open Inference Protocol endpoints in front of the engine: vectors of encoders, text of
//! decoders.
//!
//! [`run`] opens a model and serves it until the process is told to stop; [`serve`] is the same on a listener and a
//! stop signal handed in. What must hold: nothing is computed on the async threads; every queue has a bound, and a
//! full one is said with 429 and `Retry-After`; a field that is not supported is refused by name.
//! Not here: authentication and TLS (whoever reaches the port may ask: in a cluster, its pods), gRPC, several models.

mod api;
mod batch;
mod completions;
mod metrics;
mod server;
mod talk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use kedge_engine::{Capabilities, Cpu, Decoder, DecoderOptions, Encoder, EngineError};
use kedge_world::{Net, RealNet};

pub use server::{Model, ServeOptions, serve};

/// What `kedge infer` is told.
#[derive(Clone, Debug)]
pub struct InferOptions {
    /// The model directory, its `.safetensors` file, or a `.gguf` file.
    pub model: PathBuf,
    /// The name clients call it by.
    pub name: String,
    /// Where to listen, as `host:port`.
    pub listen: String,
    /// Threads that compute; as many as the process may use when absent.
    pub threads: Option<usize>,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model could not be opened.
    #[error("opening the model: {0}")]
    Model(#[from] EngineError),
    /// The address could not be taken, or the listener broke.
    #[error("serving on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread could not be started.
    #[error("starting the inference thread: {0}")]
    Thread(std::io::Error),
    /// The engine panicked; what it was asked got an error.
    #[error("the inference thread has ended")]
    EngineEnded,
    /// The process cannot be told to stop.
    #[error("listening for the stop signal: {0}")]
    Signal(std::io::Error),
}

/// Opens the model and serves it until SIGTERM or SIGINT; requests under way are finished first.
pub async fn run(options: InferOptions) -> Result<(), ServeError> {
    let (path, threads) = (options.model.clone(), options.threads);
    let opened = tokio::task::spawn_blocking(move || open(&path, threads));
    let (model, on) = opened.await.expect("opening a model does not panic")?;
    let listen = |source| ServeError::Listen { address: options.listen.clone(), source };
    let listener = RealNet.listen(&options.listen).await.map_err(listen)?;
    tracing::info!(model = %options.name, address = %listener.address().map_err(listen)?, backend = on.name, features = on.features, threads = on.threads, "serving");
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut interrupt =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).map_err(ServeError::Signal)?;
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    serve(ServeOptions::new(options.name, created(&options.model)), model, listener, stop).await
}

/// Opens what lies at `path`: an encoder where its settings say so, else a decoder; and says what it runs on.
pub fn open(path: &Path, threads: Option<usize>) -> Result<(Model, Capabilities), EngineError> {
    let cpu = Cpu::new(threads)?;
    if kedge_engine::is_encoder(path) {
        let encoder = Encoder::open(path, &cpu)?;
        let on = encoder.capabilities().clone();
        return Ok((Model::Encoder(Arc::new(encoder)), on));
    }
    let decoder = Decoder::open(path, &cpu, DecoderOptions::default())?;
    let on = decoder.capabilities().clone();
    Ok((Model::Decoder(Arc::new(decoder)), on))
}

/// When the weights were written, in seconds since 1970; 0 when nobody can tell.
fn created(model: &Path) -> u64 {
    let weights = if model.is_dir() { model.join("model.safetensors") } else { model.to_owned() };
    let written = weights.metadata().and_then(|metadata| metadata.modified()).ok();
    written.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

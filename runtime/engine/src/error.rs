//! Everything the engine refuses, each variant named after the step that failed.

use std::path::PathBuf;

/// Why a model could not be opened or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file of the model could not be read at all.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read, and as a whole it is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file was read, and one field of it is missing, malformed or not supported.
    #[error("{}: {field}: {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field, as a dotted path.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The weights are not sound.
    #[error(transparent)]
    Format(#[from] kedge_formats::FormatError),
    /// A text could not be turned into tokens.
    #[error("tokenizing text {index}: {reason}")]
    Tokenize {
        /// Which of the texts given.
        index: usize,
        /// What the tokenizer said.
        reason: String,
    },
    /// Token ids were given that this model cannot take.
    #[error("tokens of input {index}: {reason}")]
    Tokens {
        /// Which of the inputs given.
        index: usize,
        /// What is wrong with them.
        reason: String,
    },
    /// A chat template is not sound, or refused what it was given.
    #[error("chat template {reason}")]
    Template {
        /// What is wrong.
        reason: String,
    },
    /// A panic or the loss of its device has ended the thread that computes.
    #[error("the decoder's thread has ended")]
    Ended,
    /// A plan and its inputs do not belong together.
    #[error("running a plan for {expected}: got {actual}")]
    Shape {
        /// What the plan was made for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A device did not do what it was asked for.
    #[error("{device}: {reason}")]
    Device {
        /// The device, by its name.
        device: String,
        /// What went wrong.
        reason: String,
    },
    /// There is not that much memory.
    #[error("taking {bytes} bytes of memory for weights: {source}")]
    Memory {
        /// How much was asked for.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// So much memory for the keys and values of tokens cannot be.
    #[error("{bytes} bytes for keys and values: {reason}")]
    Pages {
        /// How much was asked for.
        bytes: u64,
        /// Why not.
        reason: String,
    },
    /// The threads of the CPU backend could not be started.
    #[error("starting worker thread {index}: {source}")]
    Threads {
        /// Which thread.
        index: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

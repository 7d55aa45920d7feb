//! A running command, or a running container, as every dialect needs it.

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::channels::Outcome;

/// Gives a terminal another size.
pub type Resize = Box<dyn Fn(u16, u16) -> BoxFuture<'static, ()> + Send + Sync>;

/// What is connected with a client.
pub struct Process {
    /// Its input, if the client sends any; dropping it is the end of the input.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its output.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its errors.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Ends with how it ended.
    pub exit: BoxFuture<'static, Outcome>,
    /// Gives its terminal another size: columns, rows. Sizes are given one after the other, so that the last one stays.
    pub resize: Resize,
}

impl Process {
    /// One that did not start, which is told where clients look for how it ended.
    pub fn failed(message: String) -> Self {
        Self {
            stdin: None,
            stdout: None,
            stderr: None,
            exit: Box::pin(async move { Outcome::Failed(message) }),
            resize: Box::new(|_, _| Box::pin(async {})),
        }
    }
}

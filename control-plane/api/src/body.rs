//! Bodies of answers: bytes that exist already, in chunks, or a stream that goes on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::panics;

/// What the API server sends back.
pub enum Body {
    /// Chunks that are all there: encoded objects are sent on without being copied together.
    Chunks(VecDeque<Bytes>),
    /// Chunks that come as they come; ends when the stream does.
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

/// Marks the answer to a watch among a response's extensions: its client comes back when it ends at any time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched;

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Self::Chunks(VecDeque::new())
    }

    /// All of `chunks`, in order.
    pub fn chunks(chunks: impl IntoIterator<Item = Bytes>) -> Self {
        Self::Chunks(chunks.into_iter().filter(|chunk| !chunk.is_empty()).collect())
    }

    /// Whatever `stream` yields.
    pub fn stream(stream: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self::Stream(Box::pin(panics::cut(stream)))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::chunks([Bytes::from(bytes)])
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::chunks([bytes])
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Chunks(chunks) => Poll::Ready(chunks.pop_front().map(|chunk| Ok(Frame::data(chunk)))),
            Self::Stream(stream) => stream.as_mut().poll_next(cx).map(|next| next.map(|chunk| Ok(Frame::data(chunk)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Chunks(chunks) if chunks.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Chunks(chunks) => SizeHint::with_exact(chunks.iter().map(|chunk| chunk.len() as u64).sum()),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

//! Bytes that one task receives and another reads, with a bound between them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;

/// Pieces that wait for their reader. With pieces of at most 64 KiB a stream never holds more than 256 KiB.
const PIECES_MAX: usize = 4;

/// The writing end; dropping it is the end of the stream, an error breaks it.
pub(crate) type Feed = mpsc::Sender<io::Result<Bytes>>;

/// The reading end.
pub struct Input {
    queue: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

/// Both ends.
pub(crate) fn input() -> (Feed, Input) {
    let (feed, queue) = mpsc::channel(PIECES_MAX);
    (feed, Input { queue, rest: Bytes::new() })
}

impl AsyncRead for Input {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.queue.poll_recv(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(piece) => self.rest = piece?,
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn pieces_are_read_to_the_end() {
        let (feed, mut input) = input();
        for piece in ["one ", "", "two"] {
            feed.try_send(Ok(piece.into())).unwrap();
        }
        drop(feed);
        let mut text = String::new();
        input.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "one two");
    }

    #[tokio::test]
    async fn a_broken_stream_is_an_error() {
        let (feed, mut input) = input();
        feed.try_send(Err(io::ErrorKind::ConnectionReset.into())).unwrap();
        assert!(input.read(&mut [0]).await.is_err());
    }
}

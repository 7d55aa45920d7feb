//! A byte stream in the binary messages of a WebSocket (KEP-4006): what SPDY runs on for clients from kubectl 1.31 on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, SinkExt, Stream, StreamExt};
use hyper::upgrade::OnUpgrade;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::websocket::{Socket, open};

/// The largest message sent.
const MESSAGE_BYTES: usize = 32 << 10;

/// The stream, on a socket or on anything that carries messages.
pub struct Tunnel<S> {
    messages: S,
    rest: Bytes,
}

/// The stream on an upgraded connection.
pub async fn tunnel(upgrade: OnUpgrade) -> io::Result<Tunnel<Socket>> {
    Ok(Tunnel { messages: open(upgrade).await?, rest: Bytes::new() })
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl<S: Stream<Item = Result<Message, Error>> + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.messages.poll_next_unpin(cx)) {
                None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::other("a tunnel carries binary messages only")));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: Sink<Message, Error = Error> + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.messages.poll_ready_unpin(cx)).map_err(broken)?;
        let piece = &bytes[..bytes.len().min(MESSAGE_BYTES)];
        self.messages.start_send_unpin(Message::binary(Bytes::copy_from_slice(piece))).map_err(broken)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.messages.poll_flush_unpin(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.messages.poll_close_unpin(cx).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn read(messages: Vec<Result<Message, Error>>) -> io::Result<Vec<u8>> {
        let mut tunnel = Tunnel { messages: stream::iter(messages), rest: Bytes::new() };
        let mut all = Vec::new();
        tunnel.read_to_end(&mut all).await?;
        Ok(all)
    }

    #[tokio::test]
    async fn messages_become_one_stream() {
        let messages = ["one ", "", "two"].map(|text| Ok(Message::binary(text)));
        let pinged = messages.into_iter().chain([Ok(Message::Ping("x".into())), Ok(Message::binary(" three"))]);
        assert_eq!(read(pinged.collect()).await.unwrap(), b"one two three");
        assert!(read(vec![Ok(Message::text("text"))]).await.is_err());
    }
}

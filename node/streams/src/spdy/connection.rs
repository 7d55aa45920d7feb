//! The shell around [`Session`]: one task reads, one writes, streams are values with two ends.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::frame::{DATA_BYTES_MAX, data_frame};
use super::headers::Headers;
use super::session::{Event, Session};
use crate::input::{Feed, Input, input};

/// Bytes taken in at once.
const READ_BYTES: usize = 32 << 10;
/// Frames that wait for a slow client; whoever writes waits when they are full.
const FRAMES_QUEUED: usize = 16;
/// New streams that wait to be looked at.
const STREAMS_QUEUED: usize = 16;
/// How long a client may take to read the end and to leave.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(5);

enum Outgoing {
    Frames(Vec<u8>),
    /// Answered when everything before is with the operating system.
    Flush(oneshot::Sender<()>),
}

/// A client's connection; dropping it closes it.
pub struct Connection {
    incoming: mpsc::Receiver<Stream>,
    outgoing: mpsc::Sender<Outgoing>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

/// One stream of a connection.
pub struct Stream {
    /// Its number.
    pub id: u32,
    /// What it is for.
    pub headers: Headers,
    /// What the client sends. Whoever stops reading stops the whole connection; dropping it discards instead.
    pub input: Input,
    /// What the client gets.
    pub output: Output,
}

/// The sending side of a stream.
#[derive(Clone)]
pub struct Output {
    id: u32,
    session: Arc<Mutex<Session>>,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Output {
    /// Sends bytes; returns when they are queued.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(DATA_BYTES_MAX) {
            self.queue(data_frame(self.id, false, piece)).await?;
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub async fn finish(&self) -> io::Result<()> {
        let bytes = self.session.lock().finish(self.id);
        self.queue(bytes.unwrap_or_default()).await
    }

    /// Ends the stream at once, in both directions.
    pub async fn reset(&self) -> io::Result<()> {
        let bytes = self.session.lock().reset(self.id);
        self.queue(bytes.unwrap_or_default()).await
    }

    /// Sends everything that `source` gives, and then the end.
    pub async fn copy(&self, source: &mut (impl AsyncRead + Unpin + ?Sized)) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = source.read(&mut buffer).await?;
            if count == 0 {
                return self.finish().await;
            }
            self.send(&buffer[..count]).await?;
        }
    }

    async fn queue(&self, frames: Vec<u8>) -> io::Result<()> {
        self.outgoing.send(Outgoing::Frames(frames)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Connection {
    /// Serves SPDY on `io`, on which the protocols have been switched.
    pub fn serve<I: AsyncRead + AsyncWrite + Send + 'static>(io: I) -> Self {
        let (read, write) = tokio::io::split(io);
        let (streams, incoming) = mpsc::channel(STREAMS_QUEUED);
        let (outgoing, queue) = mpsc::channel(FRAMES_QUEUED);
        let session = Arc::new(Mutex::new(Session::default()));
        let reader = Reader { session, streams, outgoing: outgoing.clone(), feeds: HashMap::new() };
        let reader = tokio::spawn(async move {
            if let Err(error) = reader.run(read).await {
                tracing::debug!(%error, "a SPDY connection broke");
            }
        });
        let writer = tokio::spawn(async move {
            if let Err(error) = write_all(write, queue).await {
                tracing::debug!(%error, "a SPDY connection cannot be written to");
            }
        });
        Self { incoming, outgoing, reader, writer }
    }

    /// The next stream that the client opens; none when the client has left.
    pub async fn next_stream(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Lets the client read everything that was sent, and leave by itself: what a closed connection still receives
    /// would make the client's system throw away what it has not read yet.
    pub async fn close(mut self) {
        let (done, flushed) = oneshot::channel();
        let leaving = async {
            if self.outgoing.send(Outgoing::Flush(done)).await.is_ok() && flushed.await.is_ok() {
                while let Some(stream) = self.incoming.recv().await {
                    // Too late; its reader is dropped with it.
                    if stream.output.reset().await.is_err() {
                        return;
                    }
                }
            }
        };
        if tokio::time::timeout(LEAVE_TIME_MAX, leaving).await.is_err() {
            tracing::debug!("a SPDY client did not leave");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

async fn write_all<I: AsyncWrite>(mut io: WriteHalf<I>, mut queue: mpsc::Receiver<Outgoing>) -> io::Result<()> {
    while let Some(next) = queue.recv().await {
        match next {
            Outgoing::Frames(frames) => io.write_all(&frames).await?,
            Outgoing::Flush(done) => {
                io.flush().await?;
                let _ = done.send(()); // Nobody waits any more.
            }
        }
        if queue.is_empty() {
            io.flush().await?;
        }
    }
    io.shutdown().await
}

struct Reader {
    session: Arc<Mutex<Session>>,
    streams: mpsc::Sender<Stream>,
    outgoing: mpsc::Sender<Outgoing>,
    feeds: HashMap<u32, Feed>,
}

impl Reader {
    async fn run<I: AsyncRead>(mut self, mut io: ReadHalf<I>) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = io.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            self.session.lock().push(&buffer[..count]);
            loop {
                let mut out = Vec::new();
                let event = self.session.lock().next_event(&mut out);
                if !out.is_empty() {
                    self.send(out).await?;
                }
                match event.map_err(io::Error::other)? {
                    None => break,
                    Some(event) => self.act(event).await?,
                }
            }
        }
    }

    async fn send(&self, frames: Vec<u8>) -> io::Result<()> {
        self.outgoing.send(Outgoing::Frames(frames)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    async fn act(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Opened { stream, headers, fin } => {
                let (feed, input) = input();
                let output = Output { id: stream, session: self.session.clone(), outgoing: self.outgoing.clone() };
                if !fin {
                    // Those of streams that only we ended; their readers are gone.
                    self.feeds.retain(|_, feed| !feed.is_closed());
                    self.feeds.insert(stream, feed);
                }
                let opened = Stream { id: stream, headers, input, output };
                self.streams.send(opened).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
            Event::Data { stream, data, fin } => {
                self.feed(stream, data).await;
                if fin {
                    self.feeds.remove(&stream);
                }
                Ok(())
            }
            Event::Reset { stream } => {
                if let Some(feed) = self.feeds.remove(&stream) {
                    // In a task: the stream's reader may be slow, and the others need not wait for it.
                    tokio::spawn(async move {
                        let _ = feed.send(Err(io::ErrorKind::ConnectionReset.into())).await; // It may have gone.
                    });
                }
                Ok(())
            }
        }
    }

    async fn feed(&mut self, stream: u32, data: Bytes) {
        let Some(feed) = self.feeds.get(&stream).filter(|_| !data.is_empty()) else { return };
        if feed.send(Ok(data)).await.is_err() {
            // Nobody reads any more: what still comes is discarded.
            self.feeds.remove(&stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{Decoder, Encoder, Frame};
    use super::*;

    #[tokio::test]
    async fn streams_carry_bytes_both_ways_and_end() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::serve(near);
        let mut client = Encoder::default();
        let headers = vec![("streamtype".to_owned(), "data".to_owned())];
        let syn = Frame::SynStream { stream: 1, fin: false, unidirectional: false, headers: headers.clone() };
        far.write_all(&client.encode(&syn)).await.unwrap();
        let data = Frame::Data { stream: 1, fin: true, data: "ping".into() };
        far.write_all(&client.encode(&data)).await.unwrap();
        let mut stream = connection.next_stream().await.unwrap();
        assert_eq!(stream.headers, headers);
        let mut text = String::new();
        stream.input.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "ping");
        stream.output.copy(&mut &b"pong"[..]).await.unwrap();
        let mut decoder = Decoder::default();
        let mut answers = Vec::new();
        while answers.len() < 3 {
            let mut buffer = [0; 1024];
            let count = far.read(&mut buffer).await.unwrap();
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                answers.push(frame);
            }
        }
        let data = |fin, text: &str| Frame::Data { stream: 1, fin, data: text.to_owned().into() };
        let reply = Frame::SynReply { stream: 1, fin: false, headers: vec![] };
        assert_eq!(answers, [reply, data(false, "pong"), data(true, "")]);
        drop(far);
        assert!(connection.next_stream().await.is_none());
        connection.close().await;
    }

    #[tokio::test]
    async fn a_client_that_speaks_something_else_is_told_and_left() {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let mut connection = Connection::serve(near);
        far.write_all(&[0xff; 64]).await.unwrap();
        assert!(connection.next_stream().await.is_none());
        let mut answer = [0; 16];
        far.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[3], 7, "GOAWAY: {answer:?}");
    }
}

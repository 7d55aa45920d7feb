//! exec and port-forward over WebSocket: the handshake's answer, and the copying between frames and streams.

use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt, stream};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::channels::{Dialect, ERROR, Input, STDERR, STDOUT, exit_status, failure_status};
use crate::{Chunks, NodeRefusal};

/// The largest message a client may send; clients cut theirs far below.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Output is read in pieces of at most this.
const READ_BYTES: usize = 32 << 10;
/// Frames waiting for a slow client; the process waits when they are full.
const FRAMES_QUEUED: usize = 16;

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Whether a client asks for a WebSocket.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    headers
        .get(UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// The subprotocols a client offers, in its order.
pub fn offered(headers: &HeaderMap) -> String {
    let all = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    all.collect::<Vec<_>>().join(",")
}

/// The answer that switches protocols (RFC 6455, 4.2.2).
pub fn accept(headers: &HeaderMap, protocol: &'static str) -> Result<Response<Chunks>, NodeRefusal> {
    let key =
        headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| NodeRefusal::new(400, "the WebSocket handshake has no key"))?;
    let accepted = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is a header value");
    let mut response = Response::new(Box::pin(stream::empty::<Bytes>()) as Chunks);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok(response)
}

async fn open(upgrade: OnUpgrade) -> io::Result<Socket> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await)
}

/// A running command, as the wire needs it.
pub struct Process {
    /// Its input, if the client sends any.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its output.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its errors.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Ends with its exit code, or with why there is none.
    pub exit: BoxFuture<'static, Result<i32, String>>,
    /// Gives its terminal another size.
    pub resize: Box<dyn Fn(u16, u16) + Send + Sync>,
}

/// Connects a process with a client until the process has ended and everything it wrote is sent, or the client left.
pub async fn exec(upgrade: OnUpgrade, dialect: Dialect, mut process: Process) -> io::Result<()> {
    let (mut sink, mut source) = open(upgrade).await?.split();
    let (frames, mut queue) = mpsc::channel::<Vec<u8>>(FRAMES_QUEUED);
    let copies: Vec<_> = [(STDOUT, process.stdout.take()), (STDERR, process.stderr.take())]
        .into_iter()
        .filter_map(|(channel, output)| Some(copy_out(dialect, channel, output?, frames.clone())))
        .collect();
    let last = frames.clone();
    let exit = process.exit;
    let ending = async move {
        // Output is read while the process runs, or it would wait for ever on a full pipe; how it ended comes last,
        // because clients leave at the status.
        let (code, _) = futures::future::join(exit, futures::future::join_all(copies)).await;
        let status = match code {
            Ok(code) => exit_status(code),
            Err(message) => failure_status(&message),
        };
        let _ = last.send(dialect.encode(ERROR, status.to_string().as_bytes())).await;
    };
    drop(frames);
    let mut stdin = process.stdin.take();
    let listening = async {
        while let Some(Ok(message)) = source.next().await {
            let frame = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => return,
                _ => continue,
            };
            match dialect.decode(&frame) {
                Some(Input::Stdin(bytes)) => {
                    let Some(open) = &mut stdin else { continue };
                    if open.write_all(&bytes).await.is_err() || open.flush().await.is_err() {
                        stdin = None;
                    }
                }
                Some(Input::End) => stdin = None,
                Some(Input::Resize { width, height }) => (process.resize)(width, height),
                None => {}
            }
        }
    };
    let sending = async {
        while let Some(frame) = queue.recv().await {
            let message = match dialect {
                Dialect::V4Base64 => Message::text(String::from_utf8(frame).expect("base64 is text")),
                _ => Message::binary(frame),
            };
            sink.send(message).await.map_err(io::Error::other)?;
        }
        // Clients take any other end for a broken connection (`websocket.CloseNormalClosure`).
        let end = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        sink.send(Message::Close(Some(end))).await.map_err(io::Error::other)
    };
    let ending = tokio::spawn(ending);
    let result = tokio::select! {
        sent = sending => sent,
        // The client left: its terminal is gone, and so is whatever the process still wants to say.
        () = listening => Ok(()),
    };
    if result.is_err() {
        ending.abort();
    }
    result
}

async fn copy_out(
    dialect: Dialect,
    channel: u8,
    mut output: Box<dyn AsyncRead + Send + Unpin>,
    frames: mpsc::Sender<Vec<u8>>,
) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        if frames.send(dialect.encode(channel, &buffer[..count])).await.is_err() {
            return;
        }
    }
}

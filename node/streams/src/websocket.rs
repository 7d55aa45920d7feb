//! exec, attach, logs and port-forward over WebSocket: the handshake's answer, and the copying between frames and
//! streams.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, Stream, StreamExt, stream};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::channels::{Dialect, ERROR, Input, STDERR, STDOUT};
use crate::input::{Feed, input};
use crate::portforward::{self, Broken, Target};
use crate::process::Process;
use crate::{Chunks, NodeRefusal};

/// The largest message a client may send; clients cut theirs far below.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Output is read in pieces of at most this.
const READ_BYTES: usize = 32 << 10;
/// Frames waiting for a slow client; the process waits when they are full.
const FRAMES_QUEUED: usize = 16;

/// How long a client may take to read the end and to leave.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(5);

pub(crate) type Socket = WebSocketStream<TokioIo<Upgraded>>;

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

/// The answer that switches protocols (RFC 6455, 4.2.2); `protocol` is the chosen one of those offered.
pub fn accept(headers: &HeaderMap, protocol: Option<&'static str>) -> Result<Response<Chunks>, NodeRefusal> {
    let key =
        headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| NodeRefusal::new(400, "the WebSocket handshake has no key"))?;
    let accepted = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).expect("base64 is a header value");
    let mut response = Response::new(Box::pin(stream::empty::<Bytes>()) as Chunks);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accepted);
    if let Some(protocol) = protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(response)
}

pub(crate) async fn open(upgrade: OnUpgrade) -> io::Result<Socket> {
    let upgraded = upgrade.await.map_err(io::Error::other)?;
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await)
}

/// Connects a process with a client until the process has ended and everything it wrote is sent, or the client left.
pub async fn exec(upgrade: OnUpgrade, dialect: Dialect, mut process: Process) -> io::Result<()> {
    let (sink, mut source) = open(upgrade).await?.split();
    let (frames, queue) = mpsc::channel::<Vec<u8>>(FRAMES_QUEUED);
    // The connection stands (`createWebSocketStreams`): older clients wait for a first message.
    frames.try_send(dialect.encode(STDOUT, b"")).expect("the queue is empty");
    let copies: Vec<_> = [(STDOUT, process.stdout.take()), (STDERR, process.stderr.take())]
        .into_iter()
        .filter_map(|(channel, output)| Some(copy_out(dialect, channel, output?, frames.clone())))
        .collect();
    let last = frames.clone();
    let exit = process.exit;
    let ending = async move {
        // Output is read while the process runs, or it would wait for ever on a full pipe; how it ended comes last,
        // because clients leave at the status.
        let (outcome, _) = futures::future::join(exit, futures::future::join_all(copies)).await;
        if let Some(text) = dialect.ending(&outcome) {
            let _ = last.send(dialect.encode(ERROR, &text)).await; // The client may have left.
        }
    };
    drop(frames);
    let mut stdin = process.stdin.take();
    let listening = async {
        while let Some(frame) = next_frame(&mut source).await {
            match dialect.decode(&frame) {
                Some(Input::Stdin(bytes)) => {
                    let Some(open) = &mut stdin else { continue };
                    if open.write_all(&bytes).await.is_err() || open.flush().await.is_err() {
                        stdin = None;
                    }
                }
                Some(Input::End) => stdin = None,
                Some(Input::Resize { width, height }) => (process.resize)(width, height).await,
                None => {}
            }
        }
    };
    let ending = tokio::spawn(ending);
    let result = converse(send(sink, queue, dialect), listening).await;
    // The client may have left before: its terminal is gone, and so is whatever the process still wants to say.
    ending.abort();
    result
}

/// Sends to the end and lets the client leave, or stops when it leaves before.
async fn converse(
    sending: impl Future<Output = io::Result<()>>,
    listening: impl Future<Output = ()>,
) -> io::Result<()> {
    tokio::pin!(listening);
    tokio::select! {
        sent = sending => {
            // A connection closed while something comes in makes the client's system drop what it has not read yet.
            if sent.is_ok() && tokio::time::timeout(LEAVE_TIME_MAX, &mut listening).await.is_err() {
                tracing::debug!("a WebSocket client did not leave");
            }
            sent
        }
        () = &mut listening => Ok(()),
    }
}

/// The content of the next message; none when the client has left.
async fn next_frame(source: &mut SplitStream<Socket>) -> Option<Bytes> {
    while let Some(Ok(message)) = source.next().await {
        match message {
            Message::Binary(bytes) => return Some(bytes),
            Message::Text(text) => return Some(text.into()),
            Message::Close(_) => return None,
            _ => {}
        }
    }
    None
}

async fn send(
    mut sink: SplitSink<Socket, Message>,
    mut queue: mpsc::Receiver<Vec<u8>>,
    dialect: Dialect,
) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        let message = if dialect.is_text() {
            Message::text(String::from_utf8(frame).expect("base64 is text"))
        } else {
            Message::binary(frame)
        };
        sink.send(message).await.map_err(io::Error::other)?;
    }
    close(&mut sink).await
}

async fn close(sink: &mut SplitSink<Socket, Message>) -> io::Result<()> {
    // Clients take any other end for a broken connection (`websocket.CloseNormalClosure`).
    let end = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    sink.send(Message::Close(Some(end))).await.map_err(io::Error::other)
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

/// The subprotocol of a log (`wsstream.NewDefaultReaderProtocols`): its name, and whether it is base64 in text. None
/// when none of those offered is spoken; a client that offers none gets binary messages.
pub fn choose_for_log(wishes: &str) -> Option<(Option<&'static str>, bool)> {
    let spoken = [("binary.k8s.io", false), ("base64.binary.k8s.io", true)];
    if wishes.is_empty() {
        return Some((None, false));
    }
    let chosen = wishes.split(',').map(str::trim).find_map(|wish| spoken.into_iter().find(|(name, _)| *name == wish));
    chosen.map(|(name, text)| (Some(name), text))
}

/// Sends a log as messages, until it ends or the client leaves.
pub async fn log(upgrade: OnUpgrade, text: bool, mut log: impl Stream<Item = Bytes> + Unpin) -> io::Result<()> {
    use base64::Engine as _;
    let (mut sink, mut source) = open(upgrade).await?.split();
    let sending = async {
        while let Some(bytes) = log.next().await {
            let message = if text {
                Message::text(base64::engine::general_purpose::STANDARD.encode(&bytes))
            } else {
                Message::binary(bytes)
            };
            sink.send(message).await.map_err(io::Error::other)?;
        }
        close(&mut sink).await
    };
    converse(sending, async { while next_frame(&mut source).await.is_some() {} }).await
}

/// Forwards `ports`: for the nth there are the channels 2n for data and 2n+1 for an error. Each says its port first.
pub async fn forward(upgrade: OnUpgrade, dialect: Dialect, ports: Vec<u16>, target: Arc<Target>) -> io::Result<()> {
    let (sink, mut source) = open(upgrade).await?.split();
    let (frames, queue) = mpsc::channel::<Vec<u8>>(FRAMES_QUEUED);
    let mut feeds: Vec<Option<Feed>> = Vec::new();
    let mut forwards = tokio::task::JoinSet::new();
    for (index, port) in ports.into_iter().enumerate() {
        let (feed, from_client) = input();
        feeds.push(Some(feed));
        let (frames, target) = (frames.clone(), target.clone());
        let data = u8::try_from(index * 2).expect("there are at most PORTS_MAX ports");
        forwards.spawn(async move {
            for channel in [data, data + 1] {
                if frames.send(dialect.encode(channel, &port.to_le_bytes())).await.is_err() {
                    return;
                }
            }
            let out = frames.clone();
            let to_client = move |piece: Bytes| {
                let (out, frame) = (out.clone(), dialect.encode(data, &piece));
                async move { out.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into()) }
            };
            let forwarded = portforward::forward(&target, port, from_client, to_client).await;
            if let Err(Broken::Refused(message) | Broken::Pod(message)) = forwarded {
                let _ = frames.send(dialect.encode(data + 1, message.as_bytes())).await; // The client may have left.
            }
        });
    }
    drop(frames);
    let listening = async {
        while let Some(frame) = next_frame(&mut source).await {
            let Some((channel, data)) = dialect.split(&frame).filter(|(channel, _)| channel % 2 == 0) else { continue };
            let Some(slot) = feeds.get_mut(usize::from(channel / 2)) else { continue };
            if let Some(feed) = slot
                && feed.send(Ok(data)).await.is_err()
            {
                *slot = None;
            }
        }
    };
    converse(send(sink, queue, dialect), listening).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_sent_as_the_client_asks() {
        let cases = [
            ("", Some((None, false))),
            ("binary.k8s.io", Some((Some("binary.k8s.io"), false))),
            ("x, base64.binary.k8s.io", Some((Some("base64.binary.k8s.io"), true))),
            ("channel.k8s.io", None),
        ];
        for (wishes, expected) in cases {
            assert_eq!(choose_for_log(wishes), expected, "{wishes}");
        }
    }

    type Client = WebSocketStream<tokio::io::DuplexStream>;

    /// A client whose upgraded connection `serve` gets.
    async fn client<F>(dialect: Dialect, serve: impl Fn(OnUpgrade) -> F + Send + Clone + 'static) -> Client
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
        let (near, far) = tokio::io::duplex(1 << 16);
        let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            let served = serve(hyper::upgrade::on(&mut request));
            async move {
                let response = accept(request.headers(), Some(dialect.name())).unwrap();
                tokio::spawn(served);
                Ok::<_, std::convert::Infallible>(response.map(|_| http_body_util::Empty::<Bytes>::new()))
            }
        });
        let server = hyper::server::conn::http1::Builder::new();
        tokio::spawn(server.serve_connection(TokioIo::new(near), service).with_upgrades());
        let mut request = "ws://node/".into_client_request().unwrap();
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(dialect.name()));
        tokio_tungstenite::client_async(request, far).await.unwrap().0
    }

    /// Everything that the server says on each channel, until it closes well.
    async fn listen(client: &mut Client, dialect: Dialect) -> std::collections::BTreeMap<u8, Vec<u8>> {
        let mut heard = std::collections::BTreeMap::<u8, Vec<u8>>::new();
        loop {
            let frame: Bytes = match client.next().await.unwrap().unwrap() {
                Message::Binary(bytes) if !dialect.is_text() => bytes,
                Message::Text(text) if dialect.is_text() => text.into(),
                Message::Close(Some(frame)) if frame.code == CloseCode::Normal => return heard,
                other => panic!("{other:?}"),
            };
            let (channel, data) = dialect.split(&frame).unwrap();
            heard.entry(channel).or_default().extend_from_slice(&data);
        }
    }

    async fn say(client: &mut Client, dialect: Dialect, channel: u8, data: &[u8]) {
        let frame = dialect.encode(channel, data);
        let text = |frame| Message::text(String::from_utf8(frame).unwrap());
        client.send(if dialect.is_text() { text(frame) } else { Message::binary(frame) }).await.unwrap();
    }

    /// A port that gives back what it is sent; the others are closed.
    struct Echo;

    #[async_trait::async_trait]
    impl portforward::Dial for Echo {
        async fn dial(&self, port: u16) -> Result<Box<dyn portforward::Duplex>, String> {
            if port != 80 {
                return Err("closed".to_owned());
            }
            let (near, mut far) = tokio::io::duplex(100);
            tokio::spawn(async move {
                let mut buffer = [0; 5];
                far.read_exact(&mut buffer).await.unwrap();
                far.write_all(&buffer).await.unwrap();
            });
            Ok(Box::new(near))
        }
    }

    #[tokio::test]
    async fn ports_have_two_channels_each_that_begin_with_the_port() {
        for dialect in [Dialect::V4, Dialect::V4Base64] {
            let mut client = client(dialect, move |upgrade| {
                let target = Target { pod: "p".into(), uid: "u".into(), dial: Box::new(Echo) };
                forward(upgrade, dialect, vec![443, 80], Arc::new(target))
            })
            .await;
            say(&mut client, dialect, 2, b"hello").await;
            let heard = listen(&mut client, dialect).await;
            let refused = [&443_u16.to_le_bytes()[..], b"error forwarding port 443 to pod p, uid u: closed"].concat();
            let answered = [&80_u16.to_le_bytes()[..], b"hello"].concat();
            let expected = [(0, vec![0xbb, 1]), (1, refused), (2, answered), (3, vec![80, 0])];
            assert_eq!(heard.into_iter().collect::<Vec<_>>(), expected, "{dialect:?}");
        }
    }

    #[tokio::test]
    async fn a_process_is_carried_in_every_dialect() {
        for (dialect, ending) in [(Dialect::V5, "NonZeroExitCode"), (Dialect::V1Base64, "exit status 3")] {
            let mut client = client(dialect, move |upgrade| {
                let (near, far) = tokio::io::duplex(100);
                let process = Process {
                    stdin: Some(Box::new(near)),
                    stdout: Some(Box::new(far.take(5))),
                    stderr: Some(Box::new(&b"oops"[..])),
                    exit: Box::pin(async { crate::channels::Outcome::Exit(3) }),
                    resize: Box::new(|_, _| Box::pin(async {})),
                };
                exec(upgrade, dialect, process)
            })
            .await;
            say(&mut client, dialect, 0, b"hello").await;
            let heard = listen(&mut client, dialect).await;
            let text = |channel: u8| String::from_utf8_lossy(&heard[&channel]).into_owned();
            assert_eq!((text(STDOUT).as_str(), text(STDERR).as_str()), ("hello", "oops"), "{dialect:?}");
            assert!(text(ERROR).contains(ending), "{}", text(ERROR));
        }
    }
}

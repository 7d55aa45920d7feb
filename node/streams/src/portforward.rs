//! port-forward: bytes between a client and a port of a pod, over SPDY streams or WebSocket channels.
//! (`k8s.io/cri-streaming/pkg/streaming/portforward`.)

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::input::Input;
use crate::spdy::{Connection, Headers, Stream, header};

/// The protocol over SPDY.
pub const PROTOCOL: &str = "portforward.k8s.io";
/// The same, its SPDY frames in WebSocket messages (KEP-4006).
pub const TUNNEL_PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Ports of one request over WebSocket channels; a channel has one byte, and two for each port.
pub const PORTS_MAX: usize = 100;
/// How long a data stream waits for its error stream, or the other way round (kubelet's streamCreationTimeout).
const PAIR_TIME_MAX: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 32 << 10;

/// A connection to a port.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Connects to ports of a pod, from inside.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// Connects; the error is a sentence.
    async fn dial(&self, port: u16) -> Result<Box<dyn Duplex>, String>;
}

/// Where to forward to.
pub struct Target {
    /// The pod's name, for errors.
    pub pod: String,
    /// Its uid, for errors.
    pub uid: String,
    /// The way there.
    pub dial: Box<dyn Dial>,
}

/// The ports that a WebSocket client asks for, from the values of its `ports` parameters.
pub fn parse_ports<'a>(values: impl Iterator<Item = &'a str>) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for value in values {
        if value.is_empty() {
            return Err("query parameter \"port\" cannot be empty".to_owned());
        }
        for text in value.split(',') {
            ports.push(parse_port(text)?);
        }
    }
    match ports.len() {
        0 => Err("query parameter \"port\" is required".to_owned()),
        1..=PORTS_MAX => Ok(ports),
        count => Err(format!("query parameter \"port\" has {count} ports, more than {PORTS_MAX}")),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) => Err(format!("port {text:?} must be > 0")),
        Ok(port) => Ok(port),
        Err(error) => Err(format!("unable to parse {text:?} as a port: {error}")),
    }
}

/// Why a connection was not forwarded to its end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// Nobody answered at the port; a sentence for the client.
    Refused(String),
    /// The pod broke the connection off; a sentence.
    Pod(String),
    /// The client broke it off, which is no news to it.
    Client,
}

/// Forwards one connection until the pod has closed it, or either side is lost.
pub(crate) async fn forward<F>(
    target: &Target,
    port: u16,
    mut from_client: Input,
    to_client: impl Fn(Bytes) -> F,
) -> Result<(), Broken>
where
    F: Future<Output = io::Result<()>>,
{
    let told =
        |reason: String| format!("error forwarding port {port} to pod {}, uid {}: {reason}", target.pod, target.uid);
    let connection = target.dial.dial(port).await.map_err(|reason| Broken::Refused(told(reason)))?;
    let (mut read, mut write) = tokio::io::split(connection);
    let inward = async {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = from_client.read(&mut buffer).await.map_err(|_| Broken::Client)?;
            // A pod that takes nothing more may still have something to say, which is read to its end.
            let taken = if count == 0 { write.shutdown().await } else { write.write_all(&buffer[..count]).await };
            if count == 0 || taken.is_err() {
                return Ok(());
            }
        }
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => to_client(buffer.split().freeze()).await.map_err(|_| Broken::Client)?,
                Err(error) => return Err(Broken::Pod(told(error.to_string()))),
            }
        }
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        result = &mut outward => return result,
        result = &mut inward => result?,
    }
    outward.await
}

/// What a stream is, by its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Role {
    request: String,
    port: u16,
    is_error: bool,
}

impl Role {
    fn read(id: u32, headers: &Headers) -> Result<Self, String> {
        let needed = |name: &str| {
            header(headers, name).filter(|v| !v.is_empty()).ok_or_else(|| format!("{name:?} header is required"))
        };
        let port = parse_port(needed("port")?)?;
        let is_error = match needed("streamtype")? {
            "error" => true,
            "data" => false,
            other => return Err(format!("invalid stream type {other:?}")),
        };
        // Clients without request ids open the error stream right before the data stream.
        let request = match header(headers, "requestid").filter(|id| !id.is_empty()) {
            Some(request) => request.to_owned(),
            None if is_error => id.to_string(),
            None => id.saturating_sub(2).to_string(),
        };
        Ok(Self { request, port, is_error })
    }
}

/// Streams that wait for their other half, by request.
struct Pairs<T>(HashMap<String, (Role, T)>);

/// What becomes of a stream.
#[derive(Debug, PartialEq, Eq)]
enum Added<T> {
    /// It waits.
    Waits,
    /// It completes a pair.
    Pair { port: u16, data: T, error: T },
    /// There was one of its type.
    Twice(T),
}

impl<T> Pairs<T> {
    fn add(&mut self, role: Role, stream: T) -> Added<T> {
        match self.0.remove(&role.request) {
            None => {
                self.0.insert(role.request.clone(), (role, stream));
                Added::Waits
            }
            Some((first, other)) if first.is_error == role.is_error => {
                self.0.insert(first.request.clone(), (first, other));
                Added::Twice(stream)
            }
            Some((_, data)) if role.is_error => Added::Pair { port: role.port, data, error: stream },
            Some((first, error)) => Added::Pair { port: first.port, data: stream, error },
        }
    }
}

/// Forwards every pair of streams that the client opens, until it leaves.
pub async fn serve(mut connection: Connection, target: Arc<Target>) -> io::Result<()> {
    let mut pairs = Pairs(HashMap::new());
    let (mut forwards, mut waiting) = (JoinSet::new(), JoinSet::new());
    loop {
        tokio::select! {
            stream = connection.next_stream() => {
                let Some(stream) = stream else { return Ok(()) };
                let role = match Role::read(stream.id, &stream.headers) {
                    Ok(role) => role,
                    Err(reason) => {
                        tracing::debug!(reason, "a port-forward stream is refused");
                        stream.output.reset().await?;
                        continue;
                    }
                };
                let (request, id) = (role.request.clone(), stream.id);
                match pairs.add(role, stream) {
                    Added::Waits => {
                        waiting.spawn(async move {
                            tokio::time::sleep(PAIR_TIME_MAX).await;
                            (request, id)
                        });
                    }
                    Added::Pair { port, data, error } => {
                        forwards.spawn(pair(target.clone(), port, data, error));
                    }
                    Added::Twice(stream) => stream.output.reset().await?,
                }
            }
            Some(done) = forwards.join_next() => {
                if let Ok(Err(error)) = done {
                    tracing::debug!(%error, "a forwarded connection's client is gone");
                }
            }
            Some(Ok((request, id))) = waiting.join_next() => {
                // Its half may have come, and another request may have its name by now.
                if pairs.0.get(&request).is_some_and(|(_, stream)| stream.id == id)
                    && let Some((_, stream)) = pairs.0.remove(&request)
                {
                    stream.output.reset().await?;
                }
            }
        }
    }
}

async fn pair(target: Arc<Target>, port: u16, data: Stream, error: Stream) -> io::Result<()> {
    let output = data.output.clone();
    let to_client = |piece: Bytes| {
        let output = &output;
        async move { output.send(&piece).await }
    };
    match forward(&target, port, data.input, to_client).await {
        Ok(()) => output.finish().await?,
        Err(Broken::Refused(message)) => {
            tracing::debug!(message, "a connection is not forwarded");
            error.output.send(message.as_bytes()).await?;
            // The client need not send what nobody takes.
            output.reset().await?;
        }
        // Said by the reset alone: kubectl gives up all of its connections at a word on any error stream, also at one
        // about a connection that it reset itself.
        Err(Broken::Pod(message)) => {
            tracing::debug!(message, "a forwarded connection was broken off");
            output.reset().await?;
        }
        Err(Broken::Client) => output.reset().await?,
    }
    error.output.finish().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::input;

    fn headers(text: &str) -> Headers {
        text.split_whitespace().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn a_stream_says_what_it_is_for() {
        let role = |request: &str, is_error| Ok(Role { request: request.into(), port: 80, is_error });
        let cases = [
            (7, "streamtype=data port=80 requestid=4", role("4", false)),
            (7, "streamtype=error port=80", role("7", true)),
            (9, "streamtype=data port=80", role("7", false)),
            (1, "streamtype=data", Err("\"port\" header is required".to_owned())),
            (1, "port=80", Err("\"streamtype\" header is required".to_owned())),
            (1, "streamtype=other port=80", Err("invalid stream type \"other\"".to_owned())),
            (1, "streamtype=data port=0", Err("port \"0\" must be > 0".to_owned())),
        ];
        for (id, text, expected) in cases {
            assert_eq!(Role::read(id, &headers(text)), expected, "{text}");
        }
    }

    #[test]
    fn streams_find_their_other_half_in_any_order() {
        let mut pairs = Pairs(HashMap::new());
        let role = |request: &str, is_error| Role { request: request.into(), port: 80, is_error };
        assert_eq!(pairs.add(role("0", true), "error 0"), Added::Waits);
        assert_eq!(pairs.add(role("1", false), "data 1"), Added::Waits);
        assert_eq!(pairs.add(role("0", true), "again"), Added::Twice("again"));
        let pair = |data, error| Added::Pair { port: 80, data, error };
        assert_eq!(pairs.add(role("0", false), "data 0"), pair("data 0", "error 0"));
        assert_eq!(pairs.add(role("1", true), "error 1"), pair("data 1", "error 1"));
        assert!(pairs.0.is_empty());
    }

    #[test]
    fn ports_are_read_from_the_query() {
        let check = |values: &[&str], expected: Result<Vec<u16>, &str>| {
            assert_eq!(parse_ports(values.iter().copied()), expected.map_err(str::to_owned), "{values:?}");
        };
        check(&["80", "443,8080"], Ok(vec![80, 443, 8080]));
        check(&[], Err("query parameter \"port\" is required"));
        check(&[""], Err("query parameter \"port\" cannot be empty"));
        check(&["0"], Err("port \"0\" must be > 0"));
        let many = vec!["1"; PORTS_MAX + 1];
        check(&many, Err("query parameter \"port\" has 101 ports, more than 100"));
        assert!(parse_ports(["70000"].into_iter()).is_err());
    }

    struct Pod(parking_lot::Mutex<Option<tokio::io::DuplexStream>>);

    #[async_trait]
    impl Dial for Pod {
        async fn dial(&self, _: u16) -> Result<Box<dyn Duplex>, String> {
            self.0.lock().take().map(|stream| Box::new(stream) as _).ok_or_else(|| "connection refused".to_owned())
        }
    }

    #[tokio::test]
    async fn what_the_pod_says_after_the_clients_end_arrives() {
        let (near, mut far) = tokio::io::duplex(1000);
        let dial = Box::new(Pod(parking_lot::Mutex::new(Some(near))));
        let target = Target { pod: "p".into(), uid: "u".into(), dial };
        let (feed, from_client) = input();
        feed.send(Ok("hello".into())).await.unwrap();
        drop(feed);
        let pod = tokio::spawn(async move {
            let mut text = String::new();
            far.read_to_string(&mut text).await.unwrap();
            far.write_all(format!("{text} yourself").as_bytes()).await.unwrap();
        });
        let said = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let to_client = |piece: Bytes| {
            said.lock().extend_from_slice(&piece);
            async { Ok(()) }
        };
        forward(&target, 80, from_client, to_client).await.unwrap();
        pod.await.unwrap();
        assert_eq!(*said.lock(), b"hello yourself");
        let (_feed, from_client) = input();
        let refused = forward(&target, 80, from_client, |_| async { Ok(()) }).await.unwrap_err();
        let expected = "error forwarding port 80 to pod p, uid u: connection refused";
        assert!(matches!(&refused, Broken::Refused(message) if message == expected), "{refused:?}");
    }

    /// What a client hears on its error stream (1) when its data stream (3) goes to `pod` and is then reset.
    async fn heard_after_reset(pod: Option<tokio::io::DuplexStream>, reset: bool) -> String {
        use crate::spdy::{Decoder, Encoder, Frame};
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let dial = Box::new(Pod(parking_lot::Mutex::new(pod)));
        let target = Arc::new(Target { pod: "p".into(), uid: "u".into(), dial });
        tokio::spawn(serve(Connection::serve(near), target));
        let mut encoder = Encoder::default();
        for (stream, kind) in [(1, "error"), (3, "data")] {
            let headers = headers(&format!("streamtype={kind} port=80 requestid=0"));
            let syn = Frame::SynStream { stream, fin: false, unidirectional: false, headers };
            far.write_all(&encoder.encode(&syn)).await.unwrap();
        }
        if reset {
            far.write_all(&encoder.encode(&Frame::RstStream { stream: 3, status: 5 })).await.unwrap();
        }
        let (mut decoder, mut heard, mut buffer) = (Decoder::default(), String::new(), [0; 4096]);
        loop {
            let count = far.read(&mut buffer).await.unwrap();
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                if let Frame::Data { stream: 1, fin, data } = frame {
                    heard += std::str::from_utf8(&data).unwrap();
                    if fin {
                        return heard;
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_client_that_resets_a_connection_hears_no_error() {
        let (near, _far) = tokio::io::duplex(1000);
        assert_eq!(heard_after_reset(Some(near), true).await, "");
        let refused = heard_after_reset(None, false).await;
        assert!(refused.ends_with("connection refused"), "{refused}");
    }
}

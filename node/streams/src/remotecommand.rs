//! exec and attach over SPDY, for kubectl up to 1.30: one stream for each of a process's own.
//! (`k8s.io/cri-streaming/pkg/streaming/remotecommand/httpstream.go`.)

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::channels::{Outcome, terminal_size};
use crate::process::{Process, Resize};
use crate::spdy::{Connection, Stream, header};

/// How long a client may take to open its streams (kubelet's streamCreationTimeout).
const STREAMS_TIME_MAX: Duration = Duration::from_secs(30);
/// A terminal's size in JSON is far shorter.
const RESIZE_BYTES_MAX: usize = 4 << 10;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// How the command ended is a `Status` (`v4.channel.k8s.io`).
    V4,
    /// Terminals can be resized (`v3.channel.k8s.io`).
    V3,
    /// The end of the input does not end the output (`v2.channel.k8s.io`).
    V2,
    /// The first (`channel.k8s.io`).
    V1,
}

impl Protocol {
    /// All, the newest first.
    pub const ALL: [Self; 4] = [Self::V4, Self::V3, Self::V2, Self::V1];

    /// Its name in `X-Stream-Protocol-Version`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "v4.channel.k8s.io",
            Self::V3 => "v3.channel.k8s.io",
            Self::V2 => "v2.channel.k8s.io",
            Self::V1 => "channel.k8s.io",
        }
    }

    fn ending(self, outcome: &Outcome) -> Option<String> {
        match self {
            Self::V4 => Some(outcome.status().to_string()),
            Self::V3 | Self::V2 | Self::V1 => outcome.message(),
        }
    }
}

/// Which streams the client opens beside the one for errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Errors of the process; never with a terminal.
    pub stderr: bool,
    /// A terminal, whose size comes on a stream of its own from [`Protocol::V3`] on.
    pub tty: bool,
}

#[derive(Default)]
struct Streams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    /// The place of a stream of this type, among those that are waited for.
    fn place(&mut self, kind: &str, wanted: Wanted, protocol: Protocol) -> Option<&mut Option<Stream>> {
        let resizes = wanted.tty && matches!(protocol, Protocol::V4 | Protocol::V3);
        match kind {
            "error" => Some(&mut self.error),
            "stdin" if wanted.stdin => Some(&mut self.stdin),
            "stdout" if wanted.stdout => Some(&mut self.stdout),
            "stderr" if wanted.stderr => Some(&mut self.stderr),
            "resize" if resizes => Some(&mut self.resize),
            _ => None,
        }
    }

    fn are_complete(&mut self, wanted: Wanted, protocol: Protocol) -> bool {
        let kinds = ["error", "stdin", "stdout", "stderr", "resize"];
        kinds.into_iter().all(|kind| self.place(kind, wanted, protocol).is_none_or(|place| place.is_some()))
    }
}

/// Waits for the client's streams, starts the process, and connects them until it has ended or the client has left.
pub async fn serve(
    mut connection: Connection,
    protocol: Protocol,
    wanted: Wanted,
    start: impl Future<Output = Process>,
) -> io::Result<()> {
    let collecting = collect(&mut connection, protocol, wanted);
    let collected = tokio::time::timeout(STREAMS_TIME_MAX, collecting).await;
    let streams = collected.map_err(|_| io::Error::other("the client did not open its streams in time"))??;
    let process = start.await;
    let running = run(protocol, streams, process);
    tokio::pin!(running);
    loop {
        tokio::select! {
            result = &mut running => {
                result?;
                break;
            }
            extra = connection.next_stream() => match extra {
                Some(stream) => stream.output.reset().await?,
                // The client left: its terminal is gone, and so is whatever the process still wants to say.
                None => return Ok(()),
            },
        }
    }
    connection.close().await;
    Ok(())
}

async fn collect(connection: &mut Connection, protocol: Protocol, wanted: Wanted) -> io::Result<Streams> {
    let mut streams = Streams::default();
    while !streams.are_complete(wanted, protocol) {
        let Some(stream) = connection.next_stream().await else {
            return Err(io::Error::other("the client left before it opened its streams"));
        };
        let kind = header(&stream.headers, "streamtype").unwrap_or_default().to_owned();
        match streams.place(&kind, wanted, protocol) {
            Some(place) if place.is_none() => *place = Some(stream),
            _ => stream.output.reset().await?,
        }
    }
    Ok(streams)
}

async fn run(protocol: Protocol, streams: Streams, mut process: Process) -> io::Result<()> {
    let Streams { error, stdin, stdout, stderr, resize } = streams;
    let Some(error) = error else { return Err(io::Error::other("there is no error stream")) };
    let stdin_output = stdin.as_ref().map(|stream| stream.output.clone());
    let (input, resize) = (stdin.map(|stream| stream.input), resize.map(|stream| stream.input));
    let (out, err) = (process.stdout.take(), process.stderr.take());
    let stdin = process.stdin.take();
    let feeding = async {
        if let (Some(mut input), Some(mut stdin)) = (input, stdin)
            && tokio::io::copy(&mut input, &mut stdin).await.is_ok()
        {
            // Dropped with it, which is the end of the input.
            let _ = stdin.flush().await;
        }
        std::future::pending::<()>().await
    };
    let resizing = async {
        if let Some(mut resize) = resize {
            resizes(&mut resize, &process.resize).await;
        }
        std::future::pending::<()>().await
    };
    let ending = async {
        // How it ended comes after everything it said.
        let (outcome, out, err) = tokio::join!(process.exit, copy_out(out, stdout), copy_out(err, stderr));
        out.and(err)?;
        if let Some(text) = protocol.ending(&outcome) {
            error.output.send(text.as_bytes()).await?;
        }
        error.output.finish().await?;
        match stdin_output {
            Some(output) => output.finish().await,
            None => Ok(()),
        }
    };
    tokio::select! {
        result = ending => result,
        () = feeding => Ok(()),
        () = resizing => Ok(()),
    }
}

/// Output that nobody asked for is read all the same, or the process would wait.
async fn copy_out(output: Option<Box<dyn AsyncRead + Send + Unpin>>, stream: Option<Stream>) -> io::Result<()> {
    match (output, stream) {
        (Some(mut output), Some(stream)) => stream.output.copy(&mut output).await,
        (Some(mut output), None) => tokio::io::copy(&mut output, &mut tokio::io::sink()).await.map(drop),
        (None, Some(stream)) => stream.output.finish().await,
        (None, None) => Ok(()),
    }
}

/// Sizes come one behind the other; Go's encoder ends each with a newline.
async fn resizes(input: &mut (impl AsyncRead + Unpin), resize: &Resize) {
    let mut buffer = Vec::new();
    while let Ok(1..) = input.read_buf(&mut buffer).await {
        while let Some(end) = buffer.iter().position(|byte| *byte == b'}') {
            let size: Vec<u8> = buffer.drain(..=end).collect();
            if let Some((width, height)) = terminal_size(&size) {
                resize(width, height).await;
            }
        }
        if buffer.len() > RESIZE_BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{DuplexStream, duplex};

    use super::*;
    use crate::spdy::{Decoder, Encoder, Frame};

    /// A client in the test: opens `kinds`, sends `input` on stdin, and gives what it hears on each stream.
    async fn client(mut io: DuplexStream, kinds: &[&str], input: &str) -> Vec<(String, String)> {
        let mut encoder = Encoder::default();
        let id = |index: usize| u32::try_from(index * 2 + 1).unwrap();
        for (index, kind) in kinds.iter().enumerate() {
            let headers = vec![("streamtype".to_owned(), (*kind).to_owned())];
            let syn = Frame::SynStream { stream: id(index), fin: false, unidirectional: false, headers };
            io.write_all(&encoder.encode(&syn)).await.unwrap();
            if *kind == "stdin" {
                let data = Frame::Data { stream: id(index), fin: true, data: input.to_owned().into() };
                io.write_all(&encoder.encode(&data)).await.unwrap();
            }
        }
        let (mut decoder, mut heard, mut open) = (Decoder::default(), vec![String::new(); kinds.len()], kinds.len());
        let mut buffer = [0; 4096];
        while open > kinds.iter().filter(|kind| **kind == "resize").count() {
            let count = io.read(&mut buffer).await.unwrap();
            decoder.push(&buffer[..count]);
            while let Some(frame) = decoder.next_frame().unwrap() {
                let Frame::Data { stream, fin, data } = frame else { continue };
                heard[usize::try_from(stream / 2).unwrap()] += std::str::from_utf8(&data).unwrap();
                open -= usize::from(fin);
            }
        }
        kinds.iter().map(|kind| (*kind).to_owned()).zip(heard).collect()
    }

    fn echo(code: i32) -> Process {
        let (near, far) = duplex(1000);
        Process {
            stdin: Some(Box::new(near)),
            stdout: Some(Box::new(far)),
            stderr: Some(Box::new(&b"oops"[..])),
            exit: Box::pin(async move { Outcome::Exit(code) }),
            resize: Box::new(|_, _| Box::pin(async {})),
        }
    }

    async fn check(protocol: Protocol, code: i32, expected_error: &str) {
        let (near, far) = duplex(1 << 16);
        let wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
        let served = tokio::spawn(serve(Connection::serve(near), protocol, wanted, async move { echo(code) }));
        let heard = client(far, &["error", "stdin", "stdout", "stderr"], "hello").await;
        served.await.unwrap().unwrap();
        let text = |kind: &str| heard.iter().find(|(k, _)| k == kind).unwrap().1.clone();
        assert_eq!((text("stdout").as_str(), text("stderr").as_str()), ("hello", "oops"), "{protocol:?}");
        assert!(text("error").contains(expected_error) && (text("error").is_empty() == expected_error.is_empty()));
    }

    #[tokio::test]
    async fn every_version_carries_the_process() {
        check(Protocol::V4, 0, "\"Success\"").await;
        check(Protocol::V4, 3, "\"NonZeroExitCode\"").await;
        check(Protocol::V3, 0, "").await;
        check(Protocol::V1, 3, "exit status 3").await;
    }

    #[tokio::test]
    async fn sizes_are_read_however_they_are_cut() {
        let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let (mut near, mut far) = duplex(7);
        let heard = seen.clone();
        let resize: Resize = Box::new(move |width, height| {
            heard.lock().push((width, height));
            Box::pin(async {})
        });
        let writing = async move {
            let text = "{\"Width\":80,\"Height\":24}\n{\"Width\":1}\n{\"Width\":100,\"Height\":30}\n";
            near.write_all(text.as_bytes()).await.unwrap();
        };
        tokio::join!(writing, resizes(&mut far, &resize));
        assert_eq!(*seen.lock(), [(80, 24), (100, 30)]);
    }
}

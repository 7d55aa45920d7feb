//! A web server of the test's own, on loopback, which can break off in the middle of an answer.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A request, as far as these servers look at it.
pub(crate) struct Request {
    /// How many came before.
    pub(crate) number: usize,
    pub(crate) path: String,
    /// The first byte asked for.
    pub(crate) from: usize,
    /// `Authorization`; empty for none.
    pub(crate) authorization: String,
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: &'static str,
    /// Header lines, each with its line's end.
    pub(crate) headers: String,
    pub(crate) body: Vec<u8>,
    /// Whether the connection ends when half of the body is out.
    pub(crate) cut: bool,
}

impl Reply {
    /// What was asked for of `content`.
    pub(crate) fn content(request: &Request, content: &[u8]) -> Self {
        let body = content[request.from.min(content.len())..].to_vec();
        if request.from == 0 {
            return Self { status: "200 OK", headers: String::new(), body, cut: false };
        }
        let range = format!("Content-Range: bytes {}-{}/{}\r\n", request.from, content.len() - 1, content.len());
        Self { status: "206 Partial Content", headers: range, body, cut: false }
    }

    /// An answer without content.
    pub(crate) fn status(status: &'static str, headers: &str) -> Self {
        Self { status, headers: headers.to_owned(), body: Vec::new(), cut: false }
    }
}

/// A server that answers until the test ends.
pub(crate) struct Web {
    pub(crate) port: u16,
    asked: Arc<AtomicUsize>,
}

impl Web {
    /// Serves what `reply` says, one request a connection.
    pub(crate) fn serve(reply: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                answer(stream, counter.fetch_add(1, Ordering::SeqCst), &reply);
            }
        });
        Self { port, asked }
    }

    /// How many requests came.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, number: usize, reply: &impl Fn(&Request) -> Reply) {
    let mut request = Request { number, path: String::new(), from: 0, authorization: String::new() };
    for line in BufReader::new(stream.try_clone().unwrap()).lines() {
        let line = line.unwrap_or_default();
        if line.is_empty() {
            break;
        }
        if let Some(rest) = line.strip_prefix("GET ") {
            request.path = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        let Some((name, value)) = line.split_once(": ") else { continue };
        match name.to_lowercase().as_str() {
            "range" => {
                let from = value.trim_start_matches("bytes=").trim_end_matches('-');
                request.from = from.parse().expect("a range from a byte on");
            }
            "authorization" => value.clone_into(&mut request.authorization),
            _ => {}
        }
    }
    let Reply { status, headers, body, cut } = reply(&request);
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let end = if cut { body.len() / 2 } else { body.len() };
    // A client that has heard enough is no failure of this server.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[..end]));
}

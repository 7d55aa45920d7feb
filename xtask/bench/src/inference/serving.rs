//! `kedge infer` as it is started and asked: how soon it is ready, what memory it takes, what many clients at once gain,
//! and what a beginning that was seen before saves. Over HTTP on the loopback address.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::machine::{median, median_of};

/// How often each figure is taken; medians count.
pub(super) const ROUNDS: usize = 5;
/// Clients at once.
pub(super) const STREAMS: usize = 32;
/// Tokens of each of their answers.
const ANSWER: usize = 32;
/// Tokens of the beginning that requests share.
pub(super) const PREFIX: usize = 3_000;
/// Tokens that follow it.
pub(super) const SUFFIX: usize = 16;

/// What was found.
#[derive(Debug)]
pub(crate) struct Figures {
    /// From the start of the process to a healthy answer, weights packed by an earlier start.
    pub(crate) ready: Duration,
    /// The same without anything packed before.
    pub(crate) ready_first: Duration,
    /// Memory of the process that is no file's after one short answer, in bytes.
    pub(crate) memory: u64,
    /// The same after all requests below, of whose beginnings keys and values are kept.
    pub(crate) memory_after: u64,
    /// Tokens a second that one client gets.
    pub(crate) one: f64,
    /// Tokens a second that [`STREAMS`] clients get together.
    pub(crate) many: f64,
    /// Time to the first token with a long beginning, never seen before.
    pub(crate) cold: Duration,
    /// With one that was.
    pub(crate) warm: Duration,
}

struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts it and waits until it is healthy: the time that took.
    async fn start(kedge: &Path, model: &Path, threads: usize, cache: &Path) -> Result<(Self, Duration)> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(kedge);
        command.args(["infer", "--name", "m", "--listen", &address, "--threads", &threads.to_string(), "--model"]);
        command.arg(model).arg("--cache-dir").arg(cache).stdout(Stdio::null()).stderr(Stdio::null());
        let begin = Instant::now();
        let mut server = Self { child: command.spawn().context("starting kedge infer")?, address };
        loop {
            if server.request("GET", "/health", "").await.is_ok() {
                return Ok((server, begin.elapsed()));
            }
            if let Some(status) = server.child.try_wait()? {
                bail!("kedge infer ended with {status}");
            }
            if begin.elapsed() > Duration::from_secs(60) {
                bail!("kedge infer was not ready within a minute");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let mut stream = TcpStream::connect(&self.address).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("{path}: {head}\n{body}");
        }
        serde_json::from_str(body).with_context(|| format!("{path}: {body}"))
    }

    /// Seconds until that many tokens after this prompt were there.
    async fn complete(&self, prompt: Vec<u32>, tokens: usize) -> Result<f64> {
        let body = json!({
            "model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true,
        });
        let begin = Instant::now();
        let answer = self.request("POST", "/v1/completions", &body.to_string()).await?;
        if answer["usage"]["completion_tokens"] != tokens {
            bail!("{} tokens, not {tokens}", answer["usage"]["completion_tokens"]);
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// Tokens that no other call gives the beginning of.
fn prompt(number: usize, length: usize) -> Vec<u32> {
    (0..length).map(|place| 300 + ((number * 7_919 + place * 104_729) % 29_000) as u32).collect()
}

/// Measures the program on that model.
pub(crate) async fn measure(kedge: &Path, model: &Path, threads: usize, cache: &Path) -> Result<Figures> {
    let (mut ready, mut ready_first) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        if cache.exists() {
            std::fs::remove_dir_all(cache)?;
        }
        let (server, took) = Server::start(kedge, model, threads, cache).await?;
        ready_first.push(took);
        // The file is there once the disk has it.
        let begin = Instant::now();
        while std::fs::read_dir(cache)?.next().is_none() {
            if begin.elapsed() > Duration::from_secs(60) {
                bail!("packed weights were not kept within a minute");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(server);
        ready.push(Server::start(kedge, model, threads, cache).await?.1);
    }
    let (server, _) = Server::start(kedge, model, threads, cache).await?;
    server.complete(prompt(9_999, 8), ANSWER).await?;
    let memory = anonymous_bytes(server.child.id())?;
    let (mut one, mut many, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let number = round * 100;
        one.push(ANSWER as f64 / server.complete(prompt(number, 8), ANSWER).await?);
        let begin = Instant::now();
        let all = (0..STREAMS).map(|stream| server.complete(prompt(number + 1 + stream, 8), ANSWER));
        for took in futures::future::join_all(all).await {
            took?;
        }
        many.push((STREAMS * ANSWER) as f64 / begin.elapsed().as_secs_f64());
        let long = prompt(number + 50, PREFIX);
        let ask = async |last: u32| server.complete([long.clone(), vec![last; SUFFIX]].concat(), 1).await;
        cold.push(Duration::from_secs_f64(ask(301).await?));
        warm.push(Duration::from_secs_f64(ask(302).await?));
    }
    let memory_after = anonymous_bytes(server.child.id())?;
    Ok(Figures {
        ready: median(&mut ready),
        ready_first: median(&mut ready_first),
        memory,
        memory_after,
        one: median_of(one),
        many: median_of(many),
        cold: median(&mut cold),
        warm: median(&mut warm),
    })
}

/// Memory of a process that is no file's.
fn anonymous_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

//! A server with the decoder that we trained, and clients for it.

#![allow(dead_code, reason = "each test uses what it needs of this")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kedge_engine::{Cpu, Decoder, DecoderOptions};
use kedge_serve::{Model, ServeError, ServeOptions, TemplateProgram, serve};
use kedge_world::{Net, RealNet};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) type Http = Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>;

pub(crate) struct Served {
    pub(crate) client: Http,
    pub(crate) base: String,
    pub(crate) decoder: Arc<Decoder>,
    /// Stops the server when something is sent, or when this is dropped.
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) serving: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// One whose settings are changed first.
    pub(crate) async fn start_with(change: impl FnOnce(&mut ServeOptions)) -> Self {
        let options = DecoderOptions { tokens_kept: Some(8192), ..DecoderOptions::default() };
        Self::start_of(&folder().join("model"), options, change).await
    }

    /// One of another model, or with other bounds.
    pub(crate) async fn start_of(
        model: &Path,
        options: DecoderOptions,
        change: impl FnOnce(&mut ServeOptions),
    ) -> Self {
        let decoder = Arc::new(Decoder::open(model, &Cpu::new(Some(2)).unwrap(), options).unwrap());
        let listener = RealNet.listen("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.address().unwrap());
        let mut options = ServeOptions::new("demo".into(), 0);
        options.template_program = template_program();
        change(&mut options);
        let (stop, stopped) = oneshot::channel();
        let stopped = async move { drop(stopped.await) };
        let serving = tokio::spawn(serve(options, Model::Decoder(decoder.clone()), listener, stopped));
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { client, base, decoder, stop: Some(stop), serving }
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// A request that asks for nothing in particular: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = self.client.get(format!("{}{path}", self.base).parse().unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    /// Waits until the decoder has nothing to do.
    pub(crate) async fn idle(&self) {
        let idle = async {
            while self.decoder.figures().open.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), idle).await.expect("nobody is computed for who has left");
    }

    pub(crate) async fn ask(&self, path: &str, body: Value) -> http::Response<hyper::body::Incoming> {
        let request = http::Request::builder().method("POST").uri(format!("{}{path}", self.base));
        self.client.request(request.body(Full::from(body.to_string())).unwrap()).await.unwrap()
    }

    pub(crate) async fn answer(&self, path: &str, body: Value) -> (u16, Value) {
        let response = self.ask(path, body).await;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let read = serde_json::from_slice(&bytes);
        (status, read.unwrap_or_else(|error| panic!("{path}: {status}: {error}: {bytes:?}")))
    }

    /// The pieces of a stream.
    pub(crate) async fn pieces(&self, path: &str, body: Value) -> Vec<Value> {
        let response = self.ask(path, body).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let mut events: Vec<&str> = text.split("\n\n").map(|event| event.trim_start_matches("data: ")).collect();
        assert_eq!(events.split_off(events.len() - 2), ["[DONE]", ""]);
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

/// Set for the process that runs templates.
const TEMPLATES: &str = "KEDGE_TEST_TEMPLATES";

/// This program, where it does what `kedge` does when it is to run templates.
fn template_program() -> TemplateProgram {
    let this = std::env::current_exe().unwrap().into_os_string();
    let arguments = [format!("{TEMPLATES}=1").into(), this, "common::runs_templates".into(), "--exact".into()];
    TemplateProgram { program: "env".into(), arguments: arguments.into() }
}

/// Not a test by itself: what [`template_program`] names.
#[test]
fn runs_templates() {
    if std::env::var_os(TEMPLATES).is_some() {
        kedge_serve::template_main().unwrap();
    }
}

pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/demo-decoder")
}

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const TEXT: &str = "/v1/completions";

pub(crate) fn chat(messages: &Value, more: Value) -> Value {
    let mut body = json!({"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 40});
    more.as_object().unwrap().iter().for_each(|(field, value)| body[field] = value.clone());
    body
}

/// A chat that goes on for thousands of tokens.
pub(crate) fn endless(more: Value) -> Value {
    let mut body = chat(&json!([{"role": "user", "content": "hello"}]), more);
    for (field, value) in [("ignore_eos", json!(true)), ("max_tokens", json!(900)), ("n", json!(16))] {
        body[field] = value;
    }
    body
}

//! exec, attach, logs and port-forward in every dialect clients speak.
//!
//! The API server hands a client's request to the pod's node ([`NodeHandler`], the contract between the two); the
//! node answers logs as a body and takes over upgraded connections. Wire dialects are pure codecs with thin shells.
//!
//! | client | exec, attach | port-forward | logs |
//! | --- | --- | --- | --- |
//! | kubectl from 1.31 on | [`websocket`] channels | SPDY in a [`tunnel`] | a body |
//! | kubectl up to 1.30 | [`remotecommand`] over SPDY | [`portforward`] over SPDY | a body |
//! | clients in other languages | [`websocket`] channels | [`websocket`] channels | a body, or [`websocket`] messages |

pub mod channels;
mod input;
pub mod logs;
pub mod portforward;
pub mod process;
pub mod remotecommand;
pub mod spdy;
pub mod tunnel;
pub mod upgrade;
pub mod websocket;

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use http::{HeaderMap, Response};
use hyper::upgrade::OnUpgrade;

/// An answer's content, as it comes.
pub type Chunks = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// A request about a pod, on its way to the pod's node. Who asks has been authorised.
pub struct NodeRequest {
    /// `log`, `exec`, `attach`, `portforward`.
    pub verb: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid, so that another pod of that name never answers.
    pub uid: String,
    /// Why the container that is asked for waits, as the pod's status has it; empty for none that waits.
    pub waiting: String,
    /// The query, in order.
    pub query: Vec<(String, String)>,
    /// The client's headers.
    pub headers: HeaderMap,
    /// The connection, once the answer has switched protocols; none when the client did not ask for that.
    pub upgrade: Option<OnUpgrade>,
}

impl NodeRequest {
    /// The first value of a query parameter; empty counts as absent.
    pub fn parameter(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str())
    }

    /// Every value of a query parameter.
    pub fn parameters<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A flag.
    pub fn flag(&self, key: &str) -> bool {
        self.query.iter().find(|(k, _)| k == key).is_some_and(|(_, v)| !matches!(v.as_str(), "false" | "0"))
    }
}

/// Why a node refuses: an HTTP status and a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NodeRefusal {
    /// 400, 404, 500, …
    pub code: u16,
    /// For the client.
    pub message: String,
}

impl NodeRefusal {
    /// A refusal with this status.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// A node, as the API server sees it.
#[async_trait::async_trait]
pub trait NodeHandler: Send + Sync + 'static {
    /// Answers a request about one of the node's pods.
    async fn handle(&self, request: NodeRequest) -> Result<Response<Chunks>, NodeRefusal>;
}

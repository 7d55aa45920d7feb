//! Calls to containerd: the namespace on each, and errors that name the step.

use std::path::Path;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Response, Status};

use crate::runtime::RuntimeError;

/// A call that takes longer than this has hung (a logger that never got ready, a shim that is stuck).
const CALL_TIME_MAX: Duration = Duration::from_secs(120);

/// A connection to one containerd, for one of its namespaces.
#[derive(Clone)]
pub(super) struct Rpc {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

macro_rules! clients {
    ($($name:ident: $client:ident),*) => {
        impl Rpc {$(
            pub(super) fn $name(&self) -> $client<Channel> {
                // containerd's own limit on messages; image manifests can pass tonic's default of 4 MiB.
                $client::new(self.channel.clone()).max_decoding_message_size(16 << 20)
            }
        )*}
    };
}

clients!(
    containers: ContainersClient,
    content: ContentClient,
    diff: DiffClient,
    events: EventsClient,
    images: ImagesClient,
    leases: LeasesClient,
    namespaces: NamespacesClient,
    snapshots: SnapshotsClient,
    tasks: TasksClient,
    version: VersionClient
);

impl Rpc {
    pub(super) async fn connect(socket: &Path, namespace: &str) -> Result<Self, RuntimeError> {
        let fail = |reason: String| RuntimeError::Unavailable {
            attempt: format!("connect to containerd at {}", socket.display()),
            reason,
        };
        let channel = containerd_client::connect(socket).await.map_err(|e| fail(chain(&e)))?;
        let namespace = namespace.parse().map_err(|_| fail(format!("{namespace:?} is no namespace")))?;
        Ok(Self { channel, namespace })
    }

    /// A call that answers at once.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.stream(message);
        request.set_timeout(CALL_TIME_MAX);
        request
    }

    /// A call that answers for as long as it takes.
    pub(super) fn stream<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A call whose results a lease keeps from being collected.
    pub(super) fn leased<T>(&self, lease: &MetadataValue<Ascii>, message: T) -> Request<T> {
        let mut request = self.stream(message);
        request.metadata_mut().insert("containerd-lease", lease.clone());
        request
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The answer, or the step that failed.
pub(super) fn answer<T>(attempt: &str, result: Result<Response<T>, Status>) -> Result<T, RuntimeError> {
    result.map(Response::into_inner).map_err(|status| failed(attempt, &status))
}

/// Like [`answer`], with `None` for what does not exist.
pub(super) fn find<T>(attempt: &str, result: Result<Response<T>, Status>) -> Result<Option<T>, RuntimeError> {
    match result {
        Err(status) if status.code() == Code::NotFound => Ok(None),
        other => answer(attempt, other).map(Some),
    }
}

/// Like [`answer`], content with what exists already; tells whether it was made now.
pub(super) fn accept_existing<T>(attempt: &str, result: Result<Response<T>, Status>) -> Result<bool, RuntimeError> {
    match result {
        Err(status) if status.code() == Code::AlreadyExists => Ok(false),
        other => answer(attempt, other).map(|_| true),
    }
}

pub(super) fn failed(attempt: &str, status: &Status) -> RuntimeError {
    let attempt = attempt.to_owned();
    match status.code() {
        Code::Unavailable => RuntimeError::Unavailable { attempt, reason: status.message().to_owned() },
        Code::DeadlineExceeded | Code::Cancelled => {
            RuntimeError::Unavailable { attempt, reason: format!("no answer within {CALL_TIME_MAX:?}") }
        }
        // A connection that ends in the middle of a call has no code of its own; what containerd says has no source.
        Code::Unknown if std::error::Error::source(status).is_some() => {
            RuntimeError::Unavailable { attempt, reason: chain(status) }
        }
        _ => RuntimeError::Backend { attempt, reason: status.message().to_owned() },
    }
}

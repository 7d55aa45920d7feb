//! Exits as they happen. After every connection, the first and each later one, everything is looked at once, so what
//! ended while nobody listened is found then.

use std::sync::{Arc, Weak};
use std::time::Duration;

use containerd_client::events::TaskExit;
use containerd_client::services::v1::{PublishRequest, SubscribeRequest};
use containerd_client::types::Envelope;
use prost_types::Any;

use super::{Inner, keep, rpc};
use crate::runtime::{ContainerId, ContainerState, RuntimeError, RuntimeEvent};

/// A containerd that is being restarted answers within a second; one that is gone is asked now and then.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Our own event, for [`subscribe`].
const HELLO: &str = "/kedge/hello";
const HELLO_PAUSE_MIN: Duration = Duration::from_millis(5);

/// Watches until the backend is dropped.
pub(super) async fn watch(backend: Weak<Inner>) {
    let mut pause = PAUSE_MIN;
    loop {
        let Some(inner) = backend.upgrade() else { return };
        match subscribe(&inner).await {
            Ok(stream) => {
                drop(inner);
                pause = PAUSE_MIN;
                follow(&backend, stream).await;
            }
            Err(error) => {
                drop(inner);
                tracing::warn!(%error, "cannot watch containers; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

type Stream = containerd_client::tonic::Streaming<Envelope>;

/// Subscribes. containerd answers a subscription only with its first event, so we make one ourselves, again and again
/// until it comes back: then every later event will too.
async fn subscribe(inner: &Arc<Inner>) -> Result<Stream, RuntimeError> {
    let topics = ["/tasks/exit", HELLO];
    let filters = topics.map(|topic| format!("namespace=={},topic==\"{topic}\"", inner.settings.namespace)).into();
    let mut client = inner.rpc.events();
    let mut answering = std::pin::pin!(client.subscribe(inner.rpc.stream(SubscribeRequest { filters })));
    let mut pause = HELLO_PAUSE_MIN;
    let stream = loop {
        tokio::select! {
            answer = &mut answering => break rpc::answer("watch containers", answer)?,
            () = tokio::time::sleep(pause) => {
                pause = (pause * 2).min(PAUSE_MAX);
                let event = Some(Any { type_url: "kedge.dev/hello".into(), value: vec![] });
                let hello = inner.rpc.request(PublishRequest { topic: HELLO.into(), event });
                rpc::answer("begin to watch containers", inner.rpc.events().publish(hello).await)?;
            }
        }
    };
    for container in inner.observe().await?.containers {
        if matches!(container.state, ContainerState::Running { .. }) {
            keep::keep(inner, &container.id);
        }
    }
    let _ = inner.events.send(RuntimeEvent::Resync); // Nobody listening needs no telling.
    Ok(stream)
}

async fn follow(backend: &Weak<Inner>, mut stream: Stream) {
    loop {
        match stream.message().await {
            Ok(Some(envelope)) => {
                let Some(inner) = backend.upgrade() else { return };
                let Some(id) = envelope.event.as_ref().and_then(container_that_exited) else { continue };
                // On its own: removing one task must not hold up the news of another.
                tokio::spawn(async move {
                    match inner.finish(&id).await {
                        Ok(Some(_)) => return,
                        // containerd has taken the task away itself, as it does when a shim was killed: what is left of
                        // the container is for the next look.
                        Ok(None) => {}
                        Err(error) => tracing::warn!(%id, %error, "cannot record an exit; the next look will"),
                    }
                    let _ = inner.events.send(RuntimeEvent::Resync);
                });
            }
            Ok(None) => return,
            Err(status) => {
                tracing::warn!(reason = status.message(), "lost sight of containers; connecting again");
                return;
            }
        }
    }
}

/// An exec's exit names the container too, but is not the container's.
fn container_that_exited(event: &Any) -> Option<ContainerId> {
    let exit: TaskExit = prost_types::Any::to_msg(&Any {
        // Go's type names carry no host; what the message is, the topic has said.
        type_url: "type.googleapis.com/containerd.events.TaskExit".into(),
        value: event.value.clone(),
    })
    .ok()?;
    if exit.id == exit.container_id { ContainerId::parse(&exit.container_id) } else { None }
}

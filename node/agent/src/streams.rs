//! What the API server asks a node about its containers: logs and exec. (`pkg/kubelet/server`.)

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use http::{HeaderValue, Response};
use kedge_runtimes::{ContainerState, ExecSpec, ObservedContainer, PodUid, Runtime};
use kedge_streams::channels::Dialect;
use kedge_streams::websocket::{self, Process};
use kedge_streams::{Chunks, NodeHandler, NodeRefusal, NodeRequest, logs};
use kedge_world::World;
use tokio::sync::watch;

/// Answers for the containers of one runtime.
pub struct Streams {
    runtime: Arc<dyn Runtime>,
    world: World,
}

impl Streams {
    /// Answers for the containers of `runtime`.
    pub fn new(runtime: Arc<dyn Runtime>, world: World) -> Self {
        Self { runtime, world }
    }

    /// The newest run of the asked container, or the one before it.
    async fn container(&self, request: &NodeRequest, previous: bool) -> Result<ObservedContainer, NodeRefusal> {
        let uid = PodUid::new(request.uid.as_str()).map_err(|e| NodeRefusal::new(400, e.to_string()))?;
        let name = request.parameter("container").unwrap_or_default();
        let observed = self.runtime.observe().await.map_err(|e| NodeRefusal::new(500, e.to_string()))?;
        let mut runs: Vec<ObservedContainer> =
            observed.containers.into_iter().filter(|c| c.pod.uid == uid && c.name == name).collect();
        runs.sort_by_key(|container| container.attempt);
        let newest = runs.pop();
        let found = if previous { runs.pop() } else { newest };
        found.ok_or_else(|| {
            let what = if previous { "previous terminated container" } else { "container" };
            NodeRefusal::new(
                400,
                format!("{what} \"{name}\" in pod \"{}\" is waiting to start or not found", request.pod),
            )
        })
    }

    async fn log(&self, request: &NodeRequest) -> Result<Response<Chunks>, NodeRefusal> {
        let options = logs::Options::parse(request, self.world.clock.wall()).map_err(|e| NodeRefusal::new(400, e))?;
        let container = self.container(request, options.previous).await?;
        let ended = self.ended(&container);
        let fail = |e: std::io::Error| NodeRefusal::new(500, format!("cannot read the log of {}: {e}", container.name));
        let stream = logs::stream(container.log_path.clone(), options, ended).await.map_err(fail)?;
        let mut response = Response::new(Box::pin(stream) as Chunks);
        response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    /// Turns true once the container has ended.
    fn ended(&self, container: &ObservedContainer) -> watch::Receiver<bool> {
        let running = matches!(container.state, ContainerState::Running { .. } | ContainerState::Created);
        let (sender, receiver) = watch::channel(!running);
        if running {
            let (runtime, id) = (self.runtime.clone(), container.id.clone());
            tokio::spawn(async move {
                let mut events = runtime.events();
                loop {
                    let over = match runtime.observe().await {
                        Ok(observed) => observed.containers.iter().find(|c| c.id == id).is_none_or(|c| {
                            !matches!(c.state, ContainerState::Running { .. } | ContainerState::Created)
                        }),
                        Err(_) => false,
                    };
                    if over {
                        sender.send_replace(true);
                        return;
                    }
                    // Nobody follows any more, or the runtime is gone.
                    tokio::select! {
                        () = sender.closed() => return,
                        event = events.next() => if event.is_none() { return },
                    }
                }
            });
        }
        receiver
    }

    async fn exec(&self, mut request: NodeRequest) -> Result<Response<Chunks>, NodeRefusal> {
        let args: Vec<String> = request.parameters("command").map(str::to_owned).collect();
        if args.is_empty() {
            return Err(NodeRefusal::new(400, "you must specify at least 1 command for the container"));
        }
        let container = self.container(&request, false).await?;
        if !matches!(container.state, ContainerState::Running { .. }) {
            return Err(NodeRefusal::new(400, format!("container {} is not running", container.name)));
        }
        let upgrade = request.upgrade.take().filter(|_| websocket::is_asked_for(&request.headers));
        let Some(upgrade) = upgrade else {
            return Err(NodeRefusal::new(
                400,
                "exec is served over WebSocket; SPDY is not supported yet (use kubectl 1.31 or later)",
            ));
        };
        let wishes = websocket::offered(&request.headers);
        let dialect = Dialect::choose(&wishes)
            .ok_or_else(|| NodeRefusal::new(403, format!("none of the subprotocols {wishes:?} is spoken here")))?;
        let response = websocket::accept(&request.headers, dialect.name())?;
        let spec = ExecSpec { args, tty: request.flag("tty"), stdin: request.flag("stdin") };
        let runtime = self.runtime.clone();
        tokio::spawn(async move {
            let process = match runtime.exec(&container.id, spec).await {
                Ok(session) => process(session),
                Err(error) => failed(error.to_string()),
            };
            if let Err(error) = websocket::exec(upgrade, dialect, process).await {
                tracing::debug!(%error, "an exec's connection ended early");
            }
        });
        Ok(response)
    }
}

fn process(session: kedge_runtimes::ExecSession) -> Process {
    let control = session.control;
    let exit = session.exit;
    Process {
        stdin: session.stdin,
        stdout: session.stdout,
        stderr: session.stderr,
        exit: Box::pin(async move { exit.await.map_err(|error| error.to_string()) }),
        resize: Box::new(move |width, height| {
            let control = control.clone();
            tokio::spawn(async move {
                if let Err(error) = control.resize(width, height).await {
                    tracing::debug!(%error, "a terminal could not be resized");
                }
            });
        }),
    }
}

/// A command that did not start, told where clients look for how it ended.
fn failed(message: String) -> Process {
    Process {
        stdin: None,
        stdout: None,
        stderr: None,
        exit: Box::pin(async move { Err(message) }),
        resize: Box::new(|_, _| {}),
    }
}

#[async_trait]
impl NodeHandler for Streams {
    async fn handle(&self, request: NodeRequest) -> Result<Response<Chunks>, NodeRefusal> {
        match request.verb.as_str() {
            "log" => self.log(&request).await,
            "exec" => self.exec(request).await,
            other => Err(NodeRefusal::new(501, format!("pods/{other} is not supported yet"))),
        }
    }
}

//! What the API server asks a node about its pods: logs, exec, attach and port-forward. (`pkg/kubelet/server`.)

mod dial;

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use http::{HeaderValue, Response};
use hyper_util::rt::TokioIo;
use kedge_runtimes::{ContainerState, ExecSpec, ObservedContainer, PodUid, Runtime};
use kedge_streams::channels::{Dialect, Outcome};
use kedge_streams::process::Process;
use kedge_streams::remotecommand::{self, Protocol, Wanted};
use kedge_streams::spdy::Connection;
use kedge_streams::{
    Chunks, NodeHandler, NodeRefusal, NodeRequest, logs, portforward, tunnel, upgrade as spdy, websocket,
};
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

    /// The run of the asked container whose log is meant: the newest, or the one before what the container is now. One
    /// that waits is nothing now. (`pkg/kubelet/kubelet_pods.go`, `validateContainerLogStatus`.)
    async fn container(&self, request: &NodeRequest, previous: bool) -> Result<ObservedContainer, NodeRefusal> {
        let uid = PodUid::new(request.uid.as_str()).map_err(|e| NodeRefusal::new(400, e.to_string()))?;
        let name = request.parameter("container").unwrap_or_default();
        let observed = self.runtime.observe().await.map_err(|e| NodeRefusal::new(500, e.to_string()))?;
        let mut runs: Vec<ObservedContainer> =
            observed.containers.into_iter().filter(|c| c.pod.uid == uid && c.name == name).collect();
        runs.retain(|container| container.state != ContainerState::Created);
        runs.sort_by_key(|container| container.attempt);
        if previous && request.waiting.is_empty() {
            runs.pop();
        }
        runs.pop().ok_or_else(|| NodeRefusal::new(400, without_log(request, name, previous)))
    }

    /// The newest run of the asked container, which runs (`pkg/kubelet/kubelet_pods.go`, `GetExec`).
    async fn running(&self, request: &NodeRequest) -> Result<ObservedContainer, NodeRefusal> {
        let found = match self.container(request, false).await {
            Err(refusal) if refusal.code != 400 => return Err(refusal),
            other => other.ok(),
        };
        found.filter(|container| matches!(container.state, ContainerState::Running { .. })).ok_or_else(|| {
            let name = request.parameter("container").unwrap_or_default();
            NodeRefusal::new(500, format!("unable to upgrade connection: container not found ({name:?})"))
        })
    }

    async fn log(&self, mut request: NodeRequest) -> Result<Response<Chunks>, NodeRefusal> {
        let options = logs::Options::parse(&request, self.world.clock.wall()).map_err(|e| NodeRefusal::new(400, e))?;
        let container = self.container(&request, options.previous).await?;
        let ended = self.ended(&container);
        let fail = |e: std::io::Error| NodeRefusal::new(500, format!("cannot read the log of {}: {e}", container.name));
        let stream = logs::stream(container.log_path.clone(), options, ended).await.map_err(fail)?;
        if let Some(upgrade) = request.upgrade.take().filter(|_| websocket::is_asked_for(&request.headers)) {
            let wishes = websocket::offered(&request.headers);
            let (protocol, text) = websocket::choose_for_log(&wishes).ok_or_else(|| not_spoken(&wishes))?;
            let response = websocket::accept(&request.headers, protocol)?;
            tokio::spawn(async move { told("a log", websocket::log(upgrade, text, Box::pin(stream)).await) });
            return Ok(response);
        }
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
        let container = self.running(&request).await?;
        let wanted = wanted(&request)?;
        let spec = ExecSpec { args, tty: wanted.tty, stdin: wanted.stdin };
        let runtime = self.runtime.clone();
        let start = async move {
            match runtime.exec(&container.id, spec).await {
                Ok(session) => process(session, "error executing command in container"),
                Err(error) => Process::failed(format!("error executing command in container: {error}")),
            }
        };
        converse(&mut request, wanted, start)
    }

    async fn attach(&self, mut request: NodeRequest) -> Result<Response<Chunks>, NodeRefusal> {
        let container = self.running(&request).await?;
        let wanted = wanted(&request)?;
        let runtime = self.runtime.clone();
        let start = async move {
            match runtime.attach(&container.id, wanted.stdin).await {
                Ok(session) => process(session, "error attaching to container"),
                Err(error) => Process::failed(format!("error attaching to container: {error}")),
            }
        };
        converse(&mut request, wanted, start)
    }

    async fn portforward(&self, mut request: NodeRequest) -> Result<Response<Chunks>, NodeRefusal> {
        let uid = PodUid::new(request.uid.as_str()).map_err(|e| NodeRefusal::new(400, e.to_string()))?;
        let observed = self.runtime.observe().await.map_err(|e| NodeRefusal::new(500, e.to_string()))?;
        let sandbox = observed.sandboxes.into_iter().find(|sandbox| sandbox.spec.pod.uid == uid);
        let not_found = || NodeRefusal::new(400, format!("pod not found (\"{}_{}\")", request.pod, request.namespace));
        let namespace = sandbox.ok_or_else(not_found)?.spec.network_namespace;
        let (pod, uid) = (request.pod.clone(), request.uid.clone());
        let target = Arc::new(portforward::Target { pod, uid, dial: Box::new(dial::Inside { namespace }) });
        let upgrade = request.upgrade.take().ok_or_else(upgrade_required)?;
        let headers = &request.headers;
        if spdy::is_asked_for(headers) {
            let response = spdy::accept(spdy::choose(headers, &[portforward::PROTOCOL])?);
            tokio::spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                told("a port-forward", portforward::serve(Connection::serve(TokioIo::new(upgraded)), target).await);
            });
            return Ok(response);
        }
        if !websocket::is_asked_for(headers) {
            return Err(upgrade_required());
        }
        let wishes = websocket::offered(headers);
        if wishes.split(',').any(|wish| wish.trim() == portforward::TUNNEL_PROTOCOL) {
            let response = websocket::accept(headers, Some(portforward::TUNNEL_PROTOCOL))?;
            tokio::spawn(async move {
                let served = match tunnel::tunnel(upgrade).await {
                    Ok(tunnel) => portforward::serve(Connection::serve(tunnel), target).await,
                    Err(error) => Err(error),
                };
                told("a port-forward", served);
            });
            return Ok(response);
        }
        let (dialect, name) = match Dialect::choose_for_ports(&wishes) {
            Some(dialect) => (dialect, Some(dialect.name())),
            // Who names no subprotocol gets binary messages.
            None if wishes.is_empty() => (Dialect::V4, None),
            None => return Err(not_spoken(&wishes)),
        };
        let ports = portforward::parse_ports(request.parameters("ports").chain(request.parameters("port")));
        let ports = ports.map_err(|message| NodeRefusal::new(400, message))?;
        let response = websocket::accept(headers, name)?;
        tokio::spawn(async move {
            told("a port-forward", websocket::forward(upgrade, dialect, ports, target).await);
        });
        Ok(response)
    }
}

/// Why there is no log, in the kubelet's words.
fn without_log(request: &NodeRequest, name: &str, previous: bool) -> String {
    let which = format!("container {name:?} in pod {:?}", request.pod);
    if previous {
        return format!("previous terminated {which} not found");
    }
    match request.waiting.as_str() {
        "ErrImagePull" => format!("{which} is waiting to start: image can't be pulled"),
        "ImagePullBackOff" => format!("{which} is waiting to start: trying and failing to pull image"),
        "" => format!("{which} is not available"),
        reason => format!("{which} is waiting to start: {reason}"),
    }
}

/// Which streams the client wants (`remotecommand.NewOptions`).
fn wanted(request: &NodeRequest) -> Result<Wanted, NodeRefusal> {
    let tty = request.flag("tty");
    // Output is wanted unless the client says that it is not (`SetDefaults_PodExecOptions`).
    let on = |key: &str| request.flag(key) || request.query.iter().all(|(name, _)| name != key);
    // A terminal has no errors of its own.
    let wanted = Wanted { stdin: request.flag("stdin"), stdout: on("stdout"), stderr: on("stderr") && !tty, tty };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(NodeRefusal::new(400, "you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(wanted)
}

/// Connects the client with what `start` starts, in the dialect it asks for.
fn converse(
    request: &mut NodeRequest,
    wanted: Wanted,
    start: impl Future<Output = Process> + Send + 'static,
) -> Result<Response<Chunks>, NodeRefusal> {
    let upgrade = request.upgrade.take().ok_or_else(upgrade_required)?;
    let headers = &request.headers;
    if spdy::is_asked_for(headers) {
        let name = spdy::choose(headers, &Protocol::ALL.map(Protocol::name))?;
        let protocol =
            Protocol::ALL.into_iter().find(|protocol| protocol.name() == name).ok_or_else(upgrade_required)?;
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let connection = Connection::serve(TokioIo::new(upgraded));
            told("a command", remotecommand::serve(connection, protocol, wanted, start).await);
        });
        return Ok(spdy::accept(name));
    }
    if !websocket::is_asked_for(headers) {
        return Err(upgrade_required());
    }
    let wishes = websocket::offered(headers);
    let (dialect, name) = match Dialect::choose(&wishes) {
        Some(dialect) => (dialect, Some(dialect.name())),
        // Who names no subprotocol gets the first.
        None if wishes.is_empty() => (Dialect::V1, None),
        None => return Err(not_spoken(&wishes)),
    };
    let response = websocket::accept(headers, name)?;
    tokio::spawn(async move { told("a command", websocket::exec(upgrade, dialect, start.await).await) });
    Ok(response)
}

fn upgrade_required() -> NodeRefusal {
    NodeRefusal::new(400, "Upgrade request required")
}

fn not_spoken(wishes: &str) -> NodeRefusal {
    NodeRefusal::new(403, format!("none of the subprotocols {wishes:?} is spoken here"))
}

/// Connections that end early are the client's business, and sometimes ours.
fn told(what: &str, result: std::io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "the connection of {what} ended early");
    }
}

/// A session as the wire needs it; `attempt` begins the sentence about its failure.
fn process(session: kedge_runtimes::ExecSession, attempt: &'static str) -> Process {
    let control = session.control;
    let exit = session.exit;
    Process {
        stdin: session.stdin,
        stdout: session.stdout,
        stderr: session.stderr,
        exit: Box::pin(async move {
            exit.await.map_or_else(|error| Outcome::Failed(format!("{attempt}: {error}")), Outcome::Exit)
        }),
        resize: Box::new(move |width, height| {
            let control = control.clone();
            Box::pin(async move {
                if let Err(error) = control.resize(width, height).await {
                    tracing::debug!(%error, "a terminal could not be resized");
                }
            })
        }),
    }
}

#[async_trait]
impl NodeHandler for Streams {
    async fn handle(&self, request: NodeRequest) -> Result<Response<Chunks>, NodeRefusal> {
        match request.verb.as_str() {
            "log" => self.log(request).await,
            "exec" => self.exec(request).await,
            "attach" => self.attach(request).await,
            "portforward" => self.portforward(request).await,
            other => Err(NodeRefusal::new(501, format!("pods/{other} is not supported yet"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_without_a_log_says_why() {
        for (waiting, previous, expected) in [
            ("ContainerCreating", false, "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"),
            ("ErrImagePull", false, "container \"c\" in pod \"p\" is waiting to start: image can't be pulled"),
            (
                "ImagePullBackOff",
                false,
                "container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image",
            ),
            ("", false, "container \"c\" in pod \"p\" is not available"),
            ("CrashLoopBackOff", true, "previous terminated container \"c\" in pod \"p\" not found"),
        ] {
            let request = NodeRequest {
                verb: "log".into(),
                namespace: "n".into(),
                pod: "p".into(),
                uid: "u".into(),
                waiting: waiting.into(),
                query: vec![],
                headers: http::HeaderMap::new(),
                upgrade: None,
            };
            assert_eq!(without_log(&request, "c", previous), expected);
        }
    }
}

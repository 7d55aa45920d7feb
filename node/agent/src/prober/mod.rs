//! Carries out probes and hooks: a command in the container, a request over HTTP or gRPC or a TCP connection to the pod.
//!
//! Rules: `pkg/kubelet/prober/prober.go`, `pkg/probe/{exec,http,tcp,grpc}`, `pkg/kubelet/lifecycle/handlers.go`.

mod grpc;
mod http;
mod tls;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kedge_runtimes::{ContainerId, ExecSpec, Runtime};
use kedge_world::Net;
use tokio::io::AsyncReadExt;

use self::http::{Ask, Trouble};
use crate::probe::Answer;

/// As much of an answer as an event repeats (`maxRespBodyLength`, `maxReadLength`).
const OUTPUT_BYTES_MAX: u64 = 10 << 10;
/// Attempts at a probe that cannot be carried out (`maxProbeRetries`).
const TRIES_MAX: u32 = 3;
/// How a probe and a hook call themselves.
const PROBE_AGENT: &str = "kube-probe/1.36";
const HOOK_AGENT: &str = "kube-lifecycle/1.36";

/// What a probe is sent to.
pub struct Target<'a> {
    /// Runs commands.
    pub runtime: &'a dyn Runtime,
    /// Opens connections.
    pub net: &'a dyn Net,
    /// The running container.
    pub id: &'a ContainerId,
    /// Its spec, for named ports.
    pub container: &'a Container,
    /// The pod's address.
    pub pod_ip: &'a str,
}

/// How a command ended.
enum Ran {
    Exited(i32, String),
    TimedOut,
}

impl Target<'_> {
    /// Carries a probe out; what cannot be carried out is tried again.
    pub async fn probe(&self, probe: &Probe) -> Answer {
        let mut answer = self.probe_once(probe).await;
        for _ in 1..TRIES_MAX {
            if !matches!(answer, Answer::Unknown(_)) {
                break;
            }
            answer = self.probe_once(probe).await;
        }
        answer
    }

    async fn probe_once(&self, probe: &Probe) -> Answer {
        let seconds = probe.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(1);
        let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
        if let Some(exec) = &probe.exec {
            return match self.command(exec, Some(time)).await {
                Ok(Ran::Exited(0, _)) => Answer::Success,
                Ok(Ran::Exited(_, output)) => Answer::Failure(output),
                Ok(Ran::TimedOut) => {
                    let command = exec.command.as_deref().unwrap_or_default().join(" ");
                    Answer::Failure(format!("command timed out: {command:?} timed out after {time:?}"))
                }
                Err(error) => Answer::Unknown(error),
            };
        }
        if let Some(get) = &probe.http_get {
            let ask = match self.ask(get, PROBE_AGENT) {
                Ok(ask) => ask,
                Err(error) => return Answer::Unknown(error),
            };
            let late = format!("Get {:?}: no answer within {time:?}", ask.url());
            let answered = tokio::time::timeout(time, http::get(self.net, ask)).await;
            return answered.map_or(Answer::Failure(late), http::answer);
        }
        if let Some(tcp) = &probe.tcp_socket {
            let address = match self.endpoint(tcp.host.as_deref(), &tcp.port) {
                Ok((host, port)) => address(&host, port),
                Err(error) => return Answer::Unknown(error),
            };
            return match tokio::time::timeout(time, self.net.connect(&address)).await {
                Ok(Ok(_)) => Answer::Success,
                Ok(Err(error)) => Answer::Failure(error.to_string()),
                Err(_) => Answer::Failure(format!("dial tcp {address}: no answer within {time:?}")),
            };
        }
        if let Some(grpc) = &probe.grpc {
            let address = match u16::try_from(grpc.port) {
                Ok(port) => address(self.pod_ip, port),
                Err(_) => return Answer::Unknown(format!("invalid port number: {}", grpc.port)),
            };
            return grpc::check(self.net, &address, grpc.service.as_deref().unwrap_or_default(), time).await;
        }
        Answer::Unknown(format!("missing probe handler for container {}", self.container.name))
    }

    /// Carries a hook out, for as long as it takes; tells whether it asked over HTTPS and fell back to plain HTTP.
    pub async fn hook(&self, hook: &LifecycleHandler) -> (Result<(), String>, bool) {
        if let Some(exec) = &hook.exec {
            let ran = match self.command(exec, None).await {
                Ok(Ran::Exited(0, _)) => Ok(()),
                Ok(Ran::Exited(code, output)) => Err(format!("command exited with {code}: {}", output.trim_end())),
                Ok(Ran::TimedOut) => Err("command timed out".to_owned()),
                Err(error) => Err(error),
            };
            return (ran, false);
        }
        if let Some(get) = &hook.http_get {
            let ask = match self.ask(get, HOOK_AGENT) {
                Ok(ask) => ask,
                Err(error) => return (Err(error), false),
            };
            // Any answer will do: what it says is not looked at.
            return match http::get(self.net, ask.clone()).await {
                Ok(_) => (Ok(()), false),
                Err(Trouble::NotTls(_)) => {
                    let again = http::get(self.net, ask.without_tls()).await;
                    (again.map(drop).map_err(Trouble::into_text), true)
                }
                Err(trouble) => (Err(trouble.into_text()), false),
            };
        }
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            return (Ok(()), false);
        }
        (Err("invalid handler: a hook is exec, httpGet or sleep".to_owned()), false)
    }

    async fn command(&self, exec: &ExecAction, time: Option<Duration>) -> Result<Ran, String> {
        let spec = ExecSpec { args: exec.command.clone().unwrap_or_default(), tty: false, stdin: false };
        let mut session = self.runtime.exec(self.id, spec).await.map_err(|e| e.to_string())?;
        let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
        let control = session.control.clone();
        let run = async {
            // Both are read to their ends, or a talkative command would stop in the middle.
            let read = async |stream: Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>| {
                let mut kept = Vec::new();
                if let Some(stream) = stream {
                    let mut stream = stream.take(OUTPUT_BYTES_MAX);
                    let _ = stream.read_to_end(&mut kept).await; // What was read counts.
                    let _ = tokio::io::copy(&mut stream.into_inner(), &mut tokio::io::sink()).await;
                }
                kept
            };
            let (mut text, errors) = tokio::join!(read(stdout), read(stderr));
            text.extend(errors);
            let code = session.exit.await.map_err(|e| e.to_string())?;
            Ok(Ran::Exited(code, String::from_utf8_lossy(&text).into_owned()))
        };
        let Some(time) = time else { return run.await };
        match tokio::time::timeout(time, run).await {
            Ok(done) => done,
            Err(_) => {
                if let Err(error) = control.kill(9).await {
                    tracing::warn!(%error, "a probe's command that took too long cannot be ended");
                }
                Ok(Ran::TimedOut)
            }
        }
    }

    fn ask(&self, get: &HTTPGetAction, agent: &str) -> Result<Ask, String> {
        let (host, port) = self.endpoint(get.host.as_deref(), &get.port)?;
        Ask::new(get, host, port, agent)
    }

    /// Where to: the host given or the pod itself, a port by number or by name (`probe.ResolveContainerPort`).
    fn endpoint(&self, host: Option<&str>, port: &IntOrString) -> Result<(String, u16), String> {
        let port = match port {
            IntOrString::Int(port) => *port,
            IntOrString::String(name) => {
                let named = self.container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
                let number = named.map(|port| port.container_port).or_else(|| name.parse().ok());
                number.ok_or_else(|| format!("the container has no port named {name:?}"))?
            }
        };
        let number = u16::try_from(port).ok().filter(|port| *port > 0);
        let number = number.ok_or_else(|| format!("invalid port number: {port}"))?;
        Ok((host.filter(|host| !host.is_empty()).unwrap_or(self.pod_ip).to_owned(), number))
    }
}

/// As URLs have it.
fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests;

//! Carries out probes and hooks: a command in the container, an HTTP request or a TCP connection to the pod.
//!
//! Rules: `pkg/probe/{exec,http,tcp}`. What counts: exit code 0; a status from 200 to 399; a connection.
//! HTTPS and gRPC are refused with their names.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kedge_runtimes::{ContainerId, ExecSpec, Runtime};
use kedge_world::Net;
use tokio::io::AsyncReadExt;

/// As much of a command's output as an event repeats.
const OUTPUT_BYTES_MAX: u64 = 10 << 10;

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

impl Target<'_> {
    /// Carries a probe out; the error says what went wrong.
    pub async fn probe(&self, probe: &Probe) -> Result<(), String> {
        let seconds = probe.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(1);
        let time = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
        if let Some(exec) = &probe.exec {
            self.command(exec, Some(time)).await
        } else if let Some(get) = &probe.http_get {
            within(time, self.http_get(get)).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let address = self.address(tcp.host.as_deref(), &tcp.port)?;
            within(time, async { self.net.connect(&address).await.map(drop).map_err(|e| e.to_string()) }).await
        } else {
            Err("this kind of probe (gRPC) is not supported on this node".to_owned())
        }
    }

    /// Carries a hook out, for as long as it takes.
    pub async fn hook(&self, hook: &LifecycleHandler) -> Result<(), String> {
        if let Some(exec) = &hook.exec {
            self.command(exec, None).await
        } else if let Some(get) = &hook.http_get {
            self.http_get(get).await
        } else if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            Ok(())
        } else {
            Err("this kind of hook is not supported on this node".to_owned())
        }
    }

    async fn command(&self, exec: &ExecAction, time: Option<Duration>) -> Result<(), String> {
        let spec = ExecSpec { args: exec.command.clone().unwrap_or_default(), tty: false, stdin: false };
        let mut session = self.runtime.exec(self.id, spec).await.map_err(|e| e.to_string())?;
        let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
        let control = session.control.clone();
        let run = async {
            let mut text = Vec::new();
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
            let (out, errors) = tokio::join!(read(stdout), read(stderr));
            text.extend(out);
            text.extend(errors);
            let code = session.exit.await.map_err(|e| e.to_string())?;
            match code {
                0 => Ok(()),
                code => Err(format!("command exited with {code}: {}", String::from_utf8_lossy(&text).trim_end())),
            }
        };
        let Some(time) = time else { return run.await };
        match tokio::time::timeout(time, run).await {
            Ok(done) => done,
            Err(_) => {
                if let Err(error) = control.kill(9).await {
                    tracing::warn!(%error, "a probe's command that took too long cannot be ended");
                }
                Err(format!("command timed out after {time:?}"))
            }
        }
    }

    async fn http_get(&self, get: &HTTPGetAction) -> Result<(), String> {
        if get.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
            return Err("an HTTPS request is not supported on this node".to_owned());
        }
        let address = self.address(get.host.as_deref(), &get.port)?;
        let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let mut request =
            http::Request::builder().uri(path).header("User-Agent", "kube-probe/1.36").header("Accept", "*/*");
        let own_host = get.http_headers.iter().flatten().any(|header| header.name.eq_ignore_ascii_case("host"));
        if !own_host {
            request = request.header("Host", &address);
        }
        for header in get.http_headers.iter().flatten() {
            request = request.header(&header.name, &header.value);
        }
        let request = request.header("Connection", "close").body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
        let stream = self.net.connect(&address).await.map_err(|e| e.to_string())?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|e| e.to_string())?;
        let driving = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|e| e.to_string());
        driving.abort();
        let status = answer?.status();
        // A redirect counts as it is: where it leads is not the pod's health.
        if (200..400).contains(&status.as_u16()) {
            Ok(())
        } else {
            Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
        }
    }

    fn address(&self, host: Option<&str>, port: &IntOrString) -> Result<String, String> {
        let port = match port {
            IntOrString::Int(port) => *port,
            IntOrString::String(name) => {
                let named = self.container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
                let number = named.map(|port| port.container_port).or_else(|| name.parse().ok());
                number.ok_or_else(|| format!("the container has no port named {name:?}"))?
            }
        };
        let host = host.filter(|host| !host.is_empty()).unwrap_or(self.pod_ip);
        Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
    }
}

async fn within(time: Duration, work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    tokio::time::timeout(time, work).await.unwrap_or_else(|_| Err(format!("no answer within {time:?}")))
}

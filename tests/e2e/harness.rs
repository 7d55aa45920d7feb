//! A server in a folder of its own, and two ways to talk to it: kubectl, and plain HTTPS.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// A slow machine under load is no failure before this.
const START_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
    child: Option<Child>,
    flags: Vec<String>,
    /// The network namespace that it runs in; none for the test's own.
    namespace: Option<String>,
}

impl Server {
    /// A server over an empty folder, ready.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_at(None, flags)
    }

    /// The same in a network namespace that is there.
    pub(crate) fn start_in(namespace: &str, flags: &[&str]) -> Self {
        Self::start_at(Some(namespace.to_owned()), flags)
    }

    fn start_at(namespace: Option<String>, flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The port is free now; that nobody takes it meanwhile is likely enough on loopback.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server =
            Self { folder, port, child: None, flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), namespace };
        server.restart();
        server
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.inside(env!("CARGO_BIN_EXE_kedge"));
        command.arg("server").args(self.folders());
        command.arg("--https-listen-port").arg(self.port.to_string());
        command.arg("--write-kubeconfig").arg(self.kubeconfig()).args(&self.flags);
        command
    }

    /// A program where the server is.
    fn inside(&self, program: &str) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        // Not `ip netns exec`, which would give it a mount namespace, too.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
        command
    }

    /// The flags that name this server's folders.
    pub(crate) fn folders(&self) -> [std::ffi::OsString; 4] {
        let path = |name: &str| self.folder.path().join(name).into_os_string();
        ["--data-dir".into(), path("data"), "--run-dir".into(), path("run")]
    }

    /// Runs another verb on this server's folders; its output, which must be that of a success.
    pub(crate) fn kedge(&self, arguments: &[&str]) -> String {
        let (ok, text) = self.try_kedge(arguments);
        assert!(ok, "kedge {arguments:?}:\n{text}");
        text
    }

    /// The same, with whether it was a success.
    pub(crate) fn try_kedge(&self, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_kedge")).args(arguments).args(self.folders()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Starts the server over what its folder holds, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = self.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        let begin = Instant::now();
        while self.try_request("GET", "/readyz", "").is_none_or(|(code, _)| code != 200) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && begin.elapsed() < START_MAX, "the server did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The process itself, for a test that ends it while it is still in use.
    pub(crate) fn take_process(&mut self) -> Child {
        self.child.take().expect("the server runs")
    }

    /// Ends the process without a word.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// A request as the administrator; none when there is nobody to answer it.
    pub(crate) fn try_request(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let (head, body) = self.exchange(method, path, body)?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some((code, serde_json::from_str(&body).unwrap_or(Value::Null)))
    }

    /// The status line and the headers of an answer.
    pub(crate) fn head(&self, path: &str) -> String {
        let answer = self.exchange("GET", path, "");
        answer.unwrap_or_else(|| panic!("GET {path}: no answer\n{}", self.log())).0
    }

    /// Sends bytes as the administrator on a connection of their own; all that comes back.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let mut stream = connect(&text, self.port, self.namespace.as_deref()).expect("the server listens");
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The head and the body of an answer to the administrator.
    fn exchange(&self, method: &str, path: &str, body: &str) -> Option<(String, String)> {
        let text = std::fs::read_to_string(self.kubeconfig()).ok()?;
        let mut stream = connect(&text, self.port, self.namespace.as_deref())?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body.as_bytes()).ok()?;
        let mut answer = Vec::new();
        // A server that closes without a TLS goodbye has still answered, if the answer is whole.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.to_owned(), body.to_owned()))
    }

    /// A request that must be answered.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.try_request(method, path, body).unwrap_or_else(|| panic!("{method} {path}: no answer\n{}", self.log()))
    }

    /// Runs kubectl; its output, which must be that of a success.
    pub(crate) fn kubectl(&self, arguments: &str) -> String {
        let (ok, output) = self.try_kubectl(arguments, "");
        assert!(ok, "kubectl {arguments}:\n{output}\n{}", self.log());
        output
    }

    /// Starts kubectl with pipes to talk to it; it ends by itself after a minute.
    pub(crate) fn start_kubectl(&self, arguments: &str) -> Child {
        let mut command = self.inside("timeout");
        command.args(["60", "kubectl", "--kubeconfig"]).arg(self.kubeconfig()).args(arguments.split_whitespace());
        command.env("HOME", self.folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("timeout is on the PATH (Debian: coreutils)")
    }

    /// Runs kubectl with `input`; whether it succeeded, and both its outputs.
    pub(crate) fn try_kubectl(&self, arguments: &str, input: &str) -> (bool, String) {
        let mut command = self.inside("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments.split_whitespace());
        // Its caches belong to this cluster and go away with it.
        command.env("HOME", self.folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is on the PATH (Debian: kubernetes-client)");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn connect(kubeconfig: &str, port: u16, namespace: Option<&str>) -> Option<StreamOwned<ClientConnection, TcpStream>> {
    let config: Value = serde_yaml_ng::from_str(kubeconfig).ok()?;
    let data = |value: &Value| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()
    };
    let user = &config["users"][0]["user"];
    let mut roots = RootCertStore::empty();
    let ca = data(&config["clusters"][0]["cluster"]["certificate-authority-data"])?;
    roots.add(CertificateDer::from_pem_slice(&ca).ok()?).ok()?;
    let certificate = CertificateDer::from_pem_slice(&data(&user["client-certificate-data"])?).ok()?;
    let key = PrivateKeyDer::from_pem_slice(&data(&user["client-key-data"])?).ok()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let tls = tls.with_root_certificates(roots).with_client_auth_cert(vec![certificate], key).ok()?;
    let connection = ClientConnection::new(Arc::new(tls), ServerName::try_from("localhost").ok()?).ok()?;
    let stream = match namespace {
        None => TcpStream::connect(("127.0.0.1", port)).ok()?,
        Some(name) => connect_inside(name, port)?,
    };
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    Some(StreamOwned::new(connection, stream))
}

/// A socket belongs to the namespace that its thread was in when it was made.
fn connect_inside(namespace: &str, port: u16) -> Option<TcpStream> {
    let file = std::fs::File::open(Path::new("/run/netns").join(namespace)).ok()?;
    let inside = move || {
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
        TcpStream::connect(("127.0.0.1", port)).ok()
    };
    std::thread::spawn(inside).join().ok()?
}

/// Calls `look` until it is satisfied; what it saw last is the failure's message.
pub(crate) fn eventually(what: &str, mut look: impl FnMut() -> Result<(), String>) {
    let begin = Instant::now();
    loop {
        match look() {
            Ok(()) => return,
            Err(last) if begin.elapsed() > Duration::from_secs(60) => panic!("{what}: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// `text` must hold `part`.
#[track_caller]
pub(crate) fn assert_has(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is missing in:\n{text}");
}

pub(crate) fn exists(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}

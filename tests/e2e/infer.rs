//! `kedge infer` as people call it: talks, pipes, figures.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{assert_has, eventually};
use crate::needs::{Need, lacks};

/// The decoder that comes with the repository.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images/demo-decoder/model")
}

/// A script of `tests/e2e/python`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/python").join(name)
}

/// `kedge infer` with those arguments and that standard input: whether it was a success, its output and its errors.
fn infer(arguments: &[&str], input: &str) -> (bool, String, String) {
    infer_in(&[], arguments, input)
}

/// The same with more in its environment.
fn infer_in(environment: &[(&str, &str)], arguments: &[&str], input: &str) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kedge"));
    command
        .envs(environment.iter().copied())
        .arg("infer")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who has read enough, or nothing, may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_prompt_is_answered_once_from_an_argument_and_from_a_pipe() {
    let demo = demo();
    let model = demo.to_str().unwrap();
    let (ok, piped, errors) = infer(&["run", model, "--temperature", "0", "--verbose"], "What is a pod?\n");
    assert!(ok && piped.ends_with(".\n"), "{piped}{errors}");
    assert_has(&piped, "smallest thing Kubernetes runs");
    assert_has(&errors, "tokens/s");
    let (ok, told, errors) = infer(&["run", "--temperature", "0", model, "What", "is a pod?"], "not read");
    assert_eq!((ok, told, errors.as_str()), (true, piped, ""));

    for (arguments, input, says) in [
        (&["run", model][..], "  \n", "the prompt is empty"),
        (&["run", model, "hi", "--temperature", "9"], "", "--temperature: must be from 0 to 2"),
        (&["run", "/nowhere", "hi"], "", "/nowhere"),
        (&["run"], "", "<MODEL>"),
        (&["bench", "--model", model, "--prompt-tokens", "5000"], "", "--prompt-tokens"),
        (&["bench", "--model", model, "--streams", "0"], "", "--streams: must be at least 1"),
        (&["--model", model], "", "--name"),
        (&["--name", "x", "run", model], "", "cannot be used with"),
    ] {
        let (ok, _, errors) = infer(arguments, input);
        assert!(!ok && errors.contains(says), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_talk_on_a_terminal_goes_on_until_bye() {
    if !crate::harness::exists(Path::new("/usr/bin/python3")) {
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_PYTHON").is_none(), "python3");
        println!("skipped: this machine lacks python3");
        return;
    }
    let mut talk = Command::new("/usr/bin/python3");
    let output = talk.arg(script("talk.py")).arg(env!("CARGO_BIN_EXE_kedge")).arg(demo()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("everything was as it should be"), "{text}");
}

/// A driver that plays a part (`runtime/cuda/tests/fake`): its device takes the model, and is lost at the first step.
#[test]
fn an_answer_goes_on_without_a_gpu_that_is_lost_or_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime/cuda/tests/fake/libcuda.c");
    let library = folder.path().join("libcuda.so.1");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(library).arg(source).status();
    assert!(built.unwrap().success(), "the driver that plays a part was not built");
    let libraries = folder.path().to_str().unwrap();
    let demo = demo();
    let model = demo.to_str().unwrap();
    let content = |serving: &Serving| {
        let (status, said) = serving.chat("What is a pod?");
        assert_eq!(status, 200, "{said}");
        let said: Value = serde_json::from_str(&said).unwrap();
        said["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    for (part, usable, says) in [
        ("lost", true, "Fake, compute capability 8.7, driver for CUDA 12.2"),
        ("old", false, "the NVIDIA driver speaks CUDA 11.3, and the kernels need 11.4"),
    ] {
        let environment = [("KEDGE_FAKE_CUDA", part), ("LD_LIBRARY_PATH", libraries)];
        let (ok, answer, errors) = infer_in(&environment, &["run", model, "--temperature", "0", "What is a pod?"], "");
        assert!(ok, "{part}: {answer}{errors}");
        assert_has(&answer, "smallest thing Kubernetes runs");
        let (_, told, _) = infer_in(&environment, &["devices", "-o", "json"], "");
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told[0]["usable"], usable, "{told}");
        assert_has(told[0]["description"].as_str().unwrap(), says);
        assert_eq!(told[1]["device"], "cpu");
    }
    // The same behind HTTP; clients notice nothing, and whoever keeps the box can read why.
    let on_cpu = content(&Serving::start(Path::new(model), "demo", &["--device", "cpu"]));
    for (part, says) in [
        ("unsupported", "Unsupported .version 7.4"),
        ("memory", "out of memory: "),
        ("lost", "failed: CUDA_ERROR_LAUNCH_FAILED"),
        ("lost-replay", "launching a recording failed: CUDA_ERROR_LAUNCH_FAILED"),
    ] {
        let environment = [("KEDGE_FAKE_CUDA", part), ("LD_LIBRARY_PATH", libraries)];
        let log = folder.path().join(part);
        let file = std::fs::File::create(&log).unwrap();
        let serving = Serving::start_in(&environment, Path::new(model), "demo", &[], file.into());
        for round in 0..3 {
            let said = content(&serving);
            // This device is lost amid the first answer, and what it had made until then is anything.
            assert!(said == on_cpu || (part, round) == ("lost-replay", 0), "{part}: {said:?}");
        }
        let metrics = serving.get("/metrics").1;
        let device = metrics.lines().find(|line| line.starts_with("kedge_infer_device{")).unwrap().to_owned();
        assert!(device.contains("device=\"cpu\"") && device.contains(says), "{part}: {device}");
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains(says), "{part}: {log}");
    }
    let environment = [("KEDGE_FAKE_CUDA", "old"), ("LD_LIBRARY_PATH", libraries)];
    let (ok, _, errors) = infer_in(&environment, &["run", model, "--device", "cuda", "hello"], "");
    assert!(!ok && errors.contains("no GPU can be used: the NVIDIA driver speaks CUDA 11.3"), "{errors}");
    let short = ["--model", model, "--prompt-tokens", "8", "--answer-tokens", "4", "--requests", "1", "--streams", "1"];
    let (ok, table, errors) = infer_in(&environment, &[&["bench"][..], &short].concat(), "");
    assert!(ok && table.contains("threads; no GPU: the NVIDIA driver speaks CUDA 11.3"), "{table}{errors}");
}

#[test]
fn figures_are_told_as_a_table_and_as_json() {
    let demo = demo();
    let bench = ["bench", "--model", demo.to_str().unwrap(), "--requests", "3", "--streams", "2"];
    let (ok, table, errors) = infer(&bench, "");
    assert!(ok && table.lines().count() == 10, "{table}{errors}");
    assert_has(&table, "FIRST TOKEN P99");
    let (_, json, errors) = infer(&[&bench[..], &["-o", "json"]].concat(), "");
    let found: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}{errors}"));
    assert_eq!((&found["requests"], &found["requests_cut"]), (&Value::from(3), &Value::from(0)));
    for figure in ["tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_p99_seconds"] {
        assert!(found[figure].as_f64().unwrap() > 0.0, "{figure}: {json}");
    }
    assert!(found["memory_peak_bytes"].as_u64().unwrap() > 1 << 20);
}

/// `kedge infer` as a server, until it is dropped.
struct Serving {
    child: std::process::Child,
    address: String,
}

impl Serving {
    fn start(model: &Path, name: &str, flags: &[&str]) -> Self {
        Self::start_telling(model, name, flags, Stdio::inherit())
    }

    /// The same, with its log going there.
    fn start_telling(model: &Path, name: &str, flags: &[&str], log: Stdio) -> Self {
        Self::start_in(&[], model, name, flags, log)
    }

    /// The same in an environment.
    fn start_in(environment: &[(&str, &str)], model: &Path, name: &str, flags: &[&str], log: Stdio) -> Self {
        // The port is free now; that nobody takes it meanwhile is likely enough on loopback.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(env!("CARGO_BIN_EXE_kedge"));
        command.args(["infer", "--name", name, "--listen", &address, "--model"]).arg(model).args(flags);
        command.envs(environment.iter().copied());
        let child = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let serving = Self { child, address };
        eventually("the model is served", || {
            let (status, said) = serving.get("/health");
            if status == 200 { Ok(()) } else { Err(said) }
        });
        serving
    }

    /// Status and body of a chat.
    fn chat(&self, content: &str) -> (u16, String) {
        let messages = serde_json::json!([{"role": "user", "content": content}]);
        let body =
            serde_json::json!({"model": "demo", "max_tokens": 4, "temperature": 0, "messages": messages}).to_string();
        let (length, mut text) = (body.len(), String::new());
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!("host: a\r\nconnection: close\r\ncontent-length: {length}");
        write!(stream, "POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Processes that it started.
    fn children(&self) -> Vec<i32> {
        let all = Command::new("pgrep").args(["-P", &self.child.id().to_string()]).output().unwrap().stdout;
        String::from_utf8(all).unwrap().split_whitespace().map(|id| id.parse().unwrap()).collect()
    }

    /// Status and body of a request; status 0 when nobody answered.
    fn get(&self, path: &str) -> (u16, String) {
        self.get_from("127.0.0.1", path)
    }

    /// The same from another address of this machine, of which it has all of 127/8.
    fn get_from(&self, host: &str, path: &str) -> (u16, String) {
        let mut text = String::new();
        let asked = connect_from(host, &self.address).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
            stream.read_to_string(&mut text)
        });
        if let Err(error) = asked {
            return (0, error.to_string());
        }
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), text.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
    }
}

fn connect_from(host: &str, address: &str) -> std::io::Result<TcpStream> {
    let connect = async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(format!("{host}:0").parse().unwrap())?;
        socket.connect(address.parse().unwrap()).await?.into_std()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(connect)?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_port_that_is_taken_is_told_before_the_model_is_opened_and_no_model_in_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (ok, _, errors) = infer(&["--name", "x", "--model", "/nowhere", "--listen", &address], "");
    assert!(!ok && errors.contains(&format!("cannot listen on {address}")) && !errors.contains("/nowhere"), "{errors}");
    let (ok, _, errors) = infer(&["--name", "x", "--model", "/nowhere", "--listen", "127.0.0.1:0"], "");
    assert!(!ok && errors.contains("/nowhere") && !errors.contains("no NVIDIA driver"), "{errors}");
}

/// The demo decoder, copied.
fn copied(to: &Path) -> PathBuf {
    let model = to.join("model");
    std::fs::create_dir(&model).unwrap();
    for name in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        std::fs::copy(demo().join(name), model.join(name)).unwrap();
    }
    model
}

#[test]
fn weights_that_are_changed_under_a_server_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = copied(folder.path());
    let (weights, new) = (model.join("model.safetensors"), model.join("new"));
    let mut serving = Serving::start_telling(&model, "demo", &[], Stdio::piped());
    let body = r#"{"model":"demo","prompt":"On","stream":true,"n":16,"max_tokens":900,"ignore_eos":true}"#;
    let mut stream = TcpStream::connect(&serving.address).unwrap();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream.read_exact(&mut [0; 15]).unwrap();
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().write_all(&bytes[..8]).unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("the server is ending") && !rest.contains("[DONE]"), "{rest}");
    let ended = serving.child.wait().unwrap();
    let mut said = String::new();
    serving.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert_has(&said, &format!("{}: somebody wrote into it", weights.display()));

    // What is mapped stays what it was when another file takes its place; packed weights are watched, too.
    let kept = folder.path().join("kept");
    let mut serving = Serving::start_telling(&model, "demo", &["--cache-dir", kept.to_str().unwrap()], Stdio::piped());
    std::fs::copy(&weights, &new).unwrap();
    std::fs::rename(&new, &weights).unwrap();
    assert_eq!(serving.get("/health").0, 200);
    eventually("weights are kept", || {
        let packed = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path());
        let packed: Vec<_> = packed.filter(|path| path.extension().is_some_and(|kind| kind == "packed")).collect();
        let Some(path) = packed.first() else { return Err(format!("{packed:?}")) };
        // Another model's are nothing to this server.
        std::fs::write(kept.join("of-another.packed"), "weights").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(serving.get("/health").0, 200);
        std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all(&[1; 64]).unwrap();
        Ok(())
    });
    let ended = serving.child.wait().unwrap();
    let mut said = String::new();
    serving.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended.code(), Some(1), "{said}");
    assert_has(&said, ".packed: somebody wrote into it");
}

#[test]
fn a_mapped_file_that_is_cut_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = copied(folder.path());
    let weights = model.join("model.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_kedge"));
    command.args(["infer", "bench", "--requests", "1000", "--model"]).arg(&model);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let maps = format!("/proc/{}/maps", child.id());
    eventually("the weights are mapped", || {
        let maps = std::fs::read_to_string(&maps).unwrap();
        if maps.contains("model.safetensors") { Ok(()) } else { Err(maps) }
    });
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(0).unwrap();
    let ended = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(nix::libc::SIGBUS), "{ended} {said}");
    let line = format!("kedge: a mapped file was cut or cannot be read any more: the weights of {}", model.display());
    assert_has(&said, &line);
}

#[test]
fn a_mapped_file_that_is_cut_is_told_while_all_threads_meet_it() {
    let (mut errors, writer) = std::io::pipe().unwrap();
    let mut serving = Serving::start_telling(&demo(), "demo", &[], writer.try_clone().unwrap().into());
    // Nobody reads: who says it, waits, and meanwhile another thread meets the same.
    let again = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut full = std::fs::OpenOptions::new();
    let mut full = full.write(true).custom_flags(nix::libc::O_NONBLOCK).open(again).unwrap();
    while full.write(&[b' '; 4096]).is_ok() {}
    drop((full, writer));
    let process = nix::unistd::Pid::from_raw(i32::try_from(serving.child.id()).unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGBUS).unwrap();
    // While a handler runs, its thread blocks the signal.
    eventually("a thread is told", || {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        let texts = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap());
        let texts: Vec<_> = texts.collect();
        let blocked = texts.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("SigBlk:"));
        let bit = 1 << (nix::libc::SIGBUS - 1);
        let mut blocked = blocked.map(|mask| u64::from_str_radix(mask.trim(), 16).unwrap());
        if blocked.any(|mask| mask & bit != 0) { Ok(()) } else { Err(texts.concat()) }
    });
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGBUS).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let mut said = String::new();
    errors.read_to_string(&mut said).unwrap();
    let ended = serving.child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(nix::libc::SIGBUS), "{ended} {said}");
    assert_has(&said, "kedge: a mapped file was cut or cannot be read any more");
    assert_eq!(said.matches("a mapped file was cut").count(), 1, "{said}");
}

#[test]
fn openai_s_own_client_finds_what_it_knows() {
    if lacks(&[Need::OpenAi]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    std::fs::write(&keys, "sesame\n").unwrap();
    let text = Serving::start(&demo(), "demo", &["--api-key-file", keys.to_str().unwrap()]);
    let vectors = crate::needs::model().map(|model| Serving::start(&model, "minilm", &[]));
    let mut command = Command::new("python3");
    command.arg(script("openai_client.py")).arg(format!("http://{}", text.address)).arg("sesame");
    command.args(vectors.as_ref().map(|serving| format!("http://{}", serving.address)));
    command.env("PYTHONPATH", crate::needs::openai_packages().unwrap());
    let output = command.output().expect("python3 is on the PATH");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("everything was as it should be"), "{said}");

    // Another key, and nobody restarts anything.
    let status = |key: &str| {
        let mut stream = TcpStream::connect(&text.address).unwrap();
        write!(
            stream,
            "GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!((status("sesame").as_str(), status("open").as_str()), ("200", "401"));
    std::fs::write(&keys, "open\n").unwrap();
    eventually("the new key opens, and the old one does not", || {
        let found = (status("sesame"), status("open"));
        if found == ("401".into(), "200".into()) { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// Ten thousand connections of one client that say nothing: the first so many are held, the others told to come again, other
/// clients are answered all the while, and once they have said nothing for too long, that client is, too.
#[test]
fn ten_thousand_connections_do_not_take_the_server_away() {
    // This process has the one end of each.
    let own = std::process::id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &own, "--nofile=12000:"]).output();
    let open_max = std::fs::read_to_string("/proc/self/limits").unwrap();
    let open_max = open_max.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let open_max: usize = open_max.split_whitespace().next().unwrap().parse().unwrap();
    let count = 10_000.min(open_max.saturating_sub(500));
    if count < 10_000 {
        // Root may raise it.
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_NETWORK").is_none(), "{open_max} files only: {raised:?}");
        println!("{count} connections only: this process may have {open_max} files open ({raised:?})");
    }
    let begin = Instant::now();
    let serving = Serving::start(&demo(), "demo", &[]);
    let mut held = Vec::new();
    let mut slowest = Duration::ZERO;
    for number in 0..count {
        held.push(TcpStream::connect(&serving.address).unwrap_or_else(|error| panic!("{number}: {error}")));
        if number % 1000 == 0 {
            let asked = Instant::now();
            let (status, said) = serving.get_from("127.0.0.2", "/health");
            assert_eq!(status, 200, "{number}: {said}");
            slowest = slowest.max(asked.elapsed());
        }
    }
    println!("{count} connections after {:?}; the slowest answer took {slowest:?}", begin.elapsed());
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", serving.child.id())).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
    let kib: u64 = memory.trim_end_matches("kB").trim().parse().unwrap();
    println!("the server has {memory}");
    assert!(kib < 512 << 10, "{memory}");
    // They say nothing, so that their places are free soon, while all of them are still held at this end.
    eventually("the client is served again", || {
        let (status, said) = serving.get("/v1/models");
        if status == 200 { Ok(()) } else { Err(format!("{status} {said}")) }
    });
    let metrics = serving.get("/metrics").1;
    let refused = metrics.lines().find_map(|line| line.strip_prefix("kedge_infer_connections_refused_total "));
    assert!(count < 5000 || refused.unwrap().parse::<u64>().unwrap() > 0, "{metrics}");
    assert!(begin.elapsed() < Duration::from_secs(120), "{:?}", begin.elapsed());
}

#[test]
fn a_log_that_nobody_takes_ends_no_server() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let serving = Serving::start_telling(&demo(), "demo", &[], full.into());
    assert_eq!(serving.chat("hello").0, 200);
}

/// Chat templates run in processes of their own, which a hostile one ends and nothing else, and which end with the server.
#[test]
fn a_chat_template_can_end_no_server() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(demo()).unwrap().map(Result::unwrap) {
        if file.path().extension().is_some_and(|extension| extension != "gguf") {
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
    }
    let settings = folder.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
    config["chat_template"] = "{% set n = namespace() %}{% set said = messages[0].content %}\
        {% if said == 'cycle' %}{% set n.n = n %}{{ n }}\
        {% elif said == 'doubles' %}{% set n.l = [1] %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}\
        {% endif %}{{ said }}"
        .into();
    std::fs::write(&settings, config.to_string()).unwrap();
    let serving = Serving::start(folder.path(), "demo", &[]);
    for harm in ["cycle", "doubles"] {
        let (status, said) = serving.chat(harm);
        assert!(status == 400 && said.contains("chat template takes more than 256 MiB"), "{status} {said}");
        assert_eq!(serving.chat("hello").0, 200);
    }
    let children = serving.children();
    assert_eq!(children.len(), 1, "{children:?}");
    let (ok, _, errors) = infer(&["run", folder.path().to_str().unwrap(), "cycle"], "");
    assert!(!ok && errors.contains("chat template takes more than 256 MiB"), "{errors}");
    drop(serving);
    eventually("nothing is left of it", || {
        let left = Path::new(&format!("/proc/{}", children[0])).exists();
        if left { Err(format!("{children:?}")) } else { Ok(()) }
    });
}

#[test]
fn sigterm_ends_answers_within_the_drain_time_and_the_process_well() {
    let mut serving = Serving::start(&demo(), "demo", &["--drain-timeout", "1", "--threads", "1"]);
    let body = r#"{"model":"demo","stream":true,"n":16,"max_tokens":900,"ignore_eos":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let ask = || {
        let mut stream = TcpStream::connect(&serving.address).unwrap();
        let length = body.len();
        write!(stream, "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}")
            .unwrap();
        stream.read_exact(&mut [0; 15]).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = (0..3).map(|_| ask()).collect();
    let begin = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &serving.child.id().to_string()]).status().unwrap().success());
    eventually("it says that it is not ready", || {
        let (status, said) = serving.get("/v2/health/ready");
        if status == 503 { Ok(()) } else { Err(format!("{status} {said}")) }
    });
    let ends: Vec<String> = streams
        .iter_mut()
        .map(|stream| {
            let mut rest = String::new();
            stream.read_to_string(&mut rest).unwrap();
            rest.chars().rev().take(200).collect::<Vec<_>>().into_iter().rev().collect()
        })
        .collect();
    let told = ends.iter().filter(|end| end.contains("the server is ending")).count();
    assert!(
        told > 0 && ends.iter().all(|end| end.contains("the server is ending") || end.contains("[DONE]")),
        "{ends:?}"
    );
    let status = serving.child.wait().unwrap();
    assert!(status.success() && begin.elapsed() < Duration::from_secs(60), "{status} after {:?}", begin.elapsed());
}

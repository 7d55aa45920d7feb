//! The containerd backend against the real thing: Debian's containerd and runc, real kernels' answers.
//!
//! Needs root, `containerd`, `runc` and a static `/bin/busybox` (Debian's `busybox-static`). Without them it says so
//! and passes, unless `KEDGE_TEST_REQUIRE_CONTAINERD` is set, as in CI. This program is also the containers' logger.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test of real files and processes")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kedge_runtimes::containerd::{Containerd, Settings};
use kedge_runtimes::private::{Paths, PrivateContainerd, killall::killall};
use kedge_runtimes::suite::{self, busybox_archive, container, exec, exit_of, observed, pod, sandbox};
use kedge_runtimes::{ContainerSpec, ContainerState, Mount, MountPropagation, Runtime, Seccomp, User};
use kedge_world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn main() {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|verb| verb == kedge_runtimes::logger::LOGGER_VERB) {
        if let Err(error) = kedge_runtimes::logger_main(&arguments[1..]) {
            eprintln!("{error}");
            std::process::exit(1);
        }
        return;
    }
    if let Some(missing) = missing() {
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_CONTAINERD").is_none(), "{missing}");
        println!("skipped: {missing}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(all());
}

fn missing() -> Option<&'static str> {
    let on_path =
        |name| std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).any(|dir| dir.join(name).exists());
    if !nix::unistd::Uid::effective().is_root() {
        Some("this test needs root")
    } else if !on_path("containerd") || !on_path("runc") {
        Some("containerd and runc are not installed")
    } else if std::fs::read("/bin/busybox").is_ok_and(|bytes| is_static(&bytes)) {
        None
    } else {
        Some("no static /bin/busybox (package busybox-static)")
    }
}

/// Whether an ELF file (64-bit, little-endian) asks for no interpreter.
fn is_static(elf: &[u8]) -> bool {
    let number =
        |at: usize, bytes: usize| elf[at..at + bytes].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).all(|index| number(table + index * size, 4) != 3)
}

/// One node: directories and a private containerd, ended and swept when the test is over.
struct Node {
    folder: tempfile::TempDir,
    paths: Paths,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("kedge-rt").tempdir().unwrap();
        let paths = Paths::below(&folder.path().join("data"), &folder.path().join("run")).unwrap();
        Self { folder, paths }
    }

    async fn containerd(&self) -> PrivateContainerd {
        PrivateContainerd::ensure(self.paths.clone()).await.unwrap()
    }

    async fn connect(&self) -> Containerd {
        let settings = Settings {
            socket: self.paths.socket.clone(),
            namespace: self.paths.namespace(),
            data_dir: self.paths.data_dir.clone(),
            run_dir: self.paths.run_dir.clone(),
            logger: std::env::current_exe().unwrap(),
        };
        Containerd::connect(settings, World::real()).await.unwrap()
    }

    /// With the image of the suite imported; gives its id.
    async fn ready(&self) -> (Containerd, String) {
        let runtime = self.connect().await;
        let archive = self.folder.path().join("busybox.tar");
        std::fs::write(&archive, busybox_archive(&std::fs::read("/bin/busybox").unwrap())).unwrap();
        let image = runtime.import_archive(&archive).await.unwrap().remove(0);
        (runtime, image.id)
    }

    fn log(&self, pod_name: &str) -> String {
        std::fs::read_to_string(self.log_path(pod_name)).unwrap_or_default()
    }

    fn log_path(&self, pod_name: &str) -> PathBuf {
        self.log_dir_path().join(pod_name).join("main/0.log")
    }

    fn log_dir_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Runs a container to its end; gives its exit code and its log.
    async fn run(&self, runtime: &Containerd, spec: &ContainerSpec, hostname: &str) -> (i32, String) {
        let mut events = runtime.events();
        runtime.create_sandbox(&sandbox(hostname)).await.unwrap();
        runtime.create_container(spec).await.unwrap();
        runtime.start_container(&spec.id).await.unwrap();
        let exit = exit_of(runtime, &mut events, &spec.id).await;
        let log = std::fs::read_to_string(&spec.log_path).unwrap();
        runtime.remove_sandbox(&spec.pod.uid).await.unwrap();
        let lines = log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned());
        (exit.code, lines.collect::<Vec<_>>().join("\n"))
    }
}

#[async_trait]
impl suite::Fixture for Node {
    async fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.connect().await)
    }
    fn log_dir(&self) -> PathBuf {
        self.log_dir_path()
    }
}

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        async fn all() {
            $(
                let started = Instant::now();
                let node = Node::new();
                let case = std::panic::AssertUnwindSafe(tokio::time::timeout(Duration::from_secs(60), $case(&node)));
                let done = futures::FutureExt::catch_unwind(case).await;
                let swept = killall(&node.paths).await;
                match done {
                    Ok(done) => done.expect(concat!(stringify!($case), " ends in time")),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
                swept.unwrap();
                assert_swept(&node);
                println!("{:<55} ok {:>6} ms", stringify!($case), started.elapsed().as_millis());
            )*
        }
    };
}

cases!(
    the_suite,
    containers_are_what_their_spec_says,
    logs_carry_time_stream_and_survive_the_server,
    clients_come_back_after_the_server_was_replaced,
    a_killed_logger_is_replaced,
    memory_limits_kill_and_say_so,
    a_killed_shim_is_told,
    what_containerd_lost_is_ended,
    what_was_pulled_is_known_until_it_is_imported,
    broken_archives_leave_nothing,
    a_killed_containerd_loses_no_exit,
    two_that_start_at_once_share_one,
    killall_leaves_the_other_node_alone,
    times,
);

fn assert_swept(node: &Node) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = node.folder.path().display().to_string();
    assert!(!mounts.contains(&folder), "mounts are left below {folder}");
    let group = kedge_runtimes::cgroup::Cgroups::of(&node.paths.data_dir);
    assert!(!Path::new(&format!("/sys/fs/cgroup/memory{}", group.parent())).exists(), "cgroups are left");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(&folder), "a process is left: {line}");
    }
}

async fn the_suite(node: &Node) {
    let _daemon = node.containerd().await;
    suite::run(node).await;
}

async fn containers_are_what_their_spec_says(node: &Node) {
    let _daemon = node.containerd().await;
    let (runtime, image) = node.ready().await;
    let shell = |name: &str, script: &str| container(name, &image, &node.log_dir_path(), &["sh", "-c", script]);
    let spec = shell(
        "plain",
        "hostname; id; echo $HELLO; ls /proc/1/root >/dev/null; ls -d /proc/[0-9]* | cat; touch /x && echo wrote",
    );
    let spec = ContainerSpec { env: vec![("PATH".into(), "/bin".into()), ("HELLO".into(), "a b".into())], ..spec };
    let (code, log) = node.run(&runtime, &spec, "plain").await;
    assert_eq!(code, 0, "{log}");
    assert!(log.starts_with("host-plain\nuid=0(root) gid=0(root) groups=0(root)\na b\n/proc/1\n"), "{log}");
    assert!(log.ends_with("wrote"), "{log}");

    let mut spec =
        shell("user", "id -u; id -g; id -G; touch /x 2>/dev/null || echo read-only; mkdir /tmp/x && echo tmp");
    spec.security.user = User::Image { text: "web".into(), gid: None };
    spec.security.supplemental_groups = vec![4000];
    spec.security.read_only_root = true;
    let (_, log) = node.run(&runtime, &spec, "user").await;
    assert_eq!(log.lines().take(4).collect::<Vec<_>>(), ["101", "102", "102 700 4000", "read-only"]);

    let source = node.folder.path().join("given");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "from outside\n").unwrap();
    let mount = |destination: &str, read_only| Mount {
        source: source.clone(),
        destination: destination.into(),
        read_only,
        recursive_read_only: false,
        propagation: MountPropagation::None,
    };
    let mut spec = shell(
        "mounts",
        "cat /in/file; touch /in/no 2>/dev/null || echo refused; echo inside > /out/new; stat -c %a /dev/shm",
    );
    spec.mounts = vec![mount("/in", true), mount("/out", false)];
    let (_, log) = node.run(&runtime, &spec, "mounts").await;
    assert_eq!(log, "from outside\nrefused\n1777");
    assert_eq!(std::fs::read_to_string(source.join("new")).unwrap(), "inside\n");

    // unshare needs CAP_SYS_ADMIN; with it, only the profile decides.
    let try_unshare = "unshare -m true 2>/dev/null && echo allowed || echo refused";
    for (name, seccomp, add, expected) in [
        ("seccomp-default", Seccomp::RuntimeDefault, vec![], "refused"),
        ("seccomp-admin", Seccomp::RuntimeDefault, vec!["SYS_ADMIN".to_owned()], "allowed"),
        (
            "seccomp-own",
            Seccomp::Profile(serde_json::json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["unshare"], "action": "SCMP_ACT_ERRNO"}],
            })),
            vec!["SYS_ADMIN".to_owned()],
            "refused",
        ),
    ] {
        let mut spec = shell(name, try_unshare);
        spec.security.seccomp = seccomp;
        spec.security.capabilities.add = add;
        assert_eq!(node.run(&runtime, &spec, name).await.1, expected, "{name}");
    }

    let mut spec = shell("privileged", "ls /dev/null /dev/kmsg && cat /proc/self/status | sed -n 's/CapEff:.//p'");
    spec.args[2] = "ls /dev/kmsg; touch /proc/sys/kernel/domainname && echo writable".into();
    spec.security.privileged = true;
    let (_, log) = node.run(&runtime, &spec, "privileged").await;
    assert_eq!(log, "/dev/kmsg\nwritable");

    let spec = ContainerSpec { tty: true, ..shell("tty", "test -t 1 && echo terminal") };
    let (_, log) = node.run(&runtime, &spec, "tty").await;
    assert_eq!(log.trim_end(), "terminal");

    let mut spec = shell("bad-user", "true");
    spec.security.user = User::Image { text: "nobody-knows".into(), gid: None };
    runtime.create_sandbox(&sandbox("bad-user")).await.unwrap();
    let error = runtime.create_container(&spec).await.unwrap_err().to_string();
    assert!(error.contains("unable to find user nobody-knows"), "{error}");
    runtime.remove_sandbox(&spec.pod.uid).await.unwrap();
}

async fn logs_carry_time_stream_and_survive_the_server(node: &Node) {
    let daemon = node.containerd().await;
    let (runtime, image) = node.ready().await;
    let script = "echo one; echo two >&2; sleep 3; echo three; sleep 1000";
    let spec = container("logs", &image, &node.log_dir_path(), &["sh", "-c", script]);
    runtime.create_sandbox(&sandbox("logs")).await.unwrap();
    runtime.create_container(&spec).await.unwrap();
    runtime.start_container(&spec.id).await.unwrap();
    let pid = daemon.pid();
    // The server dies: nothing of it is left, and containerd and the container go on.
    drop((runtime, daemon));
    wait_until(|| node.log("logs").lines().count() == 3).await;
    let log = node.log("logs");
    let parts: Vec<Vec<&str>> = log.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    let said: Vec<_> = parts.iter().map(|line| (line[1], line[2], line[3])).collect();
    let mut expected = vec![("stdout", "F", "one"), ("stderr", "F", "two"), ("stdout", "F", "three")];
    if said[0].2 == "two" {
        expected.swap(0, 1); // Two pipes have no order between them.
    }
    assert_eq!(said, expected);
    for line in &parts {
        assert!(line[0].parse::<jiff::Timestamp>().is_ok() && line[0].len() == 30, "{}", line[0]);
    }
    let daemon = node.containerd().await;
    assert!(daemon.was_adopted());
    assert_eq!(daemon.pid(), pid);
    let runtime = node.connect().await;
    assert_eq!(exec(&runtime, &spec.id, &["echo", "still here"], None).await, (0, "still here\n".to_owned()));
}

/// A terminal with input, which is left running: the sweep after the case must find its logger.
async fn clients_come_back_after_the_server_was_replaced(node: &Node) {
    let _daemon = node.containerd().await;
    let (runtime, image) = node.ready().await;
    runtime.create_sandbox(&sandbox("tty")).await.unwrap();
    let mut spec = container("tty", &image, &node.log_dir_path(), &["sh"]);
    (spec.stdin, spec.tty) = (true, true);
    runtime.create_container(&spec).await.unwrap();
    runtime.start_container(&spec.id).await.unwrap();
    let mut server = Some(runtime);
    for (round, columns) in [(1, 77), (2, 99)] {
        let runtime = match server.take() {
            Some(runtime) => runtime,
            None => node.connect().await,
        };
        let mut session = runtime.attach(&spec.id, true).await.unwrap();
        session.control.resize(columns, 24).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"N=x$N; echo $N of $(stty size)\n").await.unwrap();
        let expected = format!("{} of 24 {columns}\r\n", "x".repeat(round));
        let (mut heard, mut buffer) = (String::new(), [0; 256]);
        while !heard.contains(&expected) {
            let count = session.stdout.as_mut().unwrap().read(&mut buffer).await.unwrap();
            assert!(count > 0, "no {expected:?} in {heard:?}");
            heard += &String::from_utf8_lossy(&buffer[..count]);
        }
    }
}

/// Nothing is lost, the container never hears of it, and its end is the next logger's, too; with the server there, with
/// the server dead, and for each way that containers get their streams.
async fn a_killed_logger_is_replaced(node: &Node) {
    let _daemon = node.containerd().await;
    let (runtime, image) = node.ready().await;
    let script = "n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo line $n || exit 9; usleep 10000; done; echo end >&2";
    let tty = "n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo line $n || exit 9; usleep 10000; done; read answer; test \"$answer\" = 'an answer' && echo end";
    let mut specs = Vec::new();
    for (name, stdin, tty, script) in
        [("plain", false, false, script), ("input", true, false, script), ("piped-tty", true, true, tty)]
    {
        let spec = container(name, &image, &node.log_dir_path(), &["sh", "-c", script]);
        specs.push(ContainerSpec { stdin, tty, ..spec });
    }
    for spec in &specs {
        runtime.create_sandbox(&sandbox(&spec.pod.name)).await.unwrap();
        runtime.create_container(spec).await.unwrap();
        runtime.start_container(&spec.id).await.unwrap();
    }
    for round in 1..=2 {
        for spec in &specs {
            kill_logger(node, spec).await;
            wait_until(|| count(node, spec, "was killed") == round).await;
        }
    }
    // A shim holds named pipes open while the server is dead.
    drop(runtime);
    kill_logger(node, &specs[1]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let runtime = node.connect().await;
    let mut events = runtime.events();
    wait_until(|| count(node, &specs[1], "was killed") == 3).await;
    let mut session = runtime.attach(&specs[2].id, true).await.unwrap();
    session.stdin.take().unwrap().write_all(b"an answer\n").await.unwrap();
    for spec in &specs {
        let exit = exit_of(&runtime, &mut events, &spec.id).await;
        assert_eq!(exit.code, 0, "{}", spec.pod.name);
        let log = node.log(&spec.pod.name);
        let missing: Vec<u32> = (1..=400).filter(|n| count(node, spec, &format!(" F line {n}")) != 1).collect();
        assert!(missing.len() <= 3 && count(node, spec, " F end") == 1, "{missing:?}\n{log}");
        runtime.remove_sandbox(&spec.pod.uid).await.unwrap();
    }
}

fn count(node: &Node, spec: &ContainerSpec, end: &str) -> usize {
    if end == "was killed" {
        return node.log(&spec.pod.name).matches(end).count();
    }
    node.log(&spec.pod.name).lines().filter(|line| line.trim_end().ends_with(end)).count()
}

async fn kill_logger(node: &Node, spec: &ContainerSpec) {
    use kedge_runtimes::logger::mark::LoggerMark;
    let folder = node.paths.layout().attach().join(spec.id.as_str());
    wait_until(|| LoggerMark::read(&folder).is_some_and(|mark| mark.process.is_alive())).await;
    LoggerMark::read(&folder).unwrap().process.kill_and_wait().await.unwrap();
}

async fn memory_limits_kill_and_say_so(node: &Node) {
    let _daemon = node.containerd().await;
    let (runtime, image) = node.ready().await;
    let mut events = runtime.events();
    // tail keeps what it reads until the end of the line.
    let mut spec = container("oom", &image, &node.log_dir_path(), &["sh", "-c", "exec tail -c 200000000 /dev/zero"]);
    spec.resources.memory_limit_bytes = Some(32 << 20);
    spec.resources.cpu_shares = Some(512);
    spec.resources.pids_limit = Some(50);
    runtime.create_sandbox(&sandbox("oom")).await.unwrap();
    runtime.create_container(&spec).await.unwrap();
    runtime.start_container(&spec.id).await.unwrap();
    let exit = exit_of(&runtime, &mut events, &spec.id).await;
    assert_eq!((exit.code, exit.oom), (137, true));
    runtime.remove_sandbox(&spec.pod.uid).await.unwrap();
}

/// A shim that is killed takes its container with it; that is seen at once, not at the next look.
async fn a_killed_shim_is_told(node: &Node) {
    use futures::StreamExt;
    let _daemon = node.containerd().await;
    let (runtime, image) = node.ready().await;
    let spec = container("shim", &image, &node.log_dir_path(), &["sleep", "1000"]);
    runtime.create_sandbox(&sandbox("shim")).await.unwrap();
    runtime.create_container(&spec).await.unwrap();
    runtime.start_container(&spec.id).await.unwrap();
    let mut events = runtime.events();
    let id = spec.id.to_string();
    let is_its_shim = |pid: &i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("containerd-shim") && line.split('\0').any(|argument| argument == id)
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let shim = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_its_shim).expect("a shim");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::SIGKILL).unwrap();
    loop {
        let told = tokio::time::timeout(Duration::from_secs(20), events.next()).await.expect("it is told");
        if told == Some(kedge_runtimes::RuntimeEvent::Resync) {
            break;
        }
    }
    let state = observed(&runtime, &spec.id).await.unwrap().state;
    assert!(matches!(state, ContainerState::Lost { .. }), "{state:?}");
    runtime.remove_sandbox(&spec.pod.uid).await.unwrap();
}

/// A containerd that forgot a running container (its bundle went while it was dead) leaves shim, logger and container.
async fn what_containerd_lost_is_ended(node: &Node) {
    let daemon = node.containerd().await;
    let (runtime, image) = node.ready().await;
    let names = ["lost", "kept"];
    let specs = names.map(|name| container(name, &image, &node.log_dir_path(), &["sleep", "1000"]));
    for spec in &specs {
        runtime.create_sandbox(&sandbox(&spec.pod.name)).await.unwrap();
        runtime.create_container(spec).await.unwrap();
        runtime.start_container(&spec.id).await.unwrap();
    }
    let pid_of =
        async |runtime: &Containerd, spec: &ContainerSpec| match observed(runtime, &spec.id).await.unwrap().state {
            ContainerState::Running { pid, .. } => pid,
            other => panic!("{other:?}"),
        };
    let [lost, kept] = [pid_of(&runtime, &specs[0]).await, pid_of(&runtime, &specs[1]).await];
    assert_eq!(runtime.end_leftovers().await.unwrap(), 0);
    drop(runtime);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid()), nix::sys::signal::SIGKILL).unwrap();
    drop(daemon);
    let bundles = node.paths.state.join("io.containerd.runtime.v2.task").join(node.paths.namespace());
    let bundle = bundles.join(specs[0].id.as_str());
    nix::mount::umount2(&bundle.join("rootfs"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    std::fs::remove_dir_all(bundle).unwrap();
    let _daemon = node.containerd().await;
    let runtime = node.connect().await;
    let is_there = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    assert!(is_there(lost) && is_there(kept));
    assert!(runtime.end_leftovers().await.unwrap() >= 1);
    wait_until(|| !is_there(lost)).await;
    assert_eq!(pid_of(&runtime, &specs[1]).await, kept);
    let line = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // Shim and logger go too, some time after they were told.
    wait_until(|| {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        !pids.any(|pid| String::from_utf8_lossy(&line(pid)).contains(specs[0].id.as_str()))
    })
    .await;
}

async fn what_was_pulled_is_known_until_it_is_imported(node: &Node) {
    let _daemon = node.containerd().await;
    let (runtime, id) = node.ready().await;
    let pulled = async || runtime.pulled_images().await.unwrap().into_iter().map(|image| image.id).collect::<Vec<_>>();
    assert!(pulled().await.is_empty());
    let name = runtime.list_images().await.unwrap()[0].names[0].clone();
    runtime.note_pulled(&id, "example.test/another:1").await.unwrap();
    assert!(pulled().await.is_empty());
    runtime.note_pulled(&id, &name).await.unwrap();
    assert_eq!(pulled().await, std::slice::from_ref(&id));
    node.ready().await;
    assert!(pulled().await.is_empty());
    runtime.note_pulled(&id, &name).await.unwrap();
    runtime.remove_image(&id).await.unwrap();
    assert_eq!(runtime.list_images().await.unwrap(), []);
}

async fn broken_archives_leave_nothing(node: &Node) {
    let _daemon = node.containerd().await;
    let runtime = node.connect().await;
    let path = node.folder.path().join("archive");
    let whole = busybox_archive(&std::fs::read("/bin/busybox").unwrap());
    let blobs = node.paths.root.join("io.containerd.content.v1.content/blobs/sha256");
    let count = || std::fs::read_dir(&blobs).map_or(0, Iterator::count);
    for length in [0, 100, 5000, whole.len() / 2, whole.len() - 3000] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = runtime.import_archive(&path).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("image archive {}", path.display())), "{error}");
        assert_eq!((runtime.list_images().await.unwrap().len(), count()), (0, 0), "{length} bytes");
    }
    // Whole as a tar, but its layer is none: found only while unpacking.
    let mut lying = tar::Builder::new(Vec::new());
    let config = r#"{"architecture":"ARCH","os":"linux","rootfs":{"diff_ids":["sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]}}"#
        .replace("ARCH", kedge_runtimes::image::host_architecture());
    let layer = {
        let mut l = tar::Builder::new(Vec::new());
        let mut h = tar::Header::new_gnu();
        h.set_size(1);
        h.set_mode(0o644);
        l.append_data(&mut h, "f", &b"x"[..]).unwrap();
        l.into_inner().unwrap()
    };
    let manifest = br#"[{"Config":"c","RepoTags":["localhost/lying:1"],"Layers":["l"]}]"#;
    for (name, bytes) in [("c", config.as_bytes()), ("l", &layer), ("manifest.json", manifest)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        lying.append_data(&mut header, name, bytes).unwrap();
    }
    std::fs::write(&path, lying.into_inner().unwrap()).unwrap();
    let error = runtime.import_archive(&path).await.unwrap_err().to_string();
    assert!(error.contains("unpack layer sha256:") && error.contains("the image says sha256:aaaa"), "{error}");
    assert_eq!((runtime.list_images().await.unwrap().len(), count()), (0, 0));
    // And gzipped, whole.
    let gzipped = std::fs::File::create(&path).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(gzipped, flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &whole).unwrap();
    encoder.finish().unwrap();
    assert_eq!(runtime.import_archive(&path).await.unwrap()[0].names, [suite::IMAGE]);
    assert_eq!(runtime.import_archive(&path).await.unwrap()[0].names, [suite::IMAGE], "again is the same");
}

async fn a_killed_containerd_loses_no_exit(node: &Node) {
    let mut daemon = node.containerd().await;
    let (runtime, image) = node.ready().await;
    let spec = container("outlives", &image, &node.log_dir_path(), &["sleep", "1000"]);
    let short = {
        let mut s = container("short", &image, &node.log_dir_path(), &["sh", "-c", "sleep 2; exit 5"]);
        s.annotations = BTreeMap::new();
        s
    };
    for spec in [&spec, &short] {
        runtime.create_sandbox(&sandbox(&spec.pod.name)).await.unwrap();
        runtime.create_container(spec).await.unwrap();
        runtime.start_container(&spec.id).await.unwrap();
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid()), nix::sys::signal::SIGKILL).unwrap();
    daemon.ended().await.unwrap();
    let mut events = runtime.events();
    let error = runtime.observe().await.unwrap_err().to_string();
    assert!(error.contains("does not answer"), "{error}");
    tokio::time::sleep(Duration::from_millis(2500)).await; // `short` ends while nobody is there to see it.
    let daemon = node.containerd().await;
    assert!(!daemon.was_adopted());
    // The same connection heals by itself.
    let state = loop {
        match observed(&runtime, &short.id).await.unwrap().state {
            ContainerState::Running { .. } => tokio::time::sleep(Duration::from_millis(50)).await,
            other => break other,
        }
    };
    assert!(matches!(&state, ContainerState::Exited(exit) if exit.code == 5), "{state:?}");
    let state = observed(&runtime, &spec.id).await.unwrap().state;
    assert!(matches!(state, ContainerState::Running { .. }), "{state:?}");
    // Events flow again after the watch has connected anew.
    loop {
        use futures::StreamExt;
        if events.next().await == Some(kedge_runtimes::RuntimeEvent::Resync) {
            break;
        }
    }
    runtime.kill_container(&spec.id, 9).await.unwrap();
    assert_eq!(exit_of(&runtime, &mut events, &spec.id).await.code, 137);
}

/// A server and a verb that start at once must share one daemon.
async fn two_that_start_at_once_share_one(node: &Node) {
    let other = Node::new();
    let (first, second) = tokio::join!(other.containerd(), other.containerd());
    assert_eq!(first.pid(), second.pid());
    assert!(first.was_adopted() != second.was_adopted());
    assert_ne!(first.pid(), node.containerd().await.pid());
    kedge_runtimes::private::killall::killall(&other.paths).await.unwrap();
}

async fn killall_leaves_the_other_node_alone(node: &Node) {
    let other = Node::new();
    let mut daemons = Vec::new();
    let mut running = Vec::new();
    for node in [node, &other] {
        daemons.push(node.containerd().await);
        let (runtime, image) = node.ready().await;
        let spec = container("same", &image, &node.log_dir_path(), &["sleep", "1000"]);
        runtime.create_sandbox(&sandbox("same")).await.unwrap();
        runtime.create_container(&spec).await.unwrap();
        runtime.start_container(&spec.id).await.unwrap();
        running.push((runtime, spec));
    }
    let killed = killall(&node.paths).await.unwrap();
    assert!(killed.processes >= 3 && killed.mounts >= 3, "containerd, a shim and a container: {killed:?}");
    assert_swept(node);
    let (runtime, spec) = &running[1];
    let state = observed(runtime, &spec.id).await.unwrap().state;
    assert!(matches!(state, ContainerState::Running { .. }), "{state:?}");
    assert_eq!(exec(runtime, &spec.id, &["echo", "alive"], None).await.0, 0);
    // The first node starts again; what ran is known to be lost.
    let _daemon = node.containerd().await;
    let runtime = node.connect().await;
    let state = observed(&runtime, &spec.id).await.unwrap().state;
    let ContainerState::Lost { started_at: Some(started), ended_at: Some(ended) } = state else { panic!("{state:?}") };
    assert!(started < ended, "{started} {ended}");
    assert_eq!(runtime.observe().await.unwrap().sandboxes, []);
    runtime.remove_sandbox(&pod("same").uid).await.unwrap();
    drop(running);
    killall(&other.paths).await.unwrap();
    assert_swept(&other);
}

/// Prints what starting costs; fails only when something is badly wrong.
async fn times(node: &Node) {
    let started = Instant::now();
    let daemon = node.containerd().await;
    let cold = started.elapsed();
    drop(daemon);
    let started = Instant::now();
    let _daemon = node.containerd().await;
    let adopted = started.elapsed();
    let started = Instant::now();
    let (runtime, image) = node.ready().await;
    let import = started.elapsed();
    let mut starts = Vec::new();
    for n in 0..10 {
        let name = format!("t{n}");
        let spec = container(&name, &image, &node.log_dir_path(), &["sleep", "1000"]);
        let started = Instant::now();
        runtime.create_sandbox(&sandbox(&name)).await.unwrap();
        runtime.create_container(&spec).await.unwrap();
        runtime.start_container(&spec.id).await.unwrap();
        starts.push(started.elapsed().as_millis());
        runtime.remove_sandbox(&spec.pod.uid).await.unwrap();
    }
    starts.sort_unstable();
    println!(
        "  containerd ready {} ms, adopted {} ms, image imported {} ms, pod started p50 {} ms, max {} ms",
        cold.as_millis(),
        adopted.as_millis(),
        import.as_millis(),
        starts[5],
        starts[9]
    );
    assert!(starts[5] < 2000);
}

async fn wait_until(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it happens in time");
}

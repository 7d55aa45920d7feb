//! The cases that every backend must pass. A backend's own test makes a [`Fixture`] and calls [`run`].
//!
//! Commands are those that a busybox and the fake both know. What only a real kernel can show (logs, limits, users)
//! is in the tests of the backends that have one.
#![allow(clippy::disallowed_methods, reason = "test code: one archive in the temporary folder")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::container::{
    Capabilities, ContainerSpec, ExecSpec, PidMode, PodResources, Resources, SandboxSpec, Seccomp, Security, User,
};
use crate::runtime::{
    ContainerId, ContainerState, Events, Exit, ObservedContainer, PodId, PodUid, Runtime, RuntimeError, RuntimeEvent,
};

/// The name of the image that cases run; [`run`] imports it.
pub const IMAGE: &str = "localhost/suite/busybox:1";
/// No step takes longer on the slowest machine.
const STEP_TIME_MAX: Duration = Duration::from_secs(30);

/// What a backend's test provides.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The backend; each call connects anew, as a restarted agent does.
    async fn runtime(&self) -> Arc<dyn Runtime>;
    /// Where logs may go.
    fn log_dir(&self) -> PathBuf;
}

/// An image archive with a busybox at `/bin`, for this machine. Without `busybox` (a static one) it has no programs,
/// which is enough for the fake.
pub fn busybox_archive(busybox: &[u8]) -> Vec<u8> {
    let layer = busybox_layer(busybox);
    let digest = crate::Digest::of(&layer);
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Env":["PATH=/bin"],"Cmd":["sh"]}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#,
        crate::image::host_architecture()
    );
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]"#);
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in
        [("config.json", config.as_bytes()), ("layer.tar", &layer), ("manifest.json", manifest.as_bytes())]
    {
        append(&mut builder, name, 0o644, bytes);
    }
    builder.into_inner().expect("memory takes all bytes")
}

fn busybox_layer(busybox: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    append(&mut builder, "bin/busybox", 0o755, busybox);
    for name in [
        "sh", "sleep", "true", "false", "echo", "cat", "id", "ls", "mkdir", "hostname", "dd", "tail", "touch", "stat",
        "unshare", "env", "seq",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        builder.append_link(&mut header, format!("bin/{name}"), "busybox").expect("memory takes all bytes");
    }
    append(&mut builder, "etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\nweb:x:101:102::/:/bin/sh\n");
    append(&mut builder, "etc/group", 0o644, b"root:x:0:\nweb:x:102:\nextra:x:700:web\n");
    for folder in ["tmp", "proc", "sys", "dev"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(if folder == "tmp" { 0o1777 } else { 0o755 });
        builder.append_data(&mut header, format!("{folder}/"), &[] as &[u8]).expect("memory takes all bytes");
    }
    builder.into_inner().expect("memory takes all bytes")
}

fn append(builder: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    builder.append_data(&mut header, name, bytes).expect("memory takes all bytes");
}

/// A pod's id from a short name.
pub fn pod(name: &str) -> PodId {
    let uid = PodUid::new(format!("uid-{name}")).expect("a test's name is one");
    PodId { namespace: "suite".into(), name: name.into(), uid }
}

/// A sandbox in the network that the backend runs in.
pub fn sandbox(name: &str) -> SandboxSpec {
    SandboxSpec {
        pod: pod(name),
        hostname: format!("host-{name}"),
        network_namespace: None,
        host_ipc: false,
        pid_mode: PidMode::Container,
        sysctls: BTreeMap::new(),
        resources: PodResources::default(),
    }
}

/// A container of [`IMAGE`] with the defaults of a plain pod.
pub fn container(pod_name: &str, image_id: &str, log_dir: &std::path::Path, args: &[&str]) -> ContainerSpec {
    let pod = pod(pod_name);
    ContainerSpec {
        id: ContainerId::derive(&pod.uid, "main", 0),
        log_path: log_dir.join(pod_name).join("main/0.log"),
        pod,
        name: "main".into(),
        attempt: 0,
        image: IMAGE.into(),
        image_id: image_id.into(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![("PATH".into(), "/bin".into())],
        working_dir: "/".into(),
        tty: false,
        stdin: false,
        stdin_once: false,
        mounts: vec![],
        devices: vec![],
        security: Security {
            user: User::Image { text: String::new(), gid: None },
            supplemental_groups: vec![],
            strict_groups: false,
            privileged: false,
            capabilities: Capabilities::default(),
            read_only_root: false,
            no_new_privileges: false,
            seccomp: Seccomp::RuntimeDefault,
            unmasked_proc: false,
        },
        resources: Resources::default(),
        annotations: BTreeMap::from([("kedge.dev/hash".to_owned(), "1".to_owned())]),
    }
}

/// Waits for a container's exit as the agent does: an event says it, or says to look again.
pub async fn exit_of(runtime: &dyn Runtime, events: &mut Events, id: &ContainerId) -> Exit {
    let wait = async {
        loop {
            match events.next().await.expect("events have no end") {
                RuntimeEvent::Exited { id: other, exit, .. } if other == *id => return exit,
                RuntimeEvent::Exited { .. } | RuntimeEvent::LogLost { .. } => {}
                RuntimeEvent::Resync => {
                    if let Some(ContainerState::Exited(exit)) = observed(runtime, id).await.map(|found| found.state) {
                        return exit;
                    }
                }
            }
        }
    };
    tokio::time::timeout(STEP_TIME_MAX, wait).await.expect("the container exits in time")
}

/// The container as it is observed; `None` when it is not there.
pub async fn observed(runtime: &dyn Runtime, id: &ContainerId) -> Option<ObservedContainer> {
    let all = runtime.observe().await.expect("observing works");
    all.containers.into_iter().find(|container| container.id == *id)
}

/// What a command in a container answers: exit code and output.
pub async fn exec(runtime: &dyn Runtime, id: &ContainerId, args: &[&str], input: Option<&str>) -> (i32, String) {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let spec = ExecSpec { args, tty: false, stdin: input.is_some() };
    let mut session = runtime.exec(id, spec).await.expect("the command starts");
    let work = async {
        if let (Some(mut stdin), Some(input)) = (session.stdin.take(), input) {
            stdin.write_all(input.as_bytes()).await.expect("the command reads");
        }
        let mut text = String::new();
        session.stdout.take().expect("a stdout").read_to_string(&mut text).await.expect("text");
        (session.exit.await.expect("an exit code"), text)
    };
    tokio::time::timeout(STEP_TIME_MAX, work).await.expect("the command ends in time")
}

/// Runs all cases. `fixture` is an empty machine without [`IMAGE`]; it is empty again afterwards.
pub async fn run(fixture: &dyn Fixture) {
    let runtime = fixture.runtime().await;
    let folder = tempfile_folder();
    let archive = folder.join("busybox.tar");
    let busybox = std::fs::read("/bin/busybox").unwrap_or_default();
    std::fs::write(&archive, busybox_archive(&busybox)).expect("the archive is written");
    assert_eq!(runtime.resolve_image(IMAGE).await.expect("asking works"), None);
    let image = runtime.import_archive(&archive).await.expect("the archive is whole").remove(0);
    let image_id = image.id.as_str();
    names_lead_to_the_image(&*runtime, &image).await;
    let layers = [crate::Digest::of(&busybox_layer(&busybox)), crate::Digest::of(b"another")];
    for (count, here) in [(0, 0), (1, 1), (2, 1)] {
        assert_eq!(runtime.unpacked_layers(&layers[..count]).await.expect("asking works"), here, "of {count}");
    }
    assert_eq!(runtime.unpacked_layers(&layers[1..]).await.expect("asking works"), 0, "its place is part of a layer");
    a_life_from_start_to_end(&*runtime, fixture, image_id).await;
    an_exit_code_is_reported(&*runtime, fixture, image_id).await;
    what_cannot_start_says_why(&*runtime, fixture, image_id).await;
    commands_run_inside(&*runtime, fixture, image_id).await;
    clients_attach(&*runtime, fixture, image_id).await;
    a_restarted_agent_finds_everything(fixture, image_id).await;
    removing_a_pod_ends_its_containers(&*runtime, fixture, image_id).await;
    what_is_missing_is_named(&*runtime, fixture, image_id).await;
    runtime.remove_image(image_id).await.expect("the image goes");
    assert_eq!(runtime.resolve_image(IMAGE).await.expect("asking works"), None);
    let left = runtime.observe().await.expect("observing works");
    assert!(left.containers.is_empty() && left.sandboxes.is_empty(), "{left:?}");
    std::fs::remove_dir_all(folder).expect("the folder goes");
}

fn tempfile_folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("kedge-suite-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the archive");
    folder
}

async fn names_lead_to_the_image(runtime: &dyn Runtime, image: &crate::Image) {
    assert_eq!(image.names, [IMAGE]);
    for name in [IMAGE, image.id.as_str()] {
        assert_eq!(runtime.resolve_image(name).await.expect("asking works").as_ref(), Some(image), "{name}");
    }
    assert_eq!(image.config.cmd, ["sh"]);
    assert_eq!(runtime.resolve_image("localhost/other").await.expect("asking works"), None);
    assert!(matches!(runtime.resolve_image("Not A Name").await, Err(RuntimeError::InvalidReference { .. })));
}

async fn a_life_from_start_to_end(runtime: &dyn Runtime, fixture: &dyn Fixture, image_id: &str) {
    let mut events = runtime.events();
    let spec = container("life", image_id, &fixture.log_dir(), &["sleep", "1000"]);
    runtime.create_sandbox(&sandbox("life")).await.expect("a sandbox");
    runtime.create_sandbox(&sandbox("life")).await.expect("again is the same");
    runtime.create_container(&spec).await.expect("a container");
    let created = observed(runtime, &spec.id).await.expect("it is there");
    assert_eq!(created.state, ContainerState::Created);
    assert_eq!((created.pod, created.name, created.attempt), (spec.pod.clone(), spec.name.clone(), 0));
    assert_eq!((created.image, created.annotations), (spec.image.clone(), spec.annotations.clone()));
    assert!(runtime.create_container(&spec).await.is_err(), "an id is taken once");
    runtime.start_container(&spec.id).await.expect("it starts");
    let running = observed(runtime, &spec.id).await.expect("it is there").state;
    assert!(matches!(running, ContainerState::Running { .. }), "{running:?}");
    let stats = runtime.stats(&spec.id).await.expect("it uses something");
    assert!(stats.memory_usage_bytes > 0 && stats.pids == 1, "{stats:?}");
    runtime.kill_container(&spec.id, 9).await.expect("a signal");
    let exit = exit_of(runtime, &mut events, &spec.id).await;
    assert_eq!((exit.code, exit.oom), (137, false));
    assert!(exit.started_at.expect("it started") <= exit.finished_at);
    assert_eq!(observed(runtime, &spec.id).await.expect("its record stays").state, ContainerState::Exited(exit));
    runtime.kill_container(&spec.id, 15).await.expect("signalling the dead is fine");
    assert!(runtime.start_container(&spec.id).await.is_err(), "nothing lives twice");
    runtime.remove_container(&spec.id).await.expect("it goes");
    runtime.remove_container(&spec.id).await.expect("what is gone can be removed");
    assert!(observed(runtime, &spec.id).await.is_none());
    runtime.remove_sandbox(&spec.pod.uid).await.expect("the sandbox goes");
    runtime.remove_sandbox(&spec.pod.uid).await.expect("what is gone can be removed");
}

async fn an_exit_code_is_reported(runtime: &dyn Runtime, fixture: &dyn Fixture, image_id: &str) {
    let mut events = runtime.events();
    runtime.create_sandbox(&sandbox("codes")).await.expect("a sandbox");
    for (attempt, (args, code)) in
        [(&["true"][..], 0), (&["sh", "-c", "exit 7"], 7), (&["false"], 1)].iter().enumerate()
    {
        let mut spec = container("codes", image_id, &fixture.log_dir(), args);
        spec.attempt = attempt as u32;
        spec.id = ContainerId::derive(&spec.pod.uid, &spec.name, spec.attempt);
        runtime.create_container(&spec).await.expect("a container");
        runtime.start_container(&spec.id).await.expect("it starts");
        assert_eq!(exit_of(runtime, &mut events, &spec.id).await.code, *code, "{args:?}");
    }
    runtime.remove_sandbox(&pod("codes").uid).await.expect("the pod goes");
}

async fn what_cannot_start_says_why(runtime: &dyn Runtime, fixture: &dyn Fixture, image_id: &str) {
    runtime.create_sandbox(&sandbox("broken")).await.expect("a sandbox");
    let spec = container("broken", image_id, &fixture.log_dir(), &["no-such-program"]);
    runtime.create_container(&spec).await.expect("a container");
    let error = runtime.start_container(&spec.id).await.expect_err("there is no such program").to_string();
    assert!(error.contains("no-such-program"), "{error}");
    match observed(runtime, &spec.id).await.expect("its record stays").state {
        ContainerState::Exited(exit) => {
            assert_eq!(exit.code, 128);
            assert!(exit.started_at.is_some_and(|at| at <= exit.finished_at), "when it was tried");
            assert!(exit.message.expect("a reason").contains("no-such-program"));
        }
        other => panic!("{other:?}"),
    }
    runtime.remove_sandbox(&spec.pod.uid).await.expect("the pod goes");
}

async fn commands_run_inside(runtime: &dyn Runtime, fixture: &dyn Fixture, image_id: &str) {
    runtime.create_sandbox(&sandbox("exec")).await.expect("a sandbox");
    let spec = container("exec", image_id, &fixture.log_dir(), &["sleep", "1000"]);
    runtime.create_container(&spec).await.expect("a container");
    let early = runtime.exec(&spec.id, ExecSpec { args: vec!["true".into()], tty: false, stdin: false }).await;
    assert!(matches!(early, Err(RuntimeError::WrongState { .. })), "{early:?}");
    runtime.start_container(&spec.id).await.expect("it starts");
    assert_eq!(exec(runtime, &spec.id, &["echo", "hello"], None).await, (0, "hello\n".to_owned()));
    assert_eq!(exec(runtime, &spec.id, &["sh", "-c", "exit 3"], None).await, (3, String::new()));
    assert_eq!(exec(runtime, &spec.id, &["cat"], Some("to and fro")).await, (0, "to and fro".to_owned()));
    let sleep = ExecSpec { args: vec!["sleep".into(), "1000".into()], tty: false, stdin: false };
    let session = runtime.exec(&spec.id, sleep).await.expect("it starts");
    session.control.kill(9).await.expect("a signal");
    let code = tokio::time::timeout(STEP_TIME_MAX, session.exit).await.expect("it ends").expect("an exit code");
    assert_eq!(code, 137);
    let running = observed(runtime, &spec.id).await.expect("an exec's end is not the container's").state;
    assert!(matches!(running, ContainerState::Running { .. }), "{running:?}");
    runtime.remove_sandbox(&spec.pod.uid).await.expect("the pod goes");
}

async fn clients_attach(runtime: &dyn Runtime, fixture: &dyn Fixture, image_id: &str) {
    let mut events = runtime.events();
    runtime.create_sandbox(&sandbox("attach")).await.expect("a sandbox");
    let mut spec = container("attach", image_id, &fixture.log_dir(), &["cat"]);
    (spec.stdin, spec.stdin_once) = (true, true);
    runtime.create_container(&spec).await.expect("a container");
    let early = runtime.attach(&spec.id, true).await;
    assert!(matches!(early, Err(RuntimeError::WrongState { .. })), "{early:?}");
    runtime.start_container(&spec.id).await.expect("it starts");
    let mut session = runtime.attach(&spec.id, true).await.expect("it runs");
    let talk = async {
        let (mut stdin, mut stdout) = (session.stdin.take().expect("input"), session.stdout.take().expect("output"));
        for text in ["once\n", "and again\n"] {
            stdin.write_all(text.as_bytes()).await.expect("it reads");
            let mut heard = vec![0; text.len()];
            stdout.read_exact(&mut heard).await.expect("it answers");
            assert_eq!(heard, text.as_bytes());
        }
        drop(stdin);
        assert_eq!(stdout.read(&mut [0]).await.expect("the end"), 0);
        session.exit.await.expect("the session ends")
    };
    assert_eq!(tokio::time::timeout(STEP_TIME_MAX, talk).await.expect("it talks in time"), 0);
    // The end of the input was the container's.
    assert_eq!(exit_of(runtime, &mut events, &spec.id).await.code, 0);
    assert!(runtime.attach(&spec.id, false).await.is_err(), "it has ended");
    runtime.remove_sandbox(&spec.pod.uid).await.expect("the pod goes");
}

async fn a_restarted_agent_finds_everything(fixture: &dyn Fixture, image_id: &str) {
    let runtime = fixture.runtime().await;
    runtime.create_sandbox(&sandbox("adopt")).await.expect("a sandbox");
    let spec = container("adopt", image_id, &fixture.log_dir(), &["sleep", "1000"]);
    runtime.create_container(&spec).await.expect("a container");
    runtime.start_container(&spec.id).await.expect("it starts");
    let before = observed(&*runtime, &spec.id).await.expect("it is there");
    drop(runtime);
    let runtime = fixture.runtime().await;
    assert_eq!(observed(&*runtime, &spec.id).await, Some(before));
    let all = runtime.observe().await.expect("observing works");
    assert_eq!(all.sandboxes.iter().map(|found| &found.spec).collect::<Vec<_>>(), [&sandbox("adopt")]);
    let mut events = runtime.events();
    runtime.kill_container(&spec.id, 9).await.expect("a signal");
    assert_eq!(exit_of(&*runtime, &mut events, &spec.id).await.code, 137);
    runtime.remove_sandbox(&spec.pod.uid).await.expect("the pod goes");
}

async fn removing_a_pod_ends_its_containers(runtime: &dyn Runtime, fixture: &dyn Fixture, image_id: &str) {
    runtime.create_sandbox(&sandbox("swept")).await.expect("a sandbox");
    let spec = container("swept", image_id, &fixture.log_dir(), &["sleep", "1000"]);
    runtime.create_container(&spec).await.expect("a container");
    runtime.start_container(&spec.id).await.expect("it starts");
    runtime.remove_sandbox(&spec.pod.uid).await.expect("the pod goes");
    assert!(observed(runtime, &spec.id).await.is_none());
}

async fn what_is_missing_is_named(runtime: &dyn Runtime, fixture: &dyn Fixture, image_id: &str) {
    let spec = container("missing", image_id, &fixture.log_dir(), &["true"]);
    let refused = runtime.create_container(&spec).await;
    assert!(matches!(&refused, Err(RuntimeError::SandboxNotFound(uid)) if *uid == spec.pod.uid), "{refused:?}");
    let shared = SandboxSpec { pid_mode: PidMode::Pod, ..sandbox("missing") };
    let refused = runtime.create_sandbox(&shared).await.expect_err("not supported").to_string();
    assert!(refused.contains("shareProcessNamespace"), "{refused}");
    runtime.create_sandbox(&sandbox("missing")).await.expect("a sandbox");
    let other = ContainerSpec { image_id: "sha256:none".into(), ..spec.clone() };
    assert!(matches!(runtime.create_container(&other).await, Err(RuntimeError::ImageNotFound(_))));
    for lost in [runtime.start_container(&spec.id).await, runtime.kill_container(&spec.id, 9).await] {
        assert!(matches!(lost, Err(RuntimeError::ContainerNotFound(_))), "{lost:?}");
    }
    runtime.remove_sandbox(&spec.pod.uid).await.expect("the pod goes");
}

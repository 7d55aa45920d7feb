//! The steps of a pod's life that touch the world: volumes, network, sandbox, images, containers.
#![allow(clippy::disallowed_methods, reason = "a shell: the pod's own files below the data and run directories")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service, ServiceAccount};
use kedge_runtimes::reference::Reference;
use kedge_runtimes::{ContainerSpec, Image, ObservedContainer, PidMode, PodId, RuntimeError, SandboxSpec};
use kedge_world::later;
use kube::api::{Api, ListParams, PostParams};

use super::config_problem;
use crate::agent::{Puller, Shared};
use crate::container::{Ingredients, TERMINATION_LOG_PATH, VolumePlace, container_spec};
use crate::env::{ConfigError, Sources};
use crate::events::Happening;
use crate::plan::Problem;
use crate::volumes::{TokenSpec, VolumePlan, objects_needed, tokens_needed, writer};
use crate::{etc, pull_secrets, resources, volumes};

/// How much of a termination message and of a log in its place is told (`kubecontainer.MaxContainerTerminationMessage…`).
const MESSAGE_BYTES_MAX: u64 = 4096;
const LOG_MESSAGE_BYTES_MAX: usize = 2048;
const LOG_MESSAGE_LINES_MAX: usize = 80;

fn problem(reason: &str, error: impl std::fmt::Display) -> Problem {
    Problem { reason: reason.to_owned(), message: error.to_string() }
}

type Places = BTreeMap<String, VolumePlace>;

/// Makes network, volumes and sandbox; each step finds what an earlier attempt made.
pub(super) async fn set_up(
    shared: &Shared,
    id: &PodId,
    pod: &Pod,
    known: Sources,
) -> Result<(Vec<String>, Places, Sources), Problem> {
    let spec = pod.spec.clone().unwrap_or_default();
    let (namespace, ips) = if spec.host_network == Some(true) {
        (shared.settings.network_namespace.clone(), shared.host_ips())
    } else {
        let network = shared.network.setup(id, pod).await.map_err(|e| problem("FailedCreatePodSandBox", e))?;
        (network.namespace, network.ips)
    };
    let (places, sources) = refresh(shared, id, pod, known, &ips).await?;
    write_etc(shared, id, pod, &ips).map_err(|e| problem("FailedCreatePodSandBox", e))?;
    let (hostname, full) = etc::hostname(pod, &shared.settings.dns.domain);
    let host_name = if spec.set_hostname_as_fqdn == Some(true) { full.unwrap_or(hostname) } else { hostname };
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    let sandbox = SandboxSpec {
        pod: id.clone(),
        hostname: if spec.host_network == Some(true) { shared.settings.node_name.clone() } else { host_name },
        network_namespace: namespace,
        host_ipc: spec.host_ipc == Some(true),
        pid_mode: match (spec.host_pid, spec.share_process_namespace) {
            (Some(true), _) => PidMode::Host,
            (_, Some(true)) => PidMode::Pod,
            _ => PidMode::Container,
        },
        sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        resources: resources::of_pod(&spec, shared.settings.pod_pids_limit),
    };
    shared.runtime.create_sandbox(&sandbox).await.map_err(|e| problem("FailedCreatePodSandBox", e))?;
    Ok((ips, places, sources))
}

/// Fetches what the pod names and brings its volumes up to date.
pub(super) async fn refresh(
    shared: &Shared,
    id: &PodId,
    pod: &Pod,
    known: Sources,
    ips: &[String],
) -> Result<(Places, Sources), Problem> {
    let sources = fetch(shared, id, pod, known, ips).await;
    let tokens = fetch_tokens(shared, id, pod).await;
    let stamp = format!("{}", shared.world.clock.wall().as_nanosecond());
    let (folder, pod) = (shared.volumes_of(id), pod.clone());
    // Files of any size, on a disk that may be slow.
    let made =
        off_the_runtime(move || make_volumes(&pod, &folder, &sources, &tokens, &stamp).map(|places| (places, sources)));
    made.await.unwrap_or_else(|text| Err(problem("InternalError", text)))
}

/// Makes the volumes of a pod below `folder`, or brings them up to date.
fn make_volumes(
    pod: &Pod,
    folder: &Path,
    sources: &Sources,
    tokens: &BTreeMap<TokenSpec, String>,
    stamp: &str,
) -> Result<Places, Problem> {
    let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
    let group = group.and_then(|gid| u32::try_from(gid).ok());
    let mut places = Places::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let fail = |e: &dyn std::fmt::Display| {
            problem("FailedMount", format!("MountVolume.SetUp failed for volume {:?} : {e}", volume.name))
        };
        let place = folder.join(&volume.name);
        let plan = match volumes::plan(pod, volume, sources, tokens) {
            Ok(plan) => plan,
            // While cut off a token cannot be renewed, and the files from before serve on.
            Err(error) if place.join("..data").exists() => {
                tracing::warn!(pod = pod.metadata.name, volume = %volume.name, %error, "the volume keeps what it had");
                places.insert(volume.name.clone(), VolumePlace { path: place, read_only: true });
                continue;
            }
            Err(error) => return Err(fail(&error)),
        };
        let path = writer::make(&plan, &place, group, stamp).map_err(|e| fail(&e))?;
        let read_only = matches!(plan, VolumePlan::Files(_));
        places.insert(volume.name.clone(), VolumePlace { path, read_only });
    }
    Ok(places)
}

/// Runs what waits for the disk on a thread that may wait; what a panic in it said is the error.
async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())
}

/// Asks the API for what the pod names; what it does not answer for stays as it is known.
async fn fetch(shared: &Shared, id: &PodId, pod: &Pod, mut known: Sources, ips: &[String]) -> Sources {
    let (maps, secrets) = objects_needed(pod);
    let map_api: Api<ConfigMap> = Api::namespaced(shared.client.clone(), &id.namespace);
    let secret_api: Api<Secret> = Api::namespaced(shared.client.clone(), &id.namespace);
    for name in maps {
        take(&mut known.config_maps, &name, map_api.get_opt(&name).await);
    }
    for name in secrets {
        take(&mut known.secrets, &name, secret_api.get_opt(&name).await);
    }
    let services: Api<Service> = Api::namespaced(shared.client.clone(), &id.namespace);
    let master: Api<Service> = Api::namespaced(shared.client.clone(), "default");
    if let Ok(list) = services.list(&ListParams::default()).await {
        known.services = list.items;
        if id.namespace != "default"
            && let Ok(Some(kubernetes)) = master.get_opt("kubernetes").await
        {
            known.services.push(kubernetes);
        }
    }
    known.node_name = shared.settings.node_name.clone();
    known.host_ips = shared.host_ips();
    known.pod_ips = ips.to_vec();
    known.allocatable = shared.settings.allocatable_milli();
    known
}

fn take<T>(known: &mut BTreeMap<String, T>, name: &str, answer: Result<Option<T>, kube::Error>) {
    match answer {
        Ok(Some(object)) => drop(known.insert(name.to_owned(), object)),
        Ok(None) => drop(known.remove(name)),
        Err(error) => tracing::debug!(name, %error, "the API does not answer; using what is known"),
    }
}

async fn fetch_tokens(shared: &Shared, id: &PodId, pod: &Pod) -> BTreeMap<TokenSpec, String> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let account = account.unwrap_or_else(|| "default".to_owned());
    let accounts: Api<ServiceAccount> = Api::namespaced(shared.client.clone(), &id.namespace);
    let mut tokens = BTreeMap::new();
    let now = shared.world.clock.wall();
    for wanted in tokens_needed(pod) {
        let key = (id.uid.clone(), wanted.clone());
        let held = shared.tokens.lock().get(&key).filter(|(_, used)| used.contains(&now)).cloned();
        if let Some((token, _)) = held {
            tokens.insert(wanted, token);
            continue;
        }
        // Renewed after four fifths of its life, as the kubelet does (`pkg/kubelet/token`).
        let renew_at = later(now, jiff::SignedDuration::from_secs(wanted.seconds / 5 * 4));
        let bound = k8s_openapi::api::authentication::v1::BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(id.name.clone()),
            uid: Some(id.uid.to_string()),
        };
        let spec = TokenRequestSpec {
            audiences: (!wanted.audience.is_empty()).then(|| vec![wanted.audience.clone()]),
            expiration_seconds: Some(wanted.seconds),
            bound_object_ref: Some(bound),
        };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        match accounts.create_token_request(&account, &PostParams::default(), &request).await {
            Ok(answer) => {
                let token = answer.status.and_then(|status| status.token);
                if let Some(token) = token {
                    shared.tokens.lock().insert(key, (token.clone(), now..renew_at));
                    tokens.insert(wanted, token);
                }
            }
            Err(error) => tracing::warn!(pod = %id.name, account, %error, "no token for the pod yet"),
        }
    }
    tokens
}

/// The node's own resolv.conf as it is now; a machine that was never connected may have none.
fn host_resolv_conf(dns: &etc::Dns) -> String {
    let Some(file) = &dns.host_file else { return String::new() };
    fs::read_to_string(file).unwrap_or_else(|error| {
        tracing::debug!(file = %file.display(), %error, "the node's resolvers cannot be read");
        String::new()
    })
}

fn write_etc(shared: &Shared, id: &PodId, pod: &Pod, ips: &[String]) -> Result<(), String> {
    let folder = shared.pod_folder(id).join("etc");
    fs::create_dir_all(&folder).map_err(|e| format!("create {}: {e}", folder.display()))?;
    let dns = &shared.settings.dns;
    let (hostname, _) = etc::hostname(pod, &dns.domain);
    let resolv = etc::resolv_conf(pod, dns, &host_resolv_conf(dns)).map_err(|e| e.0)?;
    let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    // A machine without names of its own is one with an empty file.
    let host_file = on_host.then(|| fs::read_to_string("/etc/hosts").unwrap_or_default());
    let hosts = etc::hosts(pod, ips, &dns.domain, host_file.as_deref());
    let hostname = if on_host { shared.settings.node_name.clone() } else { hostname };
    for (name, text) in [("hosts", hosts), ("resolv.conf", resolv), ("hostname", hostname + "\n")] {
        // In place: the file is bound into running containers, and another one would not be seen there.
        fs::write(folder.join(name), text).map_err(|e| format!("write {name} of the pod: {e}"))?;
    }
    Ok(())
}

/// Finds a container's image; gives its id.
pub(super) async fn ensure_image(shared: &Shared, pod: &Pod, container: &Container) -> Result<String, Problem> {
    let name = container.image.as_deref().unwrap_or_default();
    let tell = |happening: Happening| shared.tell(pod, Some(&container.name), &happening);
    let invalid =
        |e: RuntimeError| problem("InvalidImageName", format!("Failed to apply default image tag {name:?}: {e}"));
    let reference = Reference::parse(name).map_err(invalid)?;
    let default_policy = if reference.is_latest() { "Always" } else { "IfNotPresent" };
    let policy = container.image_pull_policy.as_deref().unwrap_or(default_policy);
    let local = shared.runtime.resolve_image(name).await;
    let local = local.map_err(|e| problem("ImageInspectError", format!("Failed to inspect image {name:?}: {e}")))?;
    match (local, policy, &shared.puller) {
        (Some(image), "Always", Some(puller)) => match pull(shared, &**puller, pod, container).await {
            Ok(fresh) => Ok(fresh.id),
            // A registry out of reach must not keep a box from running what it has.
            Err(error) => {
                tracing::warn!(image = name, %error, "cannot ask the registry; using the local image");
                tell(Happening::ImagePresent { image: name.to_owned() });
                Ok(image.id)
            }
        },
        (Some(image), _, _) => {
            tell(Happening::ImagePresent { image: name.to_owned() });
            Ok(image.id)
        }
        (None, "Never", _) => Err(problem(
            "ErrImageNeverPull",
            format!("Container image \"{name}\" is not present with pull policy of Never"),
        )),
        (None, _, Some(puller)) => {
            pull(shared, &**puller, pod, container).await.map(|image| image.id).map_err(|e| problem("ErrImagePull", e))
        }
        (None, _, None) => {
            let error = format!(
                "image {name:?} is not on this node, and this node pulls none; import it with: kedge image import FILE"
            );
            tell(Happening::PullFailed { image: name.to_owned(), error: error.clone() });
            Err(problem("ErrImagePull", error))
        }
    }
}

async fn pull(shared: &Shared, puller: &dyn Puller, pod: &Pod, container: &Container) -> Result<Image, String> {
    let image = container.image.clone().unwrap_or_default();
    let tell = |happening: Happening| shared.tell(pod, Some(&container.name), &happening);
    let logins = pull_secrets::logins(shared, pod).await;
    tell(Happening::Pulling { image: image.clone() });
    let begun = shared.world.clock.monotonic();
    match puller.pull(&image, &logins).await {
        Ok(pulled) => {
            let took = shared.world.clock.monotonic().saturating_sub(begun);
            if let Err(error) = shared.runtime.note_pulled(&pulled.id, &image).await {
                tracing::warn!(image, %error, "the image will be kept when the disk is full, as if it had been imported");
            }
            tell(Happening::Pulled { image, took, size_bytes: pulled.size_bytes });
            Ok(pulled)
        }
        Err(error) => {
            tell(Happening::PullFailed { image, error: error.clone() });
            Err(error)
        }
    }
}

/// What a start is about.
pub(super) struct Start<'a> {
    pub(super) id: &'a PodId,
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    /// The id of its image, as [`ensure_image`] gave it: a name may lead elsewhere by now.
    pub(super) image: &'a str,
    pub(super) attempt: u32,
    pub(super) volumes: &'a Places,
    pub(super) ips: &'a [String],
}

/// Makes a container, unless an earlier attempt did, and starts it.
pub(super) async fn start(shared: &Shared, what: &Start<'_>, known: Sources, exists: bool) -> Result<(), Problem> {
    let Start { id, container, attempt, .. } = what;
    let run = kedge_runtimes::ContainerId::derive(&id.uid, &container.name, *attempt);
    if !exists {
        let sources = fetch(shared, id, what.pod, known, what.ips).await;
        create(shared, what, &sources).await?;
        shared.tell(what.pod, Some(&container.name), &Happening::Created);
    }
    match shared.runtime.start_container(&run).await {
        Ok(()) => {
            shared.tell(what.pod, Some(&container.name), &Happening::Started);
            Ok(())
        }
        // Its record says why, and its restart policy what follows.
        Err(RuntimeError::Backend { reason, .. }) => {
            tracing::warn!(pod = %id.name, container = %container.name, reason, "the container cannot be started");
            shared.tell(what.pod, Some(&container.name), &Happening::NotStarted { error: reason });
            Ok(())
        }
        Err(error) => Err(problem("RunContainerError", error)),
    }
}

async fn create(shared: &Shared, what: &Start<'_>, sources: &Sources) -> Result<(), Problem> {
    let name = what.container.image.as_deref().unwrap_or_default();
    let image = shared.runtime.resolve_image(what.image).await.map_err(|e| problem("CreateContainerError", e))?;
    let image = image.ok_or_else(|| problem("CreateContainerError", RuntimeError::ImageNotFound(name.to_owned())))?;
    let spec = build_spec(shared, what, sources, &image)?;
    shared.runtime.create_container(&spec).await.map_err(|e| match e {
        RuntimeError::Config(message) => Problem { reason: "CreateContainerConfigError".to_owned(), message },
        other => problem("CreateContainerError", other),
    })
}

/// Makes the container's own files and its spec.
fn build_spec(shared: &Shared, what: &Start<'_>, sources: &Sources, image: &Image) -> Result<ContainerSpec, Problem> {
    let Start { id, pod, container, attempt, .. } = *what;
    let folder = shared.pod_folder(id);
    let own = folder.join("containers").join(&container.name);
    let termination_log = own.join(format!("message-{attempt}"));
    let fail = |e: std::io::Error| problem("CreateContainerError", format!("make {}: {e}", termination_log.display()));
    fs::create_dir_all(&own).map_err(fail)?;
    fs::write(&termination_log, "").map_err(fail)?;
    // The container may run as anybody.
    fs::set_permissions(&termination_log, std::os::unix::fs::PermissionsExt::from_mode(0o666)).map_err(fail)?;
    let etc_files = ["hosts", "resolv.conf", "hostname"].map(|file| {
        let destination = match file {
            "hosts" => "/etc/hosts",
            "resolv.conf" => "/etc/resolv.conf",
            _ => "/etc/hostname",
        };
        (destination, folder.join("etc").join(file))
    });
    let (hostname, _) = etc::hostname(pod, &shared.settings.dns.domain);
    let sub_paths = shared.volumes_of(id).join("..subpaths").join(&container.name);
    let bind = |volume: &Path, path: &str| -> Result<PathBuf, ConfigError> {
        use sha2::Digest as _;
        let key = hex::encode(&sha2::Sha256::digest(format!("{}\n{path}", volume.display()))[..8]);
        let target = sub_paths.join(key);
        writer::bind_sub_path(volume, path, &target).map(|()| target).map_err(|e| ConfigError(e.to_string()))
    };
    let log_folder = format!("{}_{}_{}", id.namespace, id.name, id.uid);
    let with = Ingredients {
        id,
        image,
        sources,
        volumes: what.volumes,
        etc_files: &etc_files,
        termination_log: &termination_log,
        log_path: shared.settings.log_dir.join(log_folder).join(&container.name).join(format!("{attempt}.log")),
        hostname: &hostname,
        node_memory_bytes: shared.settings.memory_bytes,
        sub_path: &bind,
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        seccomp_profile: &|path| read_profile(&shared.settings.data_dir.join("seccomp"), path),
    };
    container_spec(pod, container, attempt, &with).map_err(config_problem)
}

fn read_profile(folder: &Path, path: &str) -> Result<serde_json::Value, ConfigError> {
    let safe = !path.is_empty() && !path.starts_with('/') && path.split('/').all(|part| part != "..");
    if !safe {
        return Err(ConfigError(format!("seccompProfile.localhostProfile {path:?} leaves the node's profiles")));
    }
    let file = folder.join(path);
    let fail =
        |e: &dyn std::fmt::Display| ConfigError(format!("cannot load seccomp profile {:?}: {e}", file.display()));
    serde_json::from_slice(&fs::read(&file).map_err(|e| fail(&e))?).map_err(|e| fail(&e))
}

/// Takes everything of a pod away.
pub(super) async fn tear_down(shared: &Shared, id: &PodId, pod: &Pod) -> Result<(), String> {
    shared.runtime.remove_sandbox(&id.uid).await.map_err(|e| e.to_string())?;
    shared.tokens.lock().retain(|(uid, _), _| *uid != id.uid);
    if pod.spec.as_ref().and_then(|spec| spec.host_network) != Some(true) {
        shared.network.teardown(id).await.map_err(|e| e.to_string())?;
    }
    let logs = shared.settings.log_dir.join(format!("{}_{}_{}", id.namespace, id.name, id.uid));
    let folders = [shared.volumes_of(id), shared.pod_folder(id), logs];
    // An emptyDir may hold millions of files.
    off_the_runtime(move || folders.iter().try_for_each(|folder| writer::remove(folder).map_err(|e| e.to_string())))
        .await?
}

/// What a container left to say; with `from_log`, the end of its log when it said nothing.
pub(super) fn termination_message(run: &ObservedContainer, from_log: bool) -> String {
    let read = || -> std::io::Result<String> {
        let path = run.annotations.get(TERMINATION_LOG_PATH).map(String::as_str).unwrap_or_default();
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let message = read().unwrap_or_default(); // Without a file there is no message.
    if message.is_empty() && from_log { log_end(&run.log_path).unwrap_or_default() } else { message }
}

fn log_end(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    // Each line has about forty characters before its text.
    file.seek(SeekFrom::Start(length.saturating_sub((LOG_MESSAGE_BYTES_MAX + 64 * LOG_MESSAGE_LINES_MAX) as u64)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(texts_at_end(&String::from_utf8_lossy(&bytes)))
}

/// The texts of the last lines of a log, as much as a message may have: whole lines, or the end of the only one.
fn texts_at_end(log: &str) -> String {
    let texts: Vec<(&str, &str)> = log
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(4, ' ').skip(2);
            Some((parts.next()?, parts.next()?))
        })
        .collect();
    let last = &texts[texts.len().saturating_sub(LOG_MESSAGE_LINES_MAX)..];
    // A part of a line has no end of its own.
    let text: String = last.iter().flat_map(|(tag, text)| [*text, if *tag == "P" { "" } else { "\n" }]).collect();
    let mut start = text.len().saturating_sub(LOG_MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    match text[start..].split_once('\n') {
        Some((_, rest)) if start > 0 && !rest.is_empty() => rest.to_owned(),
        _ => text[start..].to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_a_message() {
        assert_eq!(texts_at_end("2026 stdout F one two\n2026 stderr F three\n"), "one two\nthree\n");
        assert_eq!(texts_at_end("2026 stdout F one\n2026 stdout P tw\n2026 stdout P o\n"), "one\ntwo");
        let long: String = (0..500).map(|n| format!("t stdout F line {n}\n")).collect();
        let end = texts_at_end(&long);
        assert!(end.ends_with("line 499\n") && end.lines().count() == 80, "{end}");
        let wide = format!("t stdout F {}\n", "é".repeat(9000));
        let end = texts_at_end(&wide);
        assert!(end.len() <= LOG_MESSAGE_BYTES_MAX && end.len() > 2000, "{}", end.len());
    }
}

//! One container of a pod as the runtime is to make it: everything resolved, nothing left to guess.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};
use kedge_runtimes::{ContainerId, ContainerSpec, Image, Mount, MountPropagation, PodId};

use crate::env::{ConfigError, Sources, environment, expand};
use crate::{resources, security};

/// Where the kubelet has put a termination message since the beginning.
const TERMINATION_LOG: &str = "/dev/termination-log";
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The annotation that tells which version of the container's spec runs.
pub const SPEC_HASH: &str = "kedge.dev/spec-hash";
/// The annotation with the path of the termination message on the node.
pub const TERMINATION_LOG_PATH: &str = "kedge.dev/termination-log";

/// Where a volume lies on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlace {
    /// The file or folder.
    pub path: PathBuf,
    /// Written by the node alone: containers never write there, whatever the pod says.
    pub read_only: bool,
}

/// What a container is made from beside the pod itself.
pub struct Ingredients<'a> {
    /// The pod.
    pub id: &'a PodId,
    /// The local image.
    pub image: &'a Image,
    /// What the environment may refer to.
    pub sources: &'a Sources,
    /// Where each volume of the pod lies on the node.
    pub volumes: &'a BTreeMap<String, VolumePlace>,
    /// The pod's files of the node's making: hosts, resolv.conf, hostname.
    pub etc_files: &'a [(&'static str, PathBuf)],
    /// The file for the termination message.
    pub termination_log: &'a Path,
    /// The file for the log.
    pub log_path: PathBuf,
    /// The host name the container sees.
    pub hostname: &'a str,
    /// The node's memory.
    pub node_memory_bytes: i64,
    /// The place of a folder or file inside a volume, by the volume's place and the path: a mount that nothing inside
    /// the volume can lead astray.
    pub sub_path: &'a dyn Fn(&Path, &str) -> Result<PathBuf, ConfigError>,
    /// Whether the kernel enforces SELinux.
    pub selinux: bool,
    /// Reads a seccomp profile of the node.
    pub seccomp_profile: &'a dyn Fn(&str) -> Result<serde_json::Value, ConfigError>,
}

/// Builds the spec of the `attempt`th run of `container`.
pub fn container_spec(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    with: &Ingredients<'_>,
) -> Result<ContainerSpec, ConfigError> {
    let spec = pod.spec.as_ref().ok_or_else(|| ConfigError("the pod has no spec".to_owned()))?;
    let config = &with.image.config;
    let own = environment(pod, container, with.sources)?;
    let known: BTreeMap<String, String> = own.iter().cloned().collect();
    let mut env = image_environment(&config.env, with.hostname, container.tty == Some(true));
    for (name, value) in own {
        env.retain(|(other, _)| *other != name);
        env.push((name, value));
    }
    let args = command(container, &config.entrypoint, &config.cmd, &known)?;
    let working_dir = container.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let working_dir = working_dir.unwrap_or(&config.working_dir);
    let annotations = BTreeMap::from([
        (SPEC_HASH.to_owned(), spec_hash(container)),
        (TERMINATION_LOG_PATH.to_owned(), with.termination_log.display().to_string()),
    ]);
    Ok(ContainerSpec {
        id: ContainerId::derive(&with.id.uid, &container.name, attempt),
        pod: with.id.clone(),
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        image_id: with.image.id.clone(),
        args,
        env,
        working_dir: if working_dir.is_empty() { "/".into() } else { working_dir.into() },
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        mounts: mounts(container, with, &known)?,
        devices: vec![],
        security: security::resolve(spec, container, &config.user, with.selinux, with.seccomp_profile)?,
        resources: resources::of_container(spec, container, with.node_memory_bytes, None),
        log_path: with.log_path.clone(),
        annotations,
    })
}

/// A change of the container's image means another container; other fields of a running pod cannot change.
pub fn spec_hash(container: &Container) -> String {
    use sha2::{Digest as _, Sha256};
    let text = format!("{}\n{}", container.name, container.image.as_deref().unwrap_or_default());
    hex::encode(&Sha256::digest(text.as_bytes())[..8])
}

fn image_environment(image: &[String], hostname: &str, tty: bool) -> Vec<(String, String)> {
    let mut env = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("HOSTNAME".to_owned(), hostname.to_owned())];
    if tty {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    for variable in image {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        env.retain(|(other, _)| other != name);
        env.push((name.to_owned(), value.to_owned()));
    }
    env
}

/// The pod's command replaces the image's entrypoint and with it the image's arguments.
fn command(
    container: &Container,
    entrypoint: &[String],
    cmd: &[String],
    known: &BTreeMap<String, String>,
) -> Result<Vec<String>, ConfigError> {
    let expanded =
        |list: &Option<Vec<String>>| -> Vec<String> { list.iter().flatten().map(|text| expand(text, known)).collect() };
    let (own_command, own_args) = (expanded(&container.command), expanded(&container.args));
    let whole = match (own_command.is_empty(), own_args.is_empty()) {
        (false, _) => [own_command, own_args].concat(),
        (true, false) => [entrypoint.to_vec(), own_args].concat(),
        (true, true) => [entrypoint, cmd].concat(),
    };
    if whole.is_empty() {
        return Err(ConfigError("no command specified".to_owned()));
    }
    Ok(whole)
}

fn mounts(
    container: &Container,
    with: &Ingredients<'_>,
    known: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, ConfigError> {
    let plain = |source: &Path, destination: &str, read_only| Mount {
        source: source.to_owned(),
        destination: destination.into(),
        read_only,
        recursive_read_only: false,
        propagation: MountPropagation::None,
    };
    let mut all = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = with.volumes.get(&mount.name);
        let volume = volume.ok_or_else(|| ConfigError(format!("volume {:?} is not ready", mount.name)))?;
        let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => path.clone(),
            (_, Some(expression)) if !expression.is_empty() => {
                let path = expand(expression, known);
                if path.contains("$(") {
                    return Err(ConfigError(format!("subPathExpr {expression:?} refers to what is not set")));
                }
                path
            }
            _ => String::new(),
        };
        if sub_path.starts_with('/') || sub_path.split('/').any(|part| part == "..") {
            return Err(ConfigError(format!("subPath {sub_path:?} leaves the volume")));
        }
        let read_only = volume.read_only || mount.read_only == Some(true);
        all.push(Mount {
            source: if sub_path.is_empty() { volume.path.clone() } else { (with.sub_path)(&volume.path, &sub_path)? },
            destination: mount.mount_path.clone().into(),
            read_only,
            recursive_read_only: read_only
                && matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
            propagation: match mount.mount_propagation.as_deref() {
                None | Some("None") => MountPropagation::None,
                Some("HostToContainer") => MountPropagation::HostToContainer,
                Some("Bidirectional") => MountPropagation::Bidirectional,
                Some(other) => return Err(ConfigError(format!("mountPropagation {other:?} is unknown"))),
            },
        });
    }
    let taken: BTreeSet<PathBuf> = all.iter().map(|mount: &Mount| mount.destination.clone()).collect();
    let etc_read_only = container.security_context.as_ref().and_then(|own| own.read_only_root_filesystem) == Some(true);
    for (destination, source) in with.etc_files {
        if !taken.contains(Path::new(destination)) {
            all.push(plain(source, destination, etc_read_only));
        }
    }
    let message_path = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    all.push(plain(with.termination_log, message_path.unwrap_or(TERMINATION_LOG), false));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_runtimes::{ImageConfig, PodUid};
    use serde_json::json;

    fn build(container: serde_json::Value) -> Result<ContainerSpec, ConfigError> {
        let mut whole = json!({"name": "main", "image": "busybox"});
        whole.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [whole]}}),
        )
        .unwrap();
        let config = ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/image".into(), "A=image".into()],
            working_dir: "/work".into(),
            ..ImageConfig::default()
        };
        let image = Image { id: "sha256:1".into(), names: vec![], digests: vec![], size_bytes: 0, config };
        let with = Ingredients {
            id: &PodId { namespace: "ns".into(), name: "p".into(), uid: PodUid::new("u").unwrap() },
            image: &image,
            sources: &Sources::default(),
            volumes: &BTreeMap::from([("v".to_owned(), VolumePlace { path: "/data/v".into(), read_only: false })]),
            etc_files: &[("/etc/hosts", "/pod/hosts".into())],
            termination_log: Path::new("/pod/message"),
            log_path: "/log".into(),
            hostname: "p",
            node_memory_bytes: 1 << 30,
            sub_path: &|volume, path| Ok(volume.join(path)),
            selinux: false,
            seccomp_profile: &|path| Err(ConfigError(path.to_owned())),
        };
        container_spec(&pod, &pod.spec.as_ref().unwrap().containers[0], 3, &with)
    }

    #[test]
    fn the_command_is_the_pods_or_the_images() {
        for (container, expected) in [
            (json!({}), vec!["/entry", "default"]),
            (json!({"args": ["x"]}), vec!["/entry", "x"]),
            (json!({"command": ["c"]}), vec!["c"]),
            (
                json!({"command": ["c"], "args": ["$(B)", "$(NO)"], "env": [{"name": "B", "value": "b"}]}),
                vec!["c", "b", "$(NO)"],
            ),
        ] {
            assert_eq!(build(container).unwrap().args, expected);
        }
    }

    #[test]
    fn the_images_environment_lies_below_the_pods() {
        let spec = build(json!({"env": [{"name": "A", "value": "pod"}], "tty": true})).unwrap();
        let env: BTreeMap<_, _> = spec.env.into_iter().collect();
        assert_eq!((env["PATH"].as_str(), env["A"].as_str(), env["HOSTNAME"].as_str()), ("/image", "pod", "p"));
        assert_eq!((env["TERM"].as_str(), spec.working_dir, spec.attempt), ("xterm", PathBuf::from("/work"), 3));
    }

    #[test]
    fn volumes_and_files_are_mounted() {
        let spec = build(
            json!({"volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": "a", "readOnly": true}], "terminationMessagePath": "/msg"}),
        );
        let mounts: Vec<_> = spec.unwrap().mounts.into_iter().map(|m| (m.source, m.destination, m.read_only)).collect();
        let path = PathBuf::from;
        assert_eq!(
            mounts,
            [
                (path("/data/v/a"), path("/m"), true),
                (path("/pod/hosts"), path("/etc/hosts"), false),
                (path("/pod/message"), path("/msg"), false),
            ]
        );
        for bad in [json!("../x"), json!("/abs"), json!("a/../../b")] {
            assert!(
                build(json!({"volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": bad}]})).is_err(),
                "{bad}"
            );
        }
        assert!(build(json!({"volumeMounts": [{"name": "other", "mountPath": "/m"}]})).is_err());
    }
}

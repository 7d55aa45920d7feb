//! From a pod's and a container's security contexts to what the runtime is told.
//!
//! Rules: `pkg/securitycontext/util.go`, `pkg/kubelet/kuberuntime/security_context.go`. The container's word goes
//! before the pod's. What is not supported here is refused, never dropped.

use k8s_openapi::api::core::v1::{Container, PodSpec, SeccompProfile};
use kedge_runtimes::{Capabilities, Seccomp, Security, User};

use crate::env::ConfigError;

/// Resolves. `image_user` is the image's own; `seccomp_default` is what a pod gets that says nothing; `profile` reads
/// a localhost profile by its path below the node's seccomp folder. `selinux` says whether the kernel enforces SELinux:
/// where it does not, labels have no effect, as upstream's runtimes have it.
pub fn resolve(
    spec: &PodSpec,
    container: &Container,
    image_user: &str,
    selinux: bool,
    profile: &dyn Fn(&str) -> Result<serde_json::Value, ConfigError>,
) -> Result<Security, ConfigError> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    refuse_unsupported(spec, container, selinux)?;
    let privileged = own.privileged.unwrap_or(false);
    let run_as_user = own.run_as_user.or(pod.run_as_user).map(|uid| id("runAsUser", uid)).transpose()?;
    let run_as_group = own.run_as_group.or(pod.run_as_group).map(|gid| id("runAsGroup", gid)).transpose()?;
    if own.run_as_non_root.or(pod.run_as_non_root) == Some(true) {
        verify_not_root(container, run_as_user, image_user)?;
    }
    let mut groups = Vec::new();
    for group in pod.fs_group.iter().chain(pod.supplemental_groups.iter().flatten()) {
        groups.push(id("supplementalGroups", *group)?);
    }
    let capabilities = own.capabilities.unwrap_or_default();
    let capabilities =
        Capabilities { add: capabilities.add.unwrap_or_default(), drop: capabilities.drop.unwrap_or_default() };
    let admin =
        privileged || capabilities.add.iter().any(|name| matches!(name.as_str(), "CAP_SYS_ADMIN" | "SYS_ADMIN"));
    Ok(Security {
        user: match run_as_user {
            Some(uid) => User::Ids { uid, gid: run_as_group },
            None => User::Image { text: image_user.to_owned(), gid: run_as_group },
        },
        supplemental_groups: groups,
        strict_groups: pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        privileged,
        capabilities,
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !admin,
        seccomp: seccomp(own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()), profile)?,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

fn id(field: &str, value: i64) -> Result<u32, ConfigError> {
    u32::try_from(value).map_err(|_| ConfigError(format!("securityContext.{field}: {value} is not an id")))
}

fn verify_not_root(container: &Container, run_as_user: Option<u32>, image_user: &str) -> Result<(), ConfigError> {
    let name = &container.name;
    let image_name = image_user.split(':').next().unwrap_or_default();
    match (run_as_user, image_name.parse::<u32>()) {
        (Some(0), _) => Err(ConfigError("container's runAsUser breaks non-root policy".to_owned())),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => {
            Err(ConfigError(format!("container has runAsNonRoot and image will run as root (container: {name})")))
        }
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if image_name.is_empty() => {
            Err(ConfigError(format!("container has runAsNonRoot and image will run as root (container: {name})")))
        }
        (None, Err(_)) => Err(ConfigError(format!(
            "container has runAsNonRoot and image has non-numeric user ({image_name}), cannot verify user is non-root (container: {name})"
        ))),
    }
}

fn seccomp(
    profile: Option<&SeccompProfile>,
    read: &dyn Fn(&str) -> Result<serde_json::Value, ConfigError>,
) -> Result<Seccomp, ConfigError> {
    // Saying nothing is unconfined, as the kubelet's default is (seccompDefault: false).
    let Some(profile) = profile else { return Ok(Seccomp::Unconfined) };
    match profile.type_.as_str() {
        "Unconfined" => Ok(Seccomp::Unconfined),
        "RuntimeDefault" => Ok(Seccomp::RuntimeDefault),
        "Localhost" => {
            let path = profile.localhost_profile.as_deref().unwrap_or_default();
            Ok(Seccomp::Profile(read(path)?))
        }
        other => Err(ConfigError(format!("securityContext.seccompProfile.type {other:?} is unknown"))),
    }
}

fn refuse_unsupported(spec: &PodSpec, container: &Container, selinux: bool) -> Result<(), ConfigError> {
    let pod = spec.security_context.as_ref();
    let own = container.security_context.as_ref();
    let labels =
        own.is_some_and(|own| own.se_linux_options.is_some()) || pod.is_some_and(|pod| pod.se_linux_options.is_some());
    let armor =
        own.and_then(|own| own.app_armor_profile.as_ref()).or(pod.and_then(|pod| pod.app_armor_profile.as_ref()));
    let refused = if spec.host_users == Some(false) {
        "spec.hostUsers: false (user namespaces)"
    } else if labels && selinux {
        "securityContext.seLinuxOptions"
    } else if armor.is_some_and(|profile| profile.type_ == "Localhost") {
        "securityContext.appArmorProfile of type Localhost"
    } else {
        return Ok(());
    };
    Err(ConfigError(format!("{refused} is not supported on this node")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(pod: serde_json::Value, own: serde_json::Value, image_user: &str) -> Result<Security, ConfigError> {
        let spec: PodSpec = serde_json::from_value(
            json!({"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}),
        )
        .unwrap();
        let read = |path: &str| match path {
            "ok.json" => Ok(json!({"defaultAction": "SCMP_ACT_ALLOW"})),
            other => Err(ConfigError(format!("no profile {other}"))),
        };
        resolve(&spec, &spec.containers[0], image_user, true, &read)
    }

    #[test]
    fn the_containers_word_goes_first() {
        let got = run(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 5, "supplementalGroups": [6]}),
            json!({"runAsUser": 3}),
            "x",
        )
        .unwrap();
        assert_eq!(got.user, User::Ids { uid: 3, gid: Some(2) });
        assert_eq!(got.supplemental_groups, [5, 6]);
        let got = run(json!({}), json!({}), "web:web").unwrap();
        assert_eq!(got.user, User::Image { text: "web:web".into(), gid: None });
        assert_eq!(got.seccomp, Seccomp::Unconfined);
        let got = run(json!({"seccompProfile": {"type": "RuntimeDefault"}}), json!({}), "").unwrap();
        assert_eq!(got.seccomp, Seccomp::RuntimeDefault);
        let got = run(json!({}), json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "ok.json"}}), "")
            .unwrap();
        assert!(matches!(got.seccomp, Seccomp::Profile(_)));
    }

    #[test]
    fn privileges_are_not_gained_unless_held_already() {
        assert!(run(json!({}), json!({"allowPrivilegeEscalation": false}), "").unwrap().no_new_privileges);
        assert!(!run(json!({}), json!({}), "").unwrap().no_new_privileges);
        let admin = json!({"allowPrivilegeEscalation": false, "capabilities": {"add": ["SYS_ADMIN"]}});
        assert!(!run(json!({}), admin, "").unwrap().no_new_privileges);
    }

    #[test]
    fn what_may_not_or_cannot_be_is_refused() {
        for (pod, own, image_user, expected) in [
            (json!({"runAsNonRoot": true}), json!({}), "", "image will run as root"),
            (json!({"runAsNonRoot": true}), json!({}), "0:0", "image will run as root"),
            (json!({"runAsNonRoot": true}), json!({}), "web", "non-numeric user (web)"),
            (json!({}), json!({"runAsNonRoot": true, "runAsUser": 0}), "5", "breaks non-root policy"),
            (json!({}), json!({"seLinuxOptions": {"level": "s0"}}), "", "seLinuxOptions is not supported"),
            (
                json!({}),
                json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "gone"}}),
                "",
                "no profile gone",
            ),
        ] {
            let error = run(pod, own, image_user).unwrap_err().0;
            assert!(error.contains(expected), "{error}");
        }
        let labelled: PodSpec = serde_json::from_value(
            json!({"containers": [{"name": "c"}], "securityContext": {"seLinuxOptions": {"level": "s0"}}}),
        )
        .unwrap();
        let read = |_: &str| Err(ConfigError("none".to_owned()));
        assert!(resolve(&labelled, &labelled.containers[0], "", false, &read).is_ok());
        assert!(run(json!({"runAsNonRoot": true}), json!({}), "1000").is_ok());
        assert!(run(json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), "").is_ok());
    }
}

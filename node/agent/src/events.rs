//! What is told of pods and of the node, in the kubelet's words. No I/O.
//!
//! Rules: `pkg/kubelet/events/event.go`, `pkg/kubelet/kuberuntime/kuberuntime_container.go`,
//! `pkg/kubelet/images/image_manager.go`, `pkg/kubelet/prober/prober.go`. Writing is [`kedge_client::events`].

use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kedge_client::events::Told;

use crate::plan::Problem;
use crate::probe::{Answer, ProbeKind};

/// Something worth an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// The image was there.
    ImagePresent {
        /// As the pod names it.
        image: String,
    },
    /// A registry is asked for the image.
    Pulling {
        /// As the pod names it.
        image: String,
    },
    /// It came.
    Pulled {
        /// As the pod names it.
        image: String,
        /// After this long.
        took: Duration,
        /// This large.
        size_bytes: u64,
    },
    /// It did not.
    PullFailed {
        /// As the pod names it.
        image: String,
        /// Why.
        error: String,
    },
    /// The image is waited for before it is tried again.
    PullBackOff {
        /// As the pod names it.
        image: String,
    },
    /// The image is not here, and may not be pulled.
    NeverPulled {
        /// A sentence.
        message: String,
    },
    /// The image cannot be looked for.
    InspectFailed {
        /// A sentence.
        message: String,
    },
    /// Secrets with logins for registries cannot be read.
    NoPullSecrets {
        /// Their names.
        names: Vec<String>,
    },
    /// A container was made.
    Created,
    /// A container was started.
    Started,
    /// A container has no image, cannot be made or cannot be started.
    NotStarted {
        /// Why: a word or a sentence.
        error: String,
    },
    /// A container that keeps failing waits before it runs again.
    RestartBackOff {
        /// Its name.
        container: String,
        /// Its pod, as people write it: `name_namespace(uid)`.
        pod: String,
    },
    /// A container is being stopped.
    Killing {
        /// Its name.
        container: String,
        /// Why.
        because: Ending,
    },
    /// A probe was answered with no.
    ProbeFailed {
        /// Which.
        kind: ProbeKind,
        /// The answer.
        output: String,
    },
    /// A probe could not be carried out.
    ProbeErrored {
        /// Which.
        kind: ProbeKind,
        /// Why.
        error: String,
    },
    /// A probe succeeded, in a way that somebody should look at.
    ProbeWarning {
        /// Which.
        kind: ProbeKind,
        /// The answer.
        output: String,
    },
    /// The postStart hook failed. What it said stays in the node's log: it may hold secrets.
    PostStartFailed,
    /// The preStop hook failed.
    PreStopFailed,
    /// A hook that asks over HTTPS was answered in plain HTTP, and is asked again so.
    HookFellBack,
    /// A volume cannot be made.
    MountFailed {
        /// A sentence.
        message: String,
    },
    /// Network or sandbox cannot be made.
    SandboxFailed {
        /// Why.
        error: String,
    },
    /// The sandbox went away under a pod that goes on.
    SandboxChanged,
    /// What a pod leaves behind cannot be taken away yet.
    TearDownFailed {
        /// Why.
        error: String,
    },
    /// The pod was active for longer than it may be.
    Overdue {
        /// A word and a sentence.
        problem: Problem,
    },
    /// The node does not take the pod.
    Rejected {
        /// A word and a sentence.
        problem: Problem,
    },
    /// The agent begins.
    NodeStarting,
    /// The node's readiness changed.
    NodeStatus {
        /// Its name.
        node: String,
        /// Whether it is ready now.
        ready: bool,
    },
    /// The namespace of the pods' network was removed.
    NetworkGone {
        /// The file that pinned it.
        namespace: std::path::PathBuf,
    },
    /// The node's disks fill or empty.
    DiskPressure {
        /// Its name.
        node: String,
        /// Whether they are nearly full now.
        holds: bool,
    },
}

/// Why a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its pod ends.
    Pod,
    /// A probe condemned it.
    Probe(ProbeKind),
    /// Its postStart hook failed.
    PostStart,
    /// Its spec changed.
    Changed,
    /// Nothing takes its output any more.
    LogLost,
}

impl Happening {
    /// The event: whether it is a warning, its reason, its message.
    pub fn words(&self) -> (bool, String, String) {
        let (warning, reason, message) = match self {
            Self::ImagePresent { image } => (
                false,
                "Pulled",
                format!("Container image {image:?} already present on machine and can be accessed by the pod"),
            ),
            Self::Pulling { image } => (false, "Pulling", format!("Pulling image {image:?}")),
            Self::Pulled { image, took, size_bytes } => {
                // Nothing waits for another pull here: both times are the same.
                let took = go_duration(*took);
                let text = format!(
                    "Successfully pulled image {image:?} in {took} ({took} including waiting). Image size: {size_bytes} bytes."
                );
                (false, "Pulled", text)
            }
            Self::PullFailed { image, error } => (true, "Failed", format!("Failed to pull image {image:?}: {error}")),
            Self::PullBackOff { image } => (false, "BackOff", format!("Back-off pulling image {image:?}")),
            Self::NeverPulled { message } => (true, "ErrImageNeverPull", message.clone()),
            Self::InspectFailed { message } => (true, "InspectFailed", message.clone()),
            Self::NoPullSecrets { names } => {
                let names = names.join(", ");
                let text = format!(
                    "Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed."
                );
                (true, "FailedToRetrieveImagePullSecret", text)
            }
            Self::Created => (false, "Created", "Container created".to_owned()),
            Self::Started => (false, "Started", "Container started".to_owned()),
            Self::NotStarted { error } => (true, "Failed", format!("Error: {error}")),
            Self::RestartBackOff { container, pod } => {
                (true, "BackOff", format!("Back-off restarting failed container {container} in pod {pod}"))
            }
            Self::Killing { container, because } => (false, "Killing", because.words(container)),
            Self::ProbeFailed { kind, output } => {
                (true, "Unhealthy", format!("{} probe failed: {output}", kind.as_str()))
            }
            Self::ProbeErrored { kind, error } => {
                (true, "Unhealthy", format!("{} probe errored and resulted in unknown state: {error}", kind.as_str()))
            }
            Self::ProbeWarning { kind, output } => {
                (true, "ProbeWarning", format!("{} probe warning: {output}", kind.as_str()))
            }
            Self::PostStartFailed => (true, "FailedPostStartHook", "PostStartHook failed".to_owned()),
            Self::PreStopFailed => (true, "FailedPreStopHook", "PreStopHook failed".to_owned()),
            Self::HookFellBack => {
                let text = "request to HTTPS lifecycle hook got HTTP response, retrying with HTTP";
                (true, "LifecycleHTTPFallback", text.to_owned())
            }
            Self::MountFailed { message } => (true, "FailedMount", message.clone()),
            Self::SandboxFailed { error } => {
                (true, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"))
            }
            Self::SandboxChanged => {
                (false, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.".to_owned())
            }
            Self::TearDownFailed { error } => (true, "FailedKillPod", format!("error killing pod: {error}")),
            Self::Overdue { problem } => (false, problem.reason.as_str(), problem.message.clone()),
            Self::Rejected { problem } => (true, problem.reason.as_str(), problem.message.clone()),
            Self::NodeStarting => (false, "Starting", "Starting kubelet.".to_owned()),
            Self::NodeStatus { node, ready } => {
                let reason = if *ready { "NodeReady" } else { "NodeNotReady" };
                (false, reason, format!("Node {node} status is now: {reason}"))
            }
            Self::NetworkGone { namespace } => {
                (true, "NetworkNamespaceGone", crate::node::gone_words(&namespace.display().to_string()))
            }
            Self::DiskPressure { node, holds } => {
                let reason = if *holds { "NodeHasDiskPressure" } else { "NodeHasNoDiskPressure" };
                (false, reason, format!("Node {node} status is now: {reason}"))
            }
        };
        (warning, reason.to_owned(), message)
    }

    /// The event about a pod, or about one of its containers.
    pub fn about(&self, pod: &Pod, container: Option<&str>) -> Told {
        let meta = &pod.metadata;
        self.told(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: container.map(|name| field_path(pod, name)),
        })
    }

    /// The event about the node. Its uid is its name, as the kubelet has it; `kubectl describe node` looks for both.
    pub fn about_node(&self, name: &str) -> Told {
        let (kind, name) = (Some("Node".to_owned()), Some(name.to_owned()));
        self.told(ObjectReference { kind, uid: name.clone(), name, ..ObjectReference::default() })
    }

    fn told(&self, about: ObjectReference) -> Told {
        let (warning, reason, message) = self.words();
        Told { about, warning, reason, message, action: None }
    }
}

impl Ending {
    fn words(self, container: &str) -> String {
        match self {
            Self::Pod => format!("Stopping container {container}"),
            Self::Probe(kind) => {
                let kind = kind.as_str().to_lowercase();
                format!("Container {container} failed {kind} probe, will be restarted")
            }
            Self::PostStart => "FailedPostStartHook".to_owned(),
            Self::Changed => format!("Container {container} definition changed, will be restarted"),
            Self::LogLost => format!("Container {container} lost the process that writes its log, will be restarted"),
        }
    }
}

/// What follows from an image that is not there.
pub fn without_image(image: &str, problem: &Problem) -> Vec<Happening> {
    let (image, message) = (image.to_owned(), problem.message.clone());
    let error = |word: &str| Happening::NotStarted { error: word.to_owned() };
    match problem.reason.as_str() {
        "ErrImagePull" => {
            vec![error("ErrImagePull"), Happening::PullBackOff { image }, error("ImagePullBackOff")]
        }
        "ErrImageNeverPull" => vec![Happening::NeverPulled { message }, error("ErrImageNeverPull")],
        word @ ("InvalidImageName" | "ImageInspectError") => vec![Happening::InspectFailed { message }, error(word)],
        other => vec![error(other)],
    }
}

/// What follows from volumes, network or sandbox that cannot be made.
pub fn without_sandbox(problem: &Problem) -> Happening {
    match problem.reason.as_str() {
        "FailedMount" => Happening::MountFailed { message: problem.message.clone() },
        _ => Happening::SandboxFailed { error: problem.message.clone() },
    }
}

/// What of a probe's answer is worth an event.
pub fn of_probe(kind: ProbeKind, answer: &Answer) -> Option<Happening> {
    match answer.clone() {
        Answer::Success => None,
        Answer::Warning(output) => Some(Happening::ProbeWarning { kind, output }),
        Answer::Failure(output) => Some(Happening::ProbeFailed { kind, output }),
        Answer::Unknown(error) => Some(Happening::ProbeErrored { kind, error }),
    }
}

/// Where a pod's spec has a container (`fieldPath` of `pkg/kubelet/container/ref.go`).
fn field_path(pod: &Pod, container: &str) -> String {
    let inits = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let list = if inits.into_iter().any(|init| init.name == container) { "initContainers" } else { "containers" };
    format!("spec.{list}{{{container}}}")
}

/// A pod as the kubelet's messages name it (`format.Pod`).
pub fn pod_words(pod: &Pod) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!("{}_{}({})", text(&meta.name), text(&meta.namespace), text(&meta.uid))
}

/// As Go prints durations in milliseconds: 313ms, 1.594s, 1m2.3s, 1h0m5s.
fn go_duration(time: Duration) -> String {
    let (seconds, millis) = (time.as_secs(), time.subsec_millis());
    if seconds == 0 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let fraction = if millis == 0 { String::new() } else { format!(".{millis:03}") };
    let rest = format!("{}{}s", seconds % 60, fraction.trim_end_matches('0'));
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => rest,
        (0, minutes) => format!("{minutes}m{rest}"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_told_in_the_kubelets_words() {
        let (image, container) = (|| "busybox:1".to_owned(), || "c".to_owned());
        let killing = |because| Happening::Killing { container: container(), because };
        let problem = |reason: &str| Problem { reason: reason.into(), message: "m".into() };
        for (happening, warning, reason, message) in [
            (
                Happening::ImagePresent { image: image() },
                false,
                "Pulled",
                "Container image \"busybox:1\" already present on machine and can be accessed by the pod",
            ),
            (Happening::Pulling { image: image() }, false, "Pulling", "Pulling image \"busybox:1\""),
            (
                Happening::Pulled { image: image(), took: Duration::from_millis(1594), size_bytes: 7 },
                false,
                "Pulled",
                "Successfully pulled image \"busybox:1\" in 1.594s (1.594s including waiting). Image size: 7 bytes.",
            ),
            (
                Happening::PullFailed { image: image(), error: "no".into() },
                true,
                "Failed",
                "Failed to pull image \"busybox:1\": no",
            ),
            (Happening::PullBackOff { image: image() }, false, "BackOff", "Back-off pulling image \"busybox:1\""),
            (
                Happening::NoPullSecrets { names: vec!["a".into(), "b".into()] },
                true,
                "FailedToRetrieveImagePullSecret",
                "Unable to retrieve some image pull secrets (a, b); attempting to pull the image may not succeed.",
            ),
            (Happening::Created, false, "Created", "Container created"),
            (Happening::Started, false, "Started", "Container started"),
            (Happening::NotStarted { error: "ErrImagePull".into() }, true, "Failed", "Error: ErrImagePull"),
            (
                Happening::RestartBackOff { container: container(), pod: "p_ns(u)".into() },
                true,
                "BackOff",
                "Back-off restarting failed container c in pod p_ns(u)",
            ),
            (killing(Ending::Pod), false, "Killing", "Stopping container c"),
            (
                killing(Ending::Probe(ProbeKind::Liveness)),
                false,
                "Killing",
                "Container c failed liveness probe, will be restarted",
            ),
            (killing(Ending::PostStart), false, "Killing", "FailedPostStartHook"),
            (killing(Ending::Changed), false, "Killing", "Container c definition changed, will be restarted"),
            (
                Happening::ProbeFailed { kind: ProbeKind::Readiness, output: "o".into() },
                true,
                "Unhealthy",
                "Readiness probe failed: o",
            ),
            (
                Happening::ProbeErrored { kind: ProbeKind::Startup, error: "e".into() },
                true,
                "Unhealthy",
                "Startup probe errored and resulted in unknown state: e",
            ),
            (
                Happening::ProbeWarning { kind: ProbeKind::Liveness, output: "o".into() },
                true,
                "ProbeWarning",
                "Liveness probe warning: o",
            ),
            (Happening::PostStartFailed, true, "FailedPostStartHook", "PostStartHook failed"),
            (Happening::PreStopFailed, true, "FailedPreStopHook", "PreStopHook failed"),
            (Happening::Overdue { problem: problem("DeadlineExceeded") }, false, "DeadlineExceeded", "m"),
            (Happening::Rejected { problem: problem("OutOfcpu") }, true, "OutOfcpu", "m"),
            (
                Happening::NodeStatus { node: "n1".into(), ready: true },
                false,
                "NodeReady",
                "Node n1 status is now: NodeReady",
            ),
            (without_sandbox(&problem("FailedMount")), true, "FailedMount", "m"),
            (without_sandbox(&problem("x")), true, "FailedCreatePodSandBox", "Failed to create pod sandbox: m"),
        ] {
            assert_eq!(happening.words(), (warning, reason.to_owned(), message.to_owned()));
        }
    }

    #[test]
    fn a_missing_image_is_told_by_what_is_wrong() {
        let told = |reason: &str| -> Vec<String> {
            let problem = Problem { reason: reason.into(), message: "m".into() };
            let words = |happening: Happening| format!("{}: {}", happening.words().1, happening.words().2);
            without_image("i", &problem).into_iter().map(words).collect()
        };
        assert_eq!(
            told("ErrImagePull"),
            ["Failed: Error: ErrImagePull", "BackOff: Back-off pulling image \"i\"", "Failed: Error: ImagePullBackOff"]
        );
        assert_eq!(told("ErrImageNeverPull"), ["ErrImageNeverPull: m", "Failed: Error: ErrImageNeverPull"]);
        assert_eq!(told("InvalidImageName"), ["InspectFailed: m", "Failed: Error: InvalidImageName"]);
    }

    #[test]
    fn an_event_names_its_object_and_the_container_in_it() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "5"},
            "spec": {"containers": [{"name": "c"}], "initContainers": [{"name": "i"}]},
        }))
        .unwrap();
        let path = |container| Happening::Created.about(&pod, container).about.field_path;
        assert_eq!(path(Some("c")).as_deref(), Some("spec.containers{c}"));
        assert_eq!(path(Some("i")).as_deref(), Some("spec.initContainers{i}"));
        assert_eq!(path(None), None);
        let about = Happening::Created.about(&pod, None).about;
        assert_eq!((about.kind.as_deref(), about.uid.as_deref()), (Some("Pod"), Some("u")));
        let about = Happening::NodeStarting.about_node("n1").about;
        assert_eq!((about.kind.as_deref(), about.uid.as_deref(), about.namespace), (Some("Node"), Some("n1"), None));
        assert_eq!(pod_words(&pod), "p_ns(u)");
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (millis, expected) in
            [(0, "0s"), (313, "313ms"), (1594, "1.594s"), (62_300, "1m2.3s"), (3_605_000, "1h0m5s"), (9000, "9s")]
        {
            assert_eq!(go_duration(Duration::from_millis(millis)), expected);
        }
    }
}

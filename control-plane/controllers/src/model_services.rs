//! `ModelService`: a Deployment of pods that serve a model, behind a Service of the same name.
//!
//! Both are made by server-side apply, so what others add to them stays; both are owned by the ModelService, so they go
//! with it. The pods run the image that is made from this program, with the model's files mounted read-only.
//!
//! Not here: the model's files (`edge-sync/models`), and several variants of a service.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use kedge_client::events::Told;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kedge_own::{Model, ModelService, ModelServiceStatus, set_condition, turned};
use kube::api::{Patch, PatchParams};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::write::{self, Namespaced, api, revision};

/// The label that pods carry, and the selector of Deployment and Service.
pub(crate) const LABEL: &str = "kedge.dev/modelservice";
/// The port that the program listens on in its pod.
pub(crate) const PORT: u16 = 8000;
/// How long a pod has for what it took in, and then to end by itself.
const DRAIN_SECONDS: u32 = 25;
const END_SECONDS: u32 = 10;
/// The user of the pods; nobody's, as distroless images have it.
const USER: i64 = 65532;
/// Field manager of what is applied.
const MANAGER: &str = "modelservice-controller";

/// Gives the image that serves models.
#[async_trait]
pub trait ServingImage: Send + Sync + 'static {
    /// Makes sure that the node has the image, and names it; or says why it cannot be had now.
    async fn ensure(&self) -> Result<String, String>;
}

/// What the controller must be told.
#[derive(Clone)]
pub struct Serving {
    /// The folder of models that are active: `<digits of the digest>/files`.
    pub model_store: PathBuf,
    /// The image.
    pub image: Arc<dyn ServingImage>,
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("model_store", &self.model_store).finish_non_exhaustive()
    }
}

pub(crate) struct Controller(pub(crate) Serving);

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        MANAGER
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<ModelService>(trigger);
        context.watch_owned::<Deployment, ModelService>(trigger);
        context.watch_owned::<Service, ModelService>(trigger);
        let services = context.informers.of::<ModelService>();
        context.watch::<Model>(trigger, move |change| {
            let model = Key::of(&**change.latest());
            let all = services.list().into_iter();
            let users =
                all.filter(|service| Key::new(&service.namespace().unwrap_or_default(), &service.spec.model) == model);
            users.map(|service| Key::of(&*service)).collect()
        });
        context.watch::<Pod>(trigger, |change| {
            let pod = change.latest();
            let name = pod.labels().get(LABEL);
            name.map(|name| Key::new(&pod.namespace().unwrap_or_default(), name)).into_iter().collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let informers = &context.informers;
        let Some(service) = informers.of::<ModelService>().get(key) else { return Ok(Next::Change) };
        if service.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let model = informers.of::<Model>().get(&Key::new(&key.namespace, &service.spec.model));
        let deployment = informers.of::<Deployment>().get(key);
        let front = informers.of::<Service>().get(key);
        let outcome = match wanted(&service, model.as_deref(), deployment.as_deref(), front.as_deref()) {
            Ok(digest) => match self.0.image.ensure().await {
                Ok(image) => {
                    // That may have waited for the node.
                    let (deployment, front) =
                        (informers.of::<Deployment>().get(key), informers.of::<Service>().get(key));
                    let made = objects(&service, &self.0.model_store, digest, &image);
                    let applied = async {
                        apply::<Deployment>(context, &made.deployment, deployment.as_deref()).await?;
                        apply::<Service>(context, &made.service, front.as_deref()).await
                    };
                    match applied.await.map_err(refusal) {
                        Ok(()) => {
                            // As it was applied: what was so before says nothing of what is asked for now.
                            let deployment = informers.of::<Deployment>().get(key);
                            let pods = informers.of::<Pod>().list();
                            let own = pods.iter().filter(|pod| pod.namespace().as_deref() == Some(&key.namespace));
                            let own = own.filter(|pod| pod.labels().get(LABEL) == Some(&key.name));
                            progress(&service, digest, deployment.as_deref(), own.map(|pod| &**pod))
                        }
                        Err(Ok(refused)) => Outcome::waiting("Refused", &refused),
                        Err(Err(error)) => return Err(error),
                    }
                }
                Err(reason) => Outcome::waiting("ImageNotReady", &reason),
            },
            Err(outcome) => outcome,
        };
        let next = status(&service, &outcome, deployment.as_deref(), context.world.clock.wall());
        if service.status.as_ref() != Some(&next) {
            let told = event(&service, &next);
            let mut changed = (*service).clone();
            changed.status = Some(next);
            write::replace_status(context, &changed).await?;
            told.into_iter().for_each(|told| context.recorder(MANAGER).tell(told));
        }
        Ok(outcome.next)
    }
}

/// What is so, for the object's condition.
#[derive(Debug, PartialEq)]
struct Outcome {
    ready: bool,
    reason: &'static str,
    message: String,
    digest: Option<String>,
    next: Next,
}

impl Outcome {
    fn waiting(reason: &'static str, message: &str) -> Self {
        let next = match reason {
            "ImageNotReady" => Next::After(Duration::from_secs(5)),
            // Somebody else's quota or policy may be what refuses it.
            "Refused" => Next::After(Duration::from_secs(30)),
            _ => Next::Change,
        };
        Self { ready: false, reason, message: message.to_owned(), digest: None, next }
    }
}

/// What the API server says of an object that it does not take; or the error, when trying again is all there is to do.
fn refusal(error: kube::Error) -> Result<String, kube::Error> {
    match &error {
        kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) && !write::is_ending(&error) => {
            Ok(status.message.clone())
        }
        _ => Err(error),
    }
}

/// The digest of the model that should be served now; or why nothing can be done yet.
fn wanted<'a>(
    service: &ModelService,
    model: Option<&'a Model>,
    deployment: Option<&Deployment>,
    front: Option<&Service>,
) -> Result<&'a str, Outcome> {
    let foreign = |kind: &str| {
        let message = format!("a {kind} named {} exists and belongs to somebody else", service.name_any());
        Err(Outcome::waiting("NameTaken", &message))
    };
    if deployment.is_some_and(|object| !belongs(object, service)) {
        return foreign("Deployment");
    }
    if front.is_some_and(|object| !belongs(object, service)) {
        return foreign("Service");
    }
    let name = &service.spec.model;
    let Some(model) = model else {
        return Err(Outcome::waiting("ModelNotFound", &format!("there is no Model {name} in this namespace")));
    };
    let ready = model.status.as_ref().filter(|status| status.is_ready());
    match ready.and_then(|status| status.digest.as_deref()) {
        Some(digest) => Ok(digest),
        None => {
            let conditions = model.status.iter().flat_map(|status| &status.conditions);
            let mut why =
                conditions.filter(|condition| condition.type_ == "Ready").map(|condition| &*condition.message);
            let why = why.next_back().unwrap_or("it has not been looked at yet");
            Err(Outcome::waiting("ModelNotReady", &format!("the Model {name} is not ready: {why}")))
        }
    }
}

fn belongs<K: Resource>(object: &K, service: &ModelService) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    owners.into_iter().any(|owner| Some(&owner.uid) == service.metadata.uid.as_ref())
}

/// How far the pods are.
fn progress<'a>(
    service: &ModelService,
    digest: &str,
    deployment: Option<&Deployment>,
    pods: impl Iterator<Item = &'a Pod>,
) -> Outcome {
    let wanted = service.spec.replicas.unwrap_or(1);
    let status = deployment.and_then(|deployment| deployment.status.as_ref());
    let seen = deployment.and_then(|deployment| deployment.metadata.generation)
        == status.and_then(|status| status.observed_generation);
    let count = |of: Option<i32>| of.unwrap_or(0);
    let ready = status.map_or(0, |status| count(status.ready_replicas));
    let updated = status.map_or(0, |status| count(status.updated_replicas));
    let done = seen && ready >= wanted && updated >= wanted;
    let outcome = |ready, reason, message| Outcome {
        ready,
        reason,
        message,
        digest: Some(digest.to_owned()),
        next: Next::Change,
    };
    if done && wanted == 0 {
        return outcome(true, "ScaledToZero", "no pods are asked for (spec.replicas)".to_owned());
    }
    if done {
        return outcome(true, "Available", format!("{ready} of {wanted} pods answer"));
    }
    // What a pod that is there suffers from tells more than one that has ended and was replaced.
    match pods.filter_map(trouble).max_by_key(|trouble| trouble.weight) {
        Some(trouble) => outcome(false, trouble.reason, trouble.message),
        None => outcome(false, "Progressing", format!("{} of {wanted} pods answer", ready.min(updated))),
    }
}

/// What keeps a pod from serving.
#[derive(Debug, PartialEq)]
struct Trouble {
    /// Among several pods the heaviest is told.
    weight: u8,
    reason: &'static str,
    message: String,
}

/// What keeps a pod from serving, in its own words.
fn trouble(pod: &Pod) -> Option<Trouble> {
    let name = pod.name_any();
    let status = pod.status.as_ref().filter(|_| pod.metadata.deletion_timestamp.is_none())?;
    let told = |weight, reason, text: String| Some(Trouble { weight, reason, message: format!("pod {name}: {text}") });
    if status.phase.as_deref() == Some("Failed") {
        let said = [&status.reason, &status.message].map(|text| text.as_deref().unwrap_or_default());
        let said = said.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(": ");
        return told(0, "PodsFailing", if said.is_empty() { "it has failed".to_owned() } else { said });
    }
    let unplaced = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unplaced {
        return told(1, "PodsPending", condition.message.clone().unwrap_or_else(|| "no node takes it".to_owned()));
    }
    for container in status.container_statuses.iter().flatten().filter(|container| !container.ready) {
        let state = container.state.as_ref();
        let waiting = state.and_then(|state| state.waiting.as_ref());
        let waiting = waiting.and_then(|waiting| Some((waiting.reason.as_deref()?, waiting.message.as_deref())));
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let ended = state.and_then(|state| state.terminated.as_ref()).or(last);
        if let Some(ended) = ended {
            let waits = waiting.map(|(reason, _)| format!("{reason}: ")).unwrap_or_default();
            let reason = if is_oom(ended) { "PodsOOMKilled" } else { "PodsCrashing" };
            let restarts = container.restart_count;
            let end = end(ended, memory_limit(pod, &container.name));
            return told(2, reason, format!("{waits}{} ended with {end} ({restarts} restarts)", container.name));
        }
        if let Some((reason, message)) = waiting.filter(|(reason, _)| *reason != "ContainerCreating") {
            return told(1, "PodsFailing", format!("{reason}: {}", message.unwrap_or_default()));
        }
    }
    None
}

fn is_oom(ended: &ContainerStateTerminated) -> bool {
    ended.reason.as_deref() == Some("OOMKilled")
}

/// How a container ended, with the last line that it said.
fn end(ended: &ContainerStateTerminated, memory: Option<&Quantity>) -> String {
    let mut text = format!("{}, exit code {}", ended.reason.as_deref().unwrap_or("an error"), ended.exit_code);
    if is_oom(ended) {
        text += &match memory {
            Some(limit) => format!(": it needs more memory than spec.resources.limits.memory, which is {}", limit.0),
            None => ": the node has not enough memory".to_owned(),
        };
    } else if let Some(line) = ended.message.as_deref().and_then(|said| said.trim().lines().last()) {
        text += &format!(": {line}");
    }
    text
}

fn memory_limit<'a>(pod: &'a Pod, container: &str) -> Option<&'a Quantity> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let resources = containers.filter(|c| c.name == container).find_map(|c| c.resources.as_ref())?;
    resources.limits.as_ref()?.get("memory")
}

/// What to tell of a service that gets this status: whether it answers, when that has turned. What only takes its time is
/// no trouble, and what is wrong with a Model is told of the Model.
fn event(service: &ModelService, after: &ModelServiceStatus) -> Option<Told> {
    let before = service.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let ready = turned("Ready", before, &after.conditions)?;
    let awaited = ["Progressing", "ImageNotReady", "ModelNotReady"].contains(&&*ready.reason);
    (!awaited).then(|| Told::of(service, ready.status == "False", &ready.reason, ready.message.clone()))
}

fn status(
    service: &ModelService,
    outcome: &Outcome,
    deployment: Option<&Deployment>,
    now: Timestamp,
) -> ModelServiceStatus {
    let mut status = service.status.clone().unwrap_or_default();
    let generation = service.metadata.generation;
    status.observed_generation = generation;
    let own = deployment.filter(|deployment| belongs(*deployment, service));
    let counts = own.and_then(|deployment| deployment.status.as_ref());
    status.replicas = counts.and_then(|counts| counts.replicas).unwrap_or(0);
    status.ready_replicas = counts.and_then(|counts| counts.ready_replicas).unwrap_or(0);
    status.pods = Some(format!("{}/{}", status.ready_replicas, service.spec.replicas.unwrap_or(1)));
    status.selector = Some(format!("{LABEL}={}", service.name_any()));
    if status.ready_replicas == 0 {
        // Nobody is asked then.
        (status.tokens_per_second, status.queue) = (None, None);
    }
    let port = service.spec.port.unwrap_or(80);
    let host = format!("{}.{}.svc", service.name_any(), service.namespace().unwrap_or_default());
    let url = if port == 80 { format!("http://{host}") } else { format!("http://{host}:{port}") };
    // Somebody else may answer there.
    status.url = (outcome.reason != "NameTaken").then_some(url);
    if outcome.digest.is_some() {
        status.digest.clone_from(&outcome.digest);
    }
    let message = match status.ready_replicas {
        // How many answer is all that it says then.
        _ if outcome.ready || outcome.reason == "Progressing" => outcome.message.clone(),
        0 => outcome.message.clone(),
        1 => format!("{}; 1 pod goes on answering", outcome.message),
        ready => format!("{}; {ready} pods go on answering", outcome.message),
    };
    set_condition(&mut status.conditions, ("Ready", outcome.ready), (outcome.reason, &message), generation, now);
    status
}

struct Made {
    deployment: Value,
    service: Value,
}

/// The objects that serve `digest`.
fn objects(service: &ModelService, store: &std::path::Path, digest: &str, image: &str) -> Made {
    let name = service.name_any();
    let digits = digest.trim_start_matches("sha256:");
    let owner = json!([{
        "apiVersion": kedge_own::API_VERSION, "kind": "ModelService", "name": name,
        "uid": service.uid().unwrap_or_default(), "controller": true, "blockOwnerDeletion": true,
    }]);
    let labels = json!({ "app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "kedge", LABEL: name });
    let metadata = json!({
        "name": name, "namespace": service.namespace().unwrap_or_default(), "labels": labels, "ownerReferences": owner,
    });
    let probe = |path: &str, delay: i32, period: i32, failures: i32| {
        json!({
            "httpGet": { "path": path, "port": "http" },
            "initialDelaySeconds": delay, "periodSeconds": period, "failureThreshold": failures,
        })
    };
    let mut container = json!({
        "name": "infer", "image": image, "imagePullPolicy": "Never",
        "args": [
            "infer", "--model", "/model", "--name", service.spec.model, "--listen", format!("0.0.0.0:{PORT}"),
            "--cache-dir", "/cache", "--drain-timeout", DRAIN_SECONDS.to_string(),
        ],
        // Where a driver keeps what it made of the kernels.
        "env": [{ "name": "CUDA_CACHE_PATH", "value": "/cache/cuda" }],
        "ports": [{ "name": "http", "containerPort": PORT, "protocol": "TCP" }],
        // Most models are ready within a second, and a question before that would be a warning. A large one on a slow disk
        // may take an hour: it lives while it is opened, and is not ready.
        "readinessProbe": probe("/health", 1, 2, 8), "livenessProbe": probe("/v2/health/live", 10, 10, 6),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": [
            { "name": "model", "mountPath": "/model", "readOnly": true }, { "name": "cache", "mountPath": "/cache" },
        ],
    });
    if let Some(resources) = &service.spec.resources {
        container["resources"] = serde_json::to_value(resources).expect("resources are plain data");
    }
    let pod = json!({
        "metadata": { "labels": labels, "annotations": { kedge_own::MODEL_DIGEST: digest } },
        "spec": {
            "automountServiceAccountToken": false, "enableServiceLinks": false,
            "terminationGracePeriodSeconds": DRAIN_SECONDS + END_SECONDS,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [container],
            "volumes": [
                {
                    "name": "model",
                    "hostPath": { "path": store.join(digits).join("files"), "type": "Directory" },
                },
                // Weights in the order the processor wants: kept from one start of the container to the next.
                { "name": "cache", "emptyDir": {} },
            ],
        },
    });
    let selector = json!({ LABEL: name });
    let ports =
        json!([{ "name": "http", "port": service.spec.port.unwrap_or(80), "targetPort": "http", "protocol": "TCP" }]);
    Made {
        deployment: json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {
                "replicas": service.spec.replicas.unwrap_or(1), "selector": { "matchLabels": selector }, "template": pod,
            },
        }),
        service: json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": { "selector": selector, "ports": ports },
        }),
    }
}

/// Applies `object` and waits until the shared copy shows it.
async fn apply<K: Namespaced>(context: &Context, object: &Value, there: Option<&K>) -> kube::Result<()> {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
    let parameters = PatchParams::apply(MANAGER).force();
    let made = api::<K>(context, text("namespace")).patch(text("name"), &parameters, &Patch::Apply(object)).await?;
    if there.is_none_or(|there| revision(there) < revision(&made)) {
        context.informers.of::<K>().reached(revision(&made)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Probe;

    use super::*;

    fn service(spec: Value) -> ModelService {
        serde_json::from_value(json!({
            "apiVersion": kedge_own::API_VERSION, "kind": "ModelService",
            "metadata": { "name": "answers", "namespace": "shop", "uid": "u1", "generation": 2 }, "spec": spec,
        }))
        .unwrap()
    }

    fn model(ready: &str) -> Model {
        serde_json::from_value(json!({
            "apiVersion": kedge_own::API_VERSION, "kind": "Model", "metadata": { "name": "m" },
            "spec": { "source": { "path": "m" } },
            "status": { "digest": "sha256:00", "conditions": [{
                "type": "Ready", "status": ready, "reason": "R", "message": "why", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let service = service(json!({ "model": "m" }));
        let reason = |model: Option<&Model>, deployment: Option<&Deployment>| {
            let outcome = wanted(&service, model, deployment, None);
            outcome.map(str::to_owned).map_err(|outcome| (outcome.reason, outcome.message))
        };
        assert_eq!(reason(None, None).unwrap_err().0, "ModelNotFound");
        let (reason_, message) = reason(Some(&model("False")), None).unwrap_err();
        assert_eq!((reason_, message.contains("why")), ("ModelNotReady", true));
        assert_eq!(reason(Some(&model("True")), None), Ok("sha256:00".into()));
        let mut foreign = Deployment::default();
        assert_eq!(reason(Some(&model("True")), Some(&foreign)).unwrap_err().0, "NameTaken");
        foreign.metadata.owner_references =
            Some(vec![serde_json::from_value(json!({"apiVersion":"a/v1","kind":"B","name":"c","uid":"u1"})).unwrap()]);
        assert!(reason(Some(&model("True")), Some(&foreign)).is_ok());
    }

    #[test]
    fn pods_get_the_model_read_only_and_no_rights() {
        let service =
            service(json!({ "model": "m", "replicas": 2, "port": 8080, "resources": {"limits": {"cpu": "1"}} }));
        let made = objects(&service, std::path::Path::new("/d/model-store"), "sha256:00ff", "own:1");
        let deployment: Deployment = serde_json::from_value(made.deployment).unwrap();
        let spec = deployment.spec.unwrap();
        assert_eq!(spec.replicas, Some(2));
        let pod = spec.template.spec.unwrap();
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(pod.volumes.unwrap()[0].host_path.as_ref().unwrap().path, "/d/model-store/00ff/files");
        let container = &pod.containers[0];
        assert_eq!(container.volume_mounts.as_ref().unwrap()[0].read_only, Some(true));
        // An opening may take as long as it takes: nothing but readiness waits for it.
        assert_eq!(container.startup_probe, None);
        let asks = |probe: &Option<Probe>| probe.as_ref().unwrap().http_get.as_ref().unwrap().path.clone().unwrap();
        assert_eq!(asks(&container.readiness_probe), "/health");
        assert_eq!(asks(&container.liveness_probe), "/v2/health/live");
        let args = container.args.as_ref().unwrap();
        let drain = args.iter().skip_while(|arg| *arg != "--drain-timeout").nth(1).unwrap();
        assert!(pod.termination_grace_period_seconds.unwrap() >= drain.parse::<i64>().unwrap() + 10);
        assert_eq!(container.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"].0, "1");
        let front: Service = serde_json::from_value(made.service).unwrap();
        assert_eq!(front.spec.unwrap().ports.unwrap()[0].port, 8080);
    }

    #[test]
    fn ready_means_that_every_pod_of_the_newest_kind_answers() {
        let service = service(json!({ "model": "m", "replicas": 2 }));
        let deployment = |status: Value| -> Deployment {
            serde_json::from_value(
                json!({"metadata": {"generation": 3}, "spec": {"selector": {}, "template": {}}, "status": status}),
            )
            .unwrap()
        };
        let of = |status: Value, pods: &[Pod]| {
            let outcome = progress(&service, "sha256:00", Some(&deployment(status)), pods.iter());
            (outcome.ready, outcome.reason)
        };
        assert_eq!(
            of(json!({"observedGeneration": 2, "readyReplicas": 2, "updatedReplicas": 2}), &[]),
            (false, "Progressing")
        );
        assert_eq!(
            of(json!({"observedGeneration": 3, "readyReplicas": 2, "updatedReplicas": 1}), &[]),
            (false, "Progressing")
        );
        assert_eq!(
            of(json!({"observedGeneration": 3, "readyReplicas": 2, "updatedReplicas": 2}), &[]),
            (true, "Available")
        );
    }

    #[test]
    fn what_a_pod_ended_with_is_said() {
        let service = service(json!({ "model": "m", "replicas": 2 }));
        let pod = |status: Value| -> Pod {
            let limits = json!({ "limits": { "memory": "64Mi" } });
            serde_json::from_value(json!({
                "metadata": { "name": "p" }, "status": status,
                "spec": { "containers": [{ "name": "infer", "resources": limits }] },
            }))
            .unwrap()
        };
        let container = |state: Value, last: Value| {
            pod(json!({ "phase": "Running", "containerStatuses": [{
                "name": "infer", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": state, "lastState": last,
            }]}))
        };
        let check = |pods: &[Pod], expected: (&str, &str)| {
            let outcome = progress(&service, "d", None, pods.iter());
            assert_eq!((outcome.reason, &*outcome.message), expected);
        };
        let back_off = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } });
        let running = json!({ "running": {} });
        let said = json!({ "terminated": { "exitCode": 1, "reason": "Error", "message": "a\nkedge: opening: no\n" } });
        let oom = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
        let crash = "infer ended with Error, exit code 1: kedge: opening: no (3 restarts)";
        check(
            &[container(back_off.clone(), said.clone())],
            ("PodsCrashing", &format!("pod p: CrashLoopBackOff: {crash}")),
        );
        check(&[container(running.clone(), said.clone())], ("PodsCrashing", &format!("pod p: {crash}")));
        check(&[container(said, json!({}))], ("PodsCrashing", &format!("pod p: {crash}")));
        let killed = "pod p: infer ended with OOMKilled, exit code 137: it needs more memory than \
                      spec.resources.limits.memory, which is 64Mi (3 restarts)";
        check(&[container(running.clone(), oom)], ("PodsOOMKilled", killed));
        let creating = json!({ "waiting": { "reason": "ContainerCreating" } });
        check(&[container(creating, json!({})), container(running, json!({}))], ("Progressing", "0 of 2 pods answer"));
        let unplaced = pod(json!({ "phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient memory.",
        }]}));
        check(&[unplaced], ("PodsPending", "pod p: 0/1 nodes are available: 1 Insufficient memory."));
        let pull = json!({ "waiting": { "reason": "ErrImageNeverPull", "message": "not here" } });
        let evicted = pod(json!({ "phase": "Failed", "reason": "Evicted", "message": "low on memory" }));
        check(std::slice::from_ref(&evicted), ("PodsFailing", "pod p: Evicted: low on memory"));
        check(&[evicted, container(pull, json!({}))], ("PodsFailing", "pod p: ErrImageNeverPull: not here"));
        let mut leaving = container(back_off, json!({}));
        leaving.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        check(&[leaving], ("Progressing", "0 of 2 pods answer"));
    }

    #[test]
    fn what_goes_on_answering_and_what_is_not_asked_for_is_said() {
        let mut service = service(json!({ "model": "m", "replicas": 0 }));
        let deployment = |uid: &str, ready: i32| -> Deployment {
            serde_json::from_value(json!({
                "metadata": { "ownerReferences": [{ "apiVersion": "a/v1", "kind": "B", "name": "c", "uid": uid }] },
                "spec": { "selector": {}, "template": {} }, "status": { "readyReplicas": ready },
            }))
            .unwrap()
        };
        let of = |service: &ModelService, outcome: &Outcome, deployment: &Deployment| {
            status(service, outcome, Some(deployment), Timestamp::UNIX_EPOCH)
        };
        let lost = Outcome::waiting("ModelNotFound", "lost");
        for (ready, message) in [(0, "lost"), (1, "lost; 1 pod goes on answering"), (2, "lost; 2 pods go on answering")]
        {
            assert_eq!(of(&service, &lost, &deployment("u1", ready)).conditions[0].message, message);
        }
        let taken = of(&service, &Outcome::waiting("NameTaken", "taken"), &deployment("u2", 2));
        assert_eq!((taken.url.as_deref(), taken.ready_replicas, &*taken.conditions[0].message), (None, 0, "taken"));
        let none = progress(&service, "d", Some(&deployment("u1", 0)), [].into_iter());
        assert_eq!((none.ready, none.reason), (true, "ScaledToZero"));

        let told = event(&service, &taken).unwrap();
        assert_eq!((told.warning, &*told.reason, &*told.message), (true, "NameTaken", "taken"));
        service.status = Some(taken.clone());
        assert_eq!(event(&service, &taken), None);
        let zero = of(&service, &none, &deployment("u1", 0));
        assert!(event(&service, &zero).is_some_and(|told| !told.warning && told.reason == "ScaledToZero"));
        let going = of(&service, &Outcome::waiting("Progressing", "0 of 1 pods answer"), &deployment("u1", 0));
        assert_eq!(event(&service, &going), None);
    }

    #[test]
    fn the_url_names_the_port_unless_it_is_the_usual_one() {
        let url = |spec: Value| {
            let service = service(spec);
            status(&service, &Outcome::waiting("R", "m"), None, Timestamp::UNIX_EPOCH).url.unwrap()
        };
        assert_eq!(url(json!({ "model": "m" })), "http://answers.shop.svc");
        assert_eq!(url(json!({ "model": "m", "port": 81 })), "http://answers.shop.svc:81");
    }

    #[test]
    fn selectors_are_labels_of_the_pods() {
        let service = service(json!({ "model": "m" }));
        let made = objects(&service, std::path::Path::new("/s"), "sha256:0", "i");
        let labels: std::collections::BTreeMap<String, String> =
            serde_json::from_value(made.deployment["spec"]["template"]["metadata"]["labels"].clone()).unwrap();
        assert_eq!(labels.get(LABEL).map(String::as_str), Some("answers"));
    }
}

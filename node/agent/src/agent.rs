//! The agent of one node: its Node object, its Lease, the pods that are bound to it.
//!
//! At start it takes up the pods it had cached, before any server answers; then it follows the API, and once the first
//! full list is there, what the API no longer has is ended and what nobody wants is swept. A pod that is new here is
//! taken or refused ([`crate::admission`]). From the runtime it takes exits, and wakes the pod they belong to.
//!
//! Not here: anything about one pod ([`crate::worker`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EventSource, Node, Pod};
use kedge_client::events::Recorder;
use kedge_runtimes::{ContainerId, Image, PodId, PodUid, Runtime, RuntimeEvent};
use kedge_world::World;
use kube::api::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::admission::{self, NODE_AFFINITY};
use crate::cache::Cache;
use crate::env::Sources;
use crate::etc::Dns;
use crate::events::{Ending, Happening};
use crate::network::Network;
use crate::node;
use crate::plan::status::NodeFacts;
use crate::plan::{Problem, is_over};
use crate::prober::Target;
use crate::report;
use crate::volumes::TokenSpec;
use crate::worker::{self, Command, Handle, pod_id};

const RETRY_PAUSE: Duration = Duration::from_secs(1);
const SIGKILL: i32 = 9;

/// How a node is called and what it has.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub node_name: String,
    /// Its address, which may change at any time.
    pub node_ip: watch::Receiver<IpAddr>,
    /// Labels beside the usual ones.
    pub labels: BTreeMap<String, String>,
    /// Where what lasts is kept.
    pub data_dir: PathBuf,
    /// Where what does not is.
    pub run_dir: PathBuf,
    /// Where containers' logs are.
    pub log_dir: PathBuf,
    /// The network namespace of pods on the host's network; none is the one that the runtime runs in.
    pub network_namespace: Option<PathBuf>,
    /// The cluster's DNS.
    pub dns: Dns,
    /// The node's processors.
    pub cpus: u32,
    /// The node's memory.
    pub memory_bytes: i64,
    /// Pods that fit.
    pub pods_max: u32,
    /// Processes that one pod may have.
    pub pod_pids_limit: Option<i64>,
    /// What is known of a GPU, once it is.
    pub gpu: watch::Receiver<Option<Gpu>>,
}

/// Whether models could compute on a GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Whether one can be used.
    pub usable: bool,
    /// What it is, or why none can be used.
    pub words: String,
}

impl Settings {
    /// What an absent limit means, in thousandths.
    pub fn allocatable_milli(&self) -> BTreeMap<String, i64> {
        let memory = self.memory_bytes.saturating_mul(1000);
        BTreeMap::from([("cpu".to_owned(), i64::from(self.cpus) * 1000), ("memory".to_owned(), memory)])
    }
}

/// Gets images that are not here.
#[async_trait]
pub trait Puller: Send + Sync + 'static {
    /// Pulls and installs `reference`; the logins are for registries that ask who is there.
    async fn pull(&self, reference: &str, logins: &[RegistryLogin]) -> Result<Image, String>;
}

/// A name and a password for a registry, from an image pull secret.
pub use kedge_registry::Login as RegistryLogin;

/// Tokens of pods, each with the time for which it is used.
type Tokens = BTreeMap<(PodUid, TokenSpec), (String, Range<Timestamp>)>;

/// Everything that the workers of one agent share.
pub(crate) struct Shared {
    pub(crate) client: kube::Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) puller: Option<Arc<dyn Puller>>,
    pub(crate) world: World,
    pub(crate) settings: Settings,
    pub(crate) cache: Cache,
    pub(crate) events: Recorder,
    /// The node's own object as the API has it; none before it was seen.
    pub(crate) node: watch::Sender<Option<Arc<Node>>>,
    /// Whether the node's disks are nearly full.
    pub(crate) disk_pressure: watch::Sender<bool>,
    /// Whether the namespace of the pods' network was removed.
    pub(crate) network_gone: watch::Sender<bool>,
    /// Tokens in use, by pod, with the time for which each is used. By the wall clock, as their validity is: when that
    /// jumps, either way, they are of no use any more.
    pub(crate) tokens: Mutex<Tokens>,
}

impl Shared {
    /// The node's addresses now.
    pub(crate) fn host_ips(&self) -> Vec<String> {
        vec![self.settings.node_ip.borrow().to_string()]
    }

    /// What status texts need of the node.
    pub(crate) fn facts(&self) -> NodeFacts {
        NodeFacts { runtime_name: self.runtime.name().to_owned(), host_ips: self.host_ips() }
    }

    /// A pod's own files that last.
    pub(crate) fn pod_folder(&self, id: &PodId) -> PathBuf {
        self.settings.data_dir.join("pod-files").join(id.uid.as_str())
    }

    /// A pod's volumes.
    pub(crate) fn volumes_of(&self, id: &PodId) -> PathBuf {
        self.settings.data_dir.join("volumes").join(id.uid.as_str())
    }

    /// Tells what happened to a pod, or to one of its containers.
    pub(crate) fn tell(&self, pod: &Pod, container: Option<&str>, happening: &Happening) {
        self.events.tell(happening.about(pod, container));
    }

    /// Tells what happened to the node.
    pub(crate) fn tell_of_node(&self, happening: &Happening) {
        self.events.tell(happening.about_node(&self.settings.node_name));
    }

    pub(crate) fn target<'a>(&'a self, id: &'a ContainerId, container: &'a Container, pod_ip: &'a str) -> Target<'a> {
        Target { runtime: &*self.runtime, net: &*self.world.net, id, container, pod_ip }
    }
}

/// What an agent works with.
pub struct Parts {
    /// The API.
    pub client: kube::Client,
    /// What runs containers.
    pub runtime: Arc<dyn Runtime>,
    /// What connects pods.
    pub network: Arc<dyn Network>,
    /// What gets images; without one only local images run.
    pub puller: Option<Arc<dyn Puller>>,
    /// Clock, randomness, disk and network.
    pub world: World,
}

/// The agent.
pub struct Agent {
    shared: Arc<Shared>,
    workers: BTreeMap<PodUid, Handle>,
    /// Pods that this node took before the agent started; it does not change its mind about them.
    taken_before: BTreeSet<PodUid>,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The cached pods cannot be read.
    #[error("the node's cached pods: {0}")]
    Cache(#[from] kedge_world::DiskError),
}

impl Agent {
    /// An agent that has not begun. Its events are written by a task of their own from now on.
    pub fn new(parts: Parts, settings: Settings) -> Result<Self, AgentError> {
        let cache = Cache::below(&settings.data_dir, parts.world.disk.clone())?;
        let Parts { client, runtime, network, puller, world } = parts;
        let source = EventSource { component: Some("kubelet".to_owned()), host: Some(settings.node_name.clone()) };
        let events = Recorder::start(client.clone(), world.clone(), source);
        let (tokens, node, disk_pressure) = (Mutex::default(), watch::Sender::new(None), watch::Sender::new(false));
        let network_gone = watch::Sender::new(false);
        let shared = Shared {
            client,
            runtime,
            network,
            puller,
            world,
            settings,
            cache,
            events,
            node,
            disk_pressure,
            network_gone,
            tokens,
        };
        Ok(Self { shared: Arc::new(shared), workers: BTreeMap::new(), taken_before: BTreeSet::new() })
    }

    /// Runs until dropped. Containers go on when it stops.
    pub async fn run(mut self) -> Result<(), AgentError> {
        let mut runtime_events = self.shared.runtime.events();
        self.shared.tell_of_node(&Happening::NodeStarting);
        match self.shared.runtime.observe().await {
            Ok(found) => self.taken_before.extend(found.sandboxes.into_iter().map(|sandbox| sandbox.spec.pod.uid)),
            Err(error) => tracing::warn!(%error, "cannot see which pods ran before"),
        }
        for cached in self.shared.cache.list()? {
            let by_name = |name: &Option<String>| name.clone().unwrap_or_default();
            let known = Sources {
                config_maps: cached.config_maps.into_iter().map(|map| (by_name(&map.metadata.name), map)).collect(),
                secrets: cached.secrets.into_iter().map(|secret| (by_name(&secret.metadata.name), secret)).collect(),
                services: cached.services,
                ..Sources::default()
            };
            self.taken_before.extend(pod_id(&cached.pod).map(|id| id.uid));
            self.update(cached.pod, known).await;
        }
        let (node, lease) = (report::report_node(self.shared.clone()), report::renew_lease(self.shared.clone()));
        let own = report::follow_node(self.shared.clone());
        let pods: Api<Pod> = Api::all(self.shared.client.clone());
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.shared.settings.node_name));
        let mut watch = watcher(pods, mine).boxed();
        let mut node_ip = self.shared.settings.node_ip.clone();
        let follow = async {
            let mut listed: Vec<Pod> = Vec::new();
            loop {
                tokio::select! {
                    Some(event) = watch.next() => match event {
                        Ok(event) => self.follow(event, &mut listed).await,
                        Err(error) => {
                            tracing::debug!(%error, "the API does not answer; pods go on");
                            tokio::time::sleep(RETRY_PAUSE).await;
                        }
                    },
                    Some(event) = runtime_events.next() => self.look(&event),
                    // Every pod's status has it.
                    Ok(()) = node_ip.changed() => self.look(&RuntimeEvent::Resync),
                }
            }
        };
        tokio::join!(node, lease, own, follow);
        Ok(())
    }

    async fn follow(&mut self, event: watcher::Event<Pod>, listed: &mut Vec<Pod>) {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(pod) => listed.push(pod),
            watcher::Event::InitDone => {
                let mut pods = std::mem::take(listed);
                let uids: BTreeSet<PodUid> = pods.iter().filter_map(|pod| Some(pod_id(pod)?.uid)).collect();
                // The oldest are taken first, as the kubelet has it (`HandlePodAdditions`).
                pods.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
                for pod in pods {
                    self.update(pod, Sources::default()).await;
                }
                for (uid, worker) in &self.workers {
                    if !uids.contains(uid) {
                        worker.tell(Command::Gone);
                    }
                }
                self.sweep(&uids).await;
            }
            watcher::Event::Apply(pod) => self.update(pod, Sources::default()).await,
            watcher::Event::Delete(pod) => {
                if let Some(worker) = pod_id(&pod).and_then(|id| self.workers.get(&id.uid)) {
                    worker.tell(Command::Gone);
                }
            }
        }
    }

    async fn update(&mut self, mut pod: Pod, known: Sources) {
        let Some(id) = pod_id(&pod) else { return };
        self.workers.retain(|_, worker| !worker.is_over());
        if let Some(worker) = self.workers.get_mut(&id.uid) {
            worker.pod = Arc::new(pod.clone());
            return worker.tell(Command::Update(Box::new(pod)));
        }
        let is_new = !self.taken_before.remove(&id.uid);
        let starts = pod.metadata.deletion_timestamp.is_none() && !is_over(pod.status.as_ref());
        if is_new
            && starts
            && let Err(problem) = self.admit(&pod).await
        {
            tracing::warn!(pod = %id.name, namespace = %id.namespace, message = problem.message, "the pod is not taken");
            pod.status = Some(admission::rejected(&pod, &problem, self.shared.world.clock.wall()));
            self.shared.tell(&pod, None, &Happening::Rejected { problem });
        }
        let worker = worker::spawn(self.shared.clone(), id.clone(), pod, known);
        self.workers.insert(id.uid, worker);
    }

    /// Takes a pod, or says why not.
    async fn admit(&self, pod: &Pod) -> Result<(), Problem> {
        if *self.shared.disk_pressure.borrow() {
            admission::admit_under_pressure(pod)?;
        }
        let others: Vec<Arc<Pod>> =
            self.workers.values().filter(|worker| !worker.is_at_rest()).map(|worker| worker.pod.clone()).collect();
        let others: Vec<&Pod> = others.iter().map(|pod| &**pod).collect();
        let node = self.shared.node.borrow().clone();
        let node = match node {
            Some(node) => node,
            None => report::own_node(&self.shared).await,
        };
        let admit = |node: &Node| admission::admit(pod, &others, &node::with_allocatable(&self.shared.settings, node));
        match admit(&node) {
            // Its labels may have changed just now.
            Err(problem) if problem.reason == NODE_AFFINITY => admit(&*report::own_node(&self.shared).await),
            other => other,
        }
    }

    fn look(&self, event: &RuntimeEvent) {
        match event {
            RuntimeEvent::Exited { pod, .. } => {
                if let Some(worker) = self.workers.get(pod) {
                    worker.tell(Command::Look);
                }
            }
            RuntimeEvent::LogLost { pod, name, id } => {
                let Some(worker) = self.workers.get(pod) else { return };
                let because = Ending::LogLost;
                self.shared.tell(&worker.pod, Some(name), &Happening::Killing { container: name.clone(), because });
                let (shared, id) = (self.shared.clone(), id.clone());
                tokio::spawn(async move {
                    if let Err(error) = shared.runtime.kill_container(&id, SIGKILL).await {
                        tracing::warn!(container = %id, %error, "a container without a log goes on");
                    }
                });
            }
            RuntimeEvent::Resync => self.workers.values().for_each(|worker| worker.tell(Command::Look)),
        }
    }

    /// Ends what runs for pods that neither the API nor a worker knows.
    async fn sweep(&self, listed: &BTreeSet<PodUid>) {
        let runtime = self.shared.runtime.clone();
        // On its own: it waits for what may still be on its way.
        tokio::spawn(async move {
            if let Err(error) = runtime.end_leftovers().await {
                tracing::warn!(%error, "cannot look for processes that old containers left");
            }
        });
        let observed = match self.shared.runtime.observe().await {
            Ok(observed) => observed,
            Err(error) => return tracing::warn!(%error, "cannot look for what is left of old pods"),
        };
        let sandboxes = observed.sandboxes.iter().map(|sandbox| &sandbox.spec.pod);
        let pods: BTreeSet<&PodId> =
            observed.containers.iter().map(|container| &container.pod).chain(sandboxes).collect();
        for pod in pods {
            if listed.contains(&pod.uid) || self.workers.contains_key(&pod.uid) {
                continue;
            }
            tracing::info!(pod = %pod.name, namespace = %pod.namespace, "ending what is left of a pod nobody knows");
            let removed = self.shared.runtime.remove_sandbox(&pod.uid).await.map_err(|e| e.to_string());
            let removed = match removed {
                Ok(()) => self.shared.network.teardown(pod).await.map_err(|e| e.to_string()),
                failed => failed,
            };
            if let Err(error) = removed {
                tracing::warn!(pod = %pod.name, error, "cannot end what is left of a pod");
            }
        }
    }
}

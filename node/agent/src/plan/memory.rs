//! What a worker remembers of its pod that neither the API nor the runtime holds. Times to wait for are those of the clock
//! that never jumps; wall time is only shown.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use kedge_runtimes::ContainerId;

use crate::backoff::Backoff;
use crate::events::Ending;
use crate::probe::Probes;

/// Of one pod. A new one, as after a restart of the agent, makes the same pod go on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// By container name.
    pub containers: BTreeMap<String, ContainerMemory>,
    /// How far volumes, network and sandbox are.
    pub set_up: SetUp,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// Whether its network was given back because it has ended.
    pub network_released: bool,
    /// Why the pod failed as a whole, for good.
    pub failed: Option<Problem>,
    /// When the agent first saw the pod, as it is shown.
    pub start_time: Option<Timestamp>,
    /// When this process first saw that the pod had started, and for how long it had run by then.
    pub active: Option<(Duration, Duration)>,
}

impl Memory {
    /// Of a container, made when missing.
    pub fn of(&mut self, container: &str) -> &mut ContainerMemory {
        self.containers.entry(container.to_owned()).or_default()
    }
}

/// Of one container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerMemory {
    /// How long it must wait before it runs again.
    pub backoff: Backoff,
    /// The end of a wait that was planned.
    pub waiting_until: Option<Duration>,
    /// The newest run that was seen ended, and when it was first seen so.
    pub end_seen: Option<(u32, Duration)>,
    /// The run that the back-off was last counted for.
    pub counted_attempt: Option<u32>,
    /// Whether its image is there.
    pub image: ImageState,
    /// How long a missing image must be waited for.
    pub image_backoff: Backoff,
    /// Why it could not be made or started, and when to try again.
    pub start_problem: Option<(Problem, Duration)>,
    /// Whether the worker is getting its image or starting it right now.
    pub busy: bool,
    /// Its postStart hook.
    pub post_start: Hook,
    /// How far its end is.
    pub stopping: Option<Stopping>,
    /// Its probes.
    pub probes: Option<Probes>,
    /// What asks it to stop, when its image or its spec says so.
    pub stop_signal: Option<i32>,
    /// The end of the message that its last run left.
    pub termination_message: BTreeMap<ContainerId, String>,
}

impl ContainerMemory {
    /// Forgets what belonged to the run before.
    pub fn reset_run(&mut self) {
        self.post_start = Hook::NotRun;
        self.stopping = None;
        self.probes = None;
        self.waiting_until = None;
        self.start_problem = None;
    }
}

/// How far volumes, network and sandbox are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SetUp {
    /// Not made.
    #[default]
    NotDone,
    /// Made.
    Done,
    /// Made once; the sandbox is gone, and is made again.
    Lost,
    /// Failed, to be tried again.
    Failed {
        /// Why.
        problem: Problem,
        /// When.
        retry_at: Duration,
    },
}

/// A reason in one word, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One word, as the API has it.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// Whether an image is on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ImageState {
    /// Nobody looked yet.
    #[default]
    Unknown,
    /// It is.
    Present {
        /// Its id.
        id: String,
    },
    /// It is not, and could not be got.
    Missing {
        /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`.
        problem: Problem,
        /// When to try again.
        retry_at: Duration,
    },
}

/// A lifecycle hook.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hook {
    /// Not asked for yet.
    #[default]
    NotRun,
    /// Asked for, not answered.
    Running,
    /// Went well.
    Done,
    /// Did not.
    Failed(String),
}

/// How far a container's end is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    /// Which run.
    pub id: ContainerId,
    /// Why.
    pub because: Ending,
    /// Its preStop hook.
    pub pre_stop: Hook,
    /// Whether it was asked to end.
    pub asked: bool,
    /// When it is killed.
    pub kill_at: Duration,
    /// The patience that this was reckoned with.
    pub grace_seconds: i64,
}

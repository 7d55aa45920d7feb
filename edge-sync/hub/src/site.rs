//! The task of one site: it owns the hub's half of the link, its ledger, and what is written into the `Site` object.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use kedge_link::{Connection, FromHub, FromSite, HubHalf, Key, Ledger, Limits, Output, Told};
use kedge_own::{Site, SiteStatus};
use kedge_wire::report::{ABOUT, About, ModelReport, State};
use kedge_wire::{Assignment, proto, to_site};
use kedge_world::World;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use parking_lot::RwLock;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use crate::keys::HubKeys;
use crate::status::{Facts, Presence, status};

/// Changes of a site within this time are written into its object together.
const WRITE_PAUSE: Duration = Duration::from_millis(500);
/// After the hub started, a site may come back for this long before it is said to be away.
const GRACE: Duration = Duration::from_secs(90);
/// Between attempts after the disk or the API server failed.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// Frames on their way to one site; the link's own window keeps far below.
pub(crate) const FRAMES_MAX: usize = 128;
/// Events waiting for one task.
const EVENTS_MAX: usize = 64;
/// Names models that the site may drop although this hub does not know them: `namespace/name`, with commas.
const RELEASE: &str = "kedge.dev/release";

/// The way to a site's connection; dropping it ends the connection.
pub(crate) type Frames = mpsc::Sender<Result<proto::FromHub, Status>>;

/// What happens to a site.
pub(crate) enum Event {
    /// Its object, and the models meant for it; none for one whose files are not ready here.
    Wanted(Arc<Site>, BTreeMap<Key, Option<Assignment>>),
    /// The site opened a connection.
    Opened(Connection, Frames),
    /// A frame came.
    Frame(Connection, FromSite),
    /// A connection ended.
    Closed(Connection),
    /// The object is gone.
    Removed,
}

/// Reaches the task of a site.
#[derive(Clone)]
pub(crate) struct Handle {
    events: mpsc::Sender<Event>,
    /// The digests that the site may fetch.
    digests: Arc<RwLock<BTreeSet<String>>>,
}

impl Handle {
    /// False once the task has ended.
    pub(crate) async fn tell(&self, event: Event) -> bool {
        self.events.send(event).await.is_ok()
    }

    /// Whether a model was assigned to the site.
    pub(crate) fn may_fetch(&self, digest: &str) -> bool {
        self.digests.read().contains(digest)
    }
}

/// What every task needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) world: World,
    pub(crate) client: kube::Client,
    pub(crate) keys: Arc<HubKeys>,
    /// Where ledgers lie.
    pub(crate) folder: PathBuf,
    /// The random number of this start of the hub.
    pub(crate) run: u64,
}

/// Starts the task of a site.
pub(crate) fn start(shared: Shared, site: &Site) -> Handle {
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let digests = Arc::<RwLock<BTreeSet<String>>>::default();
    let files = Files::of(&shared.folder, &site.uid().unwrap_or_default());
    let task = Task {
        name: site.name_any(),
        uid: site.uid().unwrap_or_default(),
        written: site.status.clone().unwrap_or_default(),
        digests: digests.clone(),
        shared,
        files,
        state: None,
        load_at: Some(Instant::now()),
        wanted: None,
        frames: None,
        released: BTreeSet::new(),
        facts: Facts::default(),
        grace_ends: Instant::now() + GRACE,
        write_at: Some(Instant::now() + GRACE),
    };
    tokio::spawn(task.run(inbox));
    Handle { events, digests }
}

/// Removes what was kept for a site that is gone.
fn forget(world: &World, files: &Files) {
    for path in [&files.ledger, &files.bodies] {
        match world.disk.remove(path) {
            Err(error) if !error.is_not_found() => tracing::warn!(%error, "what was kept for a site stays"),
            _ => {}
        }
    }
}

struct Files {
    ledger: PathBuf,
    /// What the site was last told, so that a model that is being read again at the hub is not taken away from it.
    bodies: PathBuf,
}

impl Files {
    fn of(folder: &Path, uid: &str) -> Self {
        Self { ledger: folder.join(format!("{uid}.ledger")), bodies: folder.join(format!("{uid}.bodies")) }
    }
}

type Bodies = BTreeMap<Key, Arc<str>>;

/// What the disk holds, with the link over it.
struct LinkState {
    half: HubHalf,
    bodies: Bodies,
}

struct Task {
    name: String,
    uid: String,
    shared: Shared,
    files: Files,
    digests: Arc<RwLock<BTreeSet<String>>>,
    /// None while the disk cannot be used.
    state: Option<LinkState>,
    /// When the disk is to be read.
    load_at: Option<Instant>,
    wanted: Option<BTreeMap<Key, Option<Assignment>>>,
    frames: Option<(Connection, Frames)>,
    /// Unclaimed models that the hub's user lets go.
    released: BTreeSet<Key>,
    facts: Facts,
    written: SiteStatus,
    /// Until then a site that has not come may be about to.
    grace_ends: Instant,
    /// When the object is to be written.
    write_at: Option<Instant>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        loop {
            if self.load_at.is_some_and(|at| at <= Instant::now()) {
                self.load().await;
            }
            let timer = self.write_at.into_iter().chain(self.load_at).min();
            let sleep = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = inbox.recv() => {
                    let Some(event) = event else { return };
                    if self.take(event).await.is_break() {
                        return;
                    }
                }
                () = sleep => {
                    if self.write_at.is_some_and(|at| at <= Instant::now()) {
                        self.write().await;
                    }
                }
            }
        }
    }

    async fn take(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Wanted(site, wanted) => {
                self.released = released(&site);
                self.facts.assigned = wanted.clone();
                self.wanted = Some(wanted);
                self.tell_wanted().await;
                self.release_unclaimed().await;
                self.changed();
            }
            Event::Opened(connection, frames) => {
                // The older connection, if there is one, ends with its sender.
                self.frames = Some((connection, frames));
                if let Some(state) = &mut self.state {
                    state.half.connected(connection);
                }
            }
            Event::Frame(connection, frame) => {
                if let Some(state) = &mut self.state {
                    let outputs = state.half.received(connection, frame);
                    self.obey(outputs).await;
                } else {
                    self.hang_up("the hub's disk cannot be used");
                }
            }
            Event::Closed(connection) => {
                if let Some(state) = &mut self.state {
                    state.half.disconnected(connection);
                }
                if self.frames.as_ref().is_some_and(|(current, _)| *current == connection) {
                    self.frames = None;
                    self.facts.presence = Presence::Away;
                    self.changed();
                }
            }
            Event::Removed => {
                if let Some((_, frames)) = self.frames.take() {
                    let gone = "the site was removed at the hub; join again with a new token";
                    let _ = frames.try_send(Err(Status::permission_denied(gone)));
                }
                forget(&self.shared.world, &self.files);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Reads what the disk holds.
    async fn load(&mut self) {
        let read = |path: &Path| match self.shared.world.disk.read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let unreadable = |path: &Path, error: &dyn std::fmt::Display| {
            format!("{}: {error}; remove the file, and the site compares what it holds once", path.display())
        };
        let loaded = read(&self.files.ledger).and_then(|ledger| {
            let ledger = ledger.map_or(Ok(Ledger::default()), |bytes| Ledger::from_bytes(&bytes));
            let ledger = ledger.map_err(|error| unreadable(&self.files.ledger, &error))?;
            let bodies = read(&self.files.bodies)?.map_or(Ok(Bodies::new()), |bytes| serde_json::from_slice(&bytes));
            let bodies = bodies.map_err(|error| unreadable(&self.files.bodies, &error))?;
            Ok(LinkState { half: HubHalf::new(ledger, self.shared.run), bodies })
        });
        match loaded {
            Ok(state) => {
                self.load_at = None;
                self.state = Some(state);
                if let Some((connection, _)) = &self.frames
                    && let Some(state) = &mut self.state
                {
                    state.half.connected(*connection);
                }
                self.tell_wanted().await;
            }
            Err(error) => {
                tracing::error!(site = self.name, error, "what is kept for a site cannot be read");
                self.load_at = Some(Instant::now() + RETRY_PAUSE);
            }
        }
    }

    /// Tells the link what the site should hold now.
    async fn tell_wanted(&mut self) {
        let (Some(state), Some(wanted)) = (&mut self.state, &self.wanted) else { return };
        let sign = |assignment: &Assignment| Arc::<str>::from(self.shared.keys.signing().sign(assignment));
        let body = |(key, ready): (&Key, &Option<Assignment>)| {
            // Not ready here: what the site was told before still counts.
            let body = ready.as_ref().map(sign).or_else(|| state.bodies.get(key).cloned())?;
            Some((key.clone(), body))
        };
        let bodies: Bodies = wanted.iter().filter_map(body).collect();
        if bodies != state.bodies {
            let kept = serde_json::to_vec(&bodies).expect("plain data");
            if let Err(error) = self.shared.world.disk.replace(&self.files.bodies, &kept) {
                tracing::error!(site = self.name, %error, "what a site should hold cannot be kept");
                return self.drop_state("the hub's disk cannot be used");
            }
            state.bodies = bodies.clone();
        }
        let told = bodies.values().filter_map(|body| Assignment::unverified(body));
        *self.digests.write() = told.map(|assignment| assignment.digest).collect();
        match state.half.wanted(bodies) {
            Ok(outputs) => {
                self.facts.refused = None;
                self.obey(outputs).await;
            }
            Err(error) => {
                tracing::warn!(site = self.name, %error, "a site is assigned more than it can be told");
                self.facts.refused = Some(error.to_string());
                self.changed();
            }
        }
    }

    /// Lets go what the hub's user released and the site keeps without being told to.
    async fn release_unclaimed(&mut self) {
        let unclaimed = |key: &&Key| self.facts.reports.get(*key).is_some_and(|r| r.state == State::Unclaimed);
        let keys: Vec<Key> = self.released.iter().filter(unclaimed).cloned().collect();
        for key in keys {
            let Some(state) = &mut self.state else { return };
            let outputs = state.half.release(&key);
            self.obey(outputs).await;
        }
    }

    /// Carries out what the link wants, in its order. When saving fails, nothing after it happens.
    async fn obey(&mut self, outputs: Vec<Output<FromHub, Told>>) {
        let mut unclaimed = false;
        for output in outputs {
            match output {
                Output::Save(bytes) => {
                    let (disk, path) = (self.shared.world.disk.clone(), self.files.ledger.clone());
                    let saved = tokio::task::spawn_blocking(move || disk.replace(&path, &bytes)).await;
                    if let Err(error) = saved.expect("writing a file does not panic") {
                        tracing::error!(site = self.name, %error, "what a site was told cannot be kept");
                        return self.drop_state("the hub's disk cannot be used");
                    }
                }
                Output::Send(frame) => {
                    let Some((_, frames)) = &self.frames else { continue };
                    if frames.try_send(Ok(to_site(frame))).is_err() {
                        self.hang_up("the site does not read what it is sent");
                    }
                }
                Output::Close(violation) => {
                    tracing::warn!(site = self.name, %violation, "a link was ended");
                    self.hang_up(&violation.to_string());
                }
                Output::Tell(told) => unclaimed |= self.told(told),
            }
        }
        if unclaimed {
            Box::pin(self.release_unclaimed()).await;
        }
    }

    /// Takes news into the facts; whether the site says that it keeps something unclaimed.
    fn told(&mut self, told: Told) -> bool {
        let now = self.shared.world.clock.wall();
        self.facts.seen = Some(now);
        match told {
            Told::Arrived => {
                self.facts.presence = Presence::Here;
                tracing::info!(site = self.name, "the site is connected");
            }
            Told::ReportsReset => {
                self.facts.reports.clear();
            }
            Told::Report(key, body) if &*key.0 == ABOUT => {
                self.facts.about = body.and_then(|body| serde_json::from_str::<About>(&body).ok()).map(About::bounded);
            }
            Told::Report(key, Some(body)) => match serde_json::from_str::<ModelReport>(&body) {
                Ok(_) if self.facts.reports.len() >= 2 * Limits::KEYS_MAX && !self.facts.reports.contains_key(&key) => {
                    self.hang_up("the site reports more than it can hold");
                }
                Ok(report) => {
                    let report = report.bounded();
                    let unclaimed = report.state == State::Unclaimed;
                    self.facts.reports.insert(key, report);
                    self.changed();
                    return unclaimed;
                }
                Err(error) => tracing::warn!(site = self.name, %key, %error, "a report cannot be read"),
            },
            Told::Report(key, None) => drop(self.facts.reports.remove(&key)),
            Told::Saved(_) => {}
            Told::Beat { wall_ms } => {
                let ahead = SignedDuration::from_millis(wall_ms.saturating_sub(now.as_millisecond()));
                self.facts.clock_ahead = Some(ahead);
            }
        }
        self.changed();
        false
    }

    /// The object is to be written, not at once.
    fn changed(&mut self) {
        let soon = Instant::now() + WRITE_PAUSE;
        self.write_at = Some(self.write_at.map_or(soon, |at| at.min(soon)));
    }

    fn hang_up(&mut self, why: &str) {
        if let Some((connection, frames)) = self.frames.take() {
            let _ = frames.try_send(Err(Status::aborted(why)));
            if let Some(state) = &mut self.state {
                state.half.disconnected(connection);
            }
            self.facts.presence = Presence::Away;
            self.changed();
        }
    }

    /// The disk is not as the link believes: it is read again before anything else happens.
    fn drop_state(&mut self, why: &str) {
        self.hang_up(why);
        self.state = None;
        self.load_at = Some(Instant::now() + RETRY_PAUSE);
    }

    async fn write(&mut self) {
        // A site that has not come since the hub started is said to be away once it had time to.
        if self.facts.presence == Presence::Unknown && Instant::now() >= self.grace_ends {
            self.facts.presence = Presence::Away;
        }
        self.write_at = (self.facts.presence == Presence::Unknown).then_some(self.grace_ends);
        let status = status(&self.written, &self.facts, self.shared.world.clock.wall());
        if status == self.written || self.wanted.is_none() {
            return;
        }
        // Who the site is, is written by whoever enrols it.
        let mut value = serde_json::to_value(&status).expect("plain data");
        if let Some(object) = value.as_object_mut() {
            object.remove("identity");
            object.entry("models").or_insert_with(|| json!([]));
        }
        let patch = Patch::Merge(json!({ "metadata": { "uid": self.uid }, "status": value }));
        let sites: Api<Site> = Api::all(self.shared.client.clone());
        match sites.patch_status(&self.name, &PatchParams::default(), &patch).await {
            Ok(_) => self.written = status,
            Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => {}
            Err(error) => {
                tracing::warn!(site = self.name, %error, "the state of a site cannot be written");
                self.write_at = Some(Instant::now() + RETRY_PAUSE);
            }
        }
    }
}

/// The models that the hub's user releases, by the annotation of the Site.
fn released(site: &Site) -> BTreeSet<Key> {
    let names = site.annotations().get(RELEASE).map(String::as_str).unwrap_or_default();
    names
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| Key::new(&format!("Model/{name}")))
        .collect()
}

//! The controller of `Model`: takes its files in, checks them, and says in its conditions what is so.
//!
//! The files of a model are read once for each change of its spec. Contents that no `Model` names, no `ModelService` serves
//! and no pod has mounted are removed.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kedge_client::events::Told;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kedge_content::{Digest, Turns};
use kedge_fetch::Fetcher;
use kedge_own::{
    FetchedModel, INCOMING_DIGEST, MODEL_DIGEST, Model, ModelService, ModelStatus, Source, set_condition, turned,
};
use kube::ResourceExt;
use tokio::sync::{RwLock, Semaphore};

use crate::download::{self, Download, DownloadError};
use crate::manifest::Manifest;
use crate::remote::{self, Listing, Place, Remote, RemoteError, Tools};
use crate::secrets::SecretsBeside;
use crate::source::SourceError;
use crate::store::{ModelStore, StoreError};
use crate::write::{Written, write_status};

/// After a failure that may end without anybody changing the object.
const RETRY: Duration = Duration::from_secs(15);
/// After a whole archive came and was the wrong one: links may be metered, and somebody has to put it right first.
const RETRY_OF_WRONG_CONTENTS: Duration = Duration::from_secs(600);

/// After a source that refused, or has nothing of that name: somebody has to put it right first.
const RETRY_OF_REFUSAL: Duration = Duration::from_secs(60);

/// Until a source has said what a model consists of: a few documents, over any link.
const LISTING_MAX: Duration = Duration::from_secs(300);

/// Models looked at at once: those that are on their way must not keep others from being taken in.
const WORKERS: usize = 256;
/// Models fetched at one time: the link is the narrow place, not the box.
const DOWNLOADS_MAX: usize = 4;
/// Models copied and read at one time: here the disk is.
const TAKEN_IN_MAX: usize = 2;

/// Attempts to write a status that others write, too, and the pause until the shared copy shows what they wrote.
const WRITES_MAX: usize = 20;
const WRITE_PAUSE: Duration = Duration::from_millis(50);

/// Says what format the model in a folder is of, or why none that can be served.
pub type Inspect = Arc<dyn Fn(&Path) -> Result<String, Unfit> + Send + Sync>;

/// Why a model cannot be served, and in which of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A file is missing, cut, or not what its name says.
    Broken(String),
    /// The files are sound, and of a kind that is not supported.
    Unsupported(String),
}

/// The controller.
pub struct ModelController {
    store: ModelStore,
    models: PathBuf,
    fetcher: Fetcher,
    inspect: Inspect,
    /// Read while something new is on its way into an object's status, written while contents are removed. Not held
    /// while anything comes over the network.
    removing: RwLock<()>,
    /// One download at a time from each source, and some at a time in all.
    downloads: Turns,
    links: Semaphore,
    disks: Semaphore,
    /// What came over the network and was no good, and until when nobody asks again: what this controller writes into
    /// an object's status wakes it, too.
    refused: Mutex<HashMap<Key, Refused>>,
}

impl ModelController {
    /// One that keeps contents in `store` and takes folders from below `models`.
    pub fn new(store: ModelStore, models: PathBuf, fetcher: Fetcher, inspect: Inspect) -> Self {
        Self {
            store,
            models,
            fetcher,
            inspect,
            removing: RwLock::default(),
            downloads: Turns::default(),
            links: Semaphore::new(DOWNLOADS_MAX),
            disks: Semaphore::new(TAKEN_IN_MAX),
            refused: Mutex::default(),
        }
    }

    /// Contents that are asked for or used stay, everything else goes.
    async fn prune(&self, context: &Context) -> Result<(), Failure> {
        let _alone = self.removing.write().await;
        let informers = &context.informers;
        let keep = kept(
            &informers.of::<Model>().list(),
            &informers.of::<ModelService>().list(),
            &informers.of::<Pod>().list(),
        );
        let store = self.store.clone();
        let removed = blocking(move || store.prune(&keep)).await.map_err(Failure::from)?;
        for digest in removed {
            tracing::info!(%digest, "removed a model that nobody names or uses");
        }
        Ok(())
    }

    /// What has to come over the network before the files of `model` can be taken in.
    async fn fetch(
        &self,
        context: &Context,
        model: &Model,
        found: &mut Option<FetchedModel>,
    ) -> Result<Fetched, Failure> {
        let source = &model.spec.source;
        let identity = match (source, identity(model)) {
            (Source::Path(path), _) => return Ok(Fetched::Folder(path.clone())),
            (_, None) => return Ok(Fetched::ByHub),
            (_, Some(identity)) => identity,
        };
        let secrets = SecretsBeside { client: context.informers.client().clone(), namespace: Key::of(model).namespace };
        let tools = Tools { fetcher: &self.fetcher, world: &context.world, secrets: &secrets };
        let Some(mut remote) = remote::open(source, &tools).await? else { return Ok(Fetched::ByHub) };
        let listing = list(&mut *remote, pinned(model)).await?;
        let fetched = FetchedModel { revision: listing.revision.clone(), contents: listing.contents().to_string() };
        *found = Some(fetched.clone());
        // Another model may be of the same parts.
        if let Some(taken) = taken_in(&context.informers.of::<Model>().list(), &fetched, &self.store) {
            return Ok(Fetched::Before(taken));
        }
        let _link = self.links.acquire().await;
        let folder = self.store.download(&identity);
        let download = Download::new(&folder, listing.clone(), &context.world)?;
        self.download(context, model, &fetched, download, &mut *remote).await?;
        let part = |part: &remote::Part| (part.place.clone(), download::part_file(&folder, part));
        Ok(Fetched::Parts(identity, listing.parts.iter().map(part).collect()))
    }

    /// The files of `model`, in the store.
    async fn obtain(&self, model: &Model, fetched: Fetched) -> Result<(Digest, Manifest), Failure> {
        let store = self.store.clone();
        match fetched {
            Fetched::Folder(path) => {
                let models = self.models.clone();
                Ok(blocking(move || store.take_folder(&models, &path)).await?)
            }
            Fetched::Parts(identity, parts) => {
                let taken = move || {
                    let taken = store.take_parts(&parts)?;
                    store.discard_download(&identity)?;
                    Ok(taken)
                };
                Ok(blocking(taken).await?)
            }
            Fetched::Before(digest) => {
                let of = digest.clone();
                Ok((digest, blocking(move || store.manifest(&of)).await?))
            }
            Fetched::ByHub => {
                let digest = model.spec.digest.as_deref().and_then(Digest::parse);
                let digest = digest.ok_or_else(|| Failure::lasting("DigestMissing", "the hub named no digest"))?;
                if self.store.active(&digest).is_none() {
                    return Err(Failure::awaited("Pulling", "the model is on its way from the hub"));
                }
                let of = digest.clone();
                Ok((digest, blocking(move || store.manifest(&of)).await?))
            }
        }
    }

    /// Carries out the download, telling how far it is; given up when the object wants it no more.
    async fn download(
        &self,
        context: &Context,
        model: &Model,
        found: &FetchedModel,
        mut download: Download,
        remote: &mut dyn Remote,
    ) -> Result<(), Failure> {
        let mut shown = model.clone();
        loop {
            let wanted = context.informers.of::<Model>().get(&Key::of(model));
            if wanted.is_none_or(|wanted| wanted.spec.source != model.spec.source) {
                return Err(Failure::awaited("Fetching", "it is no longer asked for"));
            }
            match download.step(remote).await? {
                download::Step::Done => return Ok(()),
                download::Step::More { done, total } => {
                    let total = total.map(|total| format!(" of {total}")).unwrap_or_default();
                    let message = format!("{done}{total} bytes of {} are here", download.location());
                    let failure = Failure::awaited("Fetching", &message);
                    shown = self.say(context, &shown, Some(found), None, Err(&failure)).await?;
                }
            }
        }
    }

    /// Writes what is known into the object's status; gives the object as it is then. Somebody else may write it, too;
    /// when its spec changed meanwhile, nothing of this is about it any more.
    async fn say(
        &self,
        context: &Context,
        model: &Model,
        found: Option<&FetchedModel>,
        taken: Option<(&Digest, &Manifest)>,
        outcome: Result<&str, &Failure>,
    ) -> Result<Model, Failure> {
        let mut newest = Arc::new(model.clone());
        for _ in 0..WRITES_MAX {
            let status = status(&newest, found, taken, outcome, context.world.clock.wall());
            if newest.status.as_ref() == Some(&status) {
                return Ok((*newest).clone());
            }
            let told = event(&newest, &status);
            if let Written::Now(made) = write_status(context, &newest, status).await? {
                told.into_iter().for_each(|told| context.recorder(self.name()).tell(told));
                return Ok(*made);
            }
            tokio::time::sleep(WRITE_PAUSE).await;
            let found = context.informers.of::<Model>().get(&Key::of(model));
            let same = |found: &Arc<Model>| {
                found.metadata.uid == model.metadata.uid && found.metadata.generation == model.metadata.generation
            };
            newest =
                found.filter(same).ok_or_else(|| Failure::passing("Changed", "the Model was changed meanwhile"))?;
        }
        Err(Failure::passing("Changed", "others write the Model all the time"))
    }
}

impl Reconcile for ModelController {
    type Error = Failure;

    fn name(&self) -> &'static str {
        "model-controller"
    }

    fn concurrency(&self) -> usize {
        WORKERS
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Model>(trigger);
        // A name that no object has: what nobody names and nobody uses any more is removed.
        let nobody = || Key::new("", "");
        context.watch::<ModelService>(trigger, move |change| {
            let of = |service: &Option<Arc<ModelService>>| service.as_ref()?.status.as_ref()?.digest.clone();
            let left = of(&change.old).filter(|digest| of(&change.new).as_ref() != Some(digest));
            left.map(|_| nobody()).into_iter().collect()
        });
        context.watch::<Pod>(trigger, move |change| {
            let of = |pod: &Option<Arc<Pod>>| pod.as_ref().is_some_and(|pod| mounted_by(pod).is_some());
            (of(&change.old) && !of(&change.new)).then(nobody).into_iter().collect()
        });
        // What was left behind while nobody looked.
        trigger.wake(nobody());
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> Result<Next, Failure> {
        let Some(model) = context.informers.of::<Model>().get(key) else {
            self.refused().remove(key);
            self.prune(context).await?;
            return Ok(Next::Change);
        };
        if model.metadata.deletion_timestamp.is_some() || is_done(&model, &self.store) {
            return Ok(Next::Change);
        }
        if let Some(next) = self.is_refused(key, &model, context.world.clock.monotonic()) {
            return Ok(next);
        }
        // To the end: who comes next finds in a status what was taken in, and does not ask for it again.
        let _turn = self.downloads.take(&identity(&model).into_iter().collect()).await;
        let mut found = None;
        let fetched = self.fetch(context, &model, &mut found).await;
        let _disk = self.disks.acquire().await;
        let shared = self.removing.read().await;
        let obtained = match fetched {
            Ok(fetched) => self.obtain(&model, fetched).await,
            Err(failure) => Err(failure),
        };
        let (taken, failure) = match obtained {
            Ok((digest, manifest)) => {
                let outcome = self.judge(&model, &digest).await;
                (Some((digest, manifest)), outcome)
            }
            Err(failure) => (None, Err(failure)),
        };
        let seen = taken.as_ref().map(|(digest, manifest)| (digest, manifest));
        // The object may have been written while files were on their way, or be gone.
        let Some(current) = context.informers.of::<Model>().get(key) else {
            drop(shared);
            self.prune(context).await?;
            return Ok(Next::Change);
        };
        // What was judged is what was asked for before; the change brings the next look.
        if (&current.metadata.uid, current.metadata.generation) != (&model.metadata.uid, model.metadata.generation) {
            return Ok(Next::Change);
        }
        self.say(context, &current, found.as_ref(), seen, failure.as_deref()).await?;
        drop(shared);
        Ok(match failure {
            Ok(_) => Next::Change,
            Err(failure) => {
                self.refuse(key, &current, &failure, context.world.clock.monotonic());
                self.prune(context).await?;
                failure.again.map_or(Next::Change, Next::After)
            }
        })
    }
}

/// Contents that were no good.
struct Refused {
    /// The object that asked for them.
    uid: Option<String>,
    generation: Option<i64>,
    /// When to ask again by the monotonic clock; none is when the object changes.
    until: Option<Duration>,
}

impl ModelController {
    fn refused(&self) -> MutexGuard<'_, HashMap<Key, Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When to look again, if what this object asks for was refused and nothing has changed since.
    fn is_refused(&self, key: &Key, model: &Model, now: Duration) -> Option<Next> {
        let all = self.refused();
        let refused = all.get(key)?;
        let same = refused.uid == model.metadata.uid && refused.generation == model.metadata.generation;
        match refused.until {
            _ if !same => None,
            None => Some(Next::Change),
            Some(until) => (until > now).then(|| Next::After(until - now)),
        }
    }

    /// Remembers a failure of what comes over the network, where only time or the user can help.
    fn refuse(&self, key: &Key, model: &Model, failure: &Failure, now: Duration) {
        if identity(model).is_none() || failure.awaited {
            return;
        }
        let (uid, generation) = (model.metadata.uid.clone(), model.metadata.generation);
        let until = failure.again.map(|wait| now + wait);
        self.refused().insert(key.clone(), Refused { uid, generation, until });
    }

    /// Whether the files that were taken in are what the object asks for; their format.
    async fn judge(&self, model: &Model, digest: &Digest) -> Result<String, Failure> {
        if let Some(expected) = model.spec.digest.as_deref().filter(|expected| *expected != digest.as_str()) {
            let message = format!("the files have the digest {digest}, and spec.digest is {expected}");
            return Err(Failure::lasting("DigestMismatch", &message));
        }
        let files = self.store.active(digest).ok_or_else(|| Failure::passing("Removed", "its files were removed"))?;
        let (inspect, folder) = (self.inspect.clone(), files.clone());
        let format = blocking(move || Ok::<_, StoreError>(inspect(&folder))).await?;
        format.map_err(|unfit| unfit_for(&model.spec.source, &files, &unfit))
    }
}

/// The failure of files that cannot be served. Its message names them as the user knows them, not where they were taken
/// to, and those of a folder may be put right there.
fn unfit_for(source: &Source, taken_to: &Path, unfit: &Unfit) -> Failure {
    let taken_to = taken_to.display().to_string();
    let shown = |message: &str| match source {
        Source::Path(path) => message.replace(&taken_to, path),
        _ => message.replace(&format!("{taken_to}/"), "").replace(&taken_to, "the model"),
    };
    match (unfit, source) {
        (Unfit::Unsupported(message), _) => Failure::lasting("FormatUnsupported", &shown(message)),
        (Unfit::Broken(message), Source::Path(_)) => {
            Failure::after(RETRY_OF_WRONG_CONTENTS, "FilesInvalid", &shown(message))
        }
        (Unfit::Broken(message), _) => Failure::lasting("FilesInvalid", &shown(message)),
    }
}

/// Where the files are by now.
enum Fetched {
    /// In a folder below the one for models.
    Folder(String),
    /// In the store, or on the way there from the hub.
    ByHub,
    /// All parts of it, collected for the source of this identity.
    Parts(Digest, Vec<(Place, PathBuf)>),
    /// Nothing: the same parts were taken in before, as these contents.
    Before(Digest),
}

/// By what the source of `model` is told from others while its parts come; none when they do not come over the network.
/// An archive is known by its digest alone. Of all others, those with the same words in one namespace are the same: the
/// Secrets that they name are.
fn identity(model: &Model) -> Option<Digest> {
    match &model.spec.source {
        Source::Path(_) | Source::Hub(_) => None,
        Source::Url(url) => Digest::parse(&url.digest),
        source => {
            let words = serde_json::to_string(source).expect("a source is plain data");
            Some(Digest::of(format!("{}/{words}", Key::of(model).namespace).as_bytes()))
        }
    }
}

/// The revision that this spec was first found to mean.
fn pinned(model: &Model) -> Option<&str> {
    let status = model.status.as_ref().filter(|status| status.observed_generation == model.metadata.generation)?;
    status.fetched.as_ref().map(|fetched| &*fetched.revision)
}

/// What the model consists of; if what it was first found to mean is gone, what its name stands for now.
pub(crate) async fn list(remote: &mut dyn Remote, pinned: Option<&str>) -> Result<Listing, RemoteError> {
    let asked = async {
        match remote.list(pinned).await {
            Err(RemoteError::Missing(_)) if pinned.is_some() => remote.list(None).await,
            other => other,
        }
    };
    let late = || RemoteError::Late(format!("the source did not say within {} s what it has", LISTING_MAX.as_secs()));
    let listing = tokio::time::timeout(LISTING_MAX, asked).await.map_err(|_| late())??;
    listing.check()?;
    Ok(listing)
}

/// The contents, finished or on their way, that somebody asks for or uses: a Model that is deleted takes nothing away from
/// those who serve it.
fn kept(models: &[Arc<Model>], services: &[Arc<ModelService>], pods: &[Arc<Pod>]) -> BTreeSet<Digest> {
    let named = models.iter().flat_map(|model| {
        let status = model.status.as_ref().and_then(|status| status.digest.as_deref());
        let incoming = model.annotations().get(INCOMING_DIGEST).map(String::as_str);
        [status, model.spec.digest.as_deref(), incoming]
    });
    let served = services.iter().map(|service| service.status.as_ref()?.digest.as_deref());
    let mounted = pods.iter().map(|pod| mounted_by(pod));
    let digests = named.chain(served).chain(mounted).flatten().filter_map(Digest::parse);
    digests.chain(models.iter().filter_map(|model| identity(model))).collect()
}

/// The contents that a pod which has not ended serves.
fn mounted_by(pod: &Pod) -> Option<&str> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let digest = pod.annotations().get(MODEL_DIGEST)?;
    (!matches!(phase, Some("Succeeded" | "Failed"))).then_some(digest)
}

/// What a model took in that was found to be the same.
fn taken_in(models: &[Arc<Model>], found: &FetchedModel, store: &ModelStore) -> Option<Digest> {
    let taken = |model: &Arc<Model>| {
        let status = model.status.as_ref()?;
        let same = status.fetched.as_ref().is_some_and(|fetched| fetched.contents == found.contents);
        let digest = status.digest.as_deref().filter(|_| same).and_then(Digest::parse);
        digest.filter(|digest| store.active(digest).is_some())
    };
    models.iter().find_map(taken)
}

/// Whether nothing is left to do: this spec was judged, and what was found good is still here.
fn is_done(model: &Model, store: &ModelStore) -> bool {
    let Some(status) = &model.status else { return false };
    let active =
        || status.digest.as_deref().and_then(Digest::parse).is_some_and(|digest| store.active(&digest).is_some());
    status.observed_generation == model.metadata.generation && status.is_ready() && active()
}

/// The status that says `outcome`: a format, or why there is none.
fn status(
    model: &Model,
    found: Option<&FetchedModel>,
    taken: Option<(&Digest, &Manifest)>,
    outcome: Result<&str, &Failure>,
    now: Timestamp,
) -> ModelStatus {
    let mut status = model.status.clone().unwrap_or_default();
    let before = status.fetched.take().filter(|_| status.observed_generation == model.metadata.generation);
    status.fetched = found.cloned().or(before);
    status.observed_generation = model.metadata.generation;
    let kept = taken.filter(|_| !matches!(outcome, Err(failure) if failure.reason == "DigestMismatch"));
    status.digest = kept.map(|(digest, _)| digest.to_string());
    status.bytes = kept.map(|(_, manifest)| i64::try_from(manifest.size()).unwrap_or(i64::MAX));
    status.format = outcome.ok().map(str::to_owned);
    let (holds, reason, message) = match outcome {
        Ok(format) => (true, "Available", format!("a {format} model, ready to be served")),
        Err(failure) => (false, failure.reason, failure.message.clone()),
    };
    set_condition(&mut status.conditions, ("Ready", holds), (reason, &message), model.metadata.generation, now);
    status
}

/// What to tell of a Model that gets this status: whether it can be served, when that has turned.
fn event(model: &Model, after: &ModelStatus) -> Option<Told> {
    let before = model.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let ready = turned("Ready", before, &after.conditions)?;
    let awaited = ["Fetching", "Pulling"].contains(&&*ready.reason);
    (!awaited).then(|| Told::of(model, ready.status == "False", &ready.reason, ready.message.clone()))
}

/// Why a model is not ready.
#[derive(Debug)]
pub struct Failure {
    reason: &'static str,
    message: String,
    /// When to try again although the object has not changed; never, if only a change can help.
    again: Option<Duration>,
    /// Whether somebody else will say when it goes on.
    awaited: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    /// What the condition says in one word.
    #[cfg(test)]
    pub(crate) fn reason(&self) -> &'static str {
        self.reason
    }

    /// The object has to change.
    fn lasting(reason: &'static str, message: &str) -> Self {
        Self { reason, message: message.to_owned(), again: None, awaited: false }
    }

    /// Trying again may help.
    fn passing(reason: &'static str, message: &str) -> Self {
        Self { reason, message: message.to_owned(), again: Some(RETRY), awaited: false }
    }

    /// Trying again may help, and not soon.
    fn after(again: Duration, reason: &'static str, message: &str) -> Self {
        Self { again: Some(again), ..Self::passing(reason, message) }
    }

    /// Somebody else will say when it goes on.
    fn awaited(reason: &'static str, message: &str) -> Self {
        Self { awaited: true, ..Self::lasting(reason, message) }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        match error {
            StoreError::Source(SourceError::Missing(_)) => Self::passing("PathNotFound", &message),
            StoreError::Source(SourceError::Outside(_)) => Self::lasting("PathOutside", &message),
            StoreError::Source(SourceError::Disk { .. } | SourceError::Room { .. }) | StoreError::Disk { .. } => {
                Self::passing("Disk", &message)
            }
            StoreError::Source(_) | StoreError::Manifest(_) => Self::passing("SourceInvalid", &message),
            StoreError::Chunk { .. } | StoreError::Absent { .. } | StoreError::Incomplete(_) => {
                Self::passing("Incomplete", &message)
            }
        }
    }
}

impl From<DownloadError> for Failure {
    fn from(error: DownloadError) -> Self {
        let message = error.to_string();
        match error {
            DownloadError::Remote(error) => error.into(),
            DownloadError::Digest { .. } => Self::after(RETRY_OF_WRONG_CONTENTS, "DigestMismatch", &message),
            DownloadError::Long { .. } => Self::after(RETRY_OF_WRONG_CONTENTS, "SourceInvalid", &message),
            DownloadError::Room { .. } => Self::passing("Disk", &message),
            DownloadError::Disk { .. } => Self::passing("FetchFailed", &message),
        }
    }
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        let message = error.to_string();
        match error {
            RemoteError::Fetch(_) | RemoteError::Late(_) => Self::passing("FetchFailed", &message),
            RemoteError::Unauthorized(_) => Self::after(RETRY_OF_REFUSAL, "Unauthorized", &message),
            RemoteError::Missing(_) => Self::after(RETRY_OF_REFUSAL, "NotFound", &message),
            RemoteError::Unusable(_) => Self::after(RETRY_OF_WRONG_CONTENTS, "SourceInvalid", &message),
            RemoteError::Changed(_) => Self::passing("SourceChanged", &message),
            RemoteError::Digest(_) => Self::after(RETRY_OF_WRONG_CONTENTS, "DigestMismatch", &message),
            RemoteError::SecretMissing(_) => Self::passing("SecretNotFound", &message),
            RemoteError::SecretInvalid(_) => Self::passing("SecretInvalid", &message),
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Self::passing("Api", &error.to_string())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.expect("taking models in does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_or_used_stays() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let of = |text: &str| Some(digest(text).to_string());
        let mut model = Model::default();
        (model.spec.digest, model.status) =
            (of("asked"), Some(ModelStatus { digest: of("had"), ..Default::default() }));
        model.annotations_mut().insert(INCOMING_DIGEST.into(), of("coming").unwrap());
        let status = kedge_own::ModelServiceStatus { digest: of("served"), ..Default::default() };
        let service = ModelService { status: Some(status), ..Default::default() };
        let pod = |text: &str, phase: &str| {
            let mut pod = Pod::default();
            pod.annotations_mut().insert(MODEL_DIGEST.into(), of(text).unwrap());
            pod.status.get_or_insert_default().phase = Some(phase.into());
            Arc::new(pod)
        };
        let pods = [pod("mounted", "Running"), pod("ended", "Failed"), Arc::new(Pod::default())];
        let expected = ["asked", "had", "coming", "served", "mounted"].map(digest);
        assert_eq!(kept(&[Arc::new(model)], &[Arc::new(service)], &pods), expected.into());
    }

    #[test]
    fn files_are_named_as_the_user_knows_them() {
        let taken_to = Path::new("/data/model-store/00ff/files");
        let check = |source: &Source, unfit: Unfit, expected: (&str, &str, bool)| {
            let failure = unfit_for(source, taken_to, &unfit);
            assert_eq!((failure.reason, &*failure.message, failure.again.is_some()), expected);
        };
        let lost = || Unfit::Broken("/data/model-store/00ff/files/tokenizer.json: lost".into());
        let (path, hub) = (Source::Path("shop/broken".into()), Source::Hub(kedge_own::HubSource::default()));
        check(&path, lost(), ("FilesInvalid", "shop/broken/tokenizer.json: lost", true));
        check(&hub, lost(), ("FilesInvalid", "tokenizer.json: lost", false));
        let several = Unfit::Broken("/data/model-store/00ff/files: two".into());
        check(&hub, several, ("FilesInvalid", "the model: two", false));
        let odd = Unfit::Unsupported("/data/model-store/00ff/files/config.json: model_type: gpt2".into());
        check(&path, odd, ("FormatUnsupported", "shop/broken/config.json: model_type: gpt2", false));
    }

    #[test]
    fn the_status_names_what_is_wrong_and_forgets_what_is_not_so() {
        let mut model = Model { metadata: Default::default(), ..Model::default() };
        model.metadata.generation = Some(3);
        let manifest = Manifest { files: Vec::new() };
        let digest = manifest.digest();
        let good = status(&model, None, Some((&digest, &manifest)), Ok("bert"), Timestamp::UNIX_EPOCH);
        assert_eq!((good.format.as_deref(), good.is_ready(), good.observed_generation), (Some("bert"), true, Some(3)));
        model.status = Some(good);
        let failure = Failure::lasting("DigestMismatch", "no");
        let bad = status(&model, None, Some((&digest, &manifest)), Err(&failure), Timestamp::UNIX_EPOCH);
        assert_eq!((bad.digest.as_deref(), bad.format.as_deref(), bad.is_ready()), (None, None, false));
        let told = event(&model, &bad).unwrap();
        assert_eq!((told.warning, &*told.reason, &*told.message), (true, "DigestMismatch", "no"));
        assert_eq!(event(&model, &model.status.clone().unwrap()), None);
        let awaited = Failure::awaited("Fetching", "5 bytes are here");
        assert_eq!(event(&model, &status(&model, None, None, Err(&awaited), Timestamp::UNIX_EPOCH)), None);
        assert_eq!(bad.conditions[0].reason, "DigestMismatch");
        let failure = Failure::lasting("FormatUnsupported", "no");
        let bad = status(&model, None, Some((&digest, &manifest)), Err(&failure), Timestamp::UNIX_EPOCH);
        assert_eq!(bad.digest.as_deref(), Some(digest.as_str()));
    }
}

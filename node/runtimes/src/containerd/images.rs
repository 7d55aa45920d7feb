//! Images in containerd: blobs into the content store, layers onto snapshots, names last.
//!
//! Everything of an import is held by one lease until its names exist; when it fails the lease goes first, and
//! containerd collects the rest at once. A server that dies in between leaves a lease that expires. Layers' own blobs
//! are not kept once unpacked: nothing here sends images on.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snap;
use containerd_client::tonic::Code;
use containerd_client::tonic::metadata::{Ascii, MetadataValue};
use containerd_client::types::{Descriptor as WireDescriptor, Mount};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Inner, SNAPSHOTTER, rpc};
use crate::archive::layer_media_type;
use crate::image::{BlobSource, ConfigFile, Digest, Image, ImageConfig, ImagePlan, Manifest, chain_ids};
use crate::reference::Reference;
use crate::runtime::RuntimeError;

/// How much of a blob travels in one message.
const CHUNK_BYTES: usize = 1 << 20;
/// How long the leftovers of a server that died while importing stay.
const LEASE_HOURS: i64 = 24;
/// The label of a name that came from a registry.
const PULLED: &str = "kedge.dev/pulled";
/// The name of an image that has none; containerd keeps images by name only.
const UNNAMED: &str = "kedge.local/unnamed";

/// What a manifest says, once read.
pub(super) struct ImageFacts {
    pub(super) id: String,
    pub(super) config: ImageConfig,
    pub(super) size_bytes: u64,
    /// The snapshot that a container's own is made on; empty for an image without layers.
    pub(super) top_snapshot: String,
}

impl Inner {
    pub(super) async fn resolve_image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let bare = reference.len() == 64 && reference.bytes().all(|b| b.is_ascii_hexdigit());
        let id = if bare { format!("sha256:{reference}") } else { reference.to_owned() };
        if id.parse::<Digest>().is_ok() {
            return self.image_by_id(&id).await;
        }
        let wanted = Reference::parse(reference)?;
        let images = self.list_images().await?;
        let name = wanted.full_name();
        Ok(images.into_iter().find(|image| image.names.contains(&name) || image.digests.contains(&name)))
    }

    pub(super) async fn image_by_id(&self, id: &str) -> Result<Option<Image>, RuntimeError> {
        Ok(self.list_images().await?.into_iter().find(|image| image.id == id))
    }

    pub(super) async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        let mut by_id: BTreeMap<String, Image> = BTreeMap::new();
        for record in self.image_records().await? {
            let Some(target) = record.target else { continue };
            let Some(facts) = self.image_facts(&target.digest).await? else { continue };
            let image = by_id.entry(facts.id.clone()).or_insert_with(|| Image {
                id: facts.id.clone(),
                names: vec![],
                digests: vec![],
                size_bytes: facts.size_bytes,
                config: facts.config.clone(),
            });
            let Ok(name) = Reference::parse(&record.name) else { continue };
            if name.repository != UNNAMED {
                image.add_name(&name, &target.digest);
            }
        }
        Ok(by_id.into_values().collect())
    }

    /// Naming an image anew, as an import does, takes this back.
    pub(super) async fn note_pulled(&self, id: &str, reference: &str) -> Result<(), RuntimeError> {
        let pulled = Reference::parse(reference)?.repository;
        let is_of_it = |name: &str| Reference::parse(name).is_ok_and(|name| name.repository == pulled);
        for record in self.records_of(id).await?.into_iter().filter(|record| is_of_it(&record.name)) {
            let labels = HashMap::from([(PULLED.to_owned(), "true".to_owned())]);
            let image = api::Image { labels, ..record };
            let mask = prost_types::FieldMask { paths: vec![format!("labels.{PULLED}")] };
            let request =
                api::UpdateImageRequest { image: Some(image), update_mask: Some(mask), source_date_epoch: None };
            let updated = self.rpc.images().update(self.rpc.request(request)).await;
            rpc::answer("note that an image was pulled", updated)?;
        }
        Ok(())
    }

    pub(super) async fn pulled_images(&self) -> Result<Vec<Image>, RuntimeError> {
        let mut pulled = Vec::new();
        for image in self.list_images().await? {
            let records = self.records_of(&image.id).await?;
            if records.iter().all(|record| record.labels.contains_key(PULLED)) {
                pulled.push(image);
            }
        }
        Ok(pulled)
    }

    /// The names of the image with this id.
    async fn records_of(&self, id: &str) -> Result<Vec<api::Image>, RuntimeError> {
        let mut records = Vec::new();
        for record in self.image_records().await? {
            let Some(target) = &record.target else { continue };
            if self.image_facts(&target.digest).await?.is_some_and(|facts| facts.id == id) {
                records.push(record);
            }
        }
        Ok(records)
    }

    async fn image_records(&self) -> Result<Vec<api::Image>, RuntimeError> {
        let request = self.rpc.request(api::ListImagesRequest { filters: vec![] });
        Ok(rpc::answer("list images", self.rpc.images().list(request).await)?.images)
    }

    pub(super) async fn remove_image(&self, id: &str) -> Result<(), RuntimeError> {
        for record in self.records_of(id).await? {
            let request = api::DeleteImageRequest { name: record.name, sync: true, target: None };
            rpc::find("remove an image", self.rpc.images().delete(self.rpc.request(request)).await)?;
        }
        Ok(())
    }

    /// What the image with this id needs to run.
    pub(super) async fn facts_of_image(&self, id: &str) -> Result<Arc<ImageFacts>, RuntimeError> {
        for record in self.image_records().await? {
            let Some(target) = record.target else { continue };
            if let Some(facts) = self.image_facts(&target.digest).await?.filter(|facts| facts.id == id) {
                return Ok(facts);
            }
        }
        Err(RuntimeError::ImageNotFound(id.to_owned()))
    }

    /// `None` when the manifest or config is not here: an image that something else left incomplete.
    async fn image_facts(&self, manifest_digest: &str) -> Result<Option<Arc<ImageFacts>>, RuntimeError> {
        if let Some(facts) = self.image_facts.lock().get(manifest_digest) {
            return Ok(Some(facts.clone()));
        }
        let Some(manifest) = self.read_blob(manifest_digest).await? else { return Ok(None) };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&manifest) else { return Ok(None) };
        let Some(config) = self.read_blob(manifest.config.digest.as_str()).await? else { return Ok(None) };
        let Ok(config) = serde_json::from_slice::<ConfigFile>(&config) else { return Ok(None) };
        let facts = Arc::new(ImageFacts {
            id: manifest.config.digest.to_string(),
            config: config.config,
            size_bytes: manifest.config.size + manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
            top_snapshot: chain_ids(&config.rootfs.diff_ids).last().map(Digest::to_string).unwrap_or_default(),
        });
        self.image_facts.lock().insert(manifest_digest.to_owned(), facts.clone());
        Ok(Some(facts))
    }

    async fn read_blob(&self, digest: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
        let request = api::ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        let answer = self.rpc.content().read(self.rpc.request(request)).await;
        let Some(mut stream) = rpc::find("read a blob", answer)? else { return Ok(None) };
        let mut bytes = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(part)) => bytes.extend_from_slice(&part.data),
                Ok(None) => return Ok(Some(bytes)),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(rpc::failed("read a blob", &status)),
            }
        }
    }

    pub(super) async fn unpacked_layers(&self, diff_ids: &[Digest]) -> Result<usize, RuntimeError> {
        for (count, chain) in chain_ids(diff_ids).iter().enumerate() {
            let stat = snap::StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: chain.to_string() };
            let found = self.rpc.snapshots().stat(self.rpc.request(stat)).await;
            if rpc::find("look for a layer", found)?.is_none() {
                return Ok(count);
            }
        }
        Ok(diff_ids.len())
    }

    /// Unpacks all images and then names them; on any error none of them.
    pub(super) async fn install(&self, plans: &[ImagePlan], blobs: Arc<dyn BlobSource>) -> Result<(), RuntimeError> {
        let id = format!("kedge-import-{:016x}", self.world.random.number());
        let expires = self.world.clock.wall() + jiff::SignedDuration::from_hours(LEASE_HOURS);
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]);
        let request = self.rpc.request(api::CreateRequest { id: id.clone(), labels });
        rpc::answer("hold what is imported", self.rpc.leases().create(request).await)?;
        let import = Import { inner: self, lease: id.parse().expect("hexadecimal digits"), blobs, id: &id };
        let done = import.all(plans).await;
        let request = api::DeleteRequest { id: id.clone(), sync: done.is_err() };
        let released =
            rpc::find("release what was imported", self.rpc.leases().delete(self.rpc.request(request)).await);
        done.and(released.map(drop))
    }
}

struct Import<'a> {
    inner: &'a Inner,
    lease: MetadataValue<Ascii>,
    id: &'a str,
    blobs: Arc<dyn BlobSource>,
}

impl Import<'_> {
    async fn all(&self, plans: &[ImagePlan]) -> Result<(), RuntimeError> {
        for plan in plans {
            let top = self.unpack(plan).await?;
            let snapshot = ("containerd.io/gc.ref.snapshot.overlayfs".to_owned(), top);
            let config = ("containerd.io/gc.ref.content.0".to_owned(), plan.manifest.config.digest.to_string());
            let labels =
                |label: (String, String)| if label.1.is_empty() { HashMap::new() } else { HashMap::from([label]) };
            self.write_bytes(&plan.manifest.config.digest, plan.config_bytes.clone(), labels(snapshot)).await?;
            self.write_bytes(&plan.manifest_digest, plan.manifest_bytes.clone(), labels(config)).await?;
        }
        // containerd does not sync what it unpacks, and after a power cut an image with empty files runs and fails.
        sync_file_system(&self.inner.settings.data_dir).await?;
        for plan in plans {
            self.name(plan).await?;
        }
        Ok(())
    }

    async fn name(&self, plan: &ImagePlan) -> Result<(), RuntimeError> {
        let unnamed = format!("{UNNAMED}@{}", plan.manifest_digest);
        let names = if plan.names.is_empty() { std::slice::from_ref(&unnamed) } else { &plan.names[..] };
        for name in names {
            let target = WireDescriptor {
                media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                digest: plan.manifest_digest.to_string(),
                size: plan.manifest_bytes.len() as i64,
                annotations: HashMap::new(),
            };
            let image = api::Image { name: name.clone(), target: Some(target), ..api::Image::default() };
            let mut client = self.inner.rpc.images();
            let request = api::CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
            let attempt = format!("name image {name}");
            if !rpc::accept_existing(&attempt, client.create(self.inner.rpc.request(request)).await)? {
                let request = api::UpdateImageRequest { image: Some(image), ..api::UpdateImageRequest::default() };
                rpc::answer(&attempt, client.update(self.inner.rpc.request(request)).await)?;
            }
        }
        Ok(())
    }

    /// Unpacks the layers that are not there yet; gives the topmost snapshot's name.
    async fn unpack(&self, plan: &ImagePlan) -> Result<String, RuntimeError> {
        let mut parent = String::new();
        for (index, chain) in chain_ids(&plan.diff_ids).iter().enumerate() {
            let mut client = self.inner.rpc.snapshots();
            let stat = snap::StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: chain.to_string() };
            let found = client.stat(self.inner.rpc.leased(&self.lease, stat)).await;
            if rpc::find("look for a layer", found)?.is_some() {
                let resource = api::Resource { id: chain.to_string(), r#type: format!("snapshots/{SNAPSHOTTER}") };
                let hold = api::AddResourceRequest { id: self.id.to_owned(), resource: Some(resource) };
                rpc::answer("hold a layer", self.inner.rpc.leases().add_resource(self.inner.rpc.request(hold)).await)?;
            } else {
                self.unpack_layer(plan, index, chain, &parent).await?;
            }
            parent = chain.to_string();
        }
        Ok(parent)
    }

    async fn unpack_layer(
        &self,
        plan: &ImagePlan,
        index: usize,
        chain: &Digest,
        parent: &str,
    ) -> Result<(), RuntimeError> {
        let (layer, diff_id) = (&plan.manifest.layers[index], &plan.diff_ids[index]);
        let head = self.write_layer(&layer.digest, layer.size).await?;
        let key = format!("{}-{}", self.id, chain.hex());
        let snapshotter = SNAPSHOTTER.to_owned();
        let prepare = snap::PrepareSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let mut client = self.inner.rpc.snapshots();
        let prepared = client.prepare(self.inner.rpc.leased(&self.lease, prepare)).await;
        let mounts = rpc::answer("prepare a layer's snapshot", prepared)?.mounts;
        let done = self.apply(layer.digest.as_str(), layer.size, layer_media_type(&head), mounts, diff_id).await;
        if let Err(error) = done {
            let remove = snap::RemoveSnapshotRequest { snapshotter, key };
            rpc::find("remove a broken layer", client.remove(self.inner.rpc.request(remove)).await)?;
            return Err(error);
        }
        let commit = snap::CommitSnapshotRequest { snapshotter, name: chain.to_string(), key, labels: HashMap::new() };
        let committed = client.commit(self.inner.rpc.leased(&self.lease, commit)).await;
        rpc::accept_existing("keep a layer's snapshot", committed).map(drop)
    }

    async fn apply(
        &self,
        digest: &str,
        size: u64,
        media_type: &str,
        mounts: Vec<Mount>,
        diff_id: &Digest,
    ) -> Result<(), RuntimeError> {
        let diff = WireDescriptor {
            media_type: media_type.to_owned(),
            digest: digest.to_owned(),
            size: size as i64,
            annotations: HashMap::new(),
        };
        let request = api::ApplyRequest { diff: Some(diff), mounts, ..api::ApplyRequest::default() };
        let attempt = format!("unpack layer {digest}");
        let applied = self.inner.rpc.diff().apply(self.inner.rpc.leased(&self.lease, request)).await;
        let applied = rpc::answer(&attempt, applied)?.applied.unwrap_or_default().digest;
        if applied == diff_id.as_str() {
            return Ok(());
        }
        Err(RuntimeError::Backend { attempt, reason: format!("its content is {applied}, the image says {diff_id}") })
    }

    async fn write_bytes(
        &self,
        digest: &Digest,
        bytes: Vec<u8>,
        labels: HashMap<String, String>,
    ) -> Result<(), RuntimeError> {
        let size = bytes.len() as u64;
        let existed = self.write(digest, size, labels.clone(), Box::new(std::io::Cursor::new(bytes))).await?;
        if existed && !labels.is_empty() {
            let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
            let info = api::Info { digest: digest.to_string(), labels, ..api::Info::default() };
            let mask = prost_types::FieldMask { paths };
            let request = api::UpdateRequest { info: Some(info), update_mask: Some(mask) };
            let updated = self.inner.rpc.content().update(self.inner.rpc.leased(&self.lease, request)).await;
            rpc::answer("refer to an image's parts", updated)?;
        }
        Ok(())
    }

    /// Gives the layer's first bytes, which tell its compression.
    async fn write_layer(&self, digest: &Digest, size: u64) -> Result<Vec<u8>, RuntimeError> {
        let (blobs, wanted) = (self.blobs.clone(), digest.clone());
        let head = tokio::task::spawn_blocking(move || {
            let mut head = Vec::new();
            blobs.open(&wanted)?.take(4).read_to_end(&mut head).map(|_| head)
        });
        let fail = |e| RuntimeError::host(format!("read layer {digest}"), e);
        let head = head.await.expect("reading does not panic").map_err(fail)?;
        let (blobs, wanted) = (self.blobs.clone(), digest.clone());
        self.write(digest, size, HashMap::new(), Box::new(LazyBlob { blobs, wanted })).await?;
        Ok(head)
    }

    /// Streams a blob into the content store, which checks its digest; tells whether it was there already.
    async fn write(
        &self,
        digest: &Digest,
        size: u64,
        labels: HashMap<String, String>,
        source: Box<dyn Feed>,
    ) -> Result<bool, RuntimeError> {
        let attempt = format!("store blob {digest}");
        let name = format!("{}-{}", self.id, digest.hex());
        let template = api::WriteContentRequest {
            r#ref: name.clone(),
            total: size as i64,
            expected: digest.to_string(),
            labels,
            ..api::WriteContentRequest::default()
        };
        let (sender, receiver) = mpsc::channel(4);
        let feeder = tokio::task::spawn_blocking(move || source.feed(&template, &sender));
        let request = self.inner.rpc.leased(&self.lease, ReceiverStream::new(receiver));
        let mut existed = false;
        let mut failure = None;
        match self.inner.rpc.content().write(request).await {
            Err(status) if status.code() == Code::AlreadyExists => existed = true,
            Err(status) => failure = Some(rpc::failed(&attempt, &status)),
            Ok(answers) => {
                let mut answers = answers.into_inner();
                loop {
                    match answers.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(status) if status.code() == Code::AlreadyExists => {
                            existed = true;
                            break;
                        }
                        Err(status) => {
                            failure = Some(rpc::failed(&attempt, &status));
                            break;
                        }
                    }
                }
            }
        }
        let fed = feeder.await.expect("reading a blob does not panic");
        let result = match (existed, fed, failure) {
            (true, _, _) => return Ok(true),
            (_, Err(e), _) => Err(RuntimeError::host(attempt, e)),
            (_, Ok(()), Some(failure)) => Err(failure),
            (_, Ok(()), None) => return Ok(false),
        };
        let abort = self.inner.rpc.request(api::AbortRequest { r#ref: name });
        rpc::find("forget a broken blob", self.inner.rpc.content().abort(abort).await)?;
        result
    }
}

type Sender = mpsc::Sender<api::WriteContentRequest>;

/// Something that can be sent to the content store from a thread that may block.
trait Feed: Send {
    fn feed(self: Box<Self>, template: &api::WriteContentRequest, sender: &Sender) -> std::io::Result<()>;
}

impl Feed for std::io::Cursor<Vec<u8>> {
    fn feed(mut self: Box<Self>, template: &api::WriteContentRequest, sender: &Sender) -> std::io::Result<()> {
        send(&mut *self, template, sender)
    }
}

struct LazyBlob {
    blobs: Arc<dyn BlobSource>,
    wanted: Digest,
}

impl Feed for LazyBlob {
    fn feed(self: Box<Self>, template: &api::WriteContentRequest, sender: &Sender) -> std::io::Result<()> {
        send(&mut *self.blobs.open(&self.wanted)?, template, sender)
    }
}

/// Sends all bytes and the wish to commit. A receiver that went away has its own reason, told on its side.
fn send(reader: &mut dyn Read, template: &api::WriteContentRequest, sender: &Sender) -> std::io::Result<()> {
    let mut offset = 0;
    loop {
        let mut data = Vec::with_capacity(CHUNK_BYTES);
        reader.take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
        let end = data.is_empty();
        let length = data.len() as i64;
        let action = if end { api::WriteAction::Commit } else { api::WriteAction::Write };
        let message = api::WriteContentRequest { action: action.into(), offset, data, ..template.clone() };
        if sender.blocking_send(message).is_err() || end {
            return Ok(());
        }
        offset += length;
    }
}

/// Returns once the file system that `folder` is on holds everything written so far.
async fn sync_file_system(folder: &Path) -> Result<(), RuntimeError> {
    let folder = folder.to_owned();
    let work = move || {
        let attempt = || format!("sync the file system of {}", folder.display());
        let file = super::open_folder(&folder).map_err(|e| RuntimeError::host(attempt(), e))?;
        nix::unistd::syncfs(file).map_err(|e| RuntimeError::host(attempt(), e))
    };
    tokio::task::spawn_blocking(work).await.expect("syncing does not panic")
}

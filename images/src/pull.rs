//! Pulling images from registries. (OCI distribution spec, `pull`; docs.docker.com/registry/spec/auth/token.)
//!
//! A pull writes nothing into the runtime before every blob is here and has its digest. What a cut link leaves is kept
//! in `<data-dir>/pulls` under its digest and gone on from, by whichever pull needs that blob next. Layers that the
//! runtime has unpacked for another image are not fetched.
//! Not here: pushing, mirrors, signatures.
#![allow(clippy::disallowed_methods, reason = "a shell: blobs are large files that grow at their end")]

mod blob;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use kedge_content::Turns;
use kedge_fetch::{Answer, FetchError, Fetcher};
use kedge_registry::{Login, RegistryError};
use kedge_runtimes::Runtime;
use kedge_runtimes::image::{
    BlobSource, ConfigFile, Descriptor, Digest, Image, ImagePlan, Manifest, host_architecture,
};
use kedge_runtimes::reference::Reference;
use kedge_runtimes::runtime::RuntimeError;
use serde::Deserialize;

/// Manifests, indexes and configs larger than this are none; registries refuse them at the same size.
const JSON_BYTES_MAX: usize = 4 << 20;
/// Times a blob is asked for again after the link broke, each time going on where it ended.
const ATTEMPTS_MAX: u32 = 5;
/// How long a blob that nobody came back for is kept.
const UNFINISHED_MAX: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);
/// How often a layer lies on the disk until its image is installed: as it came, in the runtime's store, and unpacked,
/// where it is no smaller.
const LAYER_COPIES: u64 = 3;
/// What a registry may answer for a name.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The name is none.
    #[error(transparent)]
    Reference(RuntimeError),
    /// The registry, or the way there.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The registry wants to know who asks, and nobody it accepts does.
    #[error("{registry} refuses to give {repository}: {reason}; name a login in imagePullSecrets")]
    Refused {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// Its words.
        reason: String,
    },
    /// There is no such image.
    #[error("{0} does not exist in its registry")]
    Missing(String),
    /// What came is not what an image consists of.
    #[error("{what}: {reason}")]
    Invalid {
        /// The part.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is none for this machine.
    #[error("{name} has no image for linux/{architecture}; it has {found}")]
    Platform {
        /// The image.
        name: String,
        /// This machine's processor.
        architecture: String,
        /// What there is.
        found: String,
    },
    /// A blob cannot be kept.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The disk has no room for it.
    #[error("{image} needs {needed} bytes on the file system of {}, where {free} are free", folder.display())]
    Room {
        /// The image.
        image: String,
        /// The least that it takes while it is installed.
        needed: u64,
        /// What may be used, less the part of the disk that is kept free.
        free: u64,
        /// Where it would go.
        folder: PathBuf,
    },
    /// The runtime did not take it.
    #[error("cannot install the image: {0}")]
    Install(RuntimeError),
}

/// Pulls images for one runtime.
pub struct Puller {
    fetcher: Fetcher,
    folder: PathBuf,
    runtime: Arc<dyn Runtime>,
    /// One at a time for each blob: ten pods of one image pull it once, and two images share a file on its way.
    turns: Turns,
}

impl Puller {
    /// One that keeps unfinished blobs in `folder`.
    pub fn new(fetcher: Fetcher, folder: PathBuf, runtime: Arc<dyn Runtime>) -> Self {
        Self { fetcher, folder, runtime, turns: Turns::default() }
    }

    /// Removes blobs that nobody came back for in a week.
    pub fn clean(&self, now: Timestamp) -> Result<(), PullError> {
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| PullError::Disk { path, source }
        };
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(disk(&self.folder))?,
        };
        for entry in entries {
            let path = entry.map_err(disk(&self.folder))?.path();
            let modified = fs::symlink_metadata(&path).and_then(|meta| meta.modified()).map_err(disk(&path))?;
            // A time that no calendar has is as old as any.
            let is_young = Timestamp::try_from(modified).is_ok_and(|at| now.duration_since(at) < UNFINISHED_MAX);
            if !is_young {
                tracing::info!(file = %path.display(), "removing a blob that nobody came back for");
                fs::remove_file(&path).map_err(disk(&path))?;
            }
        }
        Ok(())
    }

    /// Pulls `name` and installs it; `logins` are tried where the registry asks who is there.
    pub async fn pull(&self, name: &str, logins: &[Login]) -> Result<Image, PullError> {
        let reference = Reference::parse(name).map_err(PullError::Reference)?;
        let mut session = Session::new(&self.fetcher, &reference, logins);
        let (manifest_bytes, manifest_digest) = self.manifest(&mut session, &reference).await?;
        if let Some(image) = self.installed(&reference, &manifest_digest).await {
            return Ok(image);
        }
        let manifest: Manifest = parse("the manifest", &manifest_bytes)?;
        let all = manifest.layers.iter().chain([&manifest.config]);
        let _turn = self.turns.take(&all.map(|blob| blob.digest.clone()).collect()).await;
        // Somebody else may have pulled it while this waited.
        if let Some(image) = self.installed(&reference, &manifest_digest).await {
            return Ok(image);
        }
        fs::create_dir_all(&self.folder).map_err(|source| PullError::Disk { path: self.folder.clone(), source })?;
        let config_bytes = {
            let path = self.blob(&mut session, &manifest.config, JSON_BYTES_MAX as u64).await?;
            fs::read(&path).map_err(|source| PullError::Disk { path, source })?
        };
        let config: ConfigFile = parse("the image's config", &config_bytes)?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let reason =
                format!("{} layers, and {} in its config", manifest.layers.len(), config.rootfs.diff_ids.len());
            return Err(PullError::Invalid { what: "the manifest".into(), reason });
        }
        let here = self.runtime.unpacked_layers(&config.rootfs.diff_ids).await.map_err(PullError::Install)?;
        let wanted = &manifest.layers[here.min(manifest.layers.len())..];
        self.check_room(&reference, wanted)?;
        for layer in wanted {
            self.blob(&mut session, layer, u64::MAX).await?;
        }
        let blobs: Vec<PathBuf> =
            manifest.layers.iter().chain([&manifest.config]).map(|blob| self.place(&blob.digest)).collect();
        let plan = ImagePlan {
            // As it was asked for: with a digest, also one of an index, a tag beside it says nothing.
            names: vec![reference.full_name()],
            manifest_digest,
            manifest_bytes,
            manifest,
            config_bytes,
            diff_ids: config.rootfs.diff_ids,
        };
        let image = self.runtime.install_image(plan, Arc::new(Blobs(self.folder.clone()))).await;
        let image = image.map_err(PullError::Install)?;
        for path in blobs {
            // The runtime has its own copy; one that stays here by accident is used again or written over.
            let _ = fs::remove_file(path);
        }
        Ok(image)
    }

    /// Refuses what does not fit, before a byte of it comes.
    fn check_room(&self, reference: &Reference, layers: &[Descriptor]) -> Result<(), PullError> {
        let here = |layer: &Descriptor| fs::metadata(self.place(&layer.digest)).map_or(0, |found| found.len());
        let needs = |layer: &Descriptor| layer.size.saturating_mul(LAYER_COPIES).saturating_sub(here(layer));
        let needed = layers.iter().map(needs).fold(0, u64::saturating_add);
        let disk = |source| PullError::Disk { path: self.folder.clone(), source };
        let free = kedge_content::free_bytes(&self.folder).map_err(disk)?;
        if needed <= free {
            return Ok(());
        }
        Err(PullError::Room { image: reference.full_name(), needed, free, folder: self.folder.clone() })
    }

    /// The image, when the runtime has exactly this one under this name.
    async fn installed(&self, reference: &Reference, manifest: &Digest) -> Option<Image> {
        let image = self.runtime.resolve_image(&reference.full_name()).await.ok()??;
        let suffix = format!("@{manifest}");
        image.digests.iter().any(|name| name.ends_with(&suffix)).then_some(image)
    }

    /// The manifest for this machine, by way of an index where there is one.
    async fn manifest(&self, session: &mut Session<'_>, reference: &Reference) -> Result<(Vec<u8>, Digest), PullError> {
        let asked = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".into()),
        };
        let (bytes, digest) = self.document(session, reference, &asked).await?;
        let index: Index = parse("the manifest", &bytes)?;
        if index.manifests.is_empty() {
            return Ok((bytes, digest));
        }
        let architecture = host_architecture();
        let fits = |entry: &&Descriptor| {
            entry
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture)
        };
        let Some(chosen) = index.manifests.iter().find(fits) else {
            let found = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
            let found: Vec<String> =
                found.map(|platform| format!("{}/{}", platform.os, platform.architecture)).collect();
            let (name, found) = (reference.full_name(), found.join(", "));
            return Err(PullError::Platform { name, architecture: architecture.into(), found });
        };
        self.document(session, reference, chosen.digest.as_str()).await
    }

    async fn document(
        &self,
        session: &mut Session<'_>,
        reference: &Reference,
        asked: &str,
    ) -> Result<(Vec<u8>, Digest), PullError> {
        let answer = session.get(&format!("manifests/{asked}"), 0, Some(ACCEPTED)).await?;
        let bytes = answer.bytes(JSON_BYTES_MAX).await?;
        let digest = Digest::of(&bytes);
        if let Ok(expected) = asked.parse::<Digest>()
            && expected != digest
        {
            let what = format!("the manifest of {}", reference.repository);
            return Err(PullError::Invalid { what, reason: format!("has the digest {digest}, not {expected}") });
        }
        Ok((bytes, digest))
    }

    /// Fetches a blob, going on with what is here of it; its file.
    async fn blob(&self, session: &mut Session<'_>, blob: &Descriptor, max: u64) -> Result<PathBuf, PullError> {
        let what = || format!("the blob {}", blob.digest);
        if blob.size > max {
            return Err(PullError::Invalid { what: what(), reason: format!("is larger than {max} bytes") });
        }
        let path = self.place(&blob.digest);
        let mut attempt = 1;
        loop {
            match blob::fetch(session, blob, &path).await {
                Err(PullError::Fetch(error)) if error.is_transient() && attempt < ATTEMPTS_MAX => {
                    tracing::info!(digest = %blob.digest, %error, attempt, "a blob broke off; going on with it");
                    attempt += 1;
                }
                other => return other.map(|()| path),
            }
        }
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }
}

/// The part of an index that choosing needs; a manifest has no `manifests`.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, PullError> {
    serde_json::from_slice(bytes)
        .map_err(|error| PullError::Invalid { what: what.to_owned(), reason: format!("cannot be read: {error}") })
}

/// Blobs as they lie in a folder.
struct Blobs(PathBuf);

impl BlobSource for Blobs {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(fs::File::open(Path::new(&self.0).join(digest.hex()))?))
    }
}

/// The way to the registry of one image.
struct Session<'a> {
    reference: &'a Reference,
    registry: kedge_registry::Session,
}

impl<'a> Session<'a> {
    fn new(fetcher: &Fetcher, reference: &'a Reference, logins: &[Login]) -> Self {
        Self { reference, registry: kedge_registry::Session::new(fetcher, &reference.repository, logins) }
    }

    /// Asks for `path` of the repository, from byte `from` on.
    async fn get(&mut self, path: &str, from: u64, accept: Option<&str>) -> Result<Answer, PullError> {
        self.registry.get(path, from, accept).await.map_err(|error| match error {
            RegistryError::Fetch(error) => PullError::Fetch(error),
            RegistryError::Refused { registry, repository, reason } => {
                PullError::Refused { registry, repository, reason }
            }
            RegistryError::Missing(_) => PullError::Missing(self.reference.full_name()),
            RegistryError::Invalid { what, reason } => PullError::Invalid { what, reason },
        })
    }
}

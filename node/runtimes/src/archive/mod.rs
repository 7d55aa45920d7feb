//! Image archives: `docker save` and OCI layouts, as tar or tar.gz.
//!
//! [`scan`] reads the whole archive once, hashing every entry and keeping the small JSON ones; [`plan`] finds out from
//! those which images it holds. Nothing is installed before both succeeded, so a truncated or hostile archive leaves
//! nothing behind. Entry names are only ever keys of a map: no name from an archive becomes a path. All sizes kept
//! in memory are bounded. The bytes of layers are read a second time, through [`read::ArchiveFile`].
//!
//! Not here: unpacking layers (the backend's work).

pub mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::image::{ConfigFile, Descriptor, Digest, ImagePlan, Manifest};
use crate::reference::Reference;

/// A manifest, index or config larger than this is not one; registries refuse them at the same size.
const JSON_BYTES_MAX: u64 = 4 << 20;
/// All JSON of one archive together.
const JSON_TOTAL_BYTES_MAX: u64 = 64 << 20;
/// Far above any real image, far below what a map of names may cost.
const ENTRIES_MAX: usize = 100_000;
/// Links to links; `docker save` once made one level.
const LINK_DEPTH_MAX: usize = 8;
/// Indexes in indexes; one level is in use.
const INDEX_DEPTH_MAX: usize = 4;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Reading the file failed, or it is not a tar.
    #[error("cannot be read as a tar or tar.gz archive: {0}")]
    Read(#[source] io::Error),
    /// It ends in the middle of an entry.
    #[error("is truncated: {entry:?} has {actual} of {expected} bytes")]
    Truncated {
        /// The entry.
        entry: String,
        /// Bytes its header promises.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// Neither layout.
    #[error("is no image archive: it has neither manifest.json nor index.json")]
    NoManifest,
    /// A layout without images.
    #[error("{0} lists no images")]
    Empty(&'static str),
    /// Something it refers to is not in it.
    #[error("lacks {name:?}, which {referrer:?} refers to")]
    Missing {
        /// The entry.
        name: String,
        /// Who wants it.
        referrer: String,
    },
    /// Larger than the limit.
    #[error("{what} is larger than {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// JSON that is not what it should be.
    #[error("{entry:?} is malformed: {reason}")]
    Malformed {
        /// The entry.
        entry: String,
        /// Why.
        reason: String,
    },
    /// Two entries of one name and different bytes.
    #[error("holds {0:?} twice, with different bytes")]
    Duplicate(String),
    /// A blob that is not what its name says.
    #[error("blob {expected} really is {actual}")]
    DigestMismatch {
        /// The name.
        expected: Digest,
        /// The hash of its bytes.
        actual: Digest,
    },
    /// Built for another machine.
    #[error("image is for {found}, this node is linux/{wanted}")]
    WrongPlatform {
        /// What it is for.
        found: String,
        /// This node's processor.
        wanted: String,
    },
}

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File(FileEntry),
    /// A link to another entry, its target resolved against its folder.
    Link(String),
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// The hash of its bytes.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// Where its bytes start in the (decompressed) tar.
    pub offset: u64,
    /// Its first bytes, enough to know a compression by.
    pub head: [u8; 4],
    /// Its bytes, when it is small and looks like JSON.
    pub json: Option<Vec<u8>>,
}

/// What [`scan`] found: entries by name.
pub type Contents = BTreeMap<String, Entry>;

/// The reader's own words about a header quote what stands there, which may be any file's secrets.
fn unreadable(error: io::Error) -> ArchiveError {
    let told = error.kind() == io::ErrorKind::Other && error.raw_os_error().is_none();
    ArchiveError::Read(if told {
        io::Error::new(io::ErrorKind::InvalidData, "it has no valid tar header")
    } else {
        error
    })
}

/// Reads a tar to its end.
pub fn scan(tar: impl Read) -> Result<Contents, ArchiveError> {
    let mut archive = tar::Archive::new(tar);
    let mut contents = Contents::new();
    let mut json_bytes = 0;
    for entry in archive.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let name = normalize("", &String::from_utf8_lossy(&entry.path_bytes()));
        let kind = entry.header().entry_type();
        let found = if kind.is_file() || kind == tar::EntryType::Continuous {
            let file = scan_file(&name, &mut entry)?;
            json_bytes += file.json.as_ref().map_or(0, |json| json.len() as u64);
            Entry::File(file)
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default();
            let folder = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(folder, _)| folder) } else { "" };
            Entry::Link(normalize(folder, &String::from_utf8_lossy(&target)))
        } else {
            continue; // Folders and device nodes can hold no blob.
        };
        if json_bytes > JSON_TOTAL_BYTES_MAX {
            return Err(too_large("its JSON", JSON_TOTAL_BYTES_MAX));
        }
        if contents.len() >= ENTRIES_MAX {
            return Err(ArchiveError::TooLarge { what: "it".into(), limit: format!("{ENTRIES_MAX} entries") });
        }
        match (contents.get(&name), &found) {
            (Some(Entry::File(old)), Entry::File(new)) if old.digest == new.digest => {}
            (Some(old), new) if old != new => return Err(ArchiveError::Duplicate(name)),
            _ => drop(contents.insert(name, found)),
        }
    }
    Ok(contents)
}

fn too_large(what: &str, bytes: u64) -> ArchiveError {
    ArchiveError::TooLarge { what: what.to_owned(), limit: format!("{} MiB", bytes >> 20) }
}

fn scan_file<R: Read>(name: &str, entry: &mut tar::Entry<'_, R>) -> Result<FileEntry, ArchiveError> {
    let (expected, offset) = (entry.size(), entry.raw_file_position());
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    let mut size = 0u64;
    let mut head = [0; 4];
    let mut json: Option<Vec<u8>> = None;
    loop {
        let read = entry.read(&mut buffer).map_err(ArchiveError::Read)?;
        let chunk = &buffer[..read];
        if read == 0 {
            break;
        }
        if size == 0 {
            let known = read.min(4);
            head[..known].copy_from_slice(&chunk[..known]);
            if matches!(chunk[0], b'{' | b'[' | b' ' | b'\n') && expected <= JSON_BYTES_MAX {
                json = Some(Vec::new());
            }
        }
        hash.update(chunk);
        size += read as u64;
        if let Some(json) = &mut json {
            json.extend_from_slice(chunk);
        }
    }
    if size != expected {
        return Err(ArchiveError::Truncated { entry: name.to_owned(), expected, actual: size });
    }
    Ok(FileEntry { digest: Digest::from_hash(hash.finalize().as_slice()), size, offset, head, json })
}

/// Joins and resolves `.` and `..` in the map of names; never goes above the top.
fn normalize(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = if path.starts_with('/') { vec![] } else { folder.split('/').collect() };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("/")
}

/// The images of an archive, and which entry holds each blob they need.
#[derive(Debug)]
pub struct ArchivePlan {
    /// The images.
    pub images: Vec<ImagePlan>,
    /// Entry names by blob.
    pub blobs: BTreeMap<Digest, String>,
}

/// Finds the images for this processor (`architecture`, as Go names it).
pub fn plan(contents: &Contents, architecture: &str) -> Result<ArchivePlan, ArchiveError> {
    let mut planner = Planner { contents, architecture, blobs: BTreeMap::new() };
    let images = if contents.contains_key("manifest.json") {
        planner.docker()?
    } else if contents.contains_key("index.json") {
        planner.oci()?
    } else {
        return Err(ArchiveError::NoManifest);
    };
    Ok(ArchivePlan { images, blobs: planner.blobs })
}

/// One image of a docker archive's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

struct Planner<'a> {
    contents: &'a Contents,
    architecture: &'a str,
    blobs: BTreeMap<Digest, String>,
}

impl<'a> Planner<'a> {
    fn docker(&mut self) -> Result<Vec<ImagePlan>, ArchiveError> {
        let listed: Vec<DockerImage> = self.json("manifest.json", "manifest.json")?;
        if listed.is_empty() {
            return Err(ArchiveError::Empty("manifest.json"));
        }
        listed.iter().map(|image| self.docker_image(image)).collect()
    }

    fn docker_image(&mut self, image: &DockerImage) -> Result<ImagePlan, ArchiveError> {
        let (config_name, config) = self.file(&image.config, "manifest.json")?;
        let config_bytes = self.bytes(&config_name, config)?;
        let config = self.descriptor(&config_name, config, OCI_CONFIG);
        let mut layers = Vec::new();
        for layer in &image.layers {
            let (name, file) = self.file(layer, "manifest.json")?;
            layers.push(self.descriptor(&name, file, layer_media_type(&file.head)));
        }
        let manifest = Manifest { schema_version: 2, media_type: OCI_MANIFEST.into(), config, layers };
        let manifest_bytes = serde_json::to_vec(&manifest).expect("a manifest has only strings and numbers");
        let tags = image.repo_tags.iter().flatten().map(String::as_str);
        let names = full_names("manifest.json", tags)?;
        self.finish(names, manifest, manifest_bytes, config_bytes, &image.config)
    }

    fn oci(&mut self) -> Result<Vec<ImagePlan>, ArchiveError> {
        let index: Index = self.json("index.json", "index.json")?;
        // The same manifest under several names is one image.
        let mut named: Vec<(Descriptor, BTreeSet<String>)> = Vec::new();
        for descriptor in &index.manifests {
            let names = full_names("index.json", oci_name(descriptor).into_iter())?;
            let Some(manifest) = self.select(descriptor, 0)? else { continue };
            match named.iter_mut().find(|(other, _)| other.digest == manifest.digest) {
                Some((_, known)) => known.extend(names),
                None => named.push((manifest, names.into_iter().collect())),
            }
        }
        if named.is_empty() {
            return Err(ArchiveError::Empty("index.json"));
        }
        named.into_iter().map(|(manifest, names)| self.oci_image(&manifest, names.into_iter().collect())).collect()
    }

    /// Follows indexes to the manifest for this machine; `None` for what is no image (attestations).
    fn select(&mut self, descriptor: &Descriptor, depth: usize) -> Result<Option<Descriptor>, ArchiveError> {
        let entry = blob_name(&descriptor.digest);
        if depth > INDEX_DEPTH_MAX {
            return Err(ArchiveError::Malformed { entry, reason: "indexes nest too deep".into() });
        }
        let fits =
            |d: &Descriptor| d.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == self.architecture);
        let value: serde_json::Value = self.blob_json(descriptor, "index.json")?;
        if value.get("manifests").is_none() {
            return match &descriptor.platform {
                Some(platform) if platform.os == "unknown" => Ok(None),
                Some(platform) if !fits(descriptor) => Err(ArchiveError::WrongPlatform {
                    found: format!("{}/{}", platform.os, platform.architecture),
                    wanted: self.architecture.to_owned(),
                }),
                _ => Ok(Some(descriptor.clone())),
            };
        }
        let index: Index = from_json(&entry, value)?;
        match index.manifests.iter().find(|d| fits(d)) {
            Some(chosen) => self.select(chosen, depth + 1),
            None => {
                let found = index.manifests.iter().filter_map(|d| d.platform.as_ref());
                let found: Vec<_> = found.map(|p| format!("{}/{}", p.os, p.architecture)).collect();
                Err(ArchiveError::WrongPlatform { found: found.join(", "), wanted: self.architecture.to_owned() })
            }
        }
    }

    fn oci_image(&mut self, descriptor: &Descriptor, names: Vec<String>) -> Result<ImagePlan, ArchiveError> {
        let entry = blob_name(&descriptor.digest);
        let (_, file) = self.blob(&descriptor.digest, "index.json")?;
        let manifest_bytes = self.bytes(&entry, file)?;
        let manifest: Manifest =
            serde_json::from_slice(&manifest_bytes).map_err(|e| malformed(&entry, &e.to_string()))?;
        let (config_name, config) = self.blob(&manifest.config.digest, &entry)?;
        let config_bytes = self.bytes(&config_name, config)?;
        for layer in &manifest.layers {
            let (name, file) = self.blob(&layer.digest, &entry)?;
            if file.size != layer.size {
                return Err(malformed(&entry, &format!("{name} has {} bytes, not {}", file.size, layer.size)));
            }
            self.blobs.insert(layer.digest.clone(), name);
        }
        self.finish(names, manifest, manifest_bytes, config_bytes, &config_name)
    }

    fn finish(
        &self,
        names: Vec<String>,
        manifest: Manifest,
        manifest_bytes: Vec<u8>,
        config_bytes: Vec<u8>,
        config_name: &str,
    ) -> Result<ImagePlan, ArchiveError> {
        let config: ConfigFile =
            serde_json::from_slice(&config_bytes).map_err(|e| malformed(config_name, &e.to_string()))?;
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            let reason = format!("{} layers, but {}", config.rootfs.diff_ids.len(), manifest.layers.len());
            return Err(malformed(config_name, &format!("{reason} in the manifest")));
        }
        if !config.architecture.is_empty() && (config.architecture != self.architecture || config.os != "linux") {
            let found = format!("{}/{}", config.os, config.architecture);
            return Err(ArchiveError::WrongPlatform { found, wanted: self.architecture.to_owned() });
        }
        Ok(ImagePlan {
            names,
            manifest_digest: Digest::of(&manifest_bytes),
            manifest_bytes,
            manifest,
            config_bytes,
            diff_ids: config.rootfs.diff_ids,
        })
    }

    fn descriptor(&mut self, name: &str, file: &FileEntry, media_type: &str) -> Descriptor {
        self.blobs.insert(file.digest.clone(), name.to_owned());
        let (digest, size) = (file.digest.clone(), file.size);
        Descriptor { media_type: media_type.into(), digest, size, platform: None, annotations: BTreeMap::new() }
    }

    /// Entry `name`, links followed.
    fn file(&self, name: &str, referrer: &str) -> Result<(String, &'a FileEntry), ArchiveError> {
        let missing = || ArchiveError::Missing { name: name.to_owned(), referrer: referrer.to_owned() };
        let mut at = normalize("", name);
        for _ in 0..LINK_DEPTH_MAX {
            match self.contents.get(&at).ok_or_else(missing)? {
                Entry::File(file) => return Ok((at, file)),
                Entry::Link(target) => at = target.clone(),
            }
        }
        Err(malformed(name, "links nest too deep"))
    }

    fn blob(&self, digest: &Digest, referrer: &str) -> Result<(String, &'a FileEntry), ArchiveError> {
        let (name, file) = self.file(&blob_name(digest), referrer)?;
        if file.digest != *digest {
            return Err(ArchiveError::DigestMismatch { expected: digest.clone(), actual: file.digest.clone() });
        }
        Ok((name, file))
    }

    fn bytes(&self, name: &str, file: &FileEntry) -> Result<Vec<u8>, ArchiveError> {
        match &file.json {
            Some(json) => Ok(json.clone()),
            None if file.size > JSON_BYTES_MAX => Err(too_large(name, JSON_BYTES_MAX)),
            None => Err(malformed(name, "it is not JSON")),
        }
    }

    fn json<T: DeserializeOwned>(&self, name: &str, referrer: &str) -> Result<T, ArchiveError> {
        let (name, file) = self.file(name, referrer)?;
        serde_json::from_slice(&self.bytes(&name, file)?).map_err(|e| malformed(&name, &e.to_string()))
    }

    fn blob_json<T: DeserializeOwned>(&self, of: &Descriptor, referrer: &str) -> Result<T, ArchiveError> {
        let (name, file) = self.blob(&of.digest, referrer)?;
        serde_json::from_slice(&self.bytes(&name, file)?).map_err(|e| malformed(&name, &e.to_string()))
    }
}

fn malformed(entry: &str, reason: &str) -> ArchiveError {
    ArchiveError::Malformed { entry: entry.to_owned(), reason: reason.to_owned() }
}

fn from_json<T: DeserializeOwned>(entry: &str, value: serde_json::Value) -> Result<T, ArchiveError> {
    serde_json::from_value(value).map_err(|e| malformed(entry, &e.to_string()))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// containerd writes the full name beside the OCI one; the OCI one is often a bare tag, which names nothing.
fn oci_name(descriptor: &Descriptor) -> Option<&str> {
    let full = descriptor.annotations.get("io.containerd.image.name");
    let oci = descriptor.annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']));
    full.or(oci).map(String::as_str)
}

fn full_names<'a>(entry: &str, names: impl Iterator<Item = &'a str>) -> Result<Vec<String>, ArchiveError> {
    let full = names.map(|name| Reference::parse(name).map(|reference| reference.full_name()));
    full.collect::<Result<_, _>>().map_err(|e| malformed(entry, &e.to_string()))
}

/// The media type of a layer by its first bytes; what a manifest says about compression is often wrong.
pub fn layer_media_type(head: &[u8]) -> &'static str {
    match head {
        [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        [0x28, 0xb5, 0x2f, 0xfd] => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    }
}

#[cfg(test)]
mod tests;

//! Images as values: what a manifest and its config say, and the plan for installing one.

use std::collections::BTreeMap;
use std::io::Read;

pub use kedge_content::Digest;
use serde::{Deserialize, Serialize};

use crate::reference::Reference;

/// A local image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The digest of its config: what the CRI calls the image's id.
    pub id: String,
    /// Its tags, in full (`docker.io/library/busybox:1.36`).
    pub names: Vec<String>,
    /// Its names by digest (`docker.io/library/busybox@sha256:…`).
    pub digests: Vec<String>,
    /// Bytes of its blobs.
    pub size_bytes: u64,
    /// What it wants run.
    pub config: ImageConfig,
}

impl Image {
    /// Takes in one of the names that a backend keeps it under: a tag, or the digest that somebody asked for, which may
    /// be that of an index. Its manifest's digest is a name in that repository either way.
    pub fn add_name(&mut self, name: &Reference, manifest: &str) {
        let by_digest = |digest: &str| format!("{}@{digest}", name.repository);
        let asked = name.digest.as_ref().map(|digest| by_digest(digest.as_str()));
        for digest in asked.into_iter().chain([by_digest(manifest)]) {
            if !self.digests.contains(&digest) {
                self.digests.push(digest);
            }
        }
        if name.digest.is_none() && !self.names.contains(&name.full_name()) {
            self.names.push(name.full_name());
        }
    }
}

/// The part of an image's config that running it needs. Field names are the OCI image spec's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `user[:group]`.
    #[serde(deserialize_with = "null_as_default")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// The program.
    #[serde(deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program when there is no entrypoint.
    #[serde(deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// What asks it to stop; `SIGTERM` when empty.
    #[serde(deserialize_with = "null_as_default")]
    pub stop_signal: String,
}

fn null_as_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// An image config blob.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ConfigFile {
    /// The processor it was built for, as Go names it.
    #[serde(default)]
    pub architecture: String,
    /// The operating system.
    #[serde(default)]
    pub os: String,
    /// What to run.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: ImageConfig,
    /// Its layers, as they are unpacked.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// The unpacked layers' digests, lowest first.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RootFs {
    /// One for each layer.
    #[serde(default, deserialize_with = "null_as_default")]
    pub diff_ids: Vec<Digest>,
}

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Which machine it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Notes, such as its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The machine that an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The processor, as Go names it.
    pub architecture: String,
    /// The operating system.
    pub os: String,
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// The config blob.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// Everything needed to install one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlan {
    /// The names to give it, in full; may be empty.
    pub names: Vec<String>,
    /// The manifest's digest.
    pub manifest_digest: Digest,
    /// The manifest's bytes, which have that digest.
    pub manifest_bytes: Vec<u8>,
    /// The manifest, read.
    pub manifest: Manifest,
    /// The config's bytes, which have the digest in the manifest.
    pub config_bytes: Vec<u8>,
    /// The unpacked layers' digests, as many as the manifest has layers.
    pub diff_ids: Vec<Digest>,
}

/// Opens the blobs of an [`ImagePlan`]; an archive, or a pull.
pub trait BlobSource: Send + Sync + 'static {
    /// All bytes of blob `digest`, from the start. Called on a thread that may block.
    fn open(&self, digest: &Digest) -> std::io::Result<Box<dyn Read + Send + '_>>;
}

/// The names of an image's layers as they stack up: what a snapshot of the first n layers is called.
/// (`opencontainers/image-spec`, config.md, "Layer ChainID".)
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match chain.last() {
            None => diff.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// This machine's processor, as Go names it in image platforms.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_spec() {
        let a = Digest::of(b"a");
        let b = Digest::of(b"b");
        let chain = chain_ids(&[a.clone(), b.clone()]);
        assert_eq!(chain, [a.clone(), Digest::of(format!("{a} {b}").as_bytes())]);
    }

    #[test]
    fn an_image_is_known_by_its_tags_and_by_every_digest_it_was_asked_for() {
        let digest = |of: &str| Digest::of(of.as_bytes()).to_string();
        let (manifest, index) = (digest("manifest"), digest("index"));
        let mut image =
            Image { id: digest("config"), names: vec![], digests: vec![], size_bytes: 1, config: Default::default() };
        for name in ["a.test/x:1", &format!("a.test/x@{index}"), &format!("a.test/x@{manifest}"), "b.test/y:2"] {
            image.add_name(&Reference::parse(name).unwrap(), &manifest);
        }
        assert_eq!(image.names, ["a.test/x:1", "b.test/y:2"]);
        let expected = [("a.test/x", &manifest), ("a.test/x", &index), ("b.test/y", &manifest)];
        assert_eq!(image.digests, expected.map(|(repository, digest)| format!("{repository}@{digest}")));
    }

    #[test]
    fn docker_writes_null_for_what_is_empty() {
        let file: ConfigFile =
            serde_json::from_str(r#"{"config":{"User":"","Env":null,"Cmd":["sh"],"Entrypoint":null}}"#).unwrap();
        assert_eq!(file.config.cmd, ["sh"]);
        assert!(file.config.env.is_empty());
        let file: ConfigFile = serde_json::from_str(r#"{"config":null}"#).unwrap();
        assert_eq!(file.config, ImageConfig::default());
    }

    #[test]
    fn only_sha256_digests_are_digests() {
        for bad in ["", "sha256:", "sha512:00", "sha256:ABC", "sha256:../../x"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}

//! `Model`: files that are known by their digest.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use serde::{Deserialize, Serialize};

/// Which model, and who gets it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelSpec {
    /// Where its files come from.
    pub source: Source,
    /// The digest that the files must have (`sha256:…`, as `kedge model digest` prints it); any when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// On a hub: the sites that get it. None when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<SiteChoice>,
}

/// Where a model's files come from; exactly one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A folder below `<data-dir>/models`.
    Path(String),
    /// An archive fetched over HTTP.
    Url(UrlSource),
    /// A repository of an OCI registry.
    Oci(OciSource),
    /// A repository of the Hugging Face Hub.
    HuggingFace(HuggingFaceSource),
    /// A bucket of S3, or of what answers as it does.
    S3(S3Source),
    /// The hub that this cluster is a site of; written by the sync, not by users.
    Hub(HubSource),
}

impl Default for Source {
    fn default() -> Self {
        Self::Path(String::new())
    }
}

/// An archive that the server fetches over HTTP, from the network of its own process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UrlSource {
    /// `http://` or `https://`; a `.tar` or `.tar.gz` that holds the model's files.
    pub location: String,
    /// SHA-256 of the archive as it is downloaded, `sha256:…`.
    pub digest: String,
}

/// A model in an OCI registry, fetched by the server as archives are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciSource {
    /// `oci://HOST/REPOSITORY`, with `:TAG` or `@sha256:…`.
    pub location: String,
    /// The Secret with the login for that host, of a form that image pull secrets have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// A model on the Hugging Face Hub or a mirror of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HuggingFaceSource {
    /// `hf://OWNER/NAME`, with `@REVISION` if not `main`.
    pub location: String,
    /// Where the Hub is; the public one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The files to fetch, as globs; what a served model needs when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// The token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretKeyRef>,
}

/// A model in a bucket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct S3Source {
    /// `s3://BUCKET/PREFIX`: everything below the prefix, or the one object of that name.
    pub location: String,
    /// Where the bucket's server is; that of AWS for the region when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `us-east-1` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether the bucket is in the path and not in the host's name; so when absent if there is an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// The Secret with the keys of who may read it; anybody may when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// A value of a Secret beside the Model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    pub name: String,
    /// The value's key; what it is by default depends on the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// A Secret beside the Model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    pub name: String,
}

/// A model that comes down from the hub.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HubSource {
    /// The uid of the Model at the hub.
    pub uid: String,
}

/// Sites chosen by name or by label; a site that either chooses is chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteChoice {
    /// By name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// By labels of the `Site`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// What is known of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// The spec's generation that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The digest of its files, once they were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Bytes of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// What was found at its source when that was last asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<FetchedModel>,
    /// What it is, such as `bert` or `llama`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// On a hub: the sites that it is assigned to, those with trouble first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<ModelAtSite>,
    /// On a hub: how many sites have it, of those that it is assigned to, as `2/3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites_active: Option<String>,
    /// `Ready`: its files are here, have the right digest, and are of a format that can be served.
    /// `SitesInStep`: every site that it is assigned to has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// What a source had, so that the same is asked for until the spec changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchedModel {
    /// What its name stood for: a commit, the digest of a manifest or of an archive.
    pub revision: String,
    /// A digest of what was to be fetched.
    pub contents: String,
}

/// What has become of a model at a site that it is assigned to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelAtSite {
    /// The name of the `Site`.
    pub name: String,
    /// What the model is doing there.
    pub state: ModelAtSiteState,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a model is doing at a site; those that need somebody come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ModelAtSiteState {
    /// There is no `Site` of this name.
    NotFound,
    /// Something is wrong; the site tries again.
    Failed,
    /// Assigned; the site has said nothing of it yet.
    #[default]
    Pending,
    /// On its way.
    Pulling,
    /// Verified and in its place.
    Active,
}

impl ModelStatus {
    /// Whether the model can be served.
    pub fn is_ready(&self) -> bool {
        self.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }
}

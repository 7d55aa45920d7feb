//! Which files a volume holds: a function from the pod and the objects it names. [`writer`] puts them on disk.
//!
//! Rules: `pkg/volume/{configmap,secret,projected,downwardapi,emptydir,hostpath}`. Kinds that this node does not have
//! are refused by their name.

pub mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kedge_schema::quantity::Quantity;

use crate::env::{ConfigError, Sources, field_value, resource_value};

const MODE_DEFAULT: u32 = 0o644;
/// The kubelet's least and default lifetime of a token (`pkg/kubelet/token`, API defaults).
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// What a volume is on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumePlan {
    /// A place of the host.
    Host {
        /// Where.
        path: PathBuf,
        /// What must be there, or is made: `""`, `Directory`, `DirectoryOrCreate`, `File`, …
        kind: String,
    },
    /// A folder of the pod's own.
    EmptyDir {
        /// In memory.
        memory: bool,
        /// At most this much, in memory.
        size_bytes: Option<i64>,
    },
    /// Files of our making, read-only to containers.
    Files(BTreeMap<PathBuf, FileContent>),
}

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContent {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
}

/// A token that a volume needs before it can be planned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenSpec {
    /// For whom; empty is the API server.
    pub audience: String,
    /// For how long.
    pub seconds: i64,
}

impl TokenSpec {
    fn of(source: &ServiceAccountTokenProjection) -> Self {
        let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
        Self { audience: source.audience.clone().unwrap_or_default(), seconds }
    }
}

/// The tokens that a pod's volumes need.
pub fn tokens_needed(pod: &Pod) -> Vec<TokenSpec> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projections = volumes.filter_map(|volume| volume.projected.as_ref()).flat_map(|p| p.sources.iter().flatten());
    let mut all: Vec<_> =
        projections.filter_map(|source| source.service_account_token.as_ref()).map(TokenSpec::of).collect();
    all.sort();
    all.dedup();
    all
}

/// The ConfigMaps and Secrets that a pod names anywhere: `(maps, secrets)`.
pub fn objects_needed(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    let Some(spec) = &pod.spec else { return (maps, secrets) };
    for volume in spec.volumes.iter().flatten() {
        maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            maps.extend(source.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(source.secret.iter().map(|source| source.name.clone()));
        }
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        for source in container.env_from.iter().flatten() {
            maps.extend(source.config_map_ref.iter().map(|reference| reference.name.clone()));
            secrets.extend(source.secret_ref.iter().map(|reference| reference.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            maps.extend(source.config_map_key_ref.iter().map(|key| key.name.clone()));
            secrets.extend(source.secret_key_ref.iter().map(|key| key.name.clone()));
        }
    }
    for list in [&mut maps, &mut secrets] {
        list.sort();
        list.dedup();
    }
    (maps, secrets)
}

/// Plans one volume.
pub fn plan(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
    tokens: &BTreeMap<TokenSpec, String>,
) -> Result<VolumePlan, ConfigError> {
    if let Some(host) = &volume.host_path {
        return Ok(VolumePlan::Host { path: host.path.clone().into(), kind: host.type_.clone().unwrap_or_default() });
    }
    if let Some(empty) = &volume.empty_dir {
        let memory = match empty.medium.as_deref() {
            None | Some("") => false,
            Some("Memory") => true,
            Some(other) => {
                return Err(ConfigError(format!("volume {}: emptyDir.medium {other:?} is not supported", volume.name)));
            }
        };
        let size = empty.size_limit.as_ref().and_then(|limit| Quantity::parse(&limit.0).ok());
        return Ok(VolumePlan::EmptyDir {
            memory,
            size_bytes: size.map(|size| size.value()).filter(|bytes| *bytes > 0),
        });
    }
    let mut files = Files { pod, sources, all: BTreeMap::new() };
    if let Some(source) = &volume.config_map {
        files.config_map(&source.name, source.items.as_deref(), mode(source.default_mode), source.optional)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        files.secret(name, source.items.as_deref(), mode(source.default_mode), source.optional)?;
    } else if let Some(source) = &volume.downward_api {
        files.downward(source.items.as_deref().unwrap_or_default(), mode(source.default_mode))?;
    } else if let Some(source) = &volume.projected {
        for part in source.sources.iter().flatten() {
            files.projection(part, mode(source.default_mode), tokens)?;
        }
    } else {
        return Err(ConfigError(format!("volume {}: {} is not supported on this node", volume.name, kind_of(volume))));
    }
    Ok(VolumePlan::Files(files.all))
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE_DEFAULT) & 0o777
}

/// The one field beside the name that is set.
fn kind_of(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    keys.filter(|key| *key != "name").collect::<Vec<_>>().join(", ")
}

struct Files<'a> {
    pod: &'a Pod,
    sources: &'a Sources,
    all: BTreeMap<PathBuf, FileContent>,
}

impl Files<'_> {
    fn add(&mut self, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), ConfigError> {
        let safe = !path.is_empty()
            && !path.starts_with('/')
            && !path.starts_with("..")
            && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if !safe {
            return Err(ConfigError(format!("volume path {path:?} leaves the volume")));
        }
        self.all.insert(path.into(), FileContent { bytes, mode });
        Ok(())
    }

    fn keys(
        &mut self,
        what: &str,
        data: BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        default_mode: u32,
        optional: bool,
    ) -> Result<(), ConfigError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return data.into_iter().try_for_each(|(key, bytes)| self.add(&key, bytes, default_mode));
        };
        for item in items {
            match data.get(&item.key) {
                Some(bytes) => {
                    self.add(&item.path, bytes.clone(), item.mode.map_or(default_mode, |m| mode(Some(m))))?
                }
                None if optional => {}
                None => return Err(ConfigError(format!("{what} references non-existent key: {}", item.key))),
            }
        }
        Ok(())
    }

    fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: u32,
        optional: Option<bool>,
    ) -> Result<(), ConfigError> {
        let optional = optional == Some(true);
        let Some(map) = self.sources.config_maps.get(name) else {
            return if optional { Ok(()) } else { Err(ConfigError(format!("configmap \"{name}\" not found"))) };
        };
        let mut data: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        data.extend(map.data.iter().flatten().map(|(key, text)| (key.clone(), text.clone().into_bytes())));
        data.extend(map.binary_data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())));
        self.keys(&format!("configmap \"{name}\""), data, items, mode, optional)
    }

    fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        mode: u32,
        optional: Option<bool>,
    ) -> Result<(), ConfigError> {
        let optional = optional == Some(true);
        let Some(secret) = self.sources.secrets.get(name) else {
            return if optional { Ok(()) } else { Err(ConfigError(format!("secret \"{name}\" not found"))) };
        };
        let data = secret.data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.0.clone())).collect();
        self.keys(&format!("secret \"{name}\""), data, items, mode, optional)
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile], default_mode: u32) -> Result<(), ConfigError> {
        for item in items {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => field_value(self.pod, field, self.sources)?,
                (None, Some(resource)) => {
                    let none = k8s_openapi::api::core::v1::Container::default();
                    resource_value(self.pod, &none, resource, self.sources)?
                }
                (None, None) => return Err(ConfigError(format!("downwardAPI item {:?} has no source", item.path))),
            };
            self.add(&item.path, text.into_bytes(), item.mode.map_or(default_mode, |m| mode(Some(m))))?;
        }
        Ok(())
    }

    fn projection(
        &mut self,
        source: &VolumeProjection,
        mode: u32,
        tokens: &BTreeMap<TokenSpec, String>,
    ) -> Result<(), ConfigError> {
        if let Some(map) = &source.config_map {
            self.config_map(&map.name, map.items.as_deref(), mode, map.optional)
        } else if let Some(secret) = &source.secret {
            self.secret(&secret.name, secret.items.as_deref(), mode, secret.optional)
        } else if let Some(downward) = &source.downward_api {
            self.downward(downward.items.as_deref().unwrap_or_default(), mode)
        } else if let Some(wanted) = &source.service_account_token {
            let token = tokens.get(&TokenSpec::of(wanted));
            let token = token.ok_or_else(|| ConfigError("the service account's token could not be fetched".into()))?;
            // With a group, that group alone reads it (`pkg/volume/projected`); the writer adds its bit.
            let open = self.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group).is_none();
            let mode = if open { mode } else { 0o600 };
            self.add(&wanted.path, token.clone().into_bytes(), mode)
        } else {
            Err(ConfigError("projected volume: this kind of source is not supported on this node".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sources() -> Sources {
        Sources {
            config_maps: BTreeMap::from([(
                "cm".into(),
                serde_json::from_value(json!({"data": {"a": "1"}, "binaryData": {"b": "AAE="}})).unwrap(),
            )]),
            secrets: BTreeMap::from([("s".into(), serde_json::from_value(json!({"data": {"k": "djE="}})).unwrap())]),
            ..Sources::default()
        }
    }

    fn run(volume: serde_json::Value) -> Result<VolumePlan, ConfigError> {
        let mut whole = json!({"name": "v"});
        whole.as_object_mut().unwrap().extend(volume.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"x": "y"}},
            "spec": {"containers": [{"name": "c"}], "volumes": [whole]},
        }))
        .unwrap();
        let tokens = tokens_needed(&pod).into_iter().map(|spec| (spec, "token".to_owned())).collect();
        let volume = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0].clone();
        plan(&pod, &volume, &sources(), &tokens)
    }

    fn check(volume: serde_json::Value, expected: &[(&str, &str, u32)]) {
        let VolumePlan::Files(files) = run(volume.clone()).unwrap() else { panic!("{volume}") };
        let files: Vec<_> =
            files.iter().map(|(p, f)| (p.to_str().unwrap(), std::str::from_utf8(&f.bytes).unwrap(), f.mode)).collect();
        assert_eq!(files, expected, "{volume}");
    }

    #[test]
    fn objects_become_files() {
        check(json!({"configMap": {"name": "cm"}}), &[("a", "1", 0o644), ("b", "\0\u{1}", 0o644)]);
        check(
            json!({"configMap": {"name": "cm", "defaultMode": 0o400, "items": [{"key": "a", "path": "d/e"}]}}),
            &[("d/e", "1", 0o400)],
        );
        check(
            json!({"secret": {"secretName": "s", "items": [{"key": "k", "path": "x", "mode": 0o600}]}}),
            &[("x", "v1", 0o600)],
        );
        check(json!({"secret": {"secretName": "no", "optional": true}}), &[]);
        check(
            json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]}}),
            &[("l", "x=\"y\"", 0o644)],
        );
        let sources = json!([
            {"configMap": {"name": "cm", "items": [{"key": "a", "path": "one"}]}},
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        ]);
        check(json!({"projected": {"sources": sources}}), &[("one", "1", 0o644), ("token", "token", 0o644)]);
    }

    #[test]
    fn places_are_planned() {
        let memory = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
        assert_eq!(run(memory).unwrap(), VolumePlan::EmptyDir { memory: true, size_bytes: Some(1 << 20) });
        let host = json!({"hostPath": {"path": "/x", "type": "Directory"}});
        assert_eq!(run(host).unwrap(), VolumePlan::Host { path: "/x".into(), kind: "Directory".into() });
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (volume, expected) in [
            (json!({"configMap": {"name": "no"}}), "configmap \"no\" not found"),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}),
                "configmap \"cm\" references non-existent key: z",
            ),
            (json!({"configMap": {"name": "cm", "items": [{"key": "a", "path": "../z"}]}}), "leaves the volume"),
            (json!({"persistentVolumeClaim": {"claimName": "c"}}), "volume v: persistentVolumeClaim is not supported"),
            (json!({"emptyDir": {"medium": "HugePages"}}), "\"HugePages\" is not supported"),
        ] {
            let error = run(volume).unwrap_err().0;
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_a_pod_names_is_found_everywhere() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "volumes": [{"name": "a", "configMap": {"name": "m1"}}, {"name": "b", "projected": {"sources": [{"secret": {"name": "s1"}}]}}],
            "containers": [{"name": "c", "envFrom": [{"secretRef": {"name": "s2"}}], "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m2", "key": "k"}}}]}],
        }}))
        .unwrap();
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(objects_needed(&pod), (names(&["m1", "m2"]), names(&["s1", "s2"])));
    }
}

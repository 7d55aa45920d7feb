//! Reads the published OpenAPI v3 documents and discovery lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What the published documents say.
pub(crate) struct Documents {
    /// Every definition of every group, by name.
    pub(crate) definitions: BTreeMap<String, Value>,
    /// The group versions of stable quality in discovery's order, core first, each with its resources.
    pub(crate) lists: Vec<(String, String, Vec<Value>)>,
    /// The paths without namespace, such as `/api/v1/pods`, where a delete answers with the deleted object.
    pub(crate) deleted: BTreeSet<String>,
}

impl Documents {
    /// Reads them from the `api` directory of the sources.
    pub(crate) fn read(published: &Path) -> Result<Documents> {
        let discovery = published.join("discovery");
        let groups = read(&discovery.join("apis.json"))?;
        let mut lists = vec![(String::new(), "v1".to_owned(), resources(&discovery.join("api__v1.json"))?)];
        for group in groups["groups"].as_array().context("apis.json has no groups")? {
            let name = group["name"].as_str().context("a group without a name")?;
            for version in group["versions"].as_array().context("a group without versions")? {
                let version = version["version"].as_str().context("a version without a name")?;
                if stable(version) {
                    let found = resources(&discovery.join(format!("apis__{name}__{version}.json")))?;
                    lists.push((name.to_owned(), version.to_owned(), found));
                }
            }
        }
        let mut documents = Documents { definitions: BTreeMap::new(), lists, deleted: BTreeSet::new() };
        documents.v3(&published.join("openapi-spec/v3"))?;
        Ok(documents)
    }

    fn v3(&mut self, dir: &Path) -> Result<()> {
        for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
            let path = entry?.path();
            let mut document = read(&path)?;
            for (path, item) in document["paths"].as_object().context("a document without paths")? {
                let answer = &item["delete"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
                let object = answer.as_str().is_some_and(|answer| !answer.ends_with(".Status"));
                if object && item["delete"]["x-kubernetes-action"] == "delete" {
                    let path = path.replace("/namespaces/{namespace}", "");
                    self.deleted.insert(path.trim_end_matches("/{name}").to_owned());
                }
            }
            if let Some(Value::Object(schemas)) = document.pointer_mut("/components/schemas").map(Value::take) {
                for (name, schema) in schemas {
                    self.define(name, schema)?;
                }
            }
        }
        Ok(())
    }

    fn define(&mut self, name: String, schema: Value) -> Result<()> {
        if let Some(earlier) = self.definitions.get(&name) {
            // Only the kinds that exist in every group are told differently by each group's document.
            let (mut a, mut b) = (earlier.clone(), schema.clone());
            for value in [&mut a, &mut b] {
                value.as_object_mut().context("a definition that is no object")?.remove(KINDS);
            }
            ensure!(a == b, "two documents differ about {name}");
            ensure!(earlier[KINDS] == schema[KINDS] || every_group(&schema), "two documents differ about {name}");
        }
        self.definitions.insert(name, schema);
        Ok(())
    }
}

/// Whether `version` is neither alpha nor beta.
pub(crate) fn stable(version: &str) -> bool {
    version.strip_prefix('v').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

pub(crate) const KINDS: &str = "x-kubernetes-group-version-kind";

/// Whether a definition is registered in every group version, as `DeleteOptions` and `WatchEvent` are.
pub(crate) fn every_group(schema: &Value) -> bool {
    schema[KINDS].as_array().is_some_and(|kinds| {
        kinds.iter().all(|kind| matches!(kind["kind"].as_str(), Some("DeleteOptions" | "WatchEvent")))
    })
}

fn resources(path: &Path) -> Result<Vec<Value>> {
    let list = read(path)?;
    Ok(list["resources"].as_array().with_context(|| format!("no resources in {}", path.display()))?.clone())
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

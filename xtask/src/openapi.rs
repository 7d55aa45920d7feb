//! `cargo xtask openapi`: holds our OpenAPI documents against the published ones.
//!
//! Descriptions differ on purpose, and so does what we do not serve: CBOR, alpha and beta versions, two query
//! parameters of alpha features, and logs. Any other difference fails the run.

#![allow(clippy::disallowed_methods, reason = "a developer's chore that reads sources and writes files")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kedge_schema::facts::builtin;
use kedge_schema::openapi::{document_v2, document_v3, document_v3_of_path, gnostic_v2, undescribed};
use serde_json::{Map, Value, json};

use crate::facts::published;

/// What `cargo xtask openapi` may be asked.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also write our documents into this directory
    #[arg(long)]
    out: Option<PathBuf>,
}

const NOT_SERVED: [&str; 2] = ["shardSelector", "ignoreStoreReadErrorWithClusterBreakingPotential"];
const KINDS: &str = "x-kubernetes-group-version-kind";

/// Compares every document, and prints the differences.
pub(crate) fn run(options: &Options) -> Result<()> {
    let specs = published()?.join("openapi-spec");
    let facts = builtin();
    let mut differences = Vec::new();
    let (mut documents, mut definitions) = (0, 0);
    let mut compare = |name: String, path: &Path, ours: Value| -> Result<()> {
        write(options, &name, ours.to_string().as_bytes())?;
        let theirs: Value = serde_json::from_slice(&std::fs::read(path).with_context(|| format!("read {name}"))?)?;
        let parameters = theirs["parameters"].clone();
        let (mut theirs, ours) = (normal(&theirs, &parameters), normal(&ours, &Value::Null));
        if name == "swagger.json" {
            drop_unserved(&mut theirs, &ours)?;
        }
        documents += 1;
        definitions += theirs.pointer("/components/schemas").and_then(Value::as_object).map_or(0, Map::len);
        differ(&theirs, &ours, &name, &mut differences);
        Ok(())
    };
    for (group, version) in facts.group_versions() {
        let root = if group.is_empty() { "api".to_owned() } else { format!("apis__{group}") };
        let name = format!("{root}__{version}_openapi.json");
        let document = document_v3(facts, group, version, &[], &undescribed).context("a group without resources")?;
        compare(name.clone(), &specs.join("v3").join(name), document)?;
    }
    for path in ["api", "apis", "apis/apps", "version", ".well-known/openid-configuration", "openid/v1/jwks"] {
        let name = format!("{}_openapi.json", path.replace('/', "__"));
        let document = document_v3_of_path(facts, path, &undescribed).context("a path without document")?;
        compare(name.clone(), &specs.join("v3").join(name), document)?;
    }
    let v2 = document_v2(facts, &[], "unversioned", &undescribed);
    write(options, "swagger.pb", &gnostic_v2(&v2)?)?;
    compare("swagger.json".to_owned(), &specs.join("swagger.json"), v2)?;
    for difference in differences.iter().take(50) {
        println!("{difference}");
    }
    ensure!(differences.is_empty(), "{} differences", differences.len());
    println!("{documents} documents with {definitions} v3 definitions say what the published ones say");
    Ok(())
}

fn write(options: &Options, name: &str, bytes: &[u8]) -> Result<()> {
    match &options.out {
        Some(out) => std::fs::write(out.join(name), bytes).with_context(|| format!("write {name}")),
        None => Ok(()),
    }
}

/// A document without what may differ: descriptions, CBOR, orders that carry no meaning, shared parameters.
fn normal(value: &Value, shared: &Value) -> Value {
    let sorted = |mut items: Vec<Value>| {
        items.sort_by_key(Value::to_string);
        Value::Array(items)
    };
    match value {
        Value::Object(members) => {
            let parameter =
                members.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix("#/parameters/"));
            if let Some(parameter) = parameter {
                return normal(&shared[parameter], shared);
            }
            let mut out = Map::new();
            for (name, value) in members {
                let kept = match (&**name, value) {
                    ("description", Value::String(_)) => continue,
                    (name, _) if name.contains("cbor") => continue,
                    ("parameters", Value::Array(items)) => {
                        let items = items.iter().map(|item| normal(item, shared));
                        let items =
                            items.filter(|item| !item["name"].as_str().is_some_and(|name| NOT_SERVED.contains(&name)));
                        sorted(items.collect())
                    }
                    ("parameters", _) if members.contains_key("swagger") => continue,
                    ("produces" | "consumes", Value::Array(items)) => {
                        sorted(items.iter().filter(|item| !item.to_string().contains("cbor")).cloned().collect())
                    }
                    ("required" | KINDS, Value::Array(items)) => sorted(items.clone()),
                    (_, value) => normal(value, shared),
                };
                if !(&**name == "parameters" && kept == json!([])) {
                    out.insert(name.clone(), kept);
                }
            }
            // Upstream wraps a reference to put a description beside it.
            match (out.len(), out.get("allOf").and_then(Value::as_array).map(Vec::as_slice)) {
                (1, Some([only])) if only.get("$ref").is_some() => only.clone(),
                _ => Value::Object(out),
            }
        }
        Value::Array(items) => items.iter().map(|item| normal(item, shared)).collect(),
        other => other.clone(),
    }
}

/// Takes out of the published whole what only alpha and beta versions have.
fn drop_unserved(theirs: &mut Value, ours: &Value) -> Result<()> {
    let unstable = |text: &str| {
        text.split(['/', '.']).any(|part| {
            part.strip_prefix('v')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()) && rest.contains("a"))
        })
    };
    let outside = ["/logs", "/apis/internal.apiserver", "/apis/storagemigration"];
    let paths = theirs["paths"].as_object_mut().context("no paths")?;
    paths.retain(|path, _| !unstable(path) && !outside.iter().any(|start| path.starts_with(start)));
    let meta = "io.k8s.apimachinery.pkg.apis.meta.v1";
    let served: BTreeSet<&String> = ours["definitions"].as_object().context("no definitions")?.keys().collect();
    let definitions = theirs["definitions"].as_object_mut().context("no definitions")?;
    // One definition of a stable package is used by unstable types alone.
    let only_there = format!("{meta}.GroupResource");
    definitions.retain(|name, _| served.contains(name) || !(unstable(name) || *name == only_there));
    for kind in ["DeleteOptions", "WatchEvent"] {
        // Told for every group version upstream registers, those it does not serve included.
        definitions[&format!("{meta}.{kind}")][KINDS] = ours["definitions"][&format!("{meta}.{kind}")][KINDS].clone();
    }
    Ok(())
}

fn differ(theirs: &Value, ours: &Value, at: &str, found: &mut Vec<String>) {
    match (theirs, ours) {
        (a, b) if a == b => {}
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
                let place = format!("{at} {name}");
                match (a.get(name), b.get(name)) {
                    (Some(a), Some(b)) => differ(a, b, &place, found),
                    (Some(_), None) => found.push(format!("{place}: missing")),
                    _ => found.push(format!("{place}: ours alone")),
                }
            }
        }
        (a, b) => found.push(format!("{at}: published {a}, ours {b}")),
    }
}

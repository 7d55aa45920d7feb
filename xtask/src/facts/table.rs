//! Joins the sources and writes the table; `control-plane/schema/src/facts/table.rs` reads it and explains the form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::go::{self, GoField, GoType};
use super::openapi::{Documents, KINDS, every_group, stable};
use super::proto::{self, ProtoField};

/// Types on the wire that no OpenAPI document names, and the group version each is a kind of.
const EXTRA: &[(&str, &str, &str)] = &[
    (META, "Table", "meta.k8s.io/v1"),
    (META, "PartialObjectMetadata", "meta.k8s.io/v1"),
    (META, "PartialObjectMetadataList", "meta.k8s.io/v1"),
    (META, "List", "/v1"),
    (CORE, "NodeProxyOptions", "/v1"),
    (CORE, "PodAttachOptions", "/v1"),
    (CORE, "PodExecOptions", "/v1"),
    (CORE, "PodLogOptions", "/v1"),
    (CORE, "PodPortForwardOptions", "/v1"),
    (CORE, "PodProxyOptions", "/v1"),
    (CORE, "ServiceProxyOptions", "/v1"),
    ("io.k8s.api.apidiscovery.v2", "APIGroupDiscoveryList", "apidiscovery.k8s.io/v2"),
    ("io.k8s.api.apidiscovery.v2", "APIGroupDiscovery", "apidiscovery.k8s.io/v2"),
    ("io.k8s.api.admission.v1", "AdmissionReview", "admission.k8s.io/v1"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1", "ConversionReview", "apiextensions.k8s.io/v1"),
];
const CORE: &str = "io.k8s.api.core.v1";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// Served outside any group.
const UNVERSIONED: &[&str] = &["io.k8s.apimachinery.pkg.version.Info"];

/// The whole table.
pub(crate) fn render(
    release: &str,
    documents: &Documents,
    go: &mut go::Packages,
    protos: &mut proto::Packages,
) -> Result<String> {
    let mut join = Join { documents, go, protos, types: BTreeMap::new(), wanted: Vec::new() };
    join.roots();
    while let Some((package, name)) = join.wanted.pop() {
        let key = (package, name);
        if !join.types.contains_key(&key) {
            let text = join.describe(&key.0, &key.1).with_context(|| format!("{}.{}", key.0, key.1))?;
            join.types.insert(key, text);
        }
    }
    let mut out = format!(
        "# Facts of Kubernetes {release}: names, numbers and types, from its published sources.\n\
         # Made by `cargo xtask facts`; not edited by hand. facts/table.rs explains the form.\n"
    );
    let packages: BTreeSet<&str> = join.types.keys().map(|(package, _)| &**package).collect();
    let names: BTreeSet<String> = packages.iter().map(|package| short(package)).collect();
    ensure!(names.len() == packages.len(), "two packages share a short name");
    for package in &packages {
        writeln!(out, "use {} {package}", short(package))?;
    }
    let mut last = "";
    for ((package, name), text) in &join.types {
        if package != last {
            writeln!(out, "package {package}")?;
            last = package;
        }
        write!(out, "type {name}{text}")?;
    }
    resources(&mut out, documents)?;
    Ok(out)
}

struct Join<'a> {
    documents: &'a Documents,
    go: &'a mut go::Packages,
    protos: &'a mut proto::Packages,
    types: BTreeMap<(String, String), String>,
    wanted: Vec<(String, String)>,
}

/// A JSON field of a type after inlining, with what Go says about it.
struct Line {
    go: GoField,
    /// The numbers of the messages it lies in, outermost first, where structs are inlined; its own last.
    path: Vec<u32>,
    proto: Option<ProtoField>,
}

impl Join<'_> {
    fn roots(&mut self) {
        for (name, schema) in &self.documents.definitions {
            let kinds = schema[KINDS].as_array().map(Vec::as_slice).unwrap_or_default();
            if kinds.iter().any(|kind| kind["version"].as_str().is_some_and(stable)) {
                self.wanted.push(split(name));
            }
        }
        self.wanted.extend(UNVERSIONED.iter().map(|name| split(name)));
        self.wanted.extend(EXTRA.iter().map(|(package, name, _)| ((*package).to_owned(), (*name).to_owned())));
    }

    /// The rest of the type's line, and its fields' lines.
    fn describe(&mut self, package: &str, name: &str) -> Result<String> {
        let schema = self.documents.definitions.get(&format!("{package}.{name}"));
        let mut lines = BTreeMap::new();
        self.lines(package, name, &[], true, &mut lines)?;
        let mut out = match schema {
            Some(schema) => type_flags(schema)?,
            None => EXTRA.iter().filter(|(of, extra, _)| (*of, *extra) == (package, name)).fold(
                String::new(),
                |mut flags, (_, _, group_version)| {
                    flags.push_str(&format!(" kind={group_version}/{name}"));
                    flags
                },
            ),
        };
        out.push('\n');
        if let Some(schema) = schema {
            let properties = schema["properties"].as_object().cloned().unwrap_or_default();
            for told in properties.keys() {
                ensure!(lines.contains_key(told), "OpenAPI tells of {told}, Go does not");
            }
        }
        for (field, line) in &lines {
            let property = match schema {
                Some(schema) => Some(
                    schema["properties"]
                        .get(field)
                        .with_context(|| format!("Go tells of {field}, OpenAPI does not"))?,
                ),
                None => None,
            };
            let required = schema.is_some_and(|schema| {
                schema["required"].as_array().is_some_and(|names| names.iter().any(|name| name == &**field))
            });
            out.push_str(&self.field(package, field, line, property, required).with_context(|| field.clone())?);
        }
        Ok(out)
    }

    /// Collects the JSON fields of a Go struct, those of inlined structs too.
    fn lines(
        &mut self,
        package: &str,
        name: &str,
        outer: &[u32],
        numbered: bool,
        into: &mut BTreeMap<String, Line>,
    ) -> Result<()> {
        let GoType::Struct(fields) = self.go.declared(package, name)?.clone() else { bail!("not a struct") };
        for go in fields {
            let number = go.number.filter(|_| numbered).unwrap_or(0);
            match &go.json {
                None => {
                    let (of, inner) = go.kind.split_once(':').context("inlined from an unknown package")?;
                    let (of, inner) = (of.to_owned(), inner.to_owned());
                    self.lines(&of, &inner, &[outer, &[number]].concat(), number != 0, into)?;
                }
                Some(json) => {
                    let proto = self.protos.message(package, name)?.and_then(|message| message.get(&number)).cloned();
                    let json_only = self.protos.message(package, name)?.is_none();
                    ensure!(number == 0 || proto.is_some() || json_only, "{json}: number {number} is not in the proto");
                    let path = if proto.is_some() { [outer, &[number]].concat() } else { Vec::new() };
                    into.insert(json.clone(), Line { go, path, proto });
                }
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        package: &str,
        name: &str,
        line: &Line,
        property: Option<&Value>,
        required: bool,
    ) -> Result<String> {
        let shape = match property {
            Some(property) => self.shape(package, property)?,
            None => self.go_shape(package, &line.go.kind)?,
        };
        let shape = match &line.proto {
            Some(proto) => fit(&shape, proto)?,
            None => shape,
        };
        let path: Vec<String> = line.path.iter().map(u32::to_string).collect();
        let number = if path.is_empty() { "-".to_owned() } else { path.join(".") };
        let mut out = format!(" {name} {number} {shape}");
        if required {
            out.push_str(" !");
        }
        if line.go.pointer() {
            out.push_str(" *");
        } else if !line.go.omit_empty || (is_struct(&shape) && !line.go.omit_zero) {
            out.push_str(" +");
        }
        if let Some(property) = property {
            field_flags(property, &mut out)?;
        }
        out.push('\n');
        Ok(out)
    }

    /// The shape of an OpenAPI property.
    fn shape(&mut self, package: &str, property: &Value) -> Result<String> {
        let reference = property["$ref"].as_str().or_else(|| property["allOf"][0]["$ref"].as_str());
        if let Some(reference) = reference {
            let (of, name) = split(reference.trim_start_matches("#/components/schemas/"));
            return Ok(self.named(package, &of, &name));
        }
        Ok(match (property["type"].as_str(), property["format"].as_str()) {
            (Some("string"), None) => "string".to_owned(),
            (Some("string"), Some("byte")) => "bytes".to_owned(),
            (Some("boolean"), None) => "bool".to_owned(),
            (Some("integer"), Some(format @ ("int32" | "int64"))) => format.to_owned(),
            (Some("number"), Some("double")) => "double".to_owned(),
            (Some("array"), None) => format!("[]{}", self.shape(package, &property["items"])?),
            (Some("object"), None) => format!("{{}}{}", self.shape(package, &property["additionalProperties"])?),
            other => bail!("an unknown type {other:?}"),
        })
    }

    /// The shape of a Go type that no OpenAPI document tells of.
    fn go_shape(&mut self, package: &str, kind: &str) -> Result<String> {
        let kind = kind.trim_start_matches('*');
        if let Some(item) = kind.strip_prefix("map[string]") {
            return Ok(format!("{{}}{}", self.go_shape(package, item)?));
        }
        if kind == "[]byte" {
            return Ok("bytes".to_owned());
        }
        if let Some(item) = kind.strip_prefix("[]") {
            return Ok(format!("[]{}", self.go_shape(package, item)?));
        }
        Ok(match (kind, kind.split_once(':')) {
            ("string" | "bool" | "int32" | "int64", _) => kind.to_owned(),
            ("float64", _) => "double".to_owned(),
            ("interface{}", _) => "untyped".to_owned(),
            (_, Some(("io.k8s.apimachinery.pkg.types", _))) => "string".to_owned(),
            (_, Some((of, name))) => {
                let declared = self.go.declared(of, name)?.clone();
                match declared {
                    GoType::Other(inner) => self.go_shape(package, &inner)?,
                    GoType::Struct(_) => self.named(package, of, name),
                }
            }
            _ => bail!("an unknown Go type {kind}"),
        })
    }

    fn named(&mut self, package: &str, of: &str, name: &str) -> String {
        let special = match name {
            "Quantity" => "quantity",
            "Time" => "time",
            "MicroTime" => "microtime",
            "Duration" => "duration",
            "IntOrString" => "intorstring",
            "RawExtension" => "raw",
            "FieldsV1" => "fieldsv1",
            "JSON" => "json",
            "JSONSchemaPropsOrBool" => "schemaorbool",
            "JSONSchemaPropsOrArray" => "schemaorarray",
            "JSONSchemaPropsOrStringArray" => "schemaorstrings",
            _ => {
                self.wanted.push((of.to_owned(), name.to_owned()));
                return if of == package { name.to_owned() } else { format!("{}:{name}", short(of)) };
            }
        };
        special.to_owned()
    }
}

/// Holds a shape against its proto field, and marks lists that travel in a message of their own.
fn fit(shape: &str, proto: &ProtoField) -> Result<String> {
    let message = proto.kind.rsplit(':').next().filter(|_| proto.kind.contains(':'));
    let many = shape.starts_with("[]") || shape.starts_with("{}");
    let inner =
        if proto.many { shape.get(2..).filter(|_| many).context("repeated, but no list or map")? } else { shape };
    let fitted = match message {
        None => {
            ensure!(inner == proto.kind, "the proto says {}", proto.kind);
            inner.to_owned()
        }
        Some("ExtraValue" | "Verbs") => inner.replace("[]", "<>"),
        Some(name) => {
            let expected = match inner {
                "quantity" => "Quantity",
                "time" => "Time",
                "microtime" => "MicroTime",
                "duration" => "Duration",
                "intorstring" => "IntOrString",
                "raw" => "RawExtension",
                "fieldsv1" => "FieldsV1",
                "json" => "JSON",
                "schemaorbool" => "JSONSchemaPropsOrBool",
                "schemaorarray" => "JSONSchemaPropsOrArray",
                "schemaorstrings" => "JSONSchemaPropsOrStringArray",
                other => other.rsplit(':').next().unwrap_or(other),
            };
            ensure!(name == expected, "the proto says {name}");
            inner.to_owned()
        }
    };
    Ok(if proto.many { format!("{}{fitted}", &shape[..2]) } else { fitted })
}

fn is_struct(shape: &str) -> bool {
    shape.contains(':')
        || shape.starts_with(|first: char| first.is_ascii_uppercase())
        || matches!(shape, "time" | "microtime" | "quantity" | "intorstring" | "raw" | "fieldsv1" | "json" | "duration")
}

fn type_flags(schema: &Value) -> Result<String> {
    let mut out = String::new();
    match schema["x-kubernetes-map-type"].as_str() {
        None => {}
        Some("atomic") => out.push_str(" atomic"),
        Some(other) => bail!("map type {other} of a whole type"),
    }
    if every_group(schema) {
        let kind = schema[KINDS][0]["kind"].as_str().context("a kind without a name")?;
        write!(out, " every={kind}")?;
    } else {
        for kind in schema[KINDS].as_array().map(Vec::as_slice).unwrap_or_default() {
            let part = |name: &str| kind[name].as_str().with_context(|| format!("a kind without {name}"));
            write!(out, " kind={}/{}/{}", part("group")?, part("version")?, part("kind")?)?;
        }
    }
    if let Some(unions) = schema.get("x-kubernetes-unions") {
        write!(out, " unions={unions}")?;
    }
    Ok(out)
}

fn field_flags(property: &Value, out: &mut String) -> Result<()> {
    if let Some(kind) = property["x-kubernetes-list-type"].as_str() {
        write!(out, " list={kind}")?;
        if let Some(keys) = property["x-kubernetes-list-map-keys"].as_array() {
            let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
            write!(out, ":{}", keys.join(","))?;
        }
    }
    if let Some(kind) = property["x-kubernetes-map-type"].as_str() {
        write!(out, " map={kind}")?;
    }
    if let Some(strategy) = property["x-kubernetes-patch-strategy"].as_str() {
        write!(out, " patch={strategy}")?;
    }
    if let Some(key) = property["x-kubernetes-patch-merge-key"].as_str() {
        write!(out, " key={key}")?;
    }
    match &property["default"] {
        Value::Null => {}
        Value::Bool(false) => out.push_str(" zero"),
        Value::String(text) if text.is_empty() => out.push_str(" zero"),
        Value::Object(members) if members.is_empty() => out.push_str(" zero"),
        Value::Number(number) if number.as_i64() == Some(0) => out.push_str(" zero"),
        other => {
            ensure!(!other.to_string().contains(' '), "a default with a space");
            write!(out, " default={other}")?;
        }
    }
    let known = ["description", "type", "format", "default", "allOf", "items", "additionalProperties", "$ref"];
    for name in property.as_object().context("a property that is no object")?.keys() {
        let marked = name.starts_with("x-kubernetes-list-") || name.starts_with("x-kubernetes-patch-");
        ensure!(known.contains(&&**name) || marked || name == "x-kubernetes-map-type", "unknown keyword {name}");
    }
    Ok(())
}

fn resources(out: &mut String, documents: &Documents) -> Result<()> {
    for (group, version, list) in &documents.lists {
        writeln!(out, "group {}/{version}", group)?;
        for entry in list {
            let text = |name: &str| entry[name].as_str().unwrap_or_default();
            let many = |name: &str| -> Vec<&str> {
                entry[name].as_array().map(|all| all.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
            };
            let verbs = many("verbs").join(",");
            let all = "create,delete,deletecollection,get,list,patch,update,watch";
            let verbs = if verbs == all { "*" } else { &verbs };
            match text("name").split_once('/') {
                None => {
                    let scope = if entry["namespaced"] == true { "namespaced" } else { "cluster" };
                    write!(out, "resource {} {} {} {scope} {verbs}", text("name"), text("kind"), text("singularName"))?;
                    let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
                    if documents.deleted.contains(&format!("{root}/{version}/{}", text("name"))) {
                        out.push_str(" returns-deleted");
                    }
                    for (flag, values) in [("short", many("shortNames")), ("categories", many("categories"))] {
                        if !values.is_empty() {
                            write!(out, " {flag}={}", values.join(","))?;
                        }
                    }
                }
                Some((of, name)) => {
                    let parent = list.iter().any(|other| other["name"] == of);
                    ensure!(parent, "subresource {of}/{name} of {group}/{version} has no resource");
                    write!(out, " sub {of} {name} {}", text("kind"))?;
                    if !text("version").is_empty() {
                        write!(out, "@{}/{}", text("group"), text("version"))?;
                    }
                    write!(out, " {verbs}")?;
                }
            }
            out.push('\n');
        }
    }
    Ok(())
}

/// A definition's package and its own name.
fn split(definition: &str) -> (String, String) {
    let (package, name) = definition.rsplit_once('.').unwrap_or(("", definition));
    (package.to_owned(), name.to_owned())
}

/// The last two parts of a package, by which lines of other packages call it.
fn short(package: &str) -> String {
    let parts: Vec<&str> = package.rsplit('.').take(2).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

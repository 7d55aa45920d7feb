//! Which paths and operations a resource has. The shape of paths, operation ids and parameters follows upstream's
//! installer (apiserver, pkg/endpoints/installer.go).

use crate::facts::Facts;
use crate::openapi::custom::CrdDocument;
use crate::openapi::definitions::META;
use crate::openapi::operation::{
    Body, OK, OK_ACCEPTED, OK_CREATED, OK_CREATED_ACCEPTED, Operation, Parameter, PathItem, gather, query,
};
use crate::shape::{Resource, Shape, Subresource};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PATCH_TYPES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// A resource to tell the paths of.
#[derive(Clone, Copy)]
pub(super) enum Served<'a> {
    Builtin(&'a Resource),
    Custom(&'a CrdDocument),
}

const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];
const DELETE_MANY: &[&str] = &[
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];

/// Discovery of a group version.
pub(super) fn resource_list(group: &str, version: &str) -> PathItem {
    let names = Names::of(group, version);
    discovery(format!("{}/", names.root), format!("get{}APIResources", names.id), names.tag, "APIResourceList")
}

/// Discovery of a group.
pub(super) fn group(group: &str) -> PathItem {
    let short = group.strip_suffix(".k8s.io").unwrap_or(group);
    let id = format!("get{}APIGroup", camel(short, true));
    discovery(format!("/apis/{group}/"), id, camel(short, false), "APIGroup")
}

/// Discovery of all groups, the version, and the issuer of service account tokens.
pub(super) fn roots() -> Vec<PathItem> {
    let mut version = discovery("/version/".to_owned(), "getCodeVersion".to_owned(), "version".to_owned(), "");
    version.operations[0].answer = Some("io.k8s.apimachinery.pkg.version.Info".to_owned());
    version.operations[0].produces = vec!["application/json"];
    version.operations[0].consumes = vec!["application/json"];
    let text = |path: &str, id: &str, tag: &str, form: &'static str| {
        let mut item = discovery(path.to_owned(), id.to_owned(), tag.to_owned(), "");
        let operation = &mut item.operations[0];
        (operation.answer, operation.consumes, operation.produces) = (None, Vec::new(), vec![form]);
        item
    };
    let issuer = "getServiceAccountIssuerOpenID";
    vec![
        text("/.well-known/openid-configuration/", &format!("{issuer}Configuration"), "WellKnown", "application/json"),
        text("/openid/v1/jwks/", &format!("{issuer}Keyset"), "openid", "application/jwk-set+json"),
        discovery("/api/".to_owned(), "getCoreAPIVersions".to_owned(), "core".to_owned(), "APIVersions"),
        discovery("/apis/".to_owned(), "getAPIVersions".to_owned(), "apis".to_owned(), "APIGroupList"),
        version,
    ]
}

fn discovery(path: String, id: String, tag: String, answer: &str) -> PathItem {
    let operation = Operation {
        method: "get",
        action: None,
        id,
        tag,
        description: "Tell what is served".to_owned(),
        parameters: Vec::new(),
        body: Body::None,
        consumes: vec!["application/json", "application/yaml", PROTOBUF],
        produces: vec!["application/json", "application/yaml", PROTOBUF],
        statuses: OK,
        answer: Some(format!("{META}.{answer}")),
    };
    PathItem { path, operations: vec![operation] }
}

/// All paths of a resource.
pub(super) fn of(facts: &Facts, served: Served<'_>) -> Vec<PathItem> {
    match served {
        Served::Builtin(resource) => {
            let definition = |group: &str, version: &str, kind: &str| {
                facts.kind(group, version, kind).map(|id| facts.schema.object(id).name.to_string())
            };
            let list = format!("{}List", resource.kind);
            let maker = Maker {
                facts,
                names: Names::of(&resource.group, &resource.version),
                own: [&resource.group, &resource.version, &resource.kind].map(|part| part.to_string()),
                plural: &resource.plural,
                namespaced: resource.namespaced,
                verbs: resource.verbs.iter().map(|verb| &**verb).collect(),
                subresources: resource.subresources.clone(),
                object: facts.schema.object(resource.schema).name.to_string(),
                list: definition(&resource.group, &resource.version, &list).unwrap_or_default(),
                returns_deleted: facts.returns_deleted(&resource.group, &resource.version, &resource.plural),
                builtin: true,
            };
            maker.paths()
        }
        Served::Custom(crd) => {
            let maker = Maker {
                facts,
                names: Names::of(&crd.group, &crd.version),
                own: [&crd.group, &crd.version, &crd.kind].map(Clone::clone),
                plural: &crd.plural,
                namespaced: crd.namespaced,
                verbs: vec!["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                subresources: crd.subresources(),
                object: crd.definition_name(),
                list: crd.list_definition_name(),
                returns_deleted: false,
                builtin: false,
            };
            maker.paths()
        }
    }
}

/// What paths and operation ids of a group version begin with.
struct Names {
    /// `/api/v1` or `/apis/apps/v1`.
    root: String,
    /// `AppsV1`.
    id: String,
    /// `apps_v1`.
    tag: String,
}

impl Names {
    fn of(group: &str, version: &str) -> Names {
        let short = if group.is_empty() { "core" } else { group.strip_suffix(".k8s.io").unwrap_or(group) };
        Names {
            root: if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") },
            id: format!("{}{}", camel(short, true), camel(version, true)),
            tag: format!("{}_{}", camel(short, false), camel(version, false)),
        }
    }
}

/// `rbac.authorization` as `rbacAuthorization`.
fn camel(text: &str, first: bool) -> String {
    let mut out = String::new();
    let parts = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|part| !part.is_empty());
    for (at, part) in parts.enumerate() {
        let mut chars = part.chars();
        match chars.next() {
            Some(head) if first || at > 0 => out.extend(head.to_uppercase()),
            Some(head) => out.push(head),
            None => {}
        }
        out.push_str(chars.as_str());
    }
    out
}

/// Makes the paths of one resource.
struct Maker<'a> {
    facts: &'a Facts,
    names: Names,
    /// Group, version and kind.
    own: [String; 3],
    plural: &'a str,
    namespaced: bool,
    verbs: Vec<&'a str>,
    subresources: Vec<Subresource>,
    /// The definitions of the object and of its list.
    object: String,
    list: String,
    returns_deleted: bool,
    builtin: bool,
}

impl Maker<'_> {
    fn paths(&self) -> Vec<PathItem> {
        let (root, plural, kind) = (&self.names.root, self.plural, &self.own[2]);
        let (scoped, scope) = if self.namespaced { ("/namespaces/{namespace}", "Namespaced") } else { ("", "") };
        let has = |verb: &str| self.verbs.contains(&verb);
        let collection = format!("{root}{scoped}/{plural}");
        let item = format!("{collection}/{{name}}");
        let mut items = Vec::new();

        let mut operations = Vec::new();
        if has("list") {
            operations.push(self.list("list", "list", &format!("{scope}{kind}"), &self.list));
        }
        if has("create") {
            operations.push(self.write("post", "create", &format!("{scope}{kind}"), &self.object, &self.own));
        }
        if has("deletecollection") {
            let mut delete = self.delete("deletecollection", &format!("Collection{scope}{kind}"));
            delete.parameters.extend(DELETE_MANY.iter().map(|name| query(name)));
            items.push((collection.clone(), delete));
        }
        items.extend(operations.into_iter().map(|operation| (collection.clone(), operation)));
        if has("get") {
            items.push((item.clone(), self.read("read", &format!("{scope}{kind}"), &self.object, &self.own)));
        }
        if has("update") {
            items
                .push((item.clone(), self.write("put", "replace", &format!("{scope}{kind}"), &self.object, &self.own)));
        }
        if has("patch") {
            items.push((item.clone(), self.patch(&format!("{scope}{kind}"), &self.object, &self.own)));
        }
        if has("delete") {
            items.push((item.clone(), self.delete("delete", &format!("{scope}{kind}"))));
        }
        if self.namespaced && has("list") {
            let everywhere = self.list("list", "list", &format!("{kind}ForAllNamespaces"), &self.list);
            items.push((format!("{root}/{plural}"), everywhere));
        }
        if self.builtin && has("watch") {
            self.watches(scoped, scope, &mut items);
        }
        for sub in &self.subresources {
            self.subresource(sub, &item, scope, &mut items);
        }
        gather(items)
    }

    /// The deprecated paths that only watch.
    fn watches(&self, scoped: &str, scope: &str, items: &mut Vec<(String, Operation)>) {
        let event = format!("{META}.WatchEvent");
        let (root, plural, kind) = (&self.names.root, self.plural, &self.own[2]);
        let mut add = |path: String, action, what: String| {
            items.push((path, self.list(action, "watch", &what, &event)));
        };
        add(format!("{root}/watch{scoped}/{plural}"), "watchlist", format!("{scope}{kind}List"));
        add(format!("{root}/watch{scoped}/{plural}/{{name}}"), "watch", format!("{scope}{kind}"));
        if self.namespaced {
            add(format!("{root}/watch/{plural}"), "watchlist", format!("{kind}ListForAllNamespaces"));
        }
    }

    fn subresource(&self, sub: &Subresource, item: &str, scope: &str, items: &mut Vec<(String, Operation)>) {
        let path = format!("{item}/{}", sub.name);
        let what = format!("{scope}{}{}", self.own[2], camel(&sub.name, true));
        // A custom resource's scale is told as the resource's own kind.
        let kind = match self.builtin {
            true => [&sub.group, &sub.version, &sub.kind].map(|part| part.to_string()),
            false => self.own.clone(),
        };
        if sub.kind.ends_with("Options") {
            return self.connect(&path, scope, sub, &kind, items);
        }
        let object = match self.facts.kind(&sub.group, &sub.version, &sub.kind) {
            Some(id) => self.facts.schema.object(id).name.to_string(),
            None => self.object.clone(),
        };
        for verb in &sub.verbs {
            let operation = match &**verb {
                "get" if &*sub.name == "log" => self.log(&what, &kind),
                "get" => self.read("read", &what, &object, &kind),
                "create" => self.write("post", "create", &what, &object, &kind),
                "update" => self.write("put", "replace", &what, &object, &kind),
                "patch" => self.patch(&what, &object, &kind),
                _ => continue,
            };
            items.push((path.clone(), operation));
        }
    }

    /// Streams and proxies, whose options are query parameters.
    fn connect(
        &self,
        path: &str,
        scope: &str,
        sub: &Subresource,
        kind: &[String; 3],
        items: &mut Vec<(String, Operation)>,
    ) {
        let proxy = sub.kind.ends_with("ProxyOptions");
        let methods: &[&str] =
            if proxy { &["delete", "get", "head", "options", "patch", "post", "put"] } else { &["get", "post"] };
        let suffix = camel(&sub.name, true);
        for method in methods {
            let what = format!("{}{scope}{}{suffix}", camel(method, true), self.own[2]);
            let mut operation = self.operation(method, "connect", "connect", &what, kind);
            operation.parameters = self.options(sub);
            operation.produces = vec!["*/*"];
            if proxy {
                let mut below = self.operation(method, "connect", "connect", &format!("{what}WithPath"), kind);
                below.parameters = self.options(sub);
                below.produces = vec!["*/*"];
                items.push((format!("{path}/{{path}}"), below));
            }
            items.push((path.to_owned(), operation));
        }
    }

    fn options(&self, sub: &Subresource) -> Vec<Parameter> {
        let kind = if &*sub.name == "log" { "PodLogOptions" } else { &*sub.kind };
        let Some(id) = self.facts.kind("", "v1", kind) else { return Vec::new() };
        let object = self.facts.schema.object(id);
        let fields = object.fields.iter().filter(|field| !matches!(&*field.name, "apiVersion" | "kind"));
        fields
            .filter_map(|field| {
                let shape = match &field.shape {
                    Shape::List(list) => &list.item,
                    other => other,
                };
                let kind = match shape {
                    Shape::Bool => "boolean",
                    Shape::Int32 | Shape::Int64 => "integer",
                    Shape::String => "string",
                    _ => return None,
                };
                Some(Parameter {
                    name: field.name.to_string(),
                    place: "query",
                    kind,
                    description: format!("Field {} of {}", field.name, object.name),
                })
            })
            .collect()
    }

    fn media_types(&self) -> Vec<&'static str> {
        let mut types = vec!["application/json", "application/yaml"];
        types.extend(self.builtin.then_some(PROTOBUF));
        types
    }

    fn operation(
        &self,
        method: &'static str,
        action: &'static str,
        verb: &str,
        what: &str,
        kind: &[String; 3],
    ) -> Operation {
        Operation {
            method,
            action: Some((action, kind.clone())),
            id: format!("{verb}{}{what}", self.names.id),
            tag: self.names.tag.clone(),
            description: format!("{}: {action}", kind[2]),
            parameters: vec![query("pretty")],
            body: Body::None,
            // Custom resources have no protobuf form.
            consumes: if self.builtin { vec!["*/*"] } else { self.media_types() },
            produces: self.media_types(),
            statuses: OK,
            answer: None,
        }
    }

    fn list(&self, action: &'static str, verb: &str, what: &str, answer: &str) -> Operation {
        let mut operation = self.operation("get", action, verb, what, &self.own);
        operation.parameters.extend(LIST.iter().map(|name| query(name)));
        operation.produces.push("application/json;stream=watch");
        if self.builtin {
            operation.produces.push("application/vnd.kubernetes.protobuf;stream=watch");
        }
        operation.answer = Some(answer.to_owned());
        operation
    }

    fn read(&self, verb: &str, what: &str, answer: &str, kind: &[String; 3]) -> Operation {
        let mut operation = self.operation("get", "get", verb, what, kind);
        if !self.builtin {
            operation.parameters.push(query("resourceVersion"));
        }
        operation.answer = Some(answer.to_owned());
        operation
    }

    fn log(&self, what: &str, kind: &[String; 3]) -> Operation {
        let mut operation = self.operation("get", "get", "read", what, kind);
        let sub = self.subresources.iter().find(|sub| &*sub.name == "log");
        operation.parameters.extend(sub.map(|sub| self.options(sub)).unwrap_or_default());
        operation.produces.insert(0, "text/plain");
        operation
    }

    fn write(
        &self,
        method: &'static str,
        verb: &'static str,
        what: &str,
        object: &str,
        kind: &[String; 3],
    ) -> Operation {
        let mut operation = self.operation(method, method, verb, what, kind);
        operation.parameters.extend(WRITE.iter().map(|name| query(name)));
        operation.body = Body::Object(object.to_owned(), true);
        operation.statuses = if method == "post" { OK_CREATED_ACCEPTED } else { OK_CREATED };
        operation.answer = Some(object.to_owned());
        operation
    }

    fn patch(&self, what: &str, object: &str, kind: &[String; 3]) -> Operation {
        let mut operation = self.operation("patch", "patch", "patch", what, kind);
        operation.parameters.extend(WRITE.iter().chain(&["force"]).map(|name| query(name)));
        let types = PATCH_TYPES.into_iter().filter(|name| self.builtin || !name.contains("strategic"));
        operation.body = Body::Patch;
        operation.consumes = types.collect();
        operation.statuses = if self.builtin { OK_CREATED } else { OK };
        operation.answer = Some(object.to_owned());
        operation
    }

    fn delete(&self, action: &'static str, what: &str) -> Operation {
        let mut operation = self.operation("delete", action, "delete", what, &self.own);
        operation.parameters.extend(DELETE.iter().map(|name| query(name)));
        operation.body = Body::Object(format!("{META}.DeleteOptions"), false);
        operation.answer = Some(format!("{META}.Status"));
        if action == "delete" {
            operation.statuses = OK_ACCEPTED;
            if self.returns_deleted {
                operation.answer = Some(self.object.clone());
            }
        }
        operation
    }
}

//! What a request asks for, read from its method, path and query. Pure.
//!
//! The grammar of paths is that of `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`.

use kedge_schema::selector::FieldSelector;
use percent_encoding::percent_decode_str;

use crate::error::ApiError;

/// Where a request points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/api/v1/…` or `/apis/GROUP/VERSION/…`, at least up to a resource.
    Resource(ResourcePath),
    /// Anything else: `/healthz`, `/apis`, `/openapi/v3`.
    Other,
}

/// A path to a collection, an object, or a part of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    /// Empty for core.
    pub group: String,
    /// Such as `v1`.
    pub version: String,
    /// Empty for cluster scope and for lists over all namespaces.
    pub namespace: String,
    /// The plural.
    pub resource: String,
    /// Empty for the collection.
    pub name: String,
    /// Empty for the object itself.
    pub subresource: String,
    /// What follows the subresource (`proxy/PATH`), with its leading slash; empty for none.
    pub rest: String,
    /// The path had the old `/watch/` prefix.
    pub watch_prefix: bool,
}

/// Reads a path.
pub(crate) fn parse_path(path: &str) -> Target {
    let raw: Vec<&str> = path.trim_matches('/').split('/').collect();
    let mut parts: Vec<String> = raw.iter().map(|p| percent_decode_str(p).decode_utf8_lossy().into_owned()).collect();
    let (group, version, mut at) = match parts.first().map(String::as_str) {
        Some("api") if parts.len() > 2 => (String::new(), parts[1].clone(), 2),
        Some("apis") if parts.len() > 3 => (parts[1].clone(), parts[2].clone(), 3),
        _ => return Target::Other,
    };
    let mut out = ResourcePath { group, version, ..ResourcePath::default() };
    if parts[at] == "watch" && parts.len() > at + 1 {
        out.watch_prefix = true;
        at += 1;
    }
    // `/namespaces/NS/…` is a scope, except for the namespace itself and its own parts.
    if parts[at] == "namespaces" && parts.len() > at + 2 && !matches!(&*parts[at + 2], "status" | "finalize") {
        out.namespace = std::mem::take(&mut parts[at + 1]);
        at += 2;
    }
    let mut rest = parts.drain(at..);
    out.resource = rest.next().unwrap_or_default();
    out.name = rest.next().unwrap_or_default();
    out.subresource = rest.next().unwrap_or_default();
    drop(rest);
    if raw.len() > at + 3 {
        out.rest = format!("/{}", raw[at + 3..].join("/"));
        if path.ends_with('/') {
            out.rest.push('/');
        }
    } else if out.subresource == "proxy" && path.ends_with('/') {
        // The root of the target; without the slash a reader is sent here.
        out.rest.push('/');
    }
    if out.resource == "namespaces" && !out.name.is_empty() {
        // Namespaces are authorised as if they lay in themselves (requestinfo.go).
        out.namespace = String::new();
    }
    Target::Resource(out)
}

/// The query of a URL, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what stands behind the `?`.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        Self(form_urlencoded::parse(text.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The first value of `key`; empty values count as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| &**v)
    }

    /// Every value of `key`.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| &**v)
    }

    /// Every key and value, in order.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// A flag: `true`, `1`, or present without a value.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0.iter().find(|(k, _)| k == key).is_some_and(|(_, v)| !matches!(&**v, "0" | "false" | "False"))
    }

    /// A number; text that is none is a bad request that names the parameter.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let parsed = text.parse::<i64>();
        let fail =
            || ApiError::bad_request(format!("invalid query parameter {key}: {text:?} is no whole number from 0 on"));
        Ok(Some(u64::try_from(parsed.map_err(|_| fail())?).map_err(|_| fail())?))
    }
}

/// The verbs that authorisation and discovery speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are Kubernetes' own verbs")]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    /// The word in RBAC rules and discovery.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// What a method means on this path; none for methods that mean nothing here.
pub(crate) fn verb(method: &http::Method, path: &ResourcePath, query: &Query) -> Option<Verb> {
    let collection = path.name.is_empty();
    match *method {
        http::Method::GET | http::Method::HEAD if path.watch_prefix || (collection && query.flag("watch")) => {
            Some(Verb::Watch)
        }
        http::Method::GET | http::Method::HEAD => Some(if collection { Verb::List } else { Verb::Get }),
        http::Method::POST => Some(Verb::Create),
        http::Method::PUT => Some(Verb::Update),
        http::Method::PATCH => Some(Verb::Patch),
        http::Method::DELETE => Some(if collection { Verb::DeleteCollection } else { Verb::Delete }),
        _ => None,
    }
}

/// The fields that must have exactly one value in all that a list, watch or deletecollection selects. What cannot be
/// read as a selector requires nothing here; whoever lists refuses it. (KEP-4601.)
pub(crate) fn required_fields(verb: Verb, path: &ResourcePath, query: &Query) -> Vec<(String, String)> {
    if !matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection) || path.watch_prefix {
        return Vec::new();
    }
    let selector = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()).unwrap_or_default();
    let exact = selector.terms().iter().filter(|term| !term.negated);
    exact.map(|term| (term.field.clone(), term.value.clone())).collect()
}

/// The name that authorisation looks at: a list or watch of one name is about that object.
pub(crate) fn authorized_name<'a>(verb: Verb, path: &'a ResourcePath, fields: &'a [(String, String)]) -> &'a str {
    if !path.name.is_empty() || !matches!(verb, Verb::List | Verb::Watch) {
        return &path.name;
    }
    let selected = fields.iter().find(|(field, _)| field == "metadata.name").map_or("", |(_, value)| value);
    // `path.IsValidPathSegmentName`: nothing that a path could not name.
    if matches!(selected, "." | "..") || selected.contains(['/', '%']) { "" } else { selected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_one_name_is_authorised_as_that_object() {
        let cases = [
            ("/api/v1/namespaces/a/secrets", "fieldSelector=metadata.name%3Ds", "s"),
            ("/api/v1/namespaces/a/secrets", "fieldSelector=metadata.name%3Ds,type%3DOpaque&watch=true", "s"),
            ("/api/v1/namespaces/a/secrets", "fieldSelector=metadata.name!%3Ds", ""),
            ("/api/v1/namespaces/a/secrets", "fieldSelector=metadata.name%3D..", ""),
            ("/api/v1/namespaces/a/secrets", "fieldSelector=metadata.name%3Da%2Fb", ""),
            ("/api/v1/namespaces/a/secrets", "labelSelector=metadata.name%3Ds", ""),
            ("/api/v1/watch/namespaces/a/secrets", "fieldSelector=metadata.name%3Ds", ""),
            ("/api/v1/namespaces/a/secrets/one", "fieldSelector=metadata.name%3Ds", "one"),
        ];
        for (path, query, expected) in cases {
            let Target::Resource(path) = parse_path(path) else { panic!("{path} is no resource path") };
            let query = Query::parse(Some(query));
            let verb = verb(&http::Method::GET, &path, &query).unwrap();
            let fields = required_fields(verb, &path, &query);
            assert_eq!(authorized_name(verb, &path, &fields), expected, "{path:?} {query:?}");
        }
    }

    fn check(path: &str, expected: [&str; 7]) {
        let Target::Resource(p) = parse_path(path) else { panic!("{path} is no resource path") };
        let found = [&p.group, &p.version, &p.namespace, &p.resource, &p.name, &p.subresource, &p.rest];
        assert_eq!(found.map(|s| &**s), expected, "{path}");
    }

    #[test]
    fn paths() {
        check("/api/v1/pods", ["", "v1", "", "pods", "", "", ""]);
        check("/api/v1/namespaces", ["", "v1", "", "namespaces", "", "", ""]);
        check("/api/v1/namespaces/a", ["", "v1", "", "namespaces", "a", "", ""]);
        check("/api/v1/namespaces/a/finalize", ["", "v1", "", "namespaces", "a", "finalize", ""]);
        check("/api/v1/namespaces/a/pods", ["", "v1", "a", "pods", "", "", ""]);
        check("/api/v1/namespaces/a/pods/p/log", ["", "v1", "a", "pods", "p", "log", ""]);
        check(
            "/api/v1/namespaces/a/services/s:http/proxy/x/y%2Fz/",
            ["", "v1", "a", "services", "s:http", "proxy", "/x/y%2Fz/"],
        );
        check("/api/v1/namespaces/a/pods/p/proxy", ["", "v1", "a", "pods", "p", "proxy", ""]);
        check("/api/v1/namespaces/a/pods/p/proxy/", ["", "v1", "a", "pods", "p", "proxy", "/"]);
        check("/apis/apps/v1/namespaces/a/deployments/d/scale", ["apps", "v1", "a", "deployments", "d", "scale", ""]);
        check(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
            ["rbac.authorization.k8s.io", "v1", "", "clusterroles", "system:node", "", ""],
        );
        for other in
            ["/", "/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1", "/healthz", "/openapi/v3/apis/apps/v1"]
        {
            assert_eq!(parse_path(other), Target::Other, "{other}");
        }
    }

    #[test]
    fn verbs() {
        let watch = Query::parse(Some("watch=true"));
        let none = Query::default();
        let pods = ResourcePath { resource: "pods".into(), ..ResourcePath::default() };
        let pod = ResourcePath { name: "p".into(), ..pods.clone() };
        assert_eq!(verb(&http::Method::GET, &pods, &none), Some(Verb::List));
        assert_eq!(verb(&http::Method::GET, &pods, &watch), Some(Verb::Watch));
        assert_eq!(verb(&http::Method::GET, &pod, &none), Some(Verb::Get));
        assert_eq!(verb(&http::Method::DELETE, &pods, &none), Some(Verb::DeleteCollection));
        assert_eq!(verb(&http::Method::TRACE, &pods, &none), None);
    }

    #[test]
    fn numbers_in_queries_are_named_when_they_are_none() {
        let query = Query::parse(Some("limit=ten&timeoutSeconds=5&limit2=-1"));
        assert_eq!(query.number("timeoutSeconds"), Ok(Some(5)));
        assert!(query.number("limit").unwrap_err().message.contains("limit"));
        assert!(query.number("limit2").is_err());
        assert_eq!(query.number("continue"), Ok(None));
    }
}

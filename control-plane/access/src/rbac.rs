//! RBAC: roles, bindings, and who may do what by them. Pure.
//! (`plugin/pkg/auth/authorizer/rbac`, `k8s.io/component-helpers/auth/rbac/validation`.)

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::attributes::{Attributes, Decision, User};

/// Members of this group may do everything, whatever the roles say, so that nobody locks themselves out.
const MASTERS: &str = "system:masters";

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `get`, …; `*` for all.
    pub verbs: Vec<String>,
    /// API groups; the empty text for core; `*` for all.
    pub groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`, `*`.
    pub resources: Vec<String>,
    /// Only these objects; empty for all.
    pub names: Vec<String>,
    /// URL paths that are no resources; a trailing `*` matches the rest.
    pub paths: Vec<String>,
}

impl Rule {
    /// Reads a `rbac.authorization.k8s.io/v1` PolicyRule.
    pub fn from_value(value: &Value) -> Self {
        let list = |key: &str| {
            let texts = value[key].as_array().into_iter().flatten();
            texts.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            paths: list("nonResourceURLs"),
        }
    }

    /// The rule as a `rbac.authorization.k8s.io/v1` PolicyRule.
    pub fn to_value(&self) -> Value {
        let mut value = json!({ "verbs": self.verbs });
        let lists = [
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.paths),
        ];
        for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            value[key] = json!(list);
        }
        value
    }

    /// Whether the rule allows it.
    pub fn allows(&self, wanted: &Attributes<'_>) -> bool {
        if !has(&self.verbs, wanted.verb) {
            return false;
        }
        if wanted.resource.is_empty() {
            return self.paths.iter().any(|path| covers_path(path, wanted.path));
        }
        has(&self.groups, wanted.group)
            && self.resources.iter().any(|r| covers_resource(r, wanted.resource, wanted.subresource))
            && (self.names.is_empty() || self.names.iter().any(|name| name == wanted.name))
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

fn covers_resource(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match (rule.split_once('/'), subresource) {
        (None, "") => rule == resource,
        (None, _) => false,
        (Some((of, sub)), _) => sub == subresource && (of == "*" || of == resource),
    }
}

fn covers_path(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// All roles and bindings of a cluster, ready to be asked.
#[derive(Debug, Default)]
pub struct Policy {
    cluster_roles: HashMap<String, Vec<Rule>>,
    roles: HashMap<(String, String), Vec<Rule>>,
    /// Who (see [`subject_keys`]) is bound to what.
    bound: HashMap<String, Vec<Bound>>,
}

#[derive(Clone, Debug)]
struct Bound {
    /// Empty for a binding over the whole cluster.
    namespace: String,
    /// `ClusterRole` or `Role`.
    role_kind: String,
    role: String,
    binding: String,
}

impl Policy {
    /// Adds a ClusterRole. Aggregation is a controller's work: its rules are in the object.
    pub fn add_cluster_role(&mut self, object: &Value) {
        self.cluster_roles.insert(text(&object["metadata"]["name"]), rules(object));
    }

    /// Adds a Role.
    pub fn add_role(&mut self, object: &Value) {
        let key = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        self.roles.insert(key, rules(object));
    }

    /// Adds a ClusterRoleBinding or a RoleBinding.
    pub fn add_binding(&mut self, object: &Value) {
        let namespace = text(&object["metadata"]["namespace"]);
        let bound = Bound {
            namespace: namespace.clone(),
            role_kind: text(&object["roleRef"]["kind"]),
            role: text(&object["roleRef"]["name"]),
            binding: text(&object["metadata"]["name"]),
        };
        for subject in object["subjects"].as_array().into_iter().flatten() {
            let name = text(&subject["name"]);
            let key = match subject["kind"].as_str() {
                Some("User") => format!("u:{name}"),
                Some("Group") => format!("g:{name}"),
                Some("ServiceAccount") => {
                    let own = text(&subject["namespace"]);
                    let home = if own.is_empty() { &namespace } else { &own };
                    format!("u:system:serviceaccount:{home}:{name}")
                }
                _ => continue,
            };
            self.bound.entry(key).or_default().push(bound.clone());
        }
    }

    /// Whether `user` may do it, and by which binding.
    pub fn decide(&self, user: &User, wanted: &Attributes<'_>) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::Allow("member of system:masters".into());
        }
        for (bound, rules) in self.held(user, wanted.namespace) {
            if rules.iter().any(|rule| rule.allows(wanted)) {
                return Decision::Allow(format!(
                    "RBAC: allowed by {} of {} {:?}",
                    bound.binding, bound.role_kind, bound.role
                ));
            }
        }
        Decision::NoOpinion(String::new())
    }

    /// Every rule that `user` has in `namespace` (cluster-wide ones only, when it is empty).
    pub fn rules_of(&self, user: &User, namespace: &str) -> Vec<Rule> {
        if user.is_in(MASTERS) {
            let all = || vec!["*".to_owned()];
            return vec![
                Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() },
                Rule { verbs: all(), paths: all(), ..Rule::default() },
            ];
        }
        self.held(user, namespace).flat_map(|(_, rules)| rules.iter().cloned()).collect()
    }

    /// The rules of a role, as a binding in `namespace` names it.
    pub fn role(&self, kind: &str, namespace: &str, name: &str) -> Option<&[Rule]> {
        let rules = match kind {
            "ClusterRole" => self.cluster_roles.get(name),
            _ => self.roles.get(&(namespace.to_owned(), name.to_owned())),
        };
        rules.map(Vec::as_slice)
    }

    fn held<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = (&'a Bound, &'a [Rule])> {
        let bound = subject_keys(user).filter_map(|key| self.bound.get(&key)).flatten();
        let here = bound.filter(move |b| b.namespace.is_empty() || (!namespace.is_empty() && b.namespace == namespace));
        here.filter_map(|b| Some((b, self.role(&b.role_kind, &b.namespace, &b.role)?)))
    }
}

/// The names under which bindings may mean this user.
fn subject_keys(user: &User) -> impl Iterator<Item = String> {
    std::iter::once(format!("u:{}", user.name)).chain(user.groups.iter().map(|group| format!("g:{group}")))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn rules(object: &Value) -> Vec<Rule> {
    object["rules"].as_array().into_iter().flatten().map(Rule::from_value).collect()
}

/// The first of `wanted` that `owned` do not cover: nobody may grant more than they have.
/// (`k8s.io/component-helpers/auth/rbac/validation.Covers`.)
pub(crate) fn first_uncovered(owned: &[Rule], wanted: &[Rule]) -> Option<Rule> {
    wanted.iter().flat_map(simple_rules).find(|simple| !owned.iter().any(|rule| covers(rule, simple)))
}

/// All of `wanted` that `owned` do not cover, as rules of one verb, group, resource and name each.
pub(crate) fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let simple = wanted.iter().flat_map(simple_rules);
    simple.filter(|simple| !owned.iter().any(|rule| covers(rule, simple))).collect()
}

impl Policy {
    /// The first of `wanted` that `user` does not have in `namespace`, so that it may not be granted either.
    pub fn escalation(&self, user: &User, namespace: &str, wanted: &[Rule]) -> Option<Rule> {
        first_uncovered(&self.rules_of(user, namespace), wanted)
    }
}

/// A rule as rules of one verb, group, resource and name each.
fn simple_rules(rule: &Rule) -> Vec<Rule> {
    let names: Vec<Vec<String>> = if rule.names.is_empty() {
        vec![Vec::new()]
    } else {
        rule.names.iter().map(|name| vec![name.clone()]).collect()
    };
    let mut out = Vec::new();
    for verb in &rule.verbs {
        for path in &rule.paths {
            out.push(Rule { verbs: vec![verb.clone()], paths: vec![path.clone()], ..Rule::default() });
        }
        for group in &rule.groups {
            for resource in &rule.resources {
                for names in &names {
                    out.push(Rule {
                        verbs: vec![verb.clone()],
                        groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        names: names.clone(),
                        paths: Vec::new(),
                    });
                }
            }
        }
    }
    out
}

fn covers(owned: &Rule, simple: &Rule) -> bool {
    if !has(&owned.verbs, &simple.verbs[0]) {
        return false;
    }
    if let Some(path) = simple.paths.first() {
        return owned.paths.iter().any(|own| covers_path(own, path));
    }
    let (resource, subresource) = simple.resources[0].split_once('/').unwrap_or((&simple.resources[0], ""));
    has(&owned.groups, &simple.groups[0])
        && owned.resources.iter().any(|own| *own == simple.resources[0] || covers_resource(own, resource, subresource))
        && (owned.names.is_empty() || simple.names.first().is_some_and(|name| owned.names.contains(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let mut policy = Policy::default();
        policy.add_cluster_role(&json!({"metadata": {"name": "reader"}, "rules": [
            {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]},
            {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/metrics/*"]},
        ]}));
        policy.add_role(&json!({"metadata": {"name": "one", "namespace": "a"}, "rules": [
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"]},
        ]}));
        policy.add_binding(&json!({"metadata": {"name": "all"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "Group", "name": "readers"}]}));
        policy.add_binding(
            &json!({"metadata": {"name": "mine", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "one"},
            "subjects": [{"kind": "ServiceAccount", "name": "bot"}]}),
        );
        policy
    }

    fn ask(user: &User, text: &str) -> bool {
        let parts: Vec<&str> = text.split(' ').collect();
        let attributes = match parts[..] {
            [verb, path] if path.starts_with('/') => Attributes { verb, path, ..Attributes::default() },
            [verb, group, resource, namespace, name] => {
                let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                let dash = |s| if s == "-" { "" } else { s };
                Attributes {
                    verb,
                    group: dash(group),
                    resource,
                    subresource,
                    namespace: dash(namespace),
                    name: dash(name),
                    ..Attributes::default()
                }
            }
            _ => panic!("{text}"),
        };
        policy().decide(user, &attributes).is_allowed()
    }

    #[test]
    fn rules_allow_what_they_say_and_nothing_else() {
        let reader = User::new("r", &["readers"]);
        let bot = User::new("system:serviceaccount:a:bot", &[]);
        let cases = [
            (&reader, "get - pods b x", true),
            (&reader, "list - pods - -", true),
            (&reader, "get - pods/log b x", true),
            (&reader, "get - pods/exec b x", false),
            (&reader, "delete - pods b x", false),
            (&reader, "get apps pods b x", false),
            (&reader, "get /healthz", true),
            (&reader, "get /metrics/slis", true),
            (&reader, "get /metricsx", false),
            (&reader, "post /healthz", false),
            (&bot, "patch apps deployments a web", true),
            (&bot, "patch apps deployments a other", false),
            (&bot, "list apps deployments a -", false),
            (&bot, "patch apps deployments b web", false),
            (&bot, "patch apps deployments - web", false),
        ];
        for (user, text, expected) in cases {
            assert_eq!(ask(user, text), expected, "{}: {text}", user.name);
        }
        assert!(ask(&User::new("x", &["system:masters"]), "delete - nodes - n"));
        assert!(!ask(&User::anonymous(), "get - pods a b"));
    }

    #[test]
    fn nobody_grants_more_than_they_have() {
        let policy = policy();
        let reader = User::new("r", &["readers"]);
        let rule = |verbs: &[&str], resource: &str| Rule {
            verbs: verbs.iter().map(|v| (*v).to_owned()).collect(),
            groups: vec![String::new()],
            resources: vec![resource.to_owned()],
            ..Rule::default()
        };
        assert_eq!(policy.escalation(&reader, "", &[rule(&["get"], "pods")]), None);
        let missing = policy.escalation(&reader, "", &[rule(&["get", "delete"], "pods")]).unwrap();
        assert_eq!(missing.verbs, ["delete"]);
        assert!(policy.escalation(&reader, "", &[rule(&["*"], "pods")]).is_some());
        assert!(policy.escalation(&reader, "", &[rule(&["get"], "*")]).is_some());
        let bot = User::new("system:serviceaccount:a:bot", &[]);
        let named = Rule { groups: vec!["apps".into()], names: vec!["web".into()], ..rule(&["get"], "deployments") };
        assert_eq!(policy.escalation(&bot, "a", std::slice::from_ref(&named)), None);
        assert!(policy.escalation(&bot, "a", &[Rule { names: vec![], ..named }]).is_some());
        let admin = User::new("root", &["system:masters"]);
        assert_eq!(policy.escalation(&admin, "", &[rule(&["*"], "*")]), None);
    }
}

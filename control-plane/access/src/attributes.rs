//! The words in which access is discussed: a user, what they want to do, and the answer.

use std::collections::BTreeMap;

/// Somebody who was authenticated, or is in-process and trusted to say who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Such as `system:serviceaccount:default:web`.
    pub name: String,
    /// The service account's uid; empty otherwise.
    pub uid: String,
    /// Such as `system:masters`; everyone real has `system:authenticated`.
    pub groups: Vec<String>,
    /// `authentication.kubernetes.io/pod-name` and the like.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// `name` in `groups`, as somebody authenticated.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().copied().chain(["system:authenticated"]).map(str::to_owned).collect();
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    /// Whether the user belongs to `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What somebody wants to do (`k8s.io/apiserver/pkg/authorization/authorizer.Attributes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// `get`, `list`, `impersonate`, …; for paths the lower-case HTTP method.
    pub verb: &'a str,
    /// The API group.
    pub group: &'a str,
    /// The version; RBAC does not look at it.
    pub version: &'a str,
    /// The plural; empty when a path is asked for.
    pub resource: &'a str,
    /// Such as `status`.
    pub subresource: &'a str,
    /// Empty for cluster scope and for all namespaces.
    pub namespace: &'a str,
    /// Empty for creates, and for collections unless a list or watch selects one name.
    pub name: &'a str,
    /// The URL path, when no resource is asked for.
    pub path: &'a str,
    /// Fields that must have exactly these values in all that a list, watch or deletecollection selects (KEP-4601).
    pub fields: &'a [(String, String)],
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, and by which binding.
    Allow(String),
    /// Nobody said yes; with what went wrong on the way, if anything.
    NoOpinion(String),
}

impl Decision {
    /// Whether the answer is yes.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

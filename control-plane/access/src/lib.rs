//! Who is asking and may they: certificates, tokens, nodes and RBAC.
//!
//! Everything here is values in, values out, but for [`Authority`], which keeps its keys in files through the Disk
//! seam. What is not here: requests, and where roles and accounts are stored; the API server hands those in.

#![forbid(unsafe_code)]

mod attributes;
mod authority;
mod bootstrap;
mod graph;
mod identity;
mod node_authorizer;
mod rbac;
mod reconcile;
mod references;
mod served;
mod token;

pub use attributes::{Attributes, Decision, User};
pub use authority::{Authority, AuthorityError, Names};
pub use bootstrap::{bootstrap_objects, node_rules};
pub use graph::Graph;
pub use identity::{Identity, IdentityError, Purpose, certificate_user};
pub use node_authorizer::{decide as decide_for_node, node_of};
pub use rbac::{Policy, Rule};
pub use reconcile::{Reconciled, reconciled};
pub use references::{Kind as ReferredKind, ephemeral_claim, of_pod as references_of_pod};
pub use token::{Bound, Claims, Reference, TokenError, TokenSigner};

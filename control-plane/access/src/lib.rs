//! Who is asking and may they: certificates, tokens and RBAC.
//!
//! Everything here is values in, values out, but for [`Authority`], which keeps its keys in files through the Disk
//! seam. What is not here: requests, and where roles and accounts are stored; the API server hands those in.

#![forbid(unsafe_code)]

mod attributes;
mod authority;
mod bootstrap;
mod identity;
mod rbac;
mod token;

pub use attributes::{Attributes, Decision, User};
pub use authority::{Authority, AuthorityError, Names};
pub use bootstrap::bootstrap_objects;
pub use identity::{Identity, IdentityError, Purpose, certificate_user};
pub use rbac::{Policy, Rule};
pub use token::{Bound, Claims, Reference, TokenError, TokenSigner};

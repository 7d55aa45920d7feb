//! The Kubernetes API server: one schema-driven engine for every kind.
//!
//! A request is authenticated and read by the shell (`serve`), routed and authorised by [`Api`], carried out by
//! `rest` (one file per verb, the same for all kinds), and answered from bytes that the store holds already encoded.
//! What a kind does beyond its schema lies in `kinds`, one file each; what the cluster has to say about a change
//! lies in `admission`, one file per plugin.
//!
//! What must always hold: only this crate writes to the store; a refusal changes nothing; what is served is what is
//! stored. What is not here: controllers, scheduling, nodes; those are clients.

#![forbid(unsafe_code)]

mod admission;
mod api;
mod body;
mod bootstrap;
mod connect;
mod convert;
mod customs;
mod derived;
mod discovery;
mod error;
mod eviction;
mod followed;
mod guard;
mod health;
mod impersonation;
mod jsonpath;
mod kinds;
mod negotiate;
mod object;
mod openapi;
mod openid;
mod panics;
mod proxy;
mod registry;
mod request;
mod rest;
mod serve;
mod table;
#[cfg(test)]
mod testing;
mod token;
mod validation;

pub use api::{Api, Incoming, Settings};
pub use body::Body;
pub use bootstrap::{BootstrapError, advertise, bootstrap};
pub use error::ApiError;
pub use guard::{Guard, Issuer, Open, Rbac};
pub use serve::{InProcess, serve};

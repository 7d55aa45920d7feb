//! What runs containers: one trait, the containerd backend, and the fake that tests use.
//!
//! [`Runtime`] is the whole boundary: the agent above it knows pods, containers and images by typed ids and never
//! which backend answers. [`ContainerSpec`] and [`SandboxSpec`] say what is wanted, in words that no backend owns.
//!
//! Pure, with the tests beside them: [`archive`] (docker and OCI archives), [`spec`] (the OCI runtime spec),
//! [`seccomp`], [`cgroup`], [`reference`]. Shells: [`containerd`] (one daemon's client), [`private`] (the daemon
//! itself, as a child that outlives us), [`logger`] (the process that writes a container's log), [`mounts`]. [`suite`]
//! holds the cases that every backend must pass. [`Layout`] says where things lie.
//!
//! Not here: what a pod needs next (the agent's plan), networks (a path to a namespace comes in), volumes (mounts
//! come in ready), pulling (it will feed [`Runtime::install_image`]).

pub mod archive;
pub mod cgroup;
pub mod container;
pub mod containerd;
pub mod fake;
pub mod image;
pub mod layout;
pub mod logger;
pub mod mounts;
pub mod private;
pub mod reference;
pub mod runtime;
pub mod sandbox;
pub mod seccomp;
pub mod spec;
#[cfg(any(test, feature = "suite"))]
pub mod suite;

pub use container::{
    Capabilities, ContainerSpec, Device, ExecSpec, Mount, MountPropagation, PidMode, PodResources, Resources,
    SandboxSpec, Seccomp, Security, User,
};
pub use image::{BlobSource, Digest, Image, ImageConfig, ImagePlan};
pub use layout::{Layout, node_key};
pub use logger::logger_main;
pub use runtime::{
    ContainerId, ContainerState, ContainerStats, Events, ExecControl, ExecSession, Exit, Observed, ObservedContainer,
    ObservedSandbox, PodId, PodUid, Runtime, RuntimeError, RuntimeEvent,
};

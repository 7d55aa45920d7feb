//! The scheduler: plugins that filter and score nodes, a queue, and a binding.
//!
//! A decision is a pure function of a [`Snapshot`] and a pod ([`decide()`]); plugins ([`Plugin`]) implement only the
//! points they have something to say at, and name the events that could change their verdict. The shell takes pods
//! from the [`Queue`], decides, assumes the pod onto its node at once, and binds in the background.
//! (`pkg/scheduler` of Kubernetes is the model; plugin names and weights are its.)
//!
//! What is not here: preemption, volumes, inter-pod affinity, dynamic resources. A pod that asks for what no plugin
//! understands is not placed, and its condition says which field.

#![forbid(unsafe_code)]

mod decide;
mod framework;
mod plugins;
mod queue;
mod shell;
mod snapshot;

pub use decide::{Decision, decide};
pub use framework::{Event, Plugin, Refusal};
pub use queue::Queue;
pub use shell::run;
pub use snapshot::{NodeView, PodView, Resources, Snapshot};

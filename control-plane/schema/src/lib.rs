//! What Kubernetes objects look like: the facts table, and everything that follows from it without I/O.

pub mod facts;
pub mod shape;

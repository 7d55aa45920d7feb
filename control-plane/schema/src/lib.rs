//! What Kubernetes objects look like: the facts table, and everything that follows from it without I/O.

pub mod apply;
pub mod crd;
pub mod decode;
pub mod facts;
pub mod field;
pub mod go_text;
pub mod names;
pub mod openapi;
pub mod pod_resources;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod selector;
pub mod shape;
pub mod strategic;
pub mod strict;

//! The node agent: from a pod spec to running containers, as explicit state machines.

//! The Kubernetes API server: one schema-driven engine for every kind.

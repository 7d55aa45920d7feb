//! What runs containers: one trait, the containerd backend, and the fake that tests use.

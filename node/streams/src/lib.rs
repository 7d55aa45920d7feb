//! exec, attach, logs and port-forward in every dialect clients speak.

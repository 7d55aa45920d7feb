//! The revisioned store: one door for writes, snapshots for reads, watches over a bounded window.

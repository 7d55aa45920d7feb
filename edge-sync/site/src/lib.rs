//! A cluster as a site of a hub.

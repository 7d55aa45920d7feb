//! The link between a site and its hub: a protocol without I/O.

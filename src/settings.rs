//! What a server can be told, on the command line or in a file.
//!
//! Precedence: a flag, then the configuration file, then the default. The file's keys are the flags' names; an
//! unknown key is refused by name.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Settings of `kedge server`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServerFlags {
    /// Folder for everything that lasts
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kedge")]
    pub(crate) data_dir: PathBuf,

    /// Port of the API server
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub(crate) https_listen_port: u16,

    /// Where to write the administrator's kubeconfig
    #[arg(long, value_name = "FILE", default_value = "/etc/kedge/kedge.yaml")]
    pub(crate) write_kubeconfig: PathBuf,

    /// Another name or address under which the API server is reached; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_san: Vec<String>,

    /// Range that Services' addresses are taken from
    #[arg(long, value_name = "CIDR", default_value = "10.43.0.0/16")]
    pub(crate) service_cidr: String,

    /// Domain of the cluster's names
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,

    /// What keeps the cluster's state on disk
    #[arg(long, value_enum, default_value_t = Datastore::Redb)]
    pub(crate) datastore: Datastore,
}

/// The engines under the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Datastore {
    /// One file, opens at once after a crash
    Redb,
    /// sled 0.34, followed by an fdatasync
    Sled,
}

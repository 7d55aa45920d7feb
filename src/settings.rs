//! What a server can be told on the command line.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// Where everything that lasts lies, unless told otherwise.
pub(crate) const DATA_DIR: &str = "/var/lib/kedge";
/// Where the administrator's kubeconfig is written, unless told otherwise.
pub(crate) const KUBECONFIG: &str = "/etc/kedge/kedge.yaml";

/// The two folders that everything of one node lies in.
#[derive(Args, Clone, Debug)]
pub(crate) struct Folders {
    /// Folder for everything that lasts
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    pub(crate) data_dir: PathBuf,

    /// Folder for what ends with a reboot; remembered in the data directory by `kedge server` (default: /run/kedge)
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
}

/// Settings of `kedge server`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServerFlags {
    /// File with these flags as YAML keys; the command line wins (default: /etc/kedge/config.yaml if it exists)
    // Read before the rest of the command line is, which is why nobody asks for it here.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) folders: Folders,

    /// Port of the API server, on loopback; with a node also on the node's own address
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub(crate) https_listen_port: u16,

    /// Where to write the administrator's kubeconfig
    #[arg(long, value_name = "FILE", default_value = KUBECONFIG)]
    pub(crate) write_kubeconfig: PathBuf,

    /// Another name or address under which the API server is reached; may be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) tls_san: Vec<String>,

    /// Name of this machine's node (default: its host name)
    #[arg(long, value_name = "NAME")]
    pub(crate) node_name: Option<String>,

    /// Address of this machine's node (default: that of its default route; in a namespace of its own 10.41.0.1). While
    /// no link has it, the node goes by the first address of --cluster-cidr
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node_ip: Option<Ipv4Addr>,

    /// Range that pods' addresses are taken from
    #[arg(long, value_name = "CIDR", default_value = "10.42.0.0/16")]
    pub(crate) cluster_cidr: String,

    /// Range that Services' addresses are taken from
    #[arg(long, value_name = "CIDR", default_value = "10.43.0.0/16")]
    pub(crate) service_cidr: String,

    /// Address of the cluster's DNS (default: the tenth of --service-cidr)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) cluster_dns: Option<Ipv4Addr>,

    /// Domain of the cluster's names
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) cluster_domain: String,

    /// Keep pods and their network in a network namespace of this name, made if missing; the API stays outside
    #[arg(long, value_name = "NAME")]
    pub(crate) network_namespace: Option<String>,

    /// Run no node on this machine: the control plane alone
    #[arg(long)]
    pub(crate) disable_agent: bool,

    /// What runs containers: containerd, one of the node's own
    // There is one choice yet; another is refused when the command line is read.
    #[arg(long, value_name = "RUNTIME", default_value = "containerd")]
    #[allow(dead_code, reason = "read by the command line alone")]
    runtime: RuntimeChoice,

    /// What keeps the cluster's state on disk
    #[arg(long, value_enum, default_value_t = Datastore::Redb)]
    pub(crate) datastore: Datastore,
}

/// What runs containers: a containerd that the node starts itself, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RuntimeChoice;

impl FromStr for RuntimeChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "containerd" => Ok(Self),
            "embedded" => Err("the embedded runtime does not exist yet; use containerd".into()),
            _ if text.starts_with("containerd=") => {
                Err("a containerd of somebody else's cannot be used yet; use containerd, which the node starts itself"
                    .into())
            }
            _ => Err("only containerd is known".into()),
        }
    }
}

/// The engines under the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Datastore {
    /// One file, opens at once after a crash
    Redb,
    /// sled 0.34, followed by an fdatasync
    Sled,
}

/// An address to listen at.
pub(crate) fn host_port(text: &str) -> Result<String, String> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    port.map(|_| text.to_owned()).ok_or_else(|| "write HOST:PORT, such as 127.0.0.1:8000".to_owned())
}

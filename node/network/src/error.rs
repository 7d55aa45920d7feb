//! What can go wrong with a node's network, named by the step attempted.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use kedge_world::DiskError;

/// A step that failed, and what it was done to.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A kernel interface reached through a file: namespaces, mounts, sysctls.
    #[error("{action} {}: {source}", path.display())]
    Kernel {
        /// The step, as a verb: "enter network namespace".
        action: &'static str,
        /// The file at fault.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A request about a link, an address or a route.
    #[error("{action} {subject}: {source}")]
    Link {
        /// The step, as a verb: "create bridge".
        action: &'static str,
        /// The link or route at fault.
        subject: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The program `nft` could not be run, or refused a batch.
    #[error("nft: {0}")]
    Nft(String),
    /// A file of leases.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The pod addresses are used up.
    #[error("no free pod address: all {0} of the node's pod CIDR are leased")]
    AddressesExhausted(usize),
    /// Another pod has the host port.
    #[error("host port {port}/{protocol} is already used by pod {pod}")]
    HostPortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: crate::Protocol,
        /// Who has it.
        pod: String,
    },
    /// Text that cannot be a file name, or a setting out of range.
    #[error("{0}")]
    Invalid(String),
    /// A socket inside the node's namespace.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Address and port.
        address: std::net::SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A lease that contradicts another: a pod may have one address.
    #[error("pod {uid} holds two leases, {first} and {second}; remove one of the files")]
    TwoLeases {
        /// The pod.
        uid: String,
        /// One address.
        first: Ipv4Addr,
        /// The other.
        second: Ipv4Addr,
    },
}

impl NetworkError {
    /// Wraps the kernel's answer with what was attempted on which file.
    pub fn kernel(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Kernel { action, path: path.to_owned(), source: source.into() }
    }
}

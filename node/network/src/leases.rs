//! Leases of pod addresses on disk: one file for each, named after the address.
//!
//! A lease is written before its address is used and removed after the last trace of the pod is gone, so a restart
//! never gives an address twice. A file that cannot be read still holds its address back: the node says which file
//! it is, and goes on.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kedge_world::{Disk, DiskError};
use serde::{Deserialize, Serialize};

use crate::NetworkError;

/// A transport protocol, in the Kubernetes spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// The default.
    Tcp,
    /// Datagrams.
    Udp,
    /// Where the kernel has it.
    Sctp,
}

impl Protocol {
    /// As a pod or a Service writes it; absent means TCP.
    pub fn parse(text: Option<&str>) -> Result<Self, NetworkError> {
        match text {
            None | Some("TCP") => Ok(Self::Tcp),
            Some("UDP") => Ok(Self::Udp),
            Some("SCTP") => Ok(Self::Sctp),
            Some(other) => Err(NetworkError::Invalid(format!("protocol {other:?} is none of TCP, UDP, SCTP"))),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A port of the node that leads into a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// The node's address it is open on; none means all of them.
    pub host_ip: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the node.
    pub host_port: u16,
    /// The port in the pod.
    pub container_port: u16,
}

/// The ports of the node that a pod asks for. One that cannot be given is named.
pub fn host_ports_of(pod: &Pod) -> Result<Vec<HostPort>, NetworkError> {
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let ports = all.flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| Some((port, port.host_port.filter(|number| *number != 0)?)))
        .map(|(port, host_port)| {
            let number = |number: i32| {
                u16::try_from(number).map_err(|_| NetworkError::Invalid(format!("{number} is not a port number")))
            };
            let host_ip = port.host_ip.as_deref().filter(|text| !text.is_empty() && *text != "0.0.0.0");
            let wrong = |text: &str| NetworkError::Invalid(format!("hostIP {text:?} is not an IPv4 address"));
            Ok(HostPort {
                host_ip: host_ip.map(|text| text.parse().map_err(|_| wrong(text))).transpose()?,
                protocol: Protocol::parse(port.protocol.as_deref())?,
                host_port: number(host_port)?,
                container_port: number(port.container_port)?,
            })
        })
        .collect()
}

/// Whose network it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// The pod's uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An address that a pod holds, and what leads to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Whose.
    pub pod: PodRef,
    /// Open ports of the node.
    pub host_ports: Vec<HostPort>,
}

/// The leases below one data directory.
#[derive(Clone)]
pub struct Leases {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
}

/// What was found: a lease, or why a file is none.
pub type Found = (Ipv4Addr, Result<Lease, String>);

impl Leases {
    /// Those below `data_dir`, the folder made if missing.
    pub fn open(data_dir: &Path, disk: Arc<dyn Disk>) -> Result<Self, DiskError> {
        let folder = data_dir.join("node/network/leases");
        disk.create_dir_all(&folder)?;
        Ok(Self { folder, disk })
    }

    /// All of them. Files whose name is no address are not ours to judge.
    pub fn list(&self) -> Result<Vec<Found>, DiskError> {
        let mut found = Vec::new();
        for name in self.disk.list(&self.folder)? {
            let Ok(address) = name.parse::<Ipv4Addr>() else { continue };
            let path = self.folder.join(&name);
            let bytes = self.disk.read(&path)?;
            let lease = serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()));
            found.push((address, lease));
        }
        found.sort_by_key(|(address, _)| *address);
        Ok(found)
    }

    /// Returns once the lease would survive a power cut.
    pub fn put(&self, address: Ipv4Addr, lease: &Lease) -> Result<(), DiskError> {
        let bytes = serde_json::to_vec(lease).expect("a lease is plain data");
        self.disk.replace(&self.folder.join(address.to_string()), &bytes)
    }

    /// Ends a lease. Not synced: one that comes back after a power cut belongs to a pod that is torn down again.
    pub fn remove(&self, address: Ipv4Addr) -> Result<(), DiskError> {
        match self.disk.remove(&self.folder.join(address.to_string())) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_world::RealDisk;

    #[test]
    fn host_ports_are_read_from_the_pod_or_refused_by_name() {
        let check = |ports: serde_json::Value, expected: &str| {
            let pod = serde_json::json!({"spec": {"containers": [{"name": "c", "ports": ports}]}});
            let got = match host_ports_of(&serde_json::from_value(pod).unwrap()) {
                Ok(ports) => format!("{:?}", ports.iter().map(|p| (p.host_ip, p.host_port)).collect::<Vec<_>>()),
                Err(error) => error.to_string(),
            };
            assert_eq!(got, expected);
        };
        check(serde_json::json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 0}]), "[]");
        check(serde_json::json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "0.0.0.0"}]), "[(None, 8080)]");
        check(
            serde_json::json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "1.2.3.4"}]),
            "[(Some(1.2.3.4), 8080)]",
        );
        check(
            serde_json::json!([{"containerPort": 80, "hostPort": 8, "hostIP": "::1"}]),
            "hostIP \"::1\" is not an IPv4 address",
        );
        check(serde_json::json!([{"containerPort": 80, "hostPort": 70000}]), "70000 is not a port number");
    }

    #[test]
    fn leases_come_back_and_a_broken_one_still_holds_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let leases = Leases::open(folder.path(), Arc::new(RealDisk)).unwrap();
        let pod = PodRef { uid: "u1".into(), namespace: "default".into(), name: "web".into() };
        let port = HostPort { host_ip: None, protocol: Protocol::Udp, host_port: 53, container_port: 5353 };
        let lease = Lease { pod, host_ports: vec![port] };
        leases.put(Ipv4Addr::new(10, 42, 0, 9), &lease).unwrap();
        let broken = folder.path().join("node/network/leases/10.42.0.3");
        RealDisk.replace(&broken, b"{").unwrap();
        RealDisk.replace(&broken.with_file_name("README"), b"").unwrap();
        let found = leases.list().unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[0].1.as_ref().is_err_and(|why| why.contains("10.42.0.3")), "{found:?}");
        assert_eq!(found[1], (Ipv4Addr::new(10, 42, 0, 9), Ok(lease)));
        leases.remove(Ipv4Addr::new(10, 42, 0, 9)).unwrap();
        leases.remove(Ipv4Addr::new(10, 42, 0, 9)).unwrap();
        assert_eq!(leases.list().unwrap().len(), 1);
    }
}

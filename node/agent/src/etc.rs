//! The files that every container gets from the node: /etc/hosts, /etc/resolv.conf, and the pod's host name.
//! (`pkg/kubelet/kubelet_pods.go` ensureHostsFile and truncatePodHostnameIfNeeded, `pkg/kubelet/network/dns/dns.go`.)

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use crate::env::ConfigError;

/// The kernel's limit on host names.
const HOSTNAME_CHARS_MAX: usize = 63;

/// The cluster's DNS.
#[derive(Debug, Clone, Default)]
pub struct Dns {
    /// Its address; without one pods use the node's resolvers.
    pub server: Option<String>,
    /// The cluster's domain.
    pub domain: String,
    /// The node's own resolv.conf, read for each pod that is set up.
    pub host_file: Option<PathBuf>,
}

/// The host name and, with a subdomain, the full one.
pub fn hostname(pod: &Pod, domain: &str) -> (String, Option<String>) {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let chosen = spec.hostname.as_deref().filter(|hostname| !hostname.is_empty()).unwrap_or(name);
    let cut: String = chosen.chars().take(HOSTNAME_CHARS_MAX).collect();
    let short = cut.trim_end_matches(['-', '.']).to_owned();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    let full = subdomain.map(|subdomain| format!("{short}.{subdomain}.{namespace}.svc.{domain}"));
    (short, full)
}

/// The text of /etc/hosts (`pkg/kubelet/kubelet_pods.go`); `host_file` is the node's own, for a pod on its network.
pub fn hosts(pod: &Pod, ips: &[String], domain: &str, host_file: Option<&str>) -> String {
    let mut text = match host_file {
        Some(host_file) => format!("# Kubernetes-managed hosts file (host network).\n{host_file}"),
        None => own_hosts(pod, ips, domain),
    };
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    let mut first = true;
    for alias in aliases {
        if std::mem::take(&mut first) {
            text.push_str("\n# Entries added by HostAliases.\n");
        }
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t")));
    }
    text
}

fn own_hosts(pod: &Pod, ips: &[String], domain: &str) -> String {
    let (short, full) = hostname(pod, domain);
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
    for ip in ips {
        let names = full.as_ref().map_or_else(|| short.clone(), |full| format!("{full}\t{short}"));
        text.push_str(&format!("{ip}\t{names}\n"));
    }
    text
}

/// The text of /etc/resolv.conf; `host_file` is that of the node's own.
pub fn resolv_conf(pod: &Pod, dns: &Dns, host_file: &str) -> Result<String, ConfigError> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    if policy == "ClusterFirst" && spec.host_network == Some(true) {
        policy = "Default";
    }
    let host_words = |keyword: &str| -> Vec<String> {
        let lines = host_file.lines().filter_map(|line| line.trim().strip_prefix(keyword));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    let (mut servers, mut searches, mut options) = match (policy, &dns.server) {
        ("ClusterFirst" | "ClusterFirstWithHostNet", Some(server)) => {
            let domain = &dns.domain;
            let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            searches.extend(host_words("search "));
            (vec![server.clone()], searches, vec!["ndots:5".to_owned()])
        }
        ("None", _) => (vec![], vec![], vec![]),
        ("ClusterFirst" | "ClusterFirstWithHostNet" | "Default", _) => {
            (host_words("nameserver "), host_words("search "), host_words("options "))
        }
        (other, _) => return Err(ConfigError(format!("dnsPolicy {other:?} is unknown"))),
    };
    if let Some(config) = &spec.dns_config {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|other| other.split(':').next() != Some(name.as_str()));
            options.push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    searches.retain(|search| seen.insert(search.clone()));
    servers.truncate(3); // As many as the C library reads.
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    text.extend(servers.iter().map(|server| format!("nameserver {server}\n")));
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec})).unwrap()
    }

    #[test]
    fn names_and_hosts() {
        let with = pod(
            json!({"containers": [], "subdomain": "web", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}),
        );
        assert_eq!(hostname(&with, "c.l"), ("web-0".into(), Some("web-0.web.ns.svc.c.l".into())));
        let text = hosts(&with, &["10.42.0.2".into()], "c.l", None);
        assert!(
            text.contains("10.42.0.2\tweb-0.web.ns.svc.c.l\tweb-0\n") && text.contains("192.0.2.9\ta\tb\n"),
            "{text}"
        );
        let text = hosts(&with, &["192.0.2.1".into()], "c.l", Some("127.0.0.1 box\n"));
        assert_eq!(
            text,
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 box\n\n# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"
        );
        let mut long = pod(json!({"containers": []}));
        long.metadata.name = Some(format!("{}-x", "a".repeat(62)));
        assert_eq!(hostname(&long, "c.l").0, "a".repeat(62));
    }

    #[test]
    fn resolvers_follow_the_policy() {
        let dns = Dns { server: Some("10.43.0.10".into()), domain: "cluster.local".into(), host_file: None };
        let host_file = "nameserver 192.0.2.53\nsearch example.com\n";
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local example.com\nnameserver 10.43.0.10\noptions ndots:5\n";
        for (spec, expected) in [
            (json!({"containers": []}), cluster),
            (json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster),
            (json!({"containers": [], "hostNetwork": true}), "search example.com\nnameserver 192.0.2.53\n"),
            (json!({"containers": [], "dnsPolicy": "Default"}), "search example.com\nnameserver 192.0.2.53\n"),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["192.0.2.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}}),
                "search x\nnameserver 192.0.2.1\noptions ndots:2 edns0\n",
            ),
        ] {
            assert_eq!(resolv_conf(&pod(spec.clone()), &dns, host_file).unwrap(), expected, "{spec}");
        }
    }
}

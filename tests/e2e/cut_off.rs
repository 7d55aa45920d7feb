//! A box that starts with its cable out: everything runs on what is on its disk, and follows the network when it comes.
//!
//! Each machine is a network namespace; a reboot ends every process, and what a reboot does not keep is removed.

use std::process::Command;

use serde_json::json;

use crate::harness::{Server, assert_has, eventually};
use crate::needs::{Need, lacks};
use crate::pods::{IMAGE, write_image};

/// The pods' gateway: what the node is called while there is no network.
const CUT_OFF_IP: &str = "10.42.0.1";

struct Machine {
    server: Server,
    namespace: String,
}

impl Machine {
    fn ip(&self, arguments: &str) {
        run(Command::new("ip").args(["-n", &self.namespace]).args(arguments.split_whitespace()));
    }

    /// A link to somewhere, with an address and the way out.
    fn plug_in(&self, address: &str) {
        self.ip("link add cable type veth peer name far");
        self.ip("link set far up");
        self.ip("link set cable up");
        self.ip(&format!("address add {address}/24 dev cable"));
        self.ip("route add default dev cable");
    }

    /// The network namespace as the machine has it when it starts: loopback.
    fn power_on(namespace: &str) {
        run(Command::new("ip").args(["netns", "add", namespace]));
        run(Command::new("ip").args(["-n", namespace, "link", "set", "lo", "up"]));
    }

    /// The power goes and comes back, with the cable out.
    fn reboot_cut_off(&mut self) {
        self.server.kill();
        // What is on the disk stays, leases of addresses included; processes, mounts and links do not.
        let leases = self.server.folder.path().join("data/node/network/leases");
        let kept = self.server.folder.path().join("kept");
        run(Command::new("cp").arg("-a").arg(&leases).arg(&kept));
        run(Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(env!("CARGO_BIN_EXE_kedge"))
            .arg("killall")
            .args(self.server.folders()));
        run(Command::new("rm").arg("-rf").arg(&leases).arg(self.server.folder.path().join("run")));
        run(Command::new("mv").arg(&kept).arg(&leases));
        run(Command::new("ip").args(["netns", "delete", &self.namespace]));
        Self::power_on(&self.namespace);
        self.server.restart();
    }

    fn until_ready_at(&self, ip: &str) {
        eventually(&format!("the node is ready at {ip}"), || {
            let path = "{.status.conditions[?(@.type=='Ready')].status}/{.status.addresses[0].address}";
            let (_, node) = self.server.try_kubectl(&format!("get node n1 -o jsonpath={path}"), "");
            let path = "{.subsets[0].addresses[0].ip}";
            let (_, api) = self.server.try_kubectl(&format!("get endpoints kubernetes -o jsonpath={path}"), "");
            let is_there = node == format!("True/{ip}") && api.starts_with(ip);
            if is_there { Ok(()) } else { Err(format!("{node} {api} {}", self.server.log())) }
        });
        // Its certificate has the address, and a listener is there.
        let port = self.server.port;
        eventually("the API answers there", || {
            let (ok, text) = self.server.try_kubectl(&format!("--server https://{ip}:{port} get node n1"), "");
            if ok { Ok(()) } else { Err(text + &self.server.log()) }
        });
    }

    fn until_running(&self, restarts: &str) {
        eventually(&format!("the pod runs after {restarts} restarts"), || {
            let path = "{.items[0].status.phase}/{.items[0].status.containerStatuses[0].restartCount}/{.items[0].status.containerStatuses[0].ready}";
            let (_, text) = self.server.try_kubectl(&format!("get pods -l app=web -o jsonpath={path}"), "");
            if text == format!("Running/{restarts}/true") { Ok(()) } else { Err(text + &self.server.log()) }
        });
        // The pod's own network, the Service's address, and the way from a pod to the API.
        let ask = "exec deploy/web -- /bin/busybox wget -q -O - http://web.default.svc.cluster.local/";
        eventually("the Service answers", || {
            let (ok, text) = self.server.try_kubectl(ask, "");
            if ok && text.contains("served") { Ok(()) } else { Err(text + &self.server.log()) }
        });
        let ask = "exec deploy/web -- /bin/busybox nc -w 5 10.43.0.1 443";
        eventually("the API can be reached from a pod", || {
            let (ok, text) = self.server.try_kubectl(ask, "");
            if ok { Ok(()) } else { Err(text + &self.server.log()) }
        });
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.server.kill();
        run(Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(env!("CARGO_BIN_EXE_kedge"))
            .arg("killall")
            .args(self.server.folders()));
        run(Command::new("ip").args(["netns", "delete", &self.namespace]));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_reboot_while_cut_off_brings_the_pods_back_and_an_address_that_appears_is_reported() {
    if lacks(&[Need::Pods]) {
        return;
    }
    let namespace = format!("kedge-e2e-cut-{}", std::process::id());
    Machine::power_on(&namespace);
    let server = Server::start_in(&namespace, &["--node-name", "n1"]);
    let mut machine = Machine { server, namespace };
    machine.plug_in("192.0.2.7");
    machine.until_ready_at("192.0.2.7");

    let archive = machine.server.folder.path().join("busybox.tar");
    write_image(&archive);
    machine.server.kedge(&["image", "import", archive.to_str().unwrap()]);
    let script = "busybox mkdir -p /www; echo served > /www/index.html; exec /bin/busybox httpd -f -p 8080 -h /www";
    let script = script.replacen("busybox", "/bin/busybox", 1);
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": { "selector": { "matchLabels": { "app": "web" } }, "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [
                { "name": "main", "image": IMAGE, "command": ["/bin/busybox", "sh", "-c", script],
                  "readinessProbe": { "httpGet": { "port": 8080 }, "periodSeconds": 1 } },
            ]},
        }},
    });
    let (ok, text) = machine.server.try_kubectl("create -f -", &deployment.to_string());
    assert!(ok, "{text}");
    machine.server.kubectl("expose deployment web --port 80 --target-port 8080");
    machine.until_running("0");
    let pod = machine.server.kubectl("get pods -o name");

    machine.reboot_cut_off();
    machine.until_ready_at(CUT_OFF_IP);
    machine.until_running("1");
    assert_eq!(machine.server.kubectl("get pods -o name"), pod, "the same pod, not another one");
    assert_has(&machine.server.kubectl("get pods -o wide"), "n1");

    // The cable is put in, and the box gets another address than the one it had.
    machine.plug_in("192.0.2.99");
    machine.until_ready_at("192.0.2.99");
    machine.until_running("1");
    let path = "{.items[0].status.hostIP}";
    eventually("the pod's status has the address", || {
        let ip = machine.server.kubectl(&format!("get pods -o jsonpath={path}"));
        if ip == "192.0.2.99" { Ok(()) } else { Err(ip) }
    });

    // And out again while it runs.
    machine.ip("link delete cable");
    machine.until_ready_at(CUT_OFF_IP);
    machine.until_running("1");
}

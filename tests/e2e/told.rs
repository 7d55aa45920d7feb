//! What controllers tell of what they do, as people see it in `kubectl describe`. Without a node.

use serde_json::json;

use crate::harness::{Server, eventually};

fn template(name: &str) -> serde_json::Value {
    json!({"metadata": {"labels": {"app": name}},
        "spec": {"restartPolicy": "Always", "containers": [{"name": "main", "image": "example.test/none"}]}})
}

#[test]
fn controllers_tell_what_they_did() {
    let server = Server::start(&["--disable-agent"]);
    let create = |kind: &str, group: &str, name: &str, spec: serde_json::Value| {
        let object = json!({"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec});
        let (ok, text) = server.try_kubectl("create -f -", &object.to_string());
        assert!(ok, "{text}");
    };
    let told = |what: &str, wanted: &[&str]| {
        eventually(&format!("the events of {what}"), || {
            let (_, text) = server.try_kubectl(&format!("describe {what}"), "");
            let missing = wanted.iter().find(|wanted| !text.contains(**wanted));
            missing.map_or(Ok(()), |missing| Err(format!("no {missing:?} in:\n{text}{}", server.log())))
        });
    };
    let selector = json!({"matchLabels": {"app": "web"}});
    create("Deployment", "apps/v1", "web", json!({"replicas": 2, "selector": selector, "template": template("web")}));
    let set = || server.kubectl("get replicasets -l app=web -o name");
    eventually("there is a set", || if set().is_empty() { Err(server.log()) } else { Ok(()) });
    told(
        "deployment web",
        &["ScalingReplicaSet", "deployment-controller", "Scaled up replica set web-", "from 0 to 2"],
    );
    let set = set().trim().to_owned();
    told(&set, &["SuccessfulCreate", "replicaset-controller", "Created pod: web-"]);
    server.kubectl("scale deployment web --replicas 1");
    told("deployment web", &["Scaled down replica set web-", "from 2 to 1"]);
    told(&set, &["SuccessfulDelete", "Deleted pod: web-"]);

    let selector = json!({"matchLabels": {"app": "db"}});
    create(
        "StatefulSet",
        "apps/v1",
        "db",
        json!({"serviceName": "db", "selector": selector, "template": template("db")}),
    );
    told("statefulset db", &["SuccessfulCreate", "create Pod db-0 in StatefulSet db successful"]);

    // How a Job ends, as upstream's controller says it.
    let job = |name: &str, more: serde_json::Value| {
        let mut spec = more;
        spec["template"] = template(name);
        spec["template"]["spec"]["restartPolicy"] = json!("Never");
        create("Job", "batch/v1", name, spec);
    };
    let end = |job: &str, phase: &str| {
        let mut pod = String::new();
        eventually("the job has a pod", || {
            pod = server.kubectl(&format!("get pods -l job-name={job} -o name")).trim().to_owned();
            if pod.is_empty() { Err(server.log()) } else { Ok(()) }
        });
        let patch = format!("{{\"status\":{{\"phase\":\"{phase}\"}}}}");
        server.kubectl(&format!("patch {pod} --subresource=status --type=merge -p {patch}"));
    };
    job("good", json!({}));
    end("good", "Succeeded");
    told("job good", &["Normal", "Completed", "Job completed"]);
    job("bad", json!({"backoffLimit": 0}));
    end("bad", "Failed");
    told("job bad", &["Warning", "BackoffLimitExceeded", "Job has reached the specified backoff limit"]);
    job("late", json!({"activeDeadlineSeconds": 1}));
    told("job late", &["Warning", "DeadlineExceeded", "Job was active longer than specified deadline"]);
    job("paused", json!({"suspend": true}));
    told("job paused", &["Suspended", "Job suspended"]);
    server.kubectl("patch job paused --type=merge -p {\"spec\":{\"suspend\":false}}");
    told("job paused", &["Resumed", "Job resumed"]);

    // What is refused is told, too.
    create("ResourceQuota", "v1", "none", json!({"hard": {"pods": "0"}}));
    eventually("the quota counts", || {
        let found = server.kubectl("get resourcequota none -o jsonpath={.status.hard.pods}");
        if found == "0" { Ok(()) } else { Err(found) }
    });
    let mut once = template("once");
    once["spec"]["restartPolicy"] = json!("Never");
    create("Job", "batch/v1", "once", json!({"template": once}));
    told("job once", &["FailedCreate", "job-controller", "Error creating: pods", "exceeded quota: none"]);
}

"""What people do every day with the official Python client, unmodified: python3 everyday.py KUBECONFIG [POD-IMAGE]

Without an image the cluster has no node, and nothing is run.
"""

import sys
import threading
import time

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.stream import portforward, stream

config.load_kube_config(sys.argv[1])
image = sys.argv[2] if len(sys.argv) > 2 else None
core, apps, batch, custom = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api(), client.CustomObjectsApi()
NAMESPACE = "python"


def until(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"waited too long: {what}"
        time.sleep(0.05)


assert client.VersionApi().get_code().minor.startswith("36")
core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))

# Objects: create, read, list by label, patch in each dialect, conflict, delete.
made = core.create_namespaced_config_map(
    NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="a", labels={"app": "x"}), data={"k": "v"})
)
assert core.read_namespaced_config_map("a", NAMESPACE).data == {"k": "v"}
assert [item.metadata.name for item in core.list_namespaced_config_map(NAMESPACE, label_selector="app=x").items] == ["a"]
patched = core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"m": "n"}})
assert patched.data == {"k": "v", "m": "n"}
patched = core.patch_namespaced_config_map("a", NAMESPACE, [{"op": "remove", "path": "/data/m"}])
assert patched.data == {"k": "v"}
try:
    core.replace_namespaced_config_map("a", NAMESPACE, made)
    raise AssertionError("an old revision was taken")
except client.ApiException as error:
    assert error.status == 409, error
try:
    core.read_namespaced_secret("missing", NAMESPACE)
    raise AssertionError("found what is not there")
except client.ApiException as error:
    assert error.status == 404, error

# A watch sees what happens.
seen = []


def follow():
    for event in watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, timeout_seconds=30):
        seen.append((event["type"], event["object"].metadata.name))
        if seen[-1] == ("DELETED", "b"):
            return


follower = threading.Thread(target=follow)
follower.start()
until("the watch to begin", lambda: ("ADDED", "a") in seen)
core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="b")))
core.delete_namespaced_config_map("b", NAMESPACE)
follower.join(30)
assert ("ADDED", "b") in seen and ("DELETED", "b") in seen, seen

# The dynamic client and server-side apply, through discovery.
maps = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
applied = maps.server_side_apply(
    body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "1"}},
    namespace=NAMESPACE,
    field_manager="python",
)
assert applied.metadata.managedFields[0].manager == "python"

# Own kinds are custom resources like any other.
custom.create_namespaced_custom_object(
    "kedge.dev", "v1alpha1", NAMESPACE, "models",
    {"apiVersion": "kedge.dev/v1alpha1", "kind": "Model", "metadata": {"name": "m"}, "spec": {"source": {"path": "none"}}},
)
reason = until(
    "the model's condition",
    lambda: custom.get_namespaced_custom_object("kedge.dev", "v1alpha1", NAMESPACE, "models", "m")
    .get("status", {}).get("conditions", [{}])[0].get("reason"),
)
assert reason == "PathNotFound", reason

deployment = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": NAMESPACE},
    "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "web", "image": image or "example.test/none:1", "imagePullPolicy": "Never",
                    "command": ["/bin/busybox", "sh", "-c", "mkdir -p /tmp/w; cd /tmp/w; echo page > index.html; "
                                "echo serving; exec /bin/busybox httpd -f -p 8080"],
                }],
            },
        },
    },
}
utils.create_from_dict(client.ApiClient(), deployment)
until("two pods", lambda: len(core.list_namespaced_pod(NAMESPACE, label_selector="app=web").items) == 2)

if image:
    until("ready pods", lambda: apps.read_namespaced_deployment_status("web", NAMESPACE).status.ready_replicas == 2)
    pod = core.list_namespaced_pod(NAMESPACE, label_selector="app=web").items[0].metadata.name
    until("the log", lambda: "serving" in core.read_namespaced_pod_log(pod, NAMESPACE))
    command = ["/bin/busybox", "cat", "/tmp/w/index.html"]
    said = stream(core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=command, stdout=True, stderr=True)
    assert said.strip() == "page", said
    # With input, until its end.
    talk = stream(
        core.connect_get_namespaced_pod_exec, pod, NAMESPACE, command=["/bin/busybox", "sh"],
        stdin=True, stdout=True, stderr=True, _preload_content=False,
    )
    talk.write_stdin("echo from $((20 + 22)); exit 3\n")
    talk.run_forever(timeout=30)
    assert talk.read_stdout().strip() == "from 42" and talk.returncode == 3, talk.returncode
    forward = portforward(core.connect_get_namespaced_pod_portforward, pod, NAMESPACE, ports="8080")
    socket = forward.socket(8080)
    socket.setblocking(True)
    socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while chunk := socket.recv(65536):
        answer += chunk
    assert answer.endswith(b"page\n"), answer
    job = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{
            "name": "once", "image": image, "imagePullPolicy": "Never", "command": ["/bin/busybox", "true"]}]}}},
    }
    batch.create_namespaced_job(NAMESPACE, job)
    until("the job", lambda: batch.read_namespaced_job_status("once", NAMESPACE).status.succeeded == 1)

scale = apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 0}})
assert scale.spec.replicas == 0
until("no pods", lambda: not core.list_namespaced_pod(NAMESPACE, label_selector="app=web").items)
core.delete_namespace(NAMESPACE)


def gone():
    try:
        core.read_namespace(NAMESPACE)
    except client.ApiException as error:
        return error.status == 404
    return False


until("the namespace to go", gone)
print("everything was as it should be")

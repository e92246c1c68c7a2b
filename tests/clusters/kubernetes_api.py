"""infra/kuberay on a real Kubernetes API server, without nodes: `make kubernetes`.

BINARIES is a folder with etcd, kube-apiserver and kube-controller-manager, CRDS one with the
CustomResourceDefinitions of KubeRay, Kueue and the Prometheus operator; kubectl must be there.
"""

import copy
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from infra.built_overlays import KUBERAY, OVERLAYS, find_resource
from infra.kuberay_objects import pods_of
from support.kubernetes_server import kubernetes_server

NAMESPACE = "stillroom"
APPLY = ("apply", "--server-side", "--validate=strict", "-f", "-")
PARTS = ("job", "service", "cluster")
WAIT_S = 60


@pytest.fixture(scope="module")
def server():
    with kubernetes_server(Path(os.environ["BINARIES"])) as server:
        definitions = [
            document
            for path in sorted(Path(os.environ["CRDS"]).glob("*.yaml"))
            for document in yaml.safe_load_all(path.read_text())
        ]
        server.apply(*definitions)
        names = [definition["metadata"]["name"] for definition in definitions]
        server.kubectl(
            "wait", "--for=condition=Established", "--timeout=60s",
            *(f"crd/{name}" for name in names),
        )  # fmt: skip
        # The strictest of Kubernetes' own standards for pods.
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = {"name": NAMESPACE, "labels": restricted}
        server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        account = {"name": "default", "namespace": NAMESPACE}  # a controller's work
        server.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        yield server


def filled_in(folder):
    """What kubectl builds of a folder, with names for the words in capitals."""
    text = subprocess.run(
        ["kubectl", "kustomize", folder], check=True, capture_output=True, text=True
    ).stdout
    return re.sub(r"YOUR_\w+", lambda word: word[0].lower().replace("_", "-"), text)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_accepts_every_overlay_and_knows_every_field(server, overlay):
    text = filled_in(KUBERAY / "overlays" / overlay)
    server.kubectl(*APPLY, "--dry-run=server", stdin=text)


@pytest.mark.parametrize("folder", ["monitoring", "kueue"])
def test_the_server_accepts_monitors_and_queues(server, folder):
    server.kubectl(*APPLY, "--dry-run=server", stdin=filled_in(KUBERAY / folder))


def test_the_readme_s_commands_work_one_after_the_other(server):
    gpu = filled_in(KUBERAY / "overlays" / "gpu")
    for part in PARTS:
        command = ["apply", "-f", "-", "-l", f"stillroom/part in (shared, {part})"]
        applied, again = (server.kubectl(*command, stdin=gpu) for _ in range(2))
        assert "created" in applied and "created" not in again
    server.kubectl("apply", "-f", "-", stdin=filled_in(KUBERAY / "monitoring"))
    objects = server.kubectl(
        "-n", NAMESPACE, "get", "rayclusters,rayjobs,rayservices", "-o", "name"
    )
    assert len(objects.split()) == 3


# --- evictions ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pods(server):
    """Name → labels of ready pods, two of each group of the job and of the service."""
    server.kubectl(*APPLY, "--force-conflicts", stdin=filled_in(KUBERAY / "overlays" / "gpu"))
    labels = {}
    for kind in ("RayJob", "RayService"):
        for pod in pods_of(find_resource("gpu", kind)):
            for number in range(2):
                name = f"{kind}-{pod.labels.get('ray.io/group', 'submitter')}-{number}".lower()
                run_pod(server, name, pod.labels, pod.spec)
                labels[name] = pod.labels
    return labels


def run_pod(server, name, labels, spec):
    """Makes a pod of a RayCluster, as KubeRay does; it runs and is ready, without a node."""
    path = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/stillroom-cluster"
    owner = {
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "stillroom-cluster",
        "uid": server.http.get(path).json()["metadata"]["uid"], "controller": True,
    }  # fmt: skip
    server.apply({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": NAMESPACE, "labels": labels, "ownerReferences": [owner]
        },
        "spec": {**spec, "nodeName": "a-node"},
    })  # fmt: skip
    set_ready(server, name, True)


def set_ready(server, name, ready):
    condition = {"type": "Ready", "status": str(ready)}
    answer = server.http.patch(
        f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/status",
        json={"status": {"phase": "Running", "conditions": [condition]}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert answer.status_code == 200, answer.text


def budget_status(server, name="stillroom-serving"):
    path = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/{name}"
    return server.http.get(path).json().get("status", {})


def wait_for_budget(server, **numbers):
    """Waits until the disruption controller has counted so."""
    deadline = time.monotonic() + WAIT_S
    while (status := budget_status(server)) | numbers != status:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)  # polls for a condition, with a deadline


def test_every_pod_passes_the_restricted_standard(pods):
    groups = {name.rpartition("-")[0] for name in pods}
    assert {"rayjob-headgroup", "rayjob-train", "rayjob-submitter", "rayservice-serve"} <= groups


def test_pods_that_train_are_evicted_and_of_those_that_serve_one_stays(server, pods):
    serving = [name for name, labels in pods.items() if labels.get("ray.io/serve") == "true"]
    wait_for_budget(server, expectedPods=len(serving), currentHealthy=len(serving))
    for name in pods:
        if name.startswith("rayjob"):
            assert server.evict(NAMESPACE, name) == 201
    *others, last = serving
    for gone, name in enumerate(others, start=1):
        assert server.evict(NAMESPACE, name) == 201
        wait_for_budget(server, disruptionsAllowed=len(serving) - 1 - gone)
    assert server.evict(NAMESPACE, last) == 429
    # A pod that answers nothing does not keep its node.
    set_ready(server, last, False)
    wait_for_budget(server, currentHealthy=0)
    assert server.evict(NAMESPACE, last) == 201


def test_max_unavailable_would_block_every_eviction(server, pods):
    """A RayCluster has no `scale` subresource (kuberay#2662): why the budget is as it is."""
    wrong = copy.deepcopy(find_resource("gpu", "PodDisruptionBudget"))
    labels = {"stillroom/test": "wrong"}
    wrong["metadata"]["name"] = "wrong"
    wrong["spec"] = {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
    server.apply(wrong)
    (pod, *_) = pods_of(find_resource("gpu", "RayService"))
    for number in range(2):
        run_pod(server, f"wrong-{number}", labels, pod.spec)
    deadline = time.monotonic() + WAIT_S
    while not (conditions := budget_status(server, "wrong").get("conditions")):
        assert time.monotonic() < deadline
        time.sleep(0.2)  # polls for a condition, with a deadline
    assert "does not implement the scale subresource" in conditions[0]["message"]
    assert server.evict(NAMESPACE, "wrong-0") == 429

"""The KubeRay overlays for larger clusters, and the queue of their job."""

import re
from collections import Counter

import pytest
import yaml

from infra.built_overlays import (
    KUBERAY,
    OVERLAYS,
    clusters,
    find_resource,
    ray_pods,
)
from infra.kuberay_objects import selects, services_of
from infra.kustomize import build


def test_every_overlay_is_checked():
    assert {path.name for path in (KUBERAY / "overlays").iterdir()} == {*OVERLAYS}


def test_an_overlay_of_all_components_copies_the_cluster_s_spec_last():
    """Kustomize applies components in order, and before an overlay's own patches."""
    for overlay in (KUBERAY / "overlays").iterdir():
        kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
        components = [name.rpartition("/")[2] for name in kustomization["components"]]
        assert "cluster-spec" not in components[:-1] and "patches" not in kustomization
        if overlay.name == "gpu-all":
            all_components = {path.name for path in (KUBERAY / "components").iterdir()}
            assert {*components} == all_components - {"gpus"}  # in gpu already


@pytest.mark.parametrize("overlay", ["gpu-ingress", "gpu-all"])
def test_the_ingress_ends_tls_and_reaches_only_the_server(overlay):
    ingress = find_resource(overlay, "Ingress")["spec"]
    (rule,) = ingress["rules"]
    assert [tls["hosts"] for tls in ingress["tls"]] == [[rule["host"]]]
    services = services_of(find_resource(overlay, "RayService"))
    for path in rule["http"]["paths"]:
        assert path["path"] in ("/v1", "/healthz")  # not /metrics
        assert path["backend"]["service"]["name"] in services
    policy = find_resource(overlay, "NetworkPolicy", "stillroom-ingress")["spec"]
    for pod in ray_pods(overlay):
        assert selects(policy["podSelector"], pod.labels) == (pod.owner == "RayService")
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": 8000}]]


@pytest.mark.parametrize("overlay", ["gpu-upgrade", "gpu-all"])
def test_an_incremental_upgrade_moves_steps_that_its_surge_can_hold(overlay):
    strategy = find_resource(overlay, "RayService")["spec"]["upgradeStrategy"]
    options = strategy["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100


@pytest.mark.parametrize("overlay", ["gpu-disks", "gpu-all"])
def test_local_disks_hold_tmp_and_all_pods_share_the_cache_of_models(overlay):
    settings = find_resource(overlay, "ConfigMap", "stillroom")["data"]
    claim = find_resource(overlay, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in ray_pods(overlay):
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        assert len(volumes) == len(pod.spec["volumes"])
        models = volumes[mounts[settings["HF_HOME"]]]["persistentVolumeClaim"]
        assert models["claimName"] == claim["metadata"]["name"]
        on_gpu = "nvidia.com/gpu" in pod.container["resources"]["limits"]
        assert ("ephemeral" in volumes[mounts["/tmp"]]) == on_gpu


@pytest.mark.parametrize("overlay", ["gpu-upgrade", "gpu-all"])
def test_the_proxies_of_the_upgrade_s_gateway_may_call_the_server(overlay):
    policy = find_resource(overlay, "NetworkPolicy", "stillroom-gateway")["spec"]
    for pod in ray_pods(overlay):
        assert selects(policy["podSelector"], pod.labels) == (pod.owner == "RayService")
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": 8000}]
    beside_the_gateway, elsewhere = rule["from"]
    assert selects(
        beside_the_gateway["podSelector"],
        {"gateway.networking.k8s.io/gateway-name": "stillroom-gateway"},
    )
    assert "namespaceSelector" in elsewhere


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_queue_holds_the_whole_cluster(overlay):
    resources = {r["kind"]: r for r in build(KUBERAY / "kueue")}
    job = find_resource(overlay, "RayJob")
    queue = resources["LocalQueue"]
    assert queue["metadata"]["name"] == job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert queue["metadata"]["namespace"] == job["metadata"]["namespace"]
    assert queue["spec"]["clusterQueue"] == resources["ClusterQueue"]["metadata"]["name"]
    (flavor,) = resources["ClusterQueue"]["spec"]["resourceGroups"][0]["flavors"]
    assert flavor["name"] == resources["ResourceFlavor"]["metadata"]["name"]
    quota = {item["name"]: amount(item["nominalQuota"]) for item in flavor["resources"]}
    (resource_group,) = resources["ClusterQueue"]["spec"]["resourceGroups"]
    assert resource_group["coveredResources"] == list(quota)
    spec = clusters(overlay)[0]
    submitter = job["spec"]["submitterPodTemplate"]
    needed = Counter()
    for template, count in [(spec["headGroupSpec"]["template"], 1), (submitter, 1)] + [
        (group["template"], group["maxReplicas"]) for group in spec["workerGroupSpecs"]
    ]:
        for name, value in template["spec"]["containers"][0]["resources"]["requests"].items():
            needed[name] += amount(value) * count
    for name, value in spec["autoscalerOptions"]["resources"]["requests"].items():
        needed[name] += amount(value)
    # Kueue admits no workload with a resource that its queue does not cover.
    assert needed.keys() <= quota.keys()
    assert {name: value for name, value in needed.items() if value > quota[name]} == {}


def amount(quantity):
    """A quantity of Kubernetes as a number."""
    units = {"Gi": 2**30, "Mi": 2**20, "m": 1e-3}
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()
    return float(number) * units.get(unit, 1)


@pytest.mark.parametrize("overlay", ["gpu-efa", "gpu-all"])
def test_training_nodes_with_efa_have_all_their_devices_and_share_a_zone(overlay):
    for pod in ray_pods(overlay):
        training = pod.labels["ray.io/group"] == "train"
        resources = pod.container["resources"]
        assert resources["requests"] == resources["limits"]
        assert ("vpc.amazonaws.com/efa" in resources["limits"]) == training
        assert (pod.environment.get("FI_PROVIDER") == "efa") == training
        if training:
            (term,) = pod.spec["affinity"]["podAffinity"][
                "requiredDuringSchedulingIgnoredDuringExecution"
            ]
            assert term["topologyKey"] == "topology.kubernetes.io/zone"
            assert selects(term["labelSelector"], pod.labels)

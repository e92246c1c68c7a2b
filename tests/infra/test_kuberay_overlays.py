"""The KubeRay overlays for larger clusters, and the queue of their job."""

from collections import Counter

from infra.built_overlays import (
    KUBERAY,
    OVERLAYS,
    clusters,
    find_resource,
    gib,
    ray_pods,
)
from infra.kuberay_objects import selects, services_of
from infra.kustomize import build


def test_every_overlay_is_checked():
    assert {path.name for path in (KUBERAY / "overlays").iterdir()} == {*OVERLAYS}


def test_the_ingress_ends_tls_and_reaches_only_the_server():
    ingress = find_resource("gpu-ingress", "Ingress")["spec"]
    (rule,) = ingress["rules"]
    assert [tls["hosts"] for tls in ingress["tls"]] == [[rule["host"]]]
    services = services_of(find_resource("gpu-ingress", "RayService"))
    for path in rule["http"]["paths"]:
        assert path["path"] in ("/v1", "/healthz")  # not /metrics
        assert path["backend"]["service"]["name"] in services
    policy = find_resource("gpu-ingress", "NetworkPolicy", "stillroom-ingress")["spec"]
    for pod in ray_pods("gpu-ingress"):
        assert selects(policy["podSelector"], pod.labels) == (pod.owner == "RayService")
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": 8000}]]


def test_an_incremental_upgrade_moves_steps_that_its_surge_can_hold():
    strategy = find_resource("gpu-upgrade", "RayService")["spec"]["upgradeStrategy"]
    options = strategy["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100


def test_local_disks_hold_tmp_and_all_pods_share_the_cache_of_models():
    settings = find_resource("gpu-disks", "ConfigMap", "stillroom")["data"]
    claim = find_resource("gpu-disks", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in ray_pods("gpu-disks"):
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        assert len(volumes) == len(pod.spec["volumes"])
        models = volumes[mounts[settings["HF_HOME"]]]["persistentVolumeClaim"]
        assert models["claimName"] == claim["metadata"]["name"]
        on_gpu = "nvidia.com/gpu" in pod.container["resources"]["limits"]
        assert ("ephemeral" in volumes[mounts["/tmp"]]) == on_gpu


def test_the_queue_holds_the_whole_cluster():
    resources = {r["kind"]: r for r in build(KUBERAY / "kueue")}
    job = find_resource("gpu", "RayJob")
    queue = resources["LocalQueue"]
    assert queue["metadata"]["name"] == job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert queue["metadata"]["namespace"] == job["metadata"]["namespace"]
    assert queue["spec"]["clusterQueue"] == resources["ClusterQueue"]["metadata"]["name"]
    (group,) = resources["ClusterQueue"]["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    assert flavor["name"] == resources["ResourceFlavor"]["metadata"]["name"]
    quota = {item["name"]: item["nominalQuota"] for item in flavor["resources"]}
    spec = clusters("gpu")[0]
    needed = Counter()
    for group, count in [(spec["headGroupSpec"], 1)] + [
        (group, group["maxReplicas"]) for group in spec["workerGroupSpecs"]
    ]:
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        needed["cpu"] += float(requests["cpu"]) * count
        needed["memory"] += gib(requests["memory"]) * count
        needed["nvidia.com/gpu"] += int(requests.get("nvidia.com/gpu", 0)) * count
    assert quota["cpu"] > needed["cpu"] and gib(quota["memory"]) > needed["memory"]
    assert quota["nvidia.com/gpu"] == needed["nvidia.com/gpu"]


def test_training_nodes_with_efa_have_all_their_devices_and_share_a_zone():
    for pod in ray_pods("gpu-efa"):
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

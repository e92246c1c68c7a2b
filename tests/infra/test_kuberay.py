"""The KubeRay manifests of every overlay."""

from collections import Counter
from dataclasses import replace

import jsonschema
import kubernetes_validate
import pytest
import ray._private.services
import ray._private.utils
import yaml

from infra.built_overlays import (
    OVERLAYS,
    built,
    clusters,
    find_resource,
    gib,
    groups,
    of_kind,
    ray_pods,
    ray_resources,
)
from infra.kuberay_objects import may_evict, pods_of, selects, services_of
from infra.ray_schema import SPECS
from stillroom.cluster.capacity import NodeType, bundle_for, bundles_that_fit
from stillroom.config.load import read_recipe
from stillroom.config.secrets import SECRET_NAME
from stillroom.serving.yaml_check import validate_serve_yaml

KUBERNETES = "1.37"


def templates(overlay):
    """Every pod template of an overlay."""
    pod_templates = [find_resource(overlay, "StatefulSet")["spec"]["template"]]
    pod_templates.append(find_resource(overlay, "RayJob")["spec"]["submitterPodTemplate"])
    for spec in clusters(overlay):
        pod_templates.append(spec["headGroupSpec"]["template"])
        pod_templates += [group["template"] for group in spec["workerGroupSpecs"]]
    return pod_templates


each = pytest.mark.parametrize("overlay", OVERLAYS)


@each
def test_kuberay_s_resources_pass_its_schema(overlay):
    for kind, schema in SPECS.items():
        resource = find_resource(overlay, kind)
        assert resource["apiVersion"] == "ray.io/v1"
        jsonschema.validate(resource["spec"], schema)


@each
def test_all_other_resources_pass_kubernetes_schema(overlay):
    for resource in built(overlay):
        if resource["kind"] not in SPECS:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    for template in templates(overlay):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", "workerGroupSpecs.0.minReplica", 1),
        ("RayCluster", "headGroupSpec.rayStartParams.num-cpus", 0),
        ("RayCluster", "autoscalerOptions.version", "v3"),
        ("RayJob", "rayClusterSpec.authOption", {}),
    ],
)
def test_wrong_fields_fail_kuberay_s_schema(kind, path, value):
    resource = yaml.safe_load(yaml.safe_dump(find_resource("gpu", kind)))
    node = resource["spec"]
    *parents, last = path.split(".")
    for name in parents:
        node = node[int(name) if name.isdigit() else name]
    node[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource["spec"], SPECS[kind])


@each
def test_cluster_job_and_service_have_the_same_cluster_spec(overlay):
    standalone, of_job, of_service = clusters(overlay)
    assert standalone == of_job == of_service


@each
def test_an_idle_cluster_is_a_head_that_runs_no_tasks(overlay):
    spec = clusters(overlay)[0]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        assert "replicas" not in group  # the autoscaler sets it


@each
def test_a_token_is_required_and_no_secret_is_in_a_file(overlay):
    for spec in clusters(overlay):
        assert spec["authOptions"] == {"mode": "token", "secretName": "stillroom-ray-token"}
        reference = spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "stillroom-redis", "key": "password"}
    assert of_kind(overlay, "Secret") == []
    for template in templates(overlay):
        for container in template["spec"]["containers"]:
            for variable in container.get("env", ()):
                assert "valueFrom" in variable or not SECRET_NAME.search(variable["name"])


@each
def test_api_keys_come_from_a_secret_that_every_ray_pod_reads(overlay):
    for template in templates(overlay)[2:]:
        (container,) = template["spec"]["containers"]
        names = [next(iter(source.values()))["name"] for source in container["envFrom"]]
        assert names == ["stillroom", "stillroom-keys"]


@each
def test_no_pod_is_root_or_may_become_it(overlay):
    for template in templates(overlay):
        pod = template["spec"]
        assert pod["securityContext"]["runAsUser"] >= 999
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["runAsNonRoot"] and not rights["allowPrivilegeEscalation"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    assert clusters(overlay)[0]["autoscalerOptions"]["securityContext"]["runAsNonRoot"]


@each
def test_only_the_head_may_talk_to_kubernetes(overlay):
    for template in templates(overlay):
        is_head = template["spec"]["containers"][0]["name"] == "ray-head"
        assert template["spec"].get("automountServiceAccountToken", True) is is_head


@each
def test_a_ray_pod_is_alive_by_an_endpoint_that_needs_no_token(overlay):
    public = {"/api/gcs_healthz", "/api/local_raylet_healthz"}
    for pod in ray_pods(overlay):
        assert pod.container["livenessProbe"]["httpGet"]["path"] in public


@each
def test_only_a_pod_that_gets_requests_is_ready_by_its_proxy_too(overlay):
    """Without a probe of ours, KubeRay asks the proxy with wget; with one, nothing but it does."""
    for pod in ray_pods(overlay):
        if pod.labels["ray.io/node-type"] == "worker":
            command = pod.container["readinessProbe"]["exec"]["command"]
            assert command == ["python", "/usr/local/lib/healthcheck.py", "pod"]
            assert (pod.environment["SERVES"] == "true") == (pod.owner == "RayService")
        for probe in ("readinessProbe", "livenessProbe"):
            assert "wget" not in str(pod.container[probe])


@each
def test_a_pod_has_time_to_drain_before_it_is_killed(overlay):
    """Ray drains a node that gets SIGTERM, for 30 s unless the variable says otherwise."""
    for pod in ray_pods(overlay):
        drains = float(pod.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        assert drains + 10 <= grace
        if pod.labels["ray.io/node-type"] == "worker":
            assert drains >= 90


@each
def test_the_object_store_of_every_pod_is_in_memory(overlay, monkeypatch, tmp_path):
    for pod in ray_pods(overlay):
        memory = gib(pod.container["resources"]["limits"]["memory"]) * 2**30
        mounted = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
        # Where nothing is mounted, KubeRay mounts an emptyDir as large as the requested memory.
        size = memory
        if "/dev/shm" in mounted:
            (volume,) = (v for v in pod.spec["volumes"] if v["name"] == mounted["/dev/shm"])
            size = gib(volume["emptyDir"]["sizeLimit"]) * 2**30
        monkeypatch.setattr(ray._private.utils, "get_shared_memory_bytes", lambda size=size: size)
        monkeypatch.setattr(ray._common.utils, "get_system_memory", lambda memory=memory: memory)
        store = ray._private.utils.resolve_object_store_memory(int(memory * 0.9))
        folder, _, _ = ray._private.services.determine_plasma_store_config(store, str(tmp_path))
        assert folder == "/dev/shm"


@each
def test_services_have_names_of_their_own_and_select_exactly_their_pods(overlay):
    resources = ray_resources(overlay)
    of_kuberay = [name for resource in resources for name in services_of(resource)]
    names = Counter([*of_kuberay, *(r["metadata"]["name"] for r in of_kind(overlay, "Service"))])
    assert [name for name, count in names.items() if count > 1] == []
    pods = ray_pods(overlay)
    for resource in resources:
        for name, selector in services_of(resource).items():
            selected = [pod for pod in pods if selects({"matchLabels": selector}, pod.labels)]
            assert selected, name
            assert {pod.owner for pod in selected} == {resource["kind"]}
            if name.endswith("-head-svc"):
                assert [pod.labels["ray.io/node-type"] for pod in selected] == ["head"]


@each
def test_everything_has_a_name_of_its_own_and_belongs_to_one_part(overlay):
    names = Counter((r["kind"], r["metadata"]["name"]) for r in built(overlay))
    assert max(names.values()) == 1
    ray_names = Counter(r["metadata"]["name"] for r in ray_resources(overlay))
    assert max(ray_names.values()) == 1
    for resource in built(overlay):
        part = resource["metadata"]["labels"]["stillroom/part"]
        assert part in {"shared", "cluster", "job", "service"}


@each
def test_only_own_pods_the_operator_clients_and_monitoring_may_reach_the_cluster(overlay):
    policy = find_resource(overlay, "NetworkPolicy", "stillroom")["spec"]
    for pod in ray_pods(overlay):
        assert selects(policy["podSelector"], pod.labels)
    open_to = {tuple(port["port"] for port in rule.get("ports", ())) for rule in policy["ingress"]}
    assert open_to == {(), (8265, 8000, 52365), (8000,), (8080, 44217, 44227, 8000)}
    (everything,) = (rule for rule in policy["ingress"] if "ports" not in rule)
    assert everything["from"] == [{"podSelector": policy["podSelector"]}]
    (submitter,) = (
        pod for pod in pods_of(find_resource(overlay, "RayJob")) if pod.owner == "RayJob"
        and "ray.io/node-type" not in pod.labels
    )  # fmt: skip
    to_the_job_api = [r for r in policy["ingress"] if {"port": 8265} in r.get("ports", ())]
    allowed = [
        peer["podSelector"] for r in to_the_job_api for peer in r["from"] if "podSelector" in peer
    ]
    assert any(selects(selector, submitter.labels) for selector in allowed)


@each
def test_a_disruption_budget_counts_serving_pods_only_and_allows_an_eviction(overlay):
    (budget,) = of_kind(overlay, "PodDisruptionBudget")
    spec = budget["spec"]
    # A RayCluster has no `scale` subresource, without which Kubernetes can only count minAvailable.
    assert isinstance(spec["minAvailable"], int) and "maxUnavailable" not in spec
    # Otherwise pods that never become ready could not be evicted, and their nodes not be drained.
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for pod in ray_pods(overlay):
        serves = pod.owner == "RayService" and pod.labels["ray.io/node-type"] == "worker"
        assert selects(spec["selector"], pod.labels) == serves
    # The replicas that always run need more pods than must stay.
    config = yaml.safe_load(find_resource(overlay, "RayService")["spec"]["serveConfigV2"])
    student = config["applications"][0]["args"]["student"]
    on_one_pod = kind(groups(overlay)["cpu"]).resources["CPU"] // student["num_cpus"]
    assert student["autoscale"]["min_replicas"] / on_one_pod > spec["minAvailable"]


@each
def test_all_serving_pods_but_one_can_be_evicted_and_all_that_train(overlay):
    budget = find_resource(overlay, "PodDisruptionBudget")["spec"]
    pods = [pod for pod in ray_pods(overlay) for _ in range(3)]
    pods = [replace(pod, labels={**pod.labels, "n": str(n)}) for n, pod in enumerate(pods)]
    while evictable := [pod for pod in pods if may_evict(budget, pods, pod, ready=pods)]:
        pods.remove(evictable[0])
    (last,) = pods
    assert last.owner == "RayService" and last.labels["ray.io/node-type"] == "worker"
    assert may_evict(budget, pods, last, ready=[])  # it answers nothing, and keeps no node
    by_share = {"maxUnavailable": 1, "selector": budget["selector"]}
    others = [last, replace(last, labels={**last.labels, "n": "another"})]
    assert not may_evict(by_share, others, last, ready=others)


@each
def test_the_job_has_a_queue(overlay):
    job = find_resource(overlay, "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "stillroom"
    assert job["spec"]["shutdownAfterJobFinishes"]  # required by Kueue


def test_training_uses_spot_gpu_nodes_and_serving_on_demand_ones():
    training, serving = groups("gpu")["train"], groups("gpu")["serve"]
    for group, market in ((training, "spot"), (serving, "on-demand")):
        assert group["labels"]["ray.io/market-type"] == market
        pod = group["template"]["spec"]
        assert pod["nodeSelector"]["karpenter.sh/capacity-type"] == market
        assert "nvidia.com/gpu.product" in pod["nodeSelector"]
        assert "nvidia.com/gpu" in {taint["key"] for taint in pod["tolerations"]}
        assert int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) >= 1
    assert "nvidia.com/gpu" not in str(groups("small"))


@each
def test_the_serve_config_is_valid_and_its_node_labels_exist(overlay, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(find_resource(overlay, "RayService")["spec"]["serveConfigV2"])
    (application,) = validate_serve_yaml(file).applications
    known = {tuple(sorted(g["labels"].items())) for g in groups(overlay).values()}
    args = application.args
    encoders = [args[encoder]["node_labels"] for encoder in ("teacher", "student")]
    for node_labels in (*encoders, args["router_node_labels"]):
        assert node_labels["ray.io/market-type"] == "on-demand"
        assert any(node_labels.items() <= dict(labels).items() for labels in known)


@each
def test_serving_pods_are_spread_over_zones_and_the_head_is_not_moved(overlay):
    for pod in ray_pods(overlay):
        if pod.labels["ray.io/node-type"] == "head":
            continue
        if pod.owner == "RayService" and pod.labels["ray.io/market-type"] == "on-demand":
            (constraint,) = pod.spec["topologySpreadConstraints"]
            assert constraint["topologyKey"] == "topology.kubernetes.io/zone"
            assert selects(constraint["labelSelector"], pod.labels)
    for spec in clusters(overlay):
        annotations = spec["headGroupSpec"]["template"]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"


def kind(group):
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    has = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
    return NodeType(has, group["maxReplicas"], group["labels"])


@each
def test_the_recipe_is_valid_and_fits_the_overlay_s_nodes(overlay, tmp_path):
    config = find_resource(overlay, "ConfigMap", "stillroom-recipe")
    file = tmp_path / "recipe.yaml"
    file.write_text(config["data"]["recipe.yaml"])
    scale = read_recipe(file, []).scale
    # The overlay's nodes can hold the workers and actors of its scale.
    nodes = [kind(group) for group in groups(overlay).values()]
    for pool, count in {
        "teacher": scale.teacher.workers,
        "student": scale.student.workers,
        "vectors": scale.vectors.actors,
        "negatives": scale.negatives.actors,
        "report": 1,
    }.items():
        assert bundles_that_fit(nodes, bundle_for(getattr(scale, pool))) >= count, pool
    (container,) = clusters(overlay)[0]["headGroupSpec"]["template"]["spec"]["containers"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    command = find_resource(overlay, "RayJob")["spec"]["entrypoint"]
    assert command == f"python jobs/run_pipeline.py {mounted['recipe']}/recipe.yaml"

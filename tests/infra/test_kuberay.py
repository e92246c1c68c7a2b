"""The KubeRay manifests of every overlay."""

from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from infra.kustomize import build
from infra.ray_schema import SPECS
from stillroom.cluster.capacity import NodeType, bundle_for, bundles_that_fit
from stillroom.config.load import read_recipe
from stillroom.serving.yaml_check import validate_serve_yaml

KUBERAY = Path(__file__).parents[2] / "infra" / "kuberay"
KUBERNETES = "1.37"


@cache
def built(overlay):
    return build(KUBERAY / "overlays" / overlay)


def of_kind(overlay, kind):
    return [resource for resource in built(overlay) if resource["kind"] == kind]


def find_resource(overlay, kind, name="stillroom"):
    (match,) = (
        resource for resource in of_kind(overlay, kind) if resource["metadata"]["name"] == name
    )
    return match


def clusters(overlay):
    """Specs of an overlay's Ray clusters: the RayCluster's, the RayJob's, the RayService's."""
    return [
        find_resource(overlay, "RayCluster")["spec"],
        find_resource(overlay, "RayJob")["spec"]["rayClusterSpec"],
        find_resource(overlay, "RayService")["spec"]["rayClusterConfig"],
    ]


def groups(overlay):
    return {group["groupName"]: group for group in clusters(overlay)[0]["workerGroupSpecs"]}


def templates(overlay):
    """Every pod template of an overlay."""
    pod_templates = [find_resource(overlay, "StatefulSet", "stillroom-redis")["spec"]["template"]]
    pod_templates.append(find_resource(overlay, "RayJob")["spec"]["submitterPodTemplate"])
    for spec in clusters(overlay):
        pod_templates.append(spec["headGroupSpec"]["template"])
        pod_templates += [group["template"] for group in spec["workerGroupSpecs"]]
    return pod_templates


OVERLAYS = ("small", "gpu")
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
            assert all("valueFrom" in variable for variable in container.get("env", ()))


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
def test_every_ray_pod_is_probed_without_a_token(overlay):
    public = {"/api/gcs_healthz", "/api/local_raylet_healthz"}
    for template in templates(overlay)[2:]:
        (container,) = template["spec"]["containers"]
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["path"] in public


@each
def test_only_own_pods_the_operator_and_clients_may_reach_the_cluster(overlay):
    policy = find_resource(overlay, "NetworkPolicy")["spec"]
    named = {"app.kubernetes.io/name": "stillroom"}
    assert policy["podSelector"]["matchLabels"] == named
    for template in templates(overlay)[2:]:
        assert template["metadata"]["labels"].items() >= named.items()
    open_to = {tuple(port["port"] for port in rule.get("ports", ())) for rule in policy["ingress"]}
    assert open_to == {(), (8265, 8000, 52365), (8000,), (8080,)}
    (everything,) = (rule for rule in policy["ingress"] if "ports" not in rule)
    assert everything["from"] == [{"podSelector": {"matchLabels": named}}]


@each
def test_workers_have_a_disruption_budget_and_the_job_a_queue(overlay):
    budget = find_resource(overlay, "PodDisruptionBudget", "stillroom-workers")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"]["app.kubernetes.io/name"] == "stillroom"
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
    for encoder in ("teacher", "student"):
        node_labels = application.args[encoder]["node_labels"].items()
        assert any(node_labels <= dict(labels).items() for labels in known)


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

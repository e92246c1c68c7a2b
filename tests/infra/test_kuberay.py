"""The manifests for KubeRay, as each overlay makes them."""

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


def the(overlay, kind, name="stillroom"):
    (found,) = (one for one in of_kind(overlay, kind) if one["metadata"]["name"] == name)
    return found


def clusters(overlay):
    """The spec of each Ray cluster that an overlay makes: its own, the job's, the service's."""
    return [
        the(overlay, "RayCluster")["spec"],
        the(overlay, "RayJob")["spec"]["rayClusterSpec"],
        the(overlay, "RayService")["spec"]["rayClusterConfig"],
    ]


def groups(overlay):
    return {group["groupName"]: group for group in clusters(overlay)[0]["workerGroupSpecs"]}


def templates(overlay):
    """Every pod template."""
    found = [the(overlay, "StatefulSet", "stillroom-redis")["spec"]["template"]]
    found.append(the(overlay, "RayJob")["spec"]["submitterPodTemplate"])
    for spec in clusters(overlay):
        found.append(spec["headGroupSpec"]["template"])
        found += [group["template"] for group in spec["workerGroupSpecs"]]
    return found


OVERLAYS = ("small", "gpu")
each = pytest.mark.parametrize("overlay", OVERLAYS)


@each
def test_kuberay_takes_them(overlay):
    for kind, schema in SPECS.items():
        resource = the(overlay, kind)
        assert resource["apiVersion"] == "ray.io/v1"
        jsonschema.validate(resource["spec"], schema)


@each
def test_kubernetes_takes_all_that_is_its_own(overlay):
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
def test_kuberay_would_not_have_taken_anything(kind, path, value):
    resource = yaml.safe_load(yaml.safe_dump(the("gpu", kind)))
    place = resource["spec"]
    *above, last = path.split(".")
    for name in above:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(resource["spec"], SPECS[kind])


@each
def test_job_and_service_run_on_what_the_cluster_is(overlay):
    alone, of_job, of_service = clusters(overlay)
    assert alone == of_job == of_service


@each
def test_an_idle_cluster_is_a_head_that_runs_no_tasks(overlay):
    spec = clusters(overlay)[0]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        assert "replicas" not in group  # the autoscaler's to say


@each
def test_a_token_is_asked_for_and_no_secret_is_in_a_file(overlay):
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
def test_who_may_reach_the_cluster_is_its_own_pods_the_operator_and_clients(overlay):
    policy = the(overlay, "NetworkPolicy")["spec"]
    named = {"app.kubernetes.io/name": "stillroom"}
    assert policy["podSelector"]["matchLabels"] == named
    for template in templates(overlay)[2:]:
        assert template["metadata"]["labels"].items() >= named.items()
    open_to = {tuple(port["port"] for port in rule.get("ports", ())) for rule in policy["ingress"]}
    assert open_to == {(), (8265, 8000, 52365), (8000,), (8080,)}
    (everything,) = (rule for rule in policy["ingress"] if "ports" not in rule)
    assert everything["from"] == [{"podSelector": {"matchLabels": named}}]


@each
def test_the_budget_and_the_queue_are_of_what_is_there(overlay):
    budget = the(overlay, "PodDisruptionBudget", "stillroom-workers")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"]["app.kubernetes.io/name"] == "stillroom"
    job = the(overlay, "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "stillroom"
    assert job["spec"]["shutdownAfterJobFinishes"]  # Kueue asks for it


def test_training_is_on_spot_nodes_with_gpus_and_what_somebody_waits_for_is_not():
    spot, waited_for = groups("gpu")["train"], groups("gpu")["serve"]
    for group, market in ((spot, "spot"), (waited_for, "on-demand")):
        assert group["labels"]["ray.io/market-type"] == market
        pod = group["template"]["spec"]
        assert pod["nodeSelector"]["karpenter.sh/capacity-type"] == market
        assert "nvidia.com/gpu.product" in pod["nodeSelector"]
        assert "nvidia.com/gpu" in {taint["key"] for taint in pod["tolerations"]}
        assert int(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) >= 1
    assert "nvidia.com/gpu" not in str(groups("small"))


@each
def test_serve_s_config_is_one_that_stillroom_takes(overlay, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(the(overlay, "RayService")["spec"]["serveConfigV2"])
    (application,) = validate_serve_yaml(file).applications
    known = {tuple(sorted(g["labels"].items())) for g in groups(overlay).values()}
    for encoder in ("teacher", "student"):
        wanted = application.args[encoder]["node_labels"].items()
        assert any(wanted <= dict(labels).items() for labels in known)


def kind(group):
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    has = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
    return NodeType(has, group["maxReplicas"], group["labels"])


@each
def test_the_recipe_is_one_that_stillroom_takes(overlay, tmp_path):
    config = the(overlay, "ConfigMap", "stillroom-recipe")
    file = tmp_path / "recipe.yaml"
    file.write_text(config["data"]["recipe.yaml"])
    scale = read_recipe(file, []).scale
    # And its scale is one that the overlay's nodes can hold.
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
    command = the(overlay, "RayJob")["spec"]["entrypoint"]
    assert command == f"python jobs/run_pipeline.py {mounted['recipe']}/recipe.yaml"

"""Pods and Services that KubeRay 1.7.0 makes of ray.io/v1 resources: names, labels and selectors.

Stated from its controllers/ray/common/pod.go and service.go, for the fields that infra/kuberay
uses.
"""

from dataclasses import dataclass
from typing import Any

SUFFIX = "x7k2p"  # random, of the RayCluster that a RayJob or a RayService makes
# The labels of KubeRay that a pod template cannot override.
FIXED_LABELS = ("ray.io/cluster", "ray.io/node-type", "ray.io/group")


@dataclass(frozen=True)
class Pod:
    """A pod.

    Attributes:
        owner: kind of the resource that it was made for.
    """

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def container(self):
        return self.spec["containers"][0]

    @property
    def environment(self):
        """Values of the variables that the container's `env` sets; fieldRef is resolved."""
        values = {}
        for variable in self.container.get("env", ()):
            path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            label = path.removeprefix("metadata.labels['").removesuffix("']")
            values[variable["name"]] = variable.get("value", self.labels.get(label, ""))
        return values


def pods_of(resource):
    """The pods of a resource, one of each group, the submitter's among them."""
    kind, name, spec = resource["kind"], resource["metadata"]["name"], resource["spec"]
    cluster = cluster_of(resource)
    cluster_name = name if kind == "RayCluster" else f"{name}-{SUFFIX}"
    head = cluster["headGroupSpec"]
    pods = [_ray_pod(kind, cluster_name, "head", "headgroup", head)]
    for group in cluster["workerGroupSpecs"]:
        pods.append(_ray_pod(kind, cluster_name, "worker", group["groupName"], group))
    if kind == "RayJob":
        template = spec["submitterPodTemplate"]
        labels = {**template.get("metadata", {}).get("labels", {}), "job-name": name}
        pods.append(Pod(kind, labels, template["spec"]))
    return pods


def services_of(resource):
    """Name → selector of the Services of a resource."""
    kind, name = resource["kind"], resource["metadata"]["name"]
    cluster_name = name if kind == "RayCluster" else f"{name}-{SUFFIX}"
    to_head = {
        "ray.io/cluster": cluster_name,
        "ray.io/node-type": "head",
        "ray.io/identifier": f"{cluster_name}-head",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    services = {f"{cluster_name}-head-svc": to_head}
    if kind == "RayService":
        services[f"{name}-head-svc"] = to_head
        services[f"{name}-serve-svc"] = {"ray.io/cluster": cluster_name, "ray.io/serve": "true"}
    return services


def cluster_of(resource):
    """The spec of a resource's Ray cluster."""
    field = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(resource["kind"])
    return resource["spec"][field] if field else resource["spec"]


def selects(selector, labels):
    """Whether a selector (matchLabels and matchExpressions) selects a pod with these labels."""
    for expression in selector.get("matchExpressions", ()):
        value = labels.get(expression["key"])
        holds = {
            "Exists": value is not None,
            "In": value in expression.get("values", ()),
        }[expression["operator"]]
        if not holds:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def may_evict(budget, pods, pod, ready):
    """Whether the Eviction API lets a pod of a RayCluster go.

    Stated from Kubernetes 1.37's disruption controller and Eviction API.

    Args:
        budget: spec of the only PodDisruptionBudget.
        pods: all pods, running.
        ready: those that are ready.
    """
    counted = [other for other in pods if selects(budget["selector"], other.labels)]
    if pod not in counted:
        return True
    if pod not in ready and budget.get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    if not isinstance(budget.get("minAvailable"), int):
        return False  # the number of pods is asked of the owner's `scale`, which it does not have
    healthy = sum(other in ready for other in counted)
    desired = budget["minAvailable"]
    # A pod that is not ready may always go while enough others are.
    return healthy >= desired if pod not in ready else healthy > desired


def _ray_pod(kind, cluster_name, node_type, group_name, group):
    labels = {
        "ray.io/is-ray-node": "yes",
        "ray.io/cluster": cluster_name,
        "ray.io/node-type": node_type,
        "ray.io/group": group_name,
        "ray.io/identifier": f"{cluster_name}-{node_type}",
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }
    own = {**group["template"].get("metadata", {}).get("labels", {}), **group.get("labels", {})}
    labels.update((key, value) for key, value in own.items() if key not in FIXED_LABELS)
    if kind == "RayService":  # the operator changes the head's, once its proxy answers
        labels["ray.io/serve"] = "true" if node_type == "worker" else "false"
    return Pod(kind, labels, group["template"]["spec"])

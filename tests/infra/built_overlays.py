"""What infra/kuberay's overlays build, and the pods that KubeRay makes of it."""

from functools import cache
from pathlib import Path

from infra.kuberay_objects import cluster_of, pods_of
from infra.kustomize import build

KUBERAY = Path(__file__).parents[2] / "infra" / "kuberay"
OVERLAYS = ("small", "gpu", "gpu-disks", "gpu-efa", "gpu-ingress", "gpu-upgrade", "gpu-all")


@cache
def built(overlay):
    return build(KUBERAY / "overlays" / overlay)


def of_kind(overlay, kind):
    return [resource for resource in built(overlay) if resource["kind"] == kind]


def find_resource(overlay, kind, name=None):
    """The only resource of a kind, or the one with a name."""
    (match,) = (
        resource
        for resource in of_kind(overlay, kind)
        if name is None or resource["metadata"]["name"] == name
    )
    return match


def ray_resources(overlay):
    return [find_resource(overlay, kind) for kind in ("RayCluster", "RayJob", "RayService")]


def clusters(overlay):
    """Specs of an overlay's Ray clusters: the RayCluster's, the RayJob's, the RayService's."""
    return [cluster_of(resource) for resource in ray_resources(overlay)]


def ray_pods(overlay):
    return [
        pod
        for resource in ray_resources(overlay)
        for pod in pods_of(resource)
        if "ray.io/node-type" in pod.labels
    ]


def groups(overlay):
    return {group["groupName"]: group for group in clusters(overlay)[0]["workerGroupSpecs"]}


def gib(quantity):
    assert quantity.endswith("Gi")
    return float(quantity.removesuffix("Gi"))

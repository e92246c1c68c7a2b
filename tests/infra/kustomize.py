"""The parts of kustomize that infra/kuberay uses.

tests/clusters/kubectl.py compares it with kubectl's own.
"""

import copy
import json
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

KEYS = {
    "apiVersion", "kind", "namespace", "resources", "components", "patches", "replacements"
}  # fmt: skip


def build(folder: Path) -> list[dict[str, Any]]:
    """Resources that a kustomization's folder builds, in order."""
    resources: list[dict[str, Any]] = []
    extend(resources, folder)
    return resources


def extend(resources: list[dict[str, Any]], folder: Path) -> None:
    """Adds a kustomization or a component to resources, which it may change."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() <= KEYS, "a key that this module does not support"
    for name in kustomization.get("resources", ()):
        path = folder / name
        resources += build(path) if path.is_dir() else map(unshare, read_documents(path))
    for name in kustomization.get("components", ()):  # before this folder's own changes
        extend(resources, folder / name)
    for patch in kustomization.get("patches", ()):
        (operations,) = map(unshare, read_documents(folder / patch["path"]))
        jsonpatch.apply_patch(select(resources, patch["target"]), operations, in_place=True)
    for replacement in kustomization.get("replacements", ()):
        source = replacement["source"]
        value = select(resources, source)
        for name in source["fieldPath"].split("."):
            value = value[name]
        for target in replacement["targets"]:
            for field_path in target["fieldPaths"]:
                *parents, last = field_path.split(".")
                node = select(resources, target["select"])
                for name in parents:
                    node = node[name]
                node[last] = copy.deepcopy(value)
    if "namespace" in kustomization:
        for resource in resources:
            resource["metadata"]["namespace"] = kustomization["namespace"]


def read_documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def unshare(document: Any) -> Any:
    """A copy in which no two places are the same object, as YAML's aliases make them."""
    return json.loads(json.dumps(document))


def select(resources: list[dict[str, Any]], target: dict[str, Any]) -> dict[str, Any]:
    (selected,) = (
        resource
        for resource in resources
        if (resource["kind"], resource["metadata"]["name"]) == (target["kind"], target["name"])
    )
    return selected

"""As much of kustomize as infra/kuberay uses: resources, patches, a namespace, copies of a part.

tests/clusters/kubectl.py holds it to kubectl's own.
"""

import copy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

KEYS = {"apiVersion", "kind", "namespace", "resources", "patches", "replacements"}


def build(folder: Path) -> list[dict[str, Any]]:
    """The resources of a kustomization's folder, in order."""
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert told.keys() <= KEYS, "what this does not know"
    found = []
    for name in told["resources"]:
        place = folder / name
        found += build(place) if place.is_dir() else yaml.safe_load_all(place.read_text())
    for patch in told.get("patches", ()):
        operations = yaml.safe_load((folder / patch["path"]).read_text())
        jsonpatch.apply_patch(_one(found, patch["target"]), operations, in_place=True)
    for replacement in told.get("replacements", ()):
        source = replacement["source"]
        value = _one(found, source)
        for name in source["fieldPath"].split("."):
            value = value[name]
        for target in replacement["targets"]:
            for path in target["fieldPaths"]:
                *above, last = path.split(".")
                place = _one(found, target["select"])
                for name in above:
                    place = place[name]
                place[last] = copy.deepcopy(value)
    if "namespace" in told:
        for resource in found:
            resource["metadata"]["namespace"] = told["namespace"]
    return found


def _one(resources: list[dict[str, Any]], wanted: dict[str, Any]) -> dict[str, Any]:
    (found,) = (
        resource
        for resource in resources
        if (resource["kind"], resource["metadata"]["name"]) == (wanted["kind"], wanted["name"])
    )
    return found

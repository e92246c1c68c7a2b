"""tests/infra/kustomize.py builds infra/kuberay as kubectl does; needs kubectl."""

import subprocess
from pathlib import Path

import pytest
import yaml

from infra.kustomize import build

KUBERAY = Path(__file__).parents[2] / "infra" / "kuberay"
FOLDERS = sorted(
    path.parent
    for path in KUBERAY.rglob("kustomization.yaml")
    if path.parent.parent.name != "components"  # which build nothing by themselves
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_kubectl_builds_the_same(folder):
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)],
        check=True,
        capture_output=True,
        text=True,
    )
    kubectl_resources = list(yaml.safe_load_all(done.stdout))
    our_resources = build(folder)

    def identity(resource):
        return resource["kind"], resource["metadata"]["name"]

    assert sorted(kubectl_resources, key=identity) == sorted(our_resources, key=identity)

"""tests/infra/kustomize.py builds infra/kuberay as kubectl does; needs kubectl."""

import subprocess
from pathlib import Path

import pytest
import yaml

from infra.kustomize import build

OVERLAYS = Path(__file__).parents[2] / "infra" / "kuberay" / "overlays"


@pytest.mark.parametrize("overlay", ["small", "gpu"])
def test_kubectl_builds_the_same(overlay):
    done = subprocess.run(
        ["kubectl", "kustomize", str(OVERLAYS / overlay)],
        check=True,
        capture_output=True,
        text=True,
    )
    kubectl_resources = list(yaml.safe_load_all(done.stdout))
    our_resources = build(OVERLAYS / overlay)

    def identity(resource):
        return resource["kind"], resource["metadata"]["name"]

    assert sorted(kubectl_resources, key=identity) == sorted(our_resources, key=identity)

"""Uses of Ray's undocumented modules are in one file, and fit the installed Ray."""

import ast
import importlib
import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from stillroom.cluster import ray_private

ROOT = Path(__file__).parents[2]
SRC = ROOT / "platform" / "stillroom"
ONLY = SRC / "cluster" / "ray_private.py"


def is_private(name):
    """Whether a dotted name leads through an undocumented module of Ray."""
    parts = name.split(".")
    return parts[0] == "ray" and (
        any(part.startswith("_") and not part.startswith("__") for part in parts)
        or parts[:3] == ["ray", "core", "generated"]
    )


def dotted(node):
    """`a.b.c` of an attribute chain; "" of any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    owner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{owner}.{node.attr}" if owner else ""


def ray_names(source):
    """Dotted names in Ray that a file imports, or reaches through an import."""
    tree = ast.parse(source)
    names, imported = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.add(alias.name)
                imported[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names.add(f"{node.module}.{alias.name}")
                imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := dotted(node)):
            first, _, rest = name.partition(".")
            names.add(f"{imported.get(first, '')}.{rest}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value.partition(":")[0])  # as import_module and YAML name a module
    return {name for name in names if name.startswith("ray.")}


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.state",
        "import ray\nray._private.state.state.get_cluster_config()",
        "from ray import _private",
        "from ray.serve import _private as private",
        "from ray.train.v2._internal import callback",
        "from ray.core.generated import gcs_service_pb2",
        "import ray as r\nr._private.worker",
        "from ray import train\ntrain.v2._internal.execution",
        "importlib.import_module('ray._private.worker')",
    ],
)
def test_every_way_to_reach_an_undocumented_module_is_noticed(source):
    assert any(is_private(name) for name in ray_names(source))


def test_documented_modules_are_not_reported():
    source = (
        "import ray\nfrom ray.train.torch import TorchConfig\nray.__version__\nray.data.Dataset"
    )
    assert not any(is_private(name) for name in ray_names(source))


def test_no_other_file_uses_an_undocumented_module_of_ray():
    users = {
        f"{file.relative_to(SRC)}: {name}"
        for file in SRC.rglob("*.py")
        if file != ONLY
        for name in ray_names(file.read_text(encoding="utf-8"))
        if is_private(name)
    }
    assert users == set()


def test_every_entry_still_resolves():
    source = ONLY.read_text(encoding="utf-8")
    entries = {name for name in ray_names(source) if is_private(name)}
    assert len(entries) >= 9
    for name in sorted(entries):
        resolved = importlib.import_module("ray")
        for depth, part in enumerate(name.split(".")[1:], start=2):
            if not hasattr(resolved, part):
                importlib.import_module(".".join(name.split(".")[:depth]))
            resolved = getattr(resolved, part)


def test_every_entry_documents_why_it_is_needed_and_what_would_break():
    entries = inspect.getmembers(ray_private, inspect.isfunction)
    assert entries
    for name, entry in entries:
        assert "\n\nWhy: " in inspect.getdoc(entry), name
        assert "\n\nBreaks: " in inspect.getdoc(entry), name


def test_entries_import_nothing_until_they_are_called():
    tree = ast.parse(ONLY.read_text(encoding="utf-8"))
    at_load = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("ray" in ast.unparse(node).split() for node in at_load)
    assert not any("ray." in ast.unparse(node) for node in at_load)


def test_the_installed_ray_is_one_that_was_tested():
    assert version("ray") in ray_private.TESTED_RAY_VERSIONS


def test_the_package_allows_only_tested_versions_of_ray():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [requirement] = [
        dependency for dependency in project["dependencies"] if re.match(r"ray\b", dependency)
    ]
    versions = requirement.partition("]")[2]
    assert versions in [f"=={tested}" for tested in ray_private.TESTED_RAY_VERSIONS]


def test_images_and_clusters_run_a_tested_version_of_ray():
    texts = {
        "infra/docker/requirements/requirements.txt": r"^ray==(\S+)",
        "infra/kuberay/base/cluster.yaml": r"^  rayVersion: (\S+)",
    }
    for path, pattern in texts.items():
        [ray_version] = re.findall(pattern, (ROOT / path).read_text(), re.M)
        assert ray_version in ray_private.TESTED_RAY_VERSIONS, path


def test_the_walk_skips_the_files_that_ray_skips(tmp_path):
    for name in (".git/HEAD", "kept.txt", "ignored.txt", "asked.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_text("ignored.txt")
    seen = set()
    excludes = [*ray_private.working_dir_excludes(), "asked.txt"]
    ray_private.walk_working_dir(tmp_path, excludes, seen.add, use_gitignore=True)
    files = {path.name for path in seen if path.is_file()}
    assert files == {"kept.txt", ".gitignore"}
    assert ray_private.max_package_bytes() > 1 << 20

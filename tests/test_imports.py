"""Imports point one way, and what should start at once does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "platform" / "stillroom"
# Each may import those on its line, and itself.
ALLOWED = {
    "errors": set(),
    "logs": set(),
    "atomic": set(),
    "config": {"errors"},
    "storage": {"errors"},
    "artifacts": {"errors", "atomic", "storage"},
    "cluster": {"errors"},
    "journal": {"errors", "artifacts", "logs"},
    "endpoint": {"errors"},
    "encoders": {"errors", "atomic", "artifacts", "endpoint"},
    "text": {"errors", "atomic", "storage"},
    "plan": {"errors", "config", "artifacts", "encoders", "text"},
    "checks": {
        "errors",
        "endpoint",
        "config",
        "artifacts",
        "plan",
        "encoders",
        "text",
        "learning",
        "stages",
    },
    "costs": {"errors", "config", "encoders", "learning", "checks"},
    "learning": {"errors", "encoders"},
    "mining": {"errors"},
    "measure": {"errors", "encoders", "text", "mining"},
    "stages": {
        "errors",
        "logs",
        "atomic",
        "journal",
        "storage",
        "endpoint",
        "config",
        "artifacts",
        "cluster",
        "plan",
        "encoders",
        "text",
        "learning",
        "mining",
        "measure",
    },
    "serving": {"errors", "atomic", "artifacts", "cluster", "encoders"},
    "cli": {
        "errors",
        "logs",
        "journal",
        "endpoint",
        "config",
        "artifacts",
        "plan",
        "checks",
        "costs",
        "encoders",
        "text",
        "measure",
        "stages",
        "serving",
    },
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sorted(SRC.rglob("*.py")), ids=lambda f: str(f.relative_to(SRC)))
def test_imports_point_one_way(file):
    ours = {name.split(".")[1] for name in imported(file) if name.startswith("stillroom.")} - {
        part(file)
    }
    assert ours <= ALLOWED.get(part(file), set())


def test_only_stages_serving_and_the_door_to_a_cluster_import_ray():
    inner = [f for f in SRC.rglob("*.py") if part(f) not in {"stages", "serving", "cluster"}]
    users = [f for f in inner if any(name.split(".")[0] == "ray" for name in imported(f))]
    assert users == []


def test_only_the_engine_imports_deepspeed():
    users = [f for f in SRC.rglob("*.py") if any("deepspeed" in name for name in imported(f))]
    assert users == [SRC / "learning" / "engine.py"]


@pytest.mark.parametrize(
    ("module", "slow"),
    [
        ("stillroom.cli", {"torch", "transformers", "ray"}),
        ("stillroom.pipeline.plan", {"torch", "transformers", "ray"}),
        ("stillroom.preflight.recipe", {"torch", "transformers", "ray"}),
        ("stillroom.reports.render", {"torch", "transformers", "ray"}),
        ("stillroom.pipeline.run", {"torch", "transformers", "ray"}),  # nothing may be left to make
        ("stillroom.serving.router", {"torch", "transformers"}),  # a process of its own
    ],
)
def test_what_starts_at_once_loads_nothing_slow(module, slow):
    code = f"import sys, {module}; print(*{slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_folder_platform_does_not_hide_python_s_own_module():
    assert not (SRC.parent / "__init__.py").exists()

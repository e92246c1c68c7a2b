"""The layers: imports point one way, Ray stays at the rim, and commands start fast."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "platform" / "stillroom"
FILES = sorted(SRC.rglob("*.py"))

# A package may import from the lines above its own; packages of one line do not know each other.
LAYERS = [
    {"errors"},
    {"storage"},
    {"config", "openai_client"},
    {"data", "encoders", "observability"},
    {"mining", "estimates"},
    {"evaluation", "learning", "release", "cluster"},
    {"reports", "training"},
    {"stages", "serving"},
    {"pipeline"},
    {"preflight"},
    {"cli"},
]
# Serving runs on machines that train nothing.
SERVING = {"errors", "storage", "encoders", "release", "cluster"}
# Inside serving: HTTP calls the service, the service decides through routing, replicas encode.
SERVING_LAYERS = [
    {"errors", "messages"},
    {"telemetry"},
    {"replica"},
    {"routing"},
    {"config"},
    {"service", "yaml_check"},
    {"http"},
    {"playground"},
    {"router"},
    {"app"},
    {"local_server"},
]
NO_RAY = {"errors", "storage", "config", "openai_client", "data", "encoders", "observability"} | {
    "mining", "estimates", "evaluation", "learning", "release", "reports", "pipeline", "preflight"
}  # fmt: skip


def imported_names(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


def ours(file: Path) -> set[str]:
    return {name for name in imported_names(file) if name.startswith("stillroom.")}


def rank(layers: list[set[str]], name: str) -> int:
    [number] = [number for number, layer in enumerate(layers) if name in layer]
    return number


@pytest.mark.parametrize("name", sorted({package(file) for file in FILES} - {"__init__"}))
def test_a_package_imports_only_from_layers_below_its_own(name):
    files = [file for file in FILES if package(file) == name]
    upward = [
        f"{file.relative_to(SRC)}: {imported}"
        for file in files
        for imported in sorted(ours(file))
        if (other := imported.split(".")[1]) != name and rank(LAYERS, other) >= rank(LAYERS, name)
    ]
    assert upward == []


def test_serving_needs_no_training_package():
    users = [file for file in FILES if package(file) == "serving"]
    needed = {name.split(".")[1] for file in users for name in ours(file)} - {"serving"}
    assert needed <= SERVING


def serving_part(name: str) -> str:
    return name.split(".")[2] if name.count(".") > 1 else ""


def test_inside_serving_http_knows_the_service_and_never_the_other_way_round():
    upward = []
    for file in FILES:
        if package(file) != "serving" or file.name == "__init__.py":
            continue
        part = file.relative_to(SRC / "serving").parts[0].removesuffix(".py")
        for name in ours(file):
            other = serving_part(name)
            if not name.startswith("stillroom.serving.") or other == part:
                continue
            if rank(SERVING_LAYERS, other) >= rank(SERVING_LAYERS, part):
                upward.append(f"{file.relative_to(SRC)}: {name}")
    assert upward == []


def test_only_serving_http_and_what_mounts_it_import_a_web_framework():
    users = {
        file.relative_to(SRC / "serving").parts[0].removesuffix(".py")
        for file in FILES
        if package(file) == "serving"
        and any(name.split(".")[0] in {"starlette", "uvicorn"} for name in imported_names(file))
    }
    assert users <= {"http", "playground", "router", "local_server"}


def module(file: Path) -> str:
    parts = ["stillroom", *file.relative_to(SRC).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_files_import_each_other_in_a_circle():
    modules = {module(file): file for file in FILES}
    imports = {
        name: {n if n in modules else n.rpartition(".")[0] for n in ours(file)}
        for name, file in modules.items()
    }

    def circles(name: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in path:
            yield (*path[path.index(name) :], name)
        elif name not in done:
            for other in sorted(imports.get(name, ())):
                yield from circles(other, (*path, name))
            done.add(name)

    done: set[str] = set()
    assert [circle for name in sorted(modules) for circle in circles(name, ())] == []


def test_a_private_name_stays_in_its_file():
    taken = [
        f"{file.relative_to(SRC)}: {name}"
        for file in FILES
        for name in sorted(ours(file))
        if name.rpartition(".")[2].startswith("_")
    ]
    assert taken == []


def test_only_the_cluster_the_stages_training_and_serving_import_ray():
    users = [file for file in FILES if "ray" in {n.split(".")[0] for n in imported_names(file)}]
    assert [str(f.relative_to(SRC)) for f in users if package(f) in NO_RAY] == []


def test_only_the_engine_imports_deepspeed():
    # The package, not our file of that name, which the training harness imports.
    users = [
        file
        for file in FILES
        if "deepspeed" in {name.split(".")[0] for name in imported_names(file)}
    ]
    assert users == [SRC / "learning" / "engine" / "deepspeed_engine.py"]


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
def test_what_must_start_fast_imports_nothing_slow(module, slow):
    code = f"import sys, {module}; print(*{slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_folder_platform_does_not_hide_pythons_own_module():
    assert not (SRC.parent / "__init__.py").exists()

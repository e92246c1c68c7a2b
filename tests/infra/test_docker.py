"""The Dockerfile and its lock files, checked without a container engine."""

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra" / "docker"
LOCKS = ("requirements.txt", "torch.txt", "torch-cpu.txt", "extras.txt", "uv.txt")


@cache
def locked(name):
    """name → (requirement, hashes) of the lock entries that this Python on Linux would install."""
    requirements = {}
    for entry in re.split(r"\n(?=[\w-])", (DOCKER / "requirements" / name).read_text()):
        if entry.startswith("#"):
            continue
        line, *hashes = entry.replace("\\\n", "\n").split("\n")
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            requirements[canonicalize_name(requirement.name)] = (
                requirement,
                [h for h in hashes if h],
            )
    return requirements


def version(name, lock):
    (pin,) = locked(lock)[canonicalize_name(name)][0].specifier
    assert pin.operator == "=="
    return Version(pin.version)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_version_and_hashes(lock):
    for requirement, hashes in locked(lock).values():
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        for digest in hashes:
            assert re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}\s*", digest), requirement


def test_what_the_tests_run_with_is_what_is_locked():
    """But for the packages that this environment lacks: of clouds, and of some extras."""
    differing = {}
    for lock in ("requirements.txt", "extras.txt"):
        for name, (requirement, _) in locked(lock).items():
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                installed = importlib.metadata.version(name)
                if Version(installed) not in requirement.specifier:
                    differing[name] = (installed, str(requirement.specifier))
    assert differing == {}


@pytest.mark.parametrize("extra", ["export", "openvino", "telemetry", "hub", "aws", "gcp"])
def test_the_lock_has_the_extras_for_users(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    both = {**locked("requirements.txt"), **locked("extras.txt")}
    for text in project["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name != "stillroom":
            (pin,) = both[canonicalize_name(requirement.name)][0].specifier
            assert Version(pin.version) in requirement.specifier


def test_the_lock_satisfies_the_project_s_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        requirement = Requirement(text)
        locks = ("torch.txt", "torch-cpu.txt") if requirement.name == "torch" else LOCKS[:1]
        for lock in locks:
            assert version(requirement.name, lock) in requirement.specifier, text


def test_every_dependency_of_a_locked_package_is_locked():
    """Checks the packages that this environment has in the locked version."""
    all_locked = {**locked("requirements.txt"), **locked("torch.txt"), **locked("extras.txt")}
    for name, (requirement, _) in all_locked.items():
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] != next(iter(requirement.specifier)).version:
            continue
        for text in installed.requires or ():
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker and not any(needed.marker.evaluate({"extra": e}) for e in extras):
                continue
            assert canonicalize_name(needed.name) in all_locked, f"{name} needs {needed}"


def test_torch_has_one_version_with_cuda_without_it_and_in_the_makefile():
    with_cuda, without = version("torch", "torch.txt"), version("torch", "torch-cpu.txt")
    assert str(without) == f"{with_cuda}+cpu"
    assert f"TORCH ?= torch=={with_cuda}\n" in (ROOT / "Makefile").read_text()
    assert "torch" not in locked("requirements.txt")


# --- the image ----------------------------------------------------------------------------------


def instructions():
    """(instruction, arguments) of each instruction of the Dockerfile, its lines joined."""
    lines = [
        line for line in (DOCKER / "Dockerfile").read_text().splitlines() if line[:1] not in "#"
    ]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line]


def arguments_of(instruction):
    return [arguments for name, arguments in instructions() if name == instruction]


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_built_in_two_stages_and_does_not_run_as_root():
    built, last = arguments_of("FROM")
    assert built == f"{last} AS built" and re.fullmatch(r"python:3\.11\.\d+-slim-\w+", last)
    assert arguments_of("COPY")[-4] == "--from=built /venv /venv"
    assert arguments_of("USER") == ["1000:1000"]
    assert [name for name, _ in instructions()].index("USER") < len(instructions()) - 1
    assert "apt-get upgrade" in arguments_of("RUN")[-1]  # the base image may be weeks old
    # The user cannot change the code.
    assert not any("--chown" in copy for copy in arguments_of("COPY"))


def test_pip_installs_only_the_lock_and_torch_first_as_in_the_makefile():
    installs = re.findall(r"pip install ([^&]+)", " && ".join(arguments_of("RUN")))
    *from_lock, package = installs
    assert all("--require-hashes --no-deps" in words for words in from_lock)
    named = [re.search(r"requirements/([^\s\";]+)", words)[1] for words in from_lock]
    assert named == ["${TORCH}.txt", "requirements.txt", "${EXTRAS}.txt"]
    assert package.split() == ["--no-cache-dir", "--no-deps", "--no-build-isolation", "."]
    assert arguments_of("ARG") == ["TORCH=torch-cpu", "EXTRAS="]  # no extras
    assert "\n$(VENV)/quickstart: $(VENV)/torch " in (ROOT / "Makefile").read_text()


def test_the_dockerignore_allows_exactly_the_copied_files():
    allowed = {
        line[1:]
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word.rstrip("/")
        for copy in arguments_of("COPY")
        if "--from" not in copy
        for word in copy.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


@pytest.fixture
def health(tmp_path):
    """Runs the health check of a container in which these URLs answer with these statuses."""
    statuses = {}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            port = self.server.server_port
            self.send_response(statuses.get((port, self.path), 404))
            self.end_headers()

        def log_message(self, *_):
            pass

    servers = [HTTPServer(("127.0.0.1", 0), Answer) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    serve_port, agent_port = (server.server_port for server in servers)
    # Other ports than the image's, where another test may have a server.
    script = (DOCKER / "healthcheck.py").read_text()
    moved = script.replace(":8000/", f":{serve_port}/").replace(":52365/", f":{agent_port}/")

    def run(*words, serves="", node=404, **paths):
        statuses.clear()
        statuses[agent_port, "/api/local_raylet_healthz"] = node
        statuses[serve_port, "/healthz"] = paths.get("server", 404)
        statuses[serve_port, "/-/healthz"] = paths.get("proxy", 404)
        env = {**os.environ, "SERVES": serves}
        return subprocess.run([sys.executable, "-c", moved, *words], env=env).returncode

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_container_is_healthy_when_its_server_or_its_node_is(health):
    assert health(server=200) == health(node=200) == 0
    assert health() == health(server=503) == health(node=503) == 1
    (check,) = arguments_of("HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["python", "/usr/local/lib/healthcheck.py"]
    assert any(copy.endswith(" /usr/local/lib/healthcheck.py") for copy in arguments_of("COPY"))


def test_a_pod_that_gets_requests_is_ready_when_its_proxy_is_too(health):
    assert health("pod", serves="true", node=200, proxy=200) == 0
    assert health("pod", serves="true", node=200) == 1
    assert health("pod", serves="true", node=200, proxy=503) == 1
    assert health("pod", serves="true", node=503, proxy=200) == 1
    for serves in ("", "false"):
        assert health("pod", serves=serves, node=200) == 0
        assert health("pod", serves=serves, node=503, proxy=200) == 1

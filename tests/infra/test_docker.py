"""The image's recipe, and the lock that it installs from. No engine is needed."""

import importlib.metadata
import json
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
LOCKS = ("requirements.txt", "torch.txt", "torch-cpu.txt")


@cache
def locked(name):
    """name → the requirement, of those that this Python on Linux would install; and its hashes."""
    found = {}
    for entry in re.split(r"\n(?=[\w-])", (DOCKER / "requirements" / name).read_text()):
        if entry.startswith("#"):
            continue
        line, *hashes = entry.replace("\\\n", "\n").split("\n")
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = (requirement, [h for h in hashes if h])
    return found


def version(name, lock):
    (pin,) = locked(lock)[canonicalize_name(name)][0].specifier
    assert pin.operator == "=="
    return Version(pin.version)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_a_version_with_its_hashes(lock):
    for requirement, hashes in locked(lock).values():
        assert [pin.operator for pin in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        for found in hashes:
            assert re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}\s*", found), requirement


def test_the_lock_holds_all_that_the_project_needs_and_satisfies_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        wanted = Requirement(text)
        locks = ("torch.txt", "torch-cpu.txt") if wanted.name == "torch" else LOCKS[:1]
        for lock in locks:
            assert version(wanted.name, lock) in wanted.specifier, text


def test_what_is_locked_needs_nothing_that_is_not():
    """Of what this environment has in the locked versions."""
    every = {**locked("requirements.txt"), **locked("torch.txt")}
    for name, (requirement, _) in every.items():
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
            assert canonicalize_name(needed.name) in every, f"{name} needs {needed}"


def test_the_same_torch_is_locked_with_and_without_cuda_and_is_the_makefile_s():
    with_cuda, without = version("torch", "torch.txt"), version("torch", "torch-cpu.txt")
    assert str(without) == f"{with_cuda}+cpu"
    assert f"TORCH ?= torch=={with_cuda}\n" in (ROOT / "Makefile").read_text()
    assert "torch" not in locked("requirements.txt")


# --- the image ----------------------------------------------------------------------------------


def instructions():
    """(instruction, what it says) of each of the Dockerfile's, lines joined."""
    lines = [
        line for line in (DOCKER / "Dockerfile").read_text().splitlines() if line[:1] not in "#"
    ]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(" ", 1)) for line in joined.splitlines() if line]


def of(instruction):
    return [said for name, said in instructions() if name == instruction]


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_built_in_two_stages_and_its_last_is_nobody_s_root():
    built, last = of("FROM")
    assert built == f"{last} AS built" and re.fullmatch(r"python:3\.11\.\d+-slim-\w+", last)
    assert of("COPY")[-4] == "--from=built /venv /venv"
    assert of("USER") == ["1000:1000"]
    assert [name for name, _ in instructions()].index("USER") < len(instructions()) - 1
    assert not any("--chown" in said for said in of("COPY"))  # its code is not its own to change


def test_pip_takes_nothing_but_the_lock_and_torch_first_as_in_the_makefile():
    installs = re.findall(r"pip install ([^&]+)", " && ".join(of("RUN")))
    *from_lock, package = installs
    assert all("--require-hashes --no-deps" in words for words in from_lock)
    named = [re.search(r"--requirement requirements/(\S+)", words)[1] for words in from_lock]
    assert named == ["${TORCH}.txt", "requirements.txt"]
    assert package.split() == ["--no-cache-dir", "--no-deps", "--no-build-isolation", "."]
    assert of("ARG") == ["TORCH=torch-cpu"]
    assert "\n$(VENV)/quickstart: $(VENV)/torch " in (ROOT / "Makefile").read_text()


def test_what_is_copied_is_let_in_and_nothing_else():
    let_in = {
        line[1:]
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        word.rstrip("/")
        for said in of("COPY")
        if "--from" not in said
        for word in said.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / place).exists() for place in copied)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_the_health_check_is_what_the_server_or_the_node_says(status, code):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    script = (DOCKER / "healthcheck.py").read_text()
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        port = server.server_port
        if status is not None:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        else:
            server.socket.close()
        # Ports of its own, for another test may have a server on the image's.
        moved = script.replace(":8000/", f":{port}/").replace(":52365/", ":1/")
        assert moved != script
        done = subprocess.run([sys.executable, "-c", moved])
        if status is not None:
            server.shutdown()
    assert done.returncode == code
    (check,) = of("HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["python", "/usr/local/lib/healthcheck.py"]
    assert any(said.endswith(" /usr/local/lib/healthcheck.py") for said in of("COPY"))

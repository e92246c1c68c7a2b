"""Locks what images and cluster nodes install: the versions of this environment, with hashes.

    pip install uv      # into the environment that the tests passed in
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu python infra/docker/lock.py

Under requirements/, torch.txt is torch with its CUDA libraries, and torch-cpu.txt without, for this
Python alone: one of them goes first, as in the Makefile. requirements.txt is all else.
"""

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = Path(__file__).parent / "requirements"
# Ray's autoscaler asks AWS and Google Cloud with these, and the image is built with the last.
TOO = ("boto3", "google-api-python-client", "google-auth", "cryptography", "hatchling")
OF_TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
HEADER = "# Made by infra/docker/lock.py.\n"


def main() -> None:
    installed = {
        found.metadata["Name"]: found.version.partition("+")[0]
        for found in importlib.metadata.distributions()
        if found.metadata["Name"] != "stillroom"
    }
    constraints = "\n".join(f"{name}=={version}" for name, version in sorted(installed.items()))
    wanted = "\n".join([f"-e {ROOT}", *TOO])
    every = compiled(wanted, constraints)
    of_torch = [entry for entry in every if OF_TORCH.match(entry)]
    write("torch.txt", of_torch)
    write("requirements.txt", [entry for entry in every if entry not in of_torch])
    cpu = f"torch=={installed['torch']}+cpu"
    write("torch-cpu.txt", [f"{cpu} \\\n    --hash=sha256:{digest_of_wheel(cpu)}"])


def digest_of_wheel(requirement: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, requirement], check=True)
        (wheel,) = Path(folder).iterdir()
        return hashlib.sha256(wheel.read_bytes()).hexdigest()


def compiled(wanted: str, constraints: str) -> list[str]:
    """A requirement each, with its hashes."""
    (OUT / "wanted.in").write_text(wanted)
    (OUT / "constraints.in").write_text(constraints)
    try:
        found = subprocess.run(
            [
                "uv", "pip", "compile", "wanted.in", "--constraints", "constraints.in",
                "--universal", "--python-version", "3.11", "--generate-hashes",
                "--no-header", "--no-annotate", "--quiet",
            ],
            cwd=OUT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    finally:
        (OUT / "wanted.in").unlink()
        (OUT / "constraints.in").unlink()
    entries = re.split(r"\n(?=\S)", found.strip())
    return [entry for entry in entries if not entry.startswith("-e ")]


def write(name: str, entries: list[str]) -> None:
    (OUT / name).write_text(HEADER + "".join(f"{entry}\n" for entry in entries))


if __name__ == "__main__":
    main()

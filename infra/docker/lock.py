"""Writes the lock files of images and cluster nodes: this environment's versions, with hashes.

    pip install uv      # into the environment that the tests passed in
    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu python infra/docker/lock.py

Writes five files to requirements/. torch.txt holds torch with its CUDA libraries; torch-cpu.txt
holds torch without them, for this Python version and architecture only; requirements.txt holds all
other packages; extras.txt holds what the extras in EXTRAS add to them. One of the torch files is
installed first, as in the Makefile, then requirements.txt. uv.txt holds uv, with which cluster
nodes install Python and these packages. Packages that are not installed here, such as OpenVINO, get
the newest version that fits.
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
# Ray's autoscaler calls AWS and Google Cloud with these; hatchling builds the image's package.
EXTRA_PACKAGES = (f"-e {ROOT}[aws,gcp]", "hatchling")
# pyproject's extras for users, without mlflow, which needs an older pyarrow than the tests ran.
# `quickstart` and those for development are not for clusters.
EXTRAS = ("export", "openvino", "telemetry", "hub")
TORCH_PACKAGES = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
HEADER = "# Made by infra/docker/lock.py.\n"


def main() -> None:
    installed = {
        package.metadata["Name"]: package.version.partition("+")[0]
        for package in importlib.metadata.distributions()
        if package.metadata["Name"] != "stillroom"
    }
    constraints = "\n".join(f"{name}=={version}" for name, version in sorted(installed.items()))
    requirements = "\n".join(EXTRA_PACKAGES)
    entries = compile_requirements(requirements, constraints)
    torch_entries = [entry for entry in entries if TORCH_PACKAGES.match(entry)]
    write("torch.txt", torch_entries)
    write("requirements.txt", [entry for entry in entries if entry not in torch_entries])
    # Without extras, which a constraint cannot have.
    constraints += "\n" + "\n".join(re.sub(r"\[.*?\]", "", e.split("\\")[0]) for e in entries)
    with_extras = compile_requirements(f"-e {ROOT}[{','.join(EXTRAS)}]\nwandb", constraints)
    write("extras.txt", [entry for entry in with_extras if entry not in entries])
    write("uv.txt", compile_requirements("uv", constraints))
    cpu = f"torch=={installed['torch']}+cpu"
    write("torch-cpu.txt", [f"{cpu} \\\n    --hash=sha256:{wheel_digest(cpu)}"])


def wheel_digest(requirement: str) -> str:
    """SHA-256 of the wheel that pip downloads."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*pip, requirement], check=True)
        (wheel,) = Path(folder).iterdir()
        return hashlib.sha256(wheel.read_bytes()).hexdigest()


def compile_requirements(requirements: str, constraints: str) -> list[str]:
    """One entry per package: its version, with the hashes of its files."""
    (OUT / "requirements.in").write_text(requirements)
    (OUT / "constraints.in").write_text(constraints)
    try:
        text = subprocess.run(
            [
                "uv", "pip", "compile", "requirements.in", "--constraints", "constraints.in",
                "--universal", "--python-version", "3.11", "--generate-hashes",
                "--no-header", "--no-annotate", "--quiet",
            ],
            cwd=OUT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    finally:
        (OUT / "requirements.in").unlink()
        (OUT / "constraints.in").unlink()
    entries = re.split(r"\n(?=\S)", text.strip())
    return [entry for entry in entries if not entry.startswith("-e ")]


def write(name: str, entries: list[str]) -> None:
    (OUT / name).write_text(HEADER + "".join(f"{entry}\n" for entry in entries))


if __name__ == "__main__":
    main()

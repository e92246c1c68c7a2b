"""The image's pip steps in a clean virtual environment, for want of an engine: gigabytes, minutes.

pip must find torch's CPU wheel: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
"""

import shutil
import subprocess
import sys

from infra.test_docker import ROOT, instructions


def test_the_image_s_steps_make_an_environment_in_which_stillroom_starts(tmp_path):
    venv, build = tmp_path / "venv", tmp_path / "build"
    build.mkdir()
    steps = instructions()
    first = [place for place, (name, _) in enumerate(steps) if name == "FROM"][1]
    for name, said in steps[:first]:
        if name == "COPY":
            *places, target = said.split()
            for place in places:
                source = ROOT / place
                if source.is_dir():
                    shutil.copytree(source, build / target)
                else:
                    shutil.copy2(source, build / source.name)
        elif name == "RUN":
            # What pip is to find is said where this runs, and not in the image's words.
            command = said.replace("--extra-index-url https://download.pytorch.org/whl/cpu", "")
            command = command.replace("/venv", str(venv)).replace("${TORCH}", "torch-cpu")
            command = command.replace("python -m venv", f"{sys.executable} -m venv")
            subprocess.run(["sh", "-ec", command], cwd=build, check=True)
    told = subprocess.run(
        [venv / "bin" / "stillroom", "--help"], check=True, capture_output=True, text=True
    )
    assert "stillroom" in told.stdout
    subprocess.run([venv / "bin" / "python", "-c", "import torch, ray, deepspeed"], check=True)

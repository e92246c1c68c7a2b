"""The small pipeline while its processes are killed: `make soak`, or

python tests/soak/pipeline.py --kills 20 --seed 1

Kills one process after another, drawn by a seeded generator from the command's own, Ray's actors
and the workers, and gives the same command again, as a user would. Every artifact has to be the
undisturbed run's.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1]))
from stillroom.storage.artifacts import Store
from stillroom.storage.object_store import sha256
from support.tiny_models import tiny_decoder, tiny_encoder

ROOT = Path(__file__).parents[2]
TINY = ROOT / "jobs" / "recipes" / "tiny.yaml"
# What tells of time or speed, or a fingerprint of what does, differs from run to run, and PEFT
# writes a set in any order; `told` is what else they say.
OF_TIME = {
    "metrics.jsonl", "report.json", "report.html", "release.json", "README.md", "teacher.json",
    "adapter_config.json",
}  # fmt: skip
PATIENCE_S = 900  # a command that says nothing new for so long hangs


class Pipeline:
    """The recipe in a folder of its own."""

    def __init__(self, folder: Path, models: Path):
        self.folder = folder
        folder.mkdir()
        self.env = {
            **os.environ,
            "STILLROOM_ROOT": str(folder / "runs"),
            "TINY_TEACHER": str(models / "teacher"),
            "TINY_STUDENT": str(models / "student"),
        }

    def begin(self) -> subprocess.Popen:
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "stillroom.cli", "run", str(TINY)],
                cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def end(self, running: subprocess.Popen) -> int:
        """Waits for the command and for all that it started."""
        of_it = [psutil.Process(running.pid), *children(running)] if alive(running) else []
        code = running.wait(PATIENCE_S)
        _, left = psutil.wait_procs(of_it, timeout=60)
        for process in left:
            process.kill()
        return code

    def artifacts(self) -> dict[str, Path]:
        store = Store(str(self.folder / "runs"))
        return {artifact.ref: artifact.path for artifact in store.published()}


def alive(running: subprocess.Popen) -> bool:
    return running.poll() is None


def children(running: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(running.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def victim(running: subprocess.Popen, draw: random.Random) -> tuple[str, int]:
    """The command itself, or a process of Ray's that does some of its work."""
    found = [("driver", running.pid)]
    for process in children(running):
        try:
            name = process.cmdline()[0] if process.cmdline() else ""
        except psutil.NoSuchProcess:
            continue
        if name.startswith("ray::") and not name.startswith("ray::IDLE"):
            found.append((name.split()[0], process.pid))
    found.sort(key=lambda one: (one[0] != "driver", one))
    # The driver is one of many processes, and the one that a user ends.
    return found[0] if len(found) == 1 or draw.random() < 0.35 else draw.choice(found[1:])


def differences(one: Path, other: Path) -> Iterator[str]:
    """Files in which two artifacts differ by more than float32's rounding."""
    files = {
        folder: {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
        for folder in (one, other)
    }
    yield from (f"{name} is in one alone" for name in files[one] ^ files[other])
    for name in sorted(files[one] & files[other] - {"manifest.json"}):
        a, b = one / name, other / name
        if sha256(a) == sha256(b):
            continue
        if a.name in OF_TIME:
            if told(a) != told(b):
                yield f"{name} tells something else"
        elif a.suffix == ".safetensors":
            tensors, others = load_file(a), load_file(b)
            if tensors.keys() != others.keys():
                yield f"{name} holds other tensors"
            for key, tensor in tensors.items():
                if not torch.allclose(tensor.float(), others[key].float(), rtol=1e-5, atol=1e-7):
                    yield f"{name}: {key}"
        else:
            yield name


def told(file: Path) -> object:
    """What a file says that has nothing to do with time."""
    if file.name == "metrics.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [(line["step"], round(line["loss"], 5)) for line in lines]
    if file.name == "report.json":
        report = json.loads(file.read_text())
        return {name: model["scores"] for name, model in report["models"].items()}
    if file.name == "release.json":
        return json.loads(file.read_text())["gate"]
    if file.name == "adapter_config.json":
        content = json.loads(file.read_text())
        return {**content, "target_modules": sorted(content["target_modules"])}
    return None


def soak(kills: int, seed: int, folder: Path) -> int:
    """How many kills left no trace in any artifact."""
    draw = random.Random(seed)
    tiny_decoder(folder / "teacher")
    tiny_encoder(folder / "student")
    undisturbed = Pipeline(folder / "undisturbed", folder)
    began = time.monotonic()
    code = undisturbed.end(undisturbed.begin())
    whole = time.monotonic() - began
    assert code == 0, (undisturbed.folder / "log").read_text()[-2000:]
    expected = undisturbed.artifacts()
    say(f"undisturbed: {len(expected)} artifacts in {whole:.0f} s")
    done = survived = rounds = 0
    while done < kills:
        rounds += 1
        pipeline = Pipeline(folder / f"round-{rounds}", folder)
        before, code, commands = done, -1, 0
        while code != 0:
            commands += 1
            running = pipeline.begin()
            while alive(running) and done < kills:
                at = time.monotonic() + draw.uniform(0.05, 0.6) * whole
                while alive(running) and time.monotonic() < at:
                    time.sleep(0.05)  # until the time that was drawn
                if not alive(running):
                    break
                name, pid = victim(running, draw)
                of_it = children(running)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                done += 1
                say(f"round {rounds}, command {commands}: kill {done} of {kills}: {name}")
                if pid == running.pid:
                    psutil.wait_procs(of_it, timeout=60)
            code = pipeline.end(running)
            assert commands < 20 + kills, "it comes to no end"
        found = pipeline.artifacts()
        wrong = [f"{ref} is in one alone" for ref in expected.keys() ^ found.keys()]
        for ref in expected.keys() & found.keys():
            wrong += [f"{ref}: {one}" for one in differences(expected[ref], found[ref])]
        survived += 0 if wrong else done - before
        verdict = "as undisturbed" if not wrong else "; ".join(wrong)
        say(f"round {rounds}: {done - before} kills, {commands} commands: {verdict}")
    return survived


def say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to keep what is made; default: nowhere")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = given.folder or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        survived = soak(given.kills, given.seed, place)
    print(f"{survived}/{given.kills} kills left every artifact as undisturbed")
    sys.exit(survived != given.kills)

"""The small pipeline while its processes are killed: `make soak`, or

python tests/soak/pipeline.py --kills 20 --seed 1

Kills one process after another, drawn by a seeded generator from the command's own, Ray's actors
and the workers, and runs the same command again, as a user would. Every artifact has to equal the
undisturbed run's.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parents[1]))
from stillroom.storage.artifacts import Store
from support.artifact_differences import all_differences

ROOT = Path(__file__).parents[2]
TINY = ROOT / "jobs" / "recipes" / "tiny.yaml"
TIMEOUT_S = 900  # a command that runs longer hangs


class Pipeline:
    """The recipe in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.env = {
            **os.environ,
            "STILLROOM_ROOT": str(folder / "runs"),
        }

    def start(self) -> subprocess.Popen:
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "stillroom.cli", "run", str(TINY)],
                cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def end(self, running: subprocess.Popen) -> int:
        """Waits for the command and for all processes that it started; returns its exit code."""
        processes = [psutil.Process(running.pid), *children(running)] if alive(running) else []
        code = running.wait(TIMEOUT_S)
        _, remaining = psutil.wait_procs(processes, timeout=60)
        for process in remaining:
            process.kill()
        return code

    def artifacts(self) -> dict[str, Path]:
        store = Store(str(self.folder / "runs"))
        return {artifact.ref: artifact.path for artifact in store.list_artifacts()}


def alive(running: subprocess.Popen) -> bool:
    return running.poll() is None


def children(running: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(running.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def victim(running: subprocess.Popen, rng: random.Random) -> tuple[str, int]:
    """The command itself, or one of Ray's processes that work for it."""
    candidates = [("driver", running.pid)]
    for process in children(running):
        try:
            name = process.cmdline()[0] if process.cmdline() else ""
        except psutil.NoSuchProcess:
            continue
        if name.startswith("ray::") and not name.startswith("ray::IDLE"):
            candidates.append((name.split()[0], process.pid))
    candidates.sort(key=lambda candidate: (candidate[0] != "driver", candidate))
    # The driver is one of many processes, but it is the one that users kill.
    if len(candidates) == 1 or rng.random() < 0.35:
        return candidates[0]
    return rng.choice(candidates[1:])


def soak(kills: int, seed: int, folder: Path) -> int:
    """The number of kills that changed no artifact."""
    rng = random.Random(seed)
    undisturbed = Pipeline(folder / "undisturbed")
    started_at = time.monotonic()
    code = undisturbed.end(undisturbed.start())
    duration = time.monotonic() - started_at
    assert code == 0, (undisturbed.folder / "log").read_text()[-2000:]
    expected = undisturbed.artifacts()
    log_line(f"undisturbed: {len(expected)} artifacts in {duration:.0f} s")
    done = survived = rounds = 0
    while done < kills:
        rounds += 1
        pipeline = Pipeline(folder / f"round-{rounds}")
        before, code, commands = done, -1, 0
        while code != 0:
            commands += 1
            running = pipeline.start()
            while alive(running) and done < kills:
                kill_at = time.monotonic() + rng.uniform(0.05, 0.6) * duration
                while alive(running) and time.monotonic() < kill_at:
                    time.sleep(0.05)  # until the drawn time
                if not alive(running):
                    break
                name, pid = victim(running, rng)
                processes = children(running)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                done += 1
                log_line(f"round {rounds}, command {commands}: kill {done} of {kills}: {name}")
                if pid == running.pid:
                    psutil.wait_procs(processes, timeout=60)
            code = pipeline.end(running)
            assert commands < 20 + kills, "it does not end"
        actual = pipeline.artifacts()
        wrong = list(all_differences(expected, actual))
        survived += 0 if wrong else done - before
        verdict = "as undisturbed" if not wrong else "; ".join(wrong)
        log_line(f"round {rounds}: {done - before} kills, {commands} commands: {verdict}")
    return survived


def log_line(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--folder", type=Path, help="keeps the artifacts; default: they are deleted"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        survived = soak(args.kills, args.seed, folder)
    print(f"{survived}/{args.kills} kills left every artifact as undisturbed")
    sys.exit(survived != args.kills)

"""A spot storm: nodes go, with notice and without, while a pipeline runs and a server answers.

python tests/clusters/spot_storm.py --seeds 20

A cluster of several raylets on this machine. While each of teacher, vectors, negatives and student
is made, a node is taken away at a moment drawn from the seed, half of them with a notice; another
node comes. The command must end by itself with the artifacts of an undisturbed run. Then nodes go
while a server is under load: no request that it accepted may be lost.
"""

import argparse
import asyncio
import os
import queue
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import ray
from ray import serve

sys.path.append(str(Path(__file__).parents[1]))
from stillroom.storage.artifacts import Store
from support.artifact_differences import all_differences
from support.ray_head import free_port
from support.spot_nodes import ON_DEMAND, SPOT, InBackground, SpotNodes, spot_nodes
from support.tiny_releases import make_release
from support.two_node_cluster import (
    SERVE_SETTINGS,
    deploy,
    free_serve_ports,
    query_bodies,
    running_replicas,
)

TINY = Path(__file__).parents[2] / "jobs" / "recipes" / "tiny.yaml"
NODES = 3
STAGES = ("teacher", "vectors", "negatives", "student")
RECIPE = [
    str(TINY), "teacher.phases.0.steps=120", "student.phases.0.steps=120",
    "vectors.shard_size=16", "scale.teacher.checkpoint_every=10",
    "scale.student.checkpoint_every=10", "scale.vectors.actors=2", "scale.negatives.actors=2",
    "--until", "student",
]  # fmt: skip
TIMEOUT_S = 1200  # a command that runs longer hangs
SERVING_DEPARTURES = 4
CALLERS = 8


# --- the pipeline -------------------------------------------------------------------------------


class Run:
    """The recipe's command on the cluster, in a folder of its own."""

    def __init__(self, nodes: SpotNodes, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stillroom.cli", "run", *RECIPE, f"root={folder / 'runs'}"],
            env={**os.environ, "RAY_ADDRESS": nodes.address, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def begun_stages(self) -> Iterator[str]:
        """Each stage when it begins, until the command ends; keeps the output."""
        deadline = threading.Timer(TIMEOUT_S, self.process.kill)
        deadline.start()
        with (self.folder / "log").open("w") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                if begins := re.search(r"(\w+)/\S+: begins", line):
                    yield begins[1]
        self.process.wait()
        deadline.cancel()

    def artifacts(self) -> dict[str, Path]:
        store = Store(str(self.folder / "runs"))
        return {artifact.ref: artifact.path for artifact in store.list_artifacts()}


def undisturbed_run(nodes: SpotNodes, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    """(artifacts, seconds of each stage)"""
    run = Run(nodes, folder)
    begun = [(stage, time.monotonic()) for stage in run.begun_stages()]
    assert run.process.returncode == 0, (folder / "log").read_text()
    ends = [*(at for _, at in begun[1:]), time.monotonic()]
    return run.artifacts(), {stage: end - at for (stage, at), end in zip(begun, ends, strict=True)}


def stormy_run(
    nodes: SpotNodes, folder: Path, rng: random.Random, seconds: dict[str, float]
) -> dict[str, Path]:
    """The artifacts of a run that loses a node in each stage."""
    kinds = [True, False] * (len(STAGES) // 2)
    rng.shuffle(kinds)
    run = Run(nodes, folder)
    departures = 0
    # Read in a thread, since Ray starts nodes in the main thread only.
    for stage in iterated_in_background(run.begun_stages()):
        if stage not in STAGES:
            continue
        time.sleep(rng.uniform(0.1, 0.9) * seconds[stage])  # until the drawn moment
        nodes.log.append(f"{stage}:")
        nodes.take_away(rng, notice=kinds[STAGES.index(stage)])
        departures += 1
    assert run.process.returncode == 0, (folder / "log").read_text()[-3000:]
    assert departures == len(STAGES)
    return run.artifacts()


def iterated_in_background(items: Iterable[str]) -> Iterator[str]:
    """The same items, made in a thread."""
    made: queue.Queue[str | None] = queue.Queue()

    def put_all() -> None:
        for item in items:
            made.put(item)
        made.put(None)

    thread = InBackground(put_all)
    yield from iter(made.get, None)
    thread.join()


# --- serving ------------------------------------------------------------------------------------


def serve_through_a_storm(nodes: SpotNodes, url: str, rng: random.Random) -> Counter[str]:
    """Status → requests, while nodes with replicas go; errors that are raised by their names."""
    outcomes: Counter[str] = Counter()
    over = threading.Event()

    async def call(http: httpx.AsyncClient, number: int) -> None:
        while not over.is_set():
            (body,) = query_bodies(1)
            body["input"] += f" of caller {number}"
            try:
                answer = await http.post(f"{url}/v1/embeddings", json=body)
                outcome = str(answer.status_code)
                if answer.status_code >= 500 and "retry-after" not in answer.headers:
                    outcome += f" {answer.text[:200]}"
            except httpx.HTTPError as error:
                outcome = repr(error)
            outcomes[outcome] += 1

    async def calls() -> None:
        async with httpx.AsyncClient(timeout=120) as http:
            await asyncio.gather(*(call(http, number) for number in range(CALLERS)))

    load = InBackground(asyncio.run, calls())
    for number in range(SERVING_DEPARTURES):
        time.sleep(rng.uniform(1, 5))  # until the drawn moment
        nodes.take_away(rng, notice=number % 2 == 0)
        wait_until(lambda: running_replicas("tiny-student") == NODES)
    over.set()
    load.join()
    return outcomes


def wait_until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)  # polls for a condition, with a deadline


# --- the storm ----------------------------------------------------------------------------------


def log_line(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def pipeline_storms(seeds: list[int], folder: Path) -> int:
    """The number of seeds whose run ended with the undisturbed artifacts."""
    survived = 0
    with spot_nodes(NODES, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1") as nodes:
        expected, seconds = undisturbed_run(nodes, folder / "undisturbed")
        log_line(f"undisturbed: {len(expected)} artifacts in {sum(seconds.values()):.0f} s")
        for seed in seeds:
            nodes.log.clear()
            started_at = time.monotonic()
            try:
                actual = stormy_run(nodes, folder / f"{seed}", random.Random(seed), seconds)
                wrong = list(all_differences(expected, actual))
            except AssertionError as error:
                wrong = [str(error)]
            survived += not wrong
            verdict = "as undisturbed" if not wrong else "; ".join(wrong)
            took = time.monotonic() - started_at
            log_line(f"pipeline, seed {seed}: {', '.join(nodes.log)}; {took:.0f} s: {verdict}")
            nodes.fill_up()
    return survived


def serving_storms(seeds: list[int], folder: Path) -> int:
    """The number of seeds in which no accepted request was lost."""
    survived, port = 0, free_port()
    settings = {**SERVE_SETTINGS, **free_serve_ports()}
    with spot_nodes(NODES, **settings) as nodes:
        ray.init(address=nodes.address, configure_logging=False, log_to_driver=False)
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        deploy({
            "releases": [str(make_release(folder / "release", shared_space=True))],
            "policy": "student",
            "no_auth": True,  # behind HAProxy, every caller has its address
            "access_log": None,
            "routers": 2,
            "router_node_labels": ON_DEMAND,
            "teacher": {"replicas": 0},
            "student": {"num_cpus": 0.6, "replicas": NODES, "node_labels": SPOT},
        })  # fmt: skip
        wait_until(lambda: running_replicas("tiny-student") == NODES)
        for seed in seeds:
            nodes.log.clear()
            outcomes = serve_through_a_storm(nodes, f"http://127.0.0.1:{port}", random.Random(seed))
            lost = {outcome for outcome in outcomes if outcome not in ("200", "429", "503")}
            survived += not lost
            log_line(f"serving, seed {seed}: {', '.join(nodes.log)}: {dict(outcomes)}")
        serve.shutdown()
        ray.shutdown()
    return survived


STORMS = {"pipeline": pipeline_storms, "serving": serving_storms}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--only", choices=STORMS)
    parser.add_argument("--folder", type=Path, help="keeps the artifacts; default: deleted")
    args = parser.parse_args()
    seeds = list(range(args.first, args.first + args.seeds))
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name, storms in STORMS.items():
            if args.only in (None, name):
                survived = storms(seeds, (args.folder or Path(scratch)) / name)
                failed |= survived < len(seeds)
                print(f"{name}: {survived} of {len(seeds)} storms changed nothing", flush=True)
    sys.exit(failed)

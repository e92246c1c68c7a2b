"""Training on a cluster whose nodes come and go: `make clusters`."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

sys.path.append(str(Path(__file__).parents[1]))
from stillroom.config.scale import ElasticWorkers, Tracking, TrainingWorkers
from stillroom.learning.objectives.contrastive import Contrastive
from stillroom.storage.artifacts import Store
from stillroom.training.driver import fit
from stillroom.training.task import TrainingTask
from support import tiny_training
from support.ray_head import BIN
from support.tensorboard_events import events
from support.tiny_training import batches, settings, start, uninterrupted

STEPS = 300
EVERY = 5  # steps between checkpoints
WAIT_S = 300


@pytest.fixture
def cluster(monkeypatch):
    """A head that does no work, and two nodes of a CPU each."""
    for module in (sys.modules[__name__], tiny_training):
        ray.cloudpickle.register_pickle_by_value(module)
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        monkeypatch.setenv("RAY_TMPDIR", ray_folder)
        nodes = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        for _ in range(2):
            nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, logging_config=ray.LoggingConfig(log_level="ERROR"))
        yield nodes
        ray.shutdown()
        nodes.shutdown()


class RecordedBatches:
    """Slow batches; each is recorded with the number of workers that share it."""

    def __init__(self, pair_batches, notes):
        self.batches, self.notes = pair_batches, notes

    def ids(self, step):
        return self.batches.ids(step)

    def __call__(self, step):
        if not (self.notes / "fast").exists():
            time.sleep(0.3)  # as long as a step of a large model
        with (self.notes / "steps").open("a") as file:
            file.write(f"{step} {self.batches.shard.world}\n")
        return self.batches(step)


def recorded_batches(notes, encoder, shard):
    pair_batches = batches(encoder, shard)
    return RecordedBatches(pair_batches, notes) if shard.rank == 0 else pair_batches


class NodeChanges:
    """Removes and adds nodes, in a thread that watches the steps of the run."""

    def __init__(self, nodes, notes):
        self.nodes, self.notes = nodes, notes
        self.thread = threading.Thread(target=self.run)
        self.error = None
        self.thread.start()

    def run(self):
        try:
            self.change_nodes()
        except BaseException as error:
            self.error = error
        finally:
            (self.notes / "fast").touch()

    def change_nodes(self):
        self.until_workers(2)
        drained = max(self.nodes.worker_nodes, key=lambda node: node.node_id)
        self.drain(drained)
        self.until_workers(1)
        self.nodes.remove_node(drained)
        command = [str(BIN / "ray"), "start", f"--address={self.nodes.address}", "--num-cpus=1"]
        with subprocess.Popen([*command, "--block"], start_new_session=True) as added:
            try:
                self.until_workers(2)
            finally:
                os.killpg(added.pid, signal.SIGKILL)
        self.until_workers(1)

    def until_workers(self, count):
        """Waits until so many workers share some of the next steps."""
        seen = len(self.steps())
        deadline = time.monotonic() + WAIT_S
        while [world for _, world in self.steps()[seen:]].count(count) < 8:
            assert time.monotonic() < deadline, (count, self.steps()[-3:])
            time.sleep(0.05)  # polls for a condition, with a deadline

    def steps(self):
        file = self.notes / "steps"
        if not file.exists():
            return []
        return [tuple(map(int, line.split())) for line in file.read_text().splitlines()]

    def drain(self, node):
        """Announces that a node will be removed, as a cloud does."""
        accepted, why = ray._private.worker.global_worker.gcs_client.drain_node(
            node.node_id,
            autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            "a spot machine is wanted back",
            int((time.time() + WAIT_S) * 1000),
        )
        assert accepted, why


def test_a_run_that_loses_and_gains_workers_has_the_losses_of_an_uninterrupted_one(
    cluster, decoder, tmp_path
):
    phase = settings(STEPS, learning_rate=1e-4)
    task = TrainingTask(
        functools.partial(start, decoder, dropout=0.0),
        functools.partial(recorded_batches, tmp_path),
        Contrastive(temperature=0.05), phase, seed=5,
    )  # fmt: skip
    # Three workers cannot share a batch of eight evenly.
    scale = TrainingWorkers(
        workers=ElasticWorkers(min=1, max=4, poll_interval_s=1.0),
        micro_batch_tokens=64,
        checkpoint_every=EVERY,
    )
    node_changes = NodeChanges(cluster, tmp_path)
    store = Store(str(tmp_path / "runs"))
    with store.draft("teacher", "small", "0") as draft:
        fit(task, scale, Tracking(), draft)
        folder = draft.publish({}).path
    node_changes.thread.join()
    assert node_changes.error is None, node_changes.error
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, STEPS + 1)]
    losses = uninterrupted(decoder, phase)
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-3)
    steps_by_attempt = [
        sum(bool(event.summary.value) for event in events(file.read_bytes()))
        for file in sorted((tmp_path / "runs" / ".logs" / "teacher-small-0").iterdir())
    ]
    # A node removed with notice repeats no step. After growth or the death of a node, the steps
    # since the last checkpoint are repeated; one checkpoint may have been on its way.
    assert sum(steps_by_attempt) - STEPS <= 2 * (2 * EVERY), steps_by_attempt

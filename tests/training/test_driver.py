"""Training under Ray Train: evaluated, killed, resumed by fewer workers; keeps the best weights."""

import functools
import json
import math
import os
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import ray
from transformers import MPNetConfig, MPNetModel

from stillroom.config.scale import Tracking, TrainingWorkers
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.errors import UserError
from stillroom.evaluation.evaluate import evaluate_encoder
from stillroom.learning.engine.deepspeed_engine import DeepSpeedEngine
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.gather import current_shard
from stillroom.learning.loop import Callbacks, TrainOptions, train
from stillroom.learning.objectives.contrastive import Contrastive
from stillroom.storage.artifacts import Store
from stillroom.training import driver
from stillroom.training.checkpoints import Checkpoints
from stillroom.training.driver import fit
from stillroom.training.evaluation import Evaluator
from stillroom.training.task import TrainingTask
from stillroom.training.worker import trains_packed
from stillroom.training.worker_group import StopOnUserError
from support import shared_ray, tiny_training
from support.process_group import in_workers
from support.tensorboard_events import curves, events
from support.tiny_training import batches, settings, start, texts, uninterrupted

STEPS = 8


def evaluation_sets():
    """Two sets; none of their sizes is a multiple of the number of workers."""
    sets = {}
    for seed, name in enumerate(["one", "other"], start=1):
        passages = {f"p{i}": text for i, text in enumerate(texts(31 - seed, seed))}
        queries = {f"q{i}": " ".join(passages[f"p{i}"].split()[:3]) for i in range(9)}
        qrels = {f"q{i}": {f"p{i}": 1} for i in range(1, 9)}  # q0 is not judged
        sets[name] = EvaluationSet(passages, queries, qrels)
    return sets


# --- evaluation -----------------------------------------------------------------------------


def trained(folder, kind, *, evaluated):
    """Losses, the score of each evaluation, and `evaluate_encoder`'s score of the same weights."""
    encoder = start(folder).train()
    engine = TorchEngine(encoder, weight_decay=0.0, max_grad_norm=1.0)
    if kind == "zero-3":
        engine = DeepSpeedEngine(
            encoder, weight_decay=0.0, max_grad_norm=1.0, zero_stage=3, batch_per_worker=4
        )
    evaluator = Evaluator(encoder, engine, evaluation_sets(), micro_batch_tokens=64)
    scores, expected = [], []

    def record_scores(metrics):
        if "ndcg@10" in metrics:
            assert encoder.training
            scores.append(metrics["ndcg@10"])
            reference = start(folder)
            reference.load_state_dict(engine.trained_weights(), strict=False)
            evaluation = evaluate_encoder(reference, "teacher", evaluation_sets())
            set_scores = evaluation["scores"].values()
            expected.append(np.mean([set_score["ndcg@10"] for set_score in set_scores]))

    shard = current_shard()
    losses = train(
        engine, Contrastive(temperature=0.05), batches(encoder, shard),
        TrainOptions(
            steps=3, learning_rate=lambda step: 1e-2, seed=5, pad_id=encoder.pad_id,
            micro_batch_tokens=64, evaluate_every=2,
        ),
        Callbacks(
            on_start_score=record_scores,
            on_step=record_scores,
            evaluate=evaluator if evaluated else None,
        ),
    )  # fmt: skip
    return losses, scores, expected


def with_and_without(folder):
    return [
        [trained(folder, kind, evaluated=evaluated) for evaluated in (True, False)]
        for kind in ("torch", "zero-3")
    ]


def test_several_workers_score_as_one_process_and_evaluation_changes_no_loss(decoder):
    for results in in_workers(2, with_and_without, decoder):
        for (losses, scores, expected), without in results:
            assert len(scores) == 3, "before the first step, after step 2, and after the last"
            assert scores == pytest.approx(expected, abs=1e-9)
            assert len({*scores}) > 1, "the weights change between evaluations"
            assert (losses, [], []) == without


@pytest.mark.parametrize(
    ("start_step", "expected"),
    [
        (0, [0, "best", 1, 2, "best", 3, 4, "best"]),  # the encoder as it was is a candidate
        (1, [2, 3, "best", 4]),  # of a resumed run, it was evaluated before
    ],
)
def test_on_best_score_is_called_only_for_a_better_score(decoder, start_step, expected):
    scores = iter([0.4, 0.3, 0.5, 0.5, 0.6] if start_step == 0 else [0.3, 0.5, 0.5])
    calls = []
    encoder = start(decoder).train()
    train(
        TorchEngine(encoder, weight_decay=0.0, max_grad_norm=1.0), Contrastive(temperature=0.05),
        batches(encoder),
        TrainOptions(
            steps=4, learning_rate=lambda step: 1e-2, seed=5, pad_id=encoder.pad_id,
            micro_batch_tokens=999, evaluate_every=1,
        ),
        Callbacks(
            on_start_score=calls.append,
            on_step=calls.append,
            evaluate=lambda: next(scores),
            on_best_score=lambda: calls.append("best"),
        ),
        start_step=start_step,
        best_score=0.4 if start_step else -math.inf,
    )  # fmt: skip
    steps = [call if call == "best" else call["step"] for call in calls]
    assert steps == expected


# --- whole runs -----------------------------------------------------------------------------


class KillingBatches:
    """Batches that kill their process the first time that one of `steps` is read."""

    def __init__(self, batches, steps, traces):
        self.batches, self.steps, self.traces = batches, steps, traces

    def ids(self, step):
        return self.batches.ids(step)

    def __call__(self, step):
        trace = self.traces / str(step)
        if step in self.steps and not trace.exists():
            trace.touch()
            os._exit(1)
        return self.batches(step)


def killing_batches(traces, encoder, shard):
    pair_batches = batches(encoder, shard)
    # Batches are read two steps ahead, so it dies after three steps and after five.
    return KillingBatches(pair_batches, {5, 7}, traces) if shard.rank == 0 else pair_batches


@pytest.fixture(scope="module")
def cluster():
    """Starts Ray; yields the URL of its metrics."""
    # The workers cannot import the tests.
    for module in (sys.modules[__name__], tiny_training):
        ray.cloudpickle.register_pickle_by_value(module)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared_ray.stop()
    ray.init(
        "local",
        num_cpus=4,
        include_dashboard=False,
        logging_config=ray.LoggingConfig(log_level="ERROR"),
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 200},
    )
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


SETTINGS = settings(STEPS)


def run(folder, decoder, workers):
    """A training that evaluates every second step and may fail once."""
    task = TrainingTask(
        functools.partial(start, decoder, dropout=0.0), functools.partial(killing_batches, folder),
        Contrastive(temperature=0.05), SETTINGS, seed=5, evaluation_sets=evaluation_sets,
        evaluate_every=2,
    )  # fmt: skip
    scale = TrainingWorkers(
        workers=workers, micro_batch_tokens=64, checkpoint_every=2, max_failures=1
    )
    with Store(str(folder)).draft("teacher", "small", "0") as draft:
        metrics = fit(task, scale, Tracking(), draft)
        return metrics, draft.publish({}).path


@pytest.fixture(scope="module")
def killed(cluster, decoder, tmp_path_factory):
    """A run of two workers fails when one dies a second time; one worker then resumes it to its
    end."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(ray.train.WorkerGroupError):
        run(folder, decoder, workers=2)
    assert (folder / "5").exists() and (folder / "7").exists()
    return *run(folder, decoder, workers=1), folder


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.promise("resume")
def test_a_killed_run_resumed_by_fewer_workers_repeats_the_losses_of_an_uninterrupted_one(
    killed, decoder
):
    expected = uninterrupted(decoder, SETTINGS)
    rows = history(killed[1])
    assert [row["step"] for row in rows] == [*range(STEPS + 1)]
    assert rows[0].keys() == {"step", "steps", "ndcg@10"}, "the encoder before training"
    assert [row["loss"] for row in rows[1:]] == pytest.approx(expected, rel=1e-4)


def test_a_run_whose_forwards_have_no_padding_reports_none(killed):
    assert [row["padding"] for row in history(killed[1])[1:]] == [0.0] * STEPS


def test_a_run_keeps_its_best_weights(killed):
    metrics, folder, _ = killed
    scores = {row["step"]: row["ndcg@10"] for row in history(folder) if "ndcg@10" in row}
    assert [*scores] == [0, 2, 4, 6, 8]
    best = max(scores, key=scores.get)
    assert best < 6, "it is older than the checkpoint that the last worker resumed from"
    assert metrics["step"] == best and metrics["ndcg@10"] == scores[best]
    evaluation = evaluate_encoder(load_encoder(folder), "teacher", evaluation_sets())
    mean = np.mean([score["ndcg@10"] for score in evaluation["scores"].values()])
    assert mean == pytest.approx(scores[best], abs=1e-9)
    assert not (folder / "best.safetensors").exists()


def test_tensorboard_has_every_metric_of_every_step_once(killed):
    _, artifact, folder = killed
    logs = folder / ".logs" / "teacher-small-0"
    assert len([*logs.iterdir()]) == 3, "one file for each start"
    points_by_tag = curves(logs)
    rows = history(artifact)
    assert points_by_tag.keys() == {
        name.replace("@", "_at_") for row in rows for name in row if name not in ("step", "steps")
    }
    for name, points in points_by_tag.items():
        name = name.replace("_at_", "@")
        assert [step for step, _ in points] == [row["step"] for row in rows if name in row]
    for (_, value), row in zip(points_by_tag["loss"], rows[1:], strict=True):
        assert math.isclose(value, row["loss"], rel_tol=1e-6)


def test_ray_metrics_hold_a_run_s_metrics_and_progress(killed, cluster):
    rows = history(killed[1])
    names = {name.replace("@", "_at_") for row in rows for name in row} - {"steps"}
    names |= {"progress", "resumed_after"}
    deadline, values = time.monotonic() + 60, {}
    while {f"ray_stillroom_training_{name}" for name in names} != values.keys():
        assert time.monotonic() < deadline, values
        with urllib.request.urlopen(cluster, timeout=10) as response:
            for line in response.read().decode().splitlines():
                if 'run="teacher-small-0"' in line:
                    values.setdefault(line.split("{")[0], set()).add(float(line.split()[-1]))
    # Each worker that was rank 0 exports a value; a killed one may not have exported its last.
    assert values["ray_stillroom_training_step"] <= {row["step"] for row in rows}
    assert values["ray_stillroom_training_progress"] <= {row["step"] / STEPS for row in rows}
    losses = [row["loss"] for row in rows[1:]]
    for value in values["ray_stillroom_training_loss"]:
        assert any(math.isclose(value, loss, rel_tol=1e-4) for loss in losses)


# --- how it is computed ----------------------------------------------------------------------


def test_on_a_cpu_training_is_packed_where_the_architecture_allows_it(decoder):
    encoder = create_encoder(
        str(decoder), space="s", options=ContractOptions(attention="bidirectional", pooling="mean")
    )
    assert trains_packed(encoder, TrainingWorkers())
    assert not trains_packed(encoder, TrainingWorkers(packed=False))
    encoder.backbone = MPNetModel(
        MPNetConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    assert not trains_packed(encoder, TrainingWorkers())


# --- errors of the user ---------------------------------------------------------------------


def unreadable_batches(traces, encoder, shard):
    (traces / f"{shard.rank}-{os.getpid()}").touch()
    raise UserError("corpus, row 7", "is unreadable", "Mend it")


@pytest.mark.full
def test_a_user_s_error_ends_the_run_without_retries(cluster, decoder, tmp_path):
    task = TrainingTask(
        functools.partial(start, decoder), functools.partial(unreadable_batches, tmp_path),
        Contrastive(temperature=0.05), SETTINGS, seed=5,
    )  # fmt: skip
    store = Store(str(tmp_path / "runs"))
    with (
        store.draft("teacher", "small", "0") as draft,
        pytest.raises(UserError, match="corpus, row 7: is unreadable. Mend it."),
    ):
        fit(
            task,
            TrainingWorkers(workers=1, micro_batch_tokens=64, max_failures=3),
            Tracking(),
            draft,
        )
    assert len([*tmp_path.glob("?-*")]) == 1, "it started once"


# --- workers lost while training starts -----------------------------------------------------


class KillFirstWorker(StopOnUserError):
    """Kills the first worker of each of the first `times` groups just before training starts."""

    def __init__(self, traces, times):
        self.traces, self.times = traces, times

    def after_worker_group_start(self, worker_group):
        pid = worker_group.get_workers()[0].metadata.pid
        if len([*self.traces.iterdir()]) < self.times:
            (self.traces / str(pid)).touch()
            os.kill(pid, signal.SIGKILL)


@pytest.mark.full
@pytest.mark.promise("resume")
def test_a_run_that_loses_a_worker_while_it_starts_begins_again(
    cluster, decoder, tmp_path, monkeypatch
):
    task = TrainingTask(
        functools.partial(start, decoder, dropout=0.0), batches, Contrastive(temperature=0.05),
        settings(2), seed=5,
    )  # fmt: skip
    scale = TrainingWorkers(workers=2, micro_batch_tokens=64, max_failures=1)
    store, traces = Store(str(tmp_path / "runs")), tmp_path / "killed"
    traces.mkdir()
    # Twice is once too often.
    monkeypatch.setattr(driver, "StopOnUserError", lambda: KillFirstWorker(traces, times=3))
    with store.draft("teacher", "small", "0") as draft:
        with pytest.raises(ray.exceptions.RayActorError):
            fit(task, scale, Tracking(), draft)
        assert len([*traces.iterdir()]) == 2
        fit(task, scale, Tracking(), draft)
        assert len([*traces.iterdir()]) == 3
        rows = history(draft.path)
    assert [row["loss"] for row in rows] == pytest.approx(
        uninterrupted(decoder, settings(2)), rel=1e-4
    )


# --- stop signals ---------------------------------------------------------------------------


class SignallingBatches(KillingBatches):
    """Slow batches; at some steps a process gets SIGTERM, once."""

    def __call__(self, step):
        time.sleep(0.1)  # as long as a step of a large model
        trace = self.traces / str(step)
        if step in self.steps and not trace.exists():
            trace.touch()
            os.kill(self.steps[step] or os.getpid(), signal.SIGTERM)
        return self.batches(step)


def signalling_batches(traces, signals, encoder, shard):
    pair_batches = batches(encoder, shard)
    return SignallingBatches(pair_batches, signals, traces) if shard.rank == 1 else pair_batches


@pytest.mark.full
@pytest.mark.promise("resume")
# SIGTERM goes to the driver, or first to a worker, whose group then starts again.
@pytest.mark.parametrize("worker_too", [False, True])
def test_a_stopped_run_saves_a_checkpoint_and_repeats_no_step(
    worker_too, cluster, decoder, tmp_path
):
    steps = 36
    signals = {10: os.getpid()} | ({5: 0} if worker_too else {})
    task = TrainingTask(
        functools.partial(start, decoder, dropout=0.0),
        functools.partial(signalling_batches, tmp_path, signals),
        Contrastive(temperature=0.05), settings(steps), seed=5,
    )  # fmt: skip
    scale = TrainingWorkers(workers=2, micro_batch_tokens=64, checkpoint_every=1000, max_failures=0)
    store = Store(str(tmp_path / "runs"))
    with store.draft("teacher", "small", "0") as draft:
        checkpoints = Checkpoints(store, draft.checkpoint_folder)
        with pytest.raises(SystemExit) as stopped:
            fit(task, scale, Tracking(), draft)
        assert stopped.value.code == 128 + signal.SIGTERM
        assert 8 <= int(checkpoints.newest().split("-")[0]) < steps
        # Half of Ray's own snapshot, as if Ray had been killed while it wrote the file.
        snapshot = Path(checkpoints.base) / "checkpoint_manager_snapshot.json"
        snapshot.write_text('{"ray_version": "2.60.0", "checkpoint_res')
        fit(task, scale.model_copy(update={"workers": 1}), Tracking(), draft)
        folder = draft.publish({}).path
    rows = history(folder)
    assert [row["step"] for row in rows] == [*range(1, steps + 1)]
    losses = uninterrupted(decoder, settings(steps))
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-3)
    # No step was trained twice, however often the run started.
    recorded_steps = [
        event.step
        for file in (tmp_path / "runs" / ".logs" / "teacher-small-0").iterdir()
        for event in events(file.read_bytes())
        if event.summary.value
    ]
    assert sorted(recorded_steps) == [*range(1, steps + 1)]

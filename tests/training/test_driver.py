"""Training under Ray Train: evaluated, killed, resumed by fewer workers, and the best kept."""

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
from stillroom.training.checkpoints import Checkpoints
from stillroom.training.driver import fit
from stillroom.training.evaluation import Evaluator
from stillroom.training.task import TrainingTask
from stillroom.training.worker import trains_packed
from support import shared_ray
from support import tiny_training as learner
from support.process_group import in_workers
from support.tensorboard_events import curves, events
from support.tiny_training import batches, settings, start, texts, uninterrupted

STEPS = 8


def sets():
    """Two sets, none of whose sizes is a multiple of the workers'."""
    found = {}
    for seed, name in enumerate(["one", "other"], start=1):
        passages = {f"p{i}": text for i, text in enumerate(texts(31 - seed, seed))}
        queries = {f"q{i}": " ".join(passages[f"p{i}"].split()[:3]) for i in range(9)}
        qrels = {f"q{i}": {f"p{i}": 1} for i in range(1, 9)}  # q0 is not judged
        found[name] = EvaluationSet(passages, queries, qrels)
    return found


# --- evaluation -----------------------------------------------------------------------------


def trained(folder, kind, *, evaluated):
    """Losses, the score of each evaluation, and `evaluate_encoder`'s score of the same weights."""
    encoder = start(folder).train()
    engine = TorchEngine(encoder, weight_decay=0.0, max_grad_norm=1.0)
    if kind == "zero-3":
        engine = DeepSpeedEngine(
            encoder, weight_decay=0.0, max_grad_norm=1.0, zero_stage=3, batch_per_worker=4
        )
    evaluation = Evaluator(encoder, engine, sets(), micro_batch_tokens=64)
    scores, expected = [], []

    def report(figures):
        if "ndcg@10" in figures:
            assert encoder.training
            scores.append(figures["ndcg@10"])
            alone = start(folder)
            alone.load_state_dict(engine.trained_weights(), strict=False)
            found = evaluate_encoder(alone, "teacher", sets())["scores"].values()
            expected.append(np.mean([one["ndcg@10"] for one in found]))

    shard = current_shard()
    losses = train(
        engine, Contrastive(temperature=0.05), batches(encoder, shard),
        TrainOptions(
            steps=3, learning_rate=lambda step: 1e-2, seed=5, pad_id=encoder.pad_id,
            micro_batch_tokens=64, evaluate_every=2,
        ),
        Callbacks(on_step=report, evaluate=evaluation if evaluated else None),
    )  # fmt: skip
    return losses, scores, expected


def with_and_without(folder):
    return [
        [trained(folder, kind, evaluated=evaluated) for evaluated in (True, False)]
        for kind in ("torch", "zero-3")
    ]


def test_workers_together_score_as_one_process_and_losses_stay_the_same(decoder):
    for found in in_workers(2, with_and_without, decoder):
        for (losses, scores, expected), without in found:
            assert len(scores) == 2, "after step 2, and the last"
            assert scores == pytest.approx(expected, abs=1e-9)
            assert len({*scores}) > 1, "the scores of weights that move"
            assert (losses, [], []) == without


def test_on_best_score_is_called_only_for_a_better_score(decoder):
    scores = iter([0.3, 0.5, 0.5, 0.6])
    said = []
    encoder = start(decoder).train()
    train(
        TorchEngine(encoder, weight_decay=0.0, max_grad_norm=1.0), Contrastive(temperature=0.05),
        batches(encoder),
        TrainOptions(
            steps=4, learning_rate=lambda step: 1e-2, seed=5, pad_id=encoder.pad_id,
            micro_batch_tokens=999, evaluate_every=1,
        ),
        Callbacks(
            on_step=said.append,
            evaluate=lambda: next(scores),
            on_best_score=lambda: said.append("best"),
        ),
        best_score=0.4,
    )  # fmt: skip
    steps = [one if one == "best" else one["step"] for one in said]
    assert steps == [1, 2, "best", 3, 4, "best"]


# --- the whole ------------------------------------------------------------------------------


class Dies:
    """Batches whose reader kills its process the first time that one of `steps` is asked for."""

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


def dying(traces, encoder, shard):
    made = batches(encoder, shard)
    # It is read two steps ahead: when three steps are done, and when five are.
    return Dies(made, {5, 7}, traces) if shard.rank == 0 else made


@pytest.fixture(scope="module")
def cluster():
    """Yields where its metrics are read."""
    # The workers cannot import a test.
    for module in (sys.modules[__name__], learner):
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
    """Evaluated every second step. What dies twice is forgiven once."""
    task = TrainingTask(
        functools.partial(start, decoder, dropout=0.0), functools.partial(dying, folder),
        Contrastive(temperature=0.05), SETTINGS, seed=5, evaluation_sets=sets, evaluate_every=2,
    )  # fmt: skip
    scale = TrainingWorkers(
        workers=workers, micro_batch_tokens=64, checkpoint_every=2, max_failures=1
    )
    with Store(str(folder)).draft("teacher", "small", "0") as draft:
        figures = fit(task, scale, Tracking(), draft)
        return figures, draft.publish({}).path


@pytest.fixture(scope="module")
def killed(cluster, decoder, tmp_path_factory):
    """Two workers, one of whom dies; they go on, one dies again and so does the run; begun again
    by one worker, it goes on to its end."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(ray.train.WorkerGroupError):
        run(folder, decoder, workers=2)
    assert (folder / "5").exists() and (folder / "7").exists()
    return *run(folder, decoder, workers=1), folder


def history(made):
    return [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.promise("resume")
def test_a_run_killed_and_resumed_by_fewer_workers_retraces_an_uninterrupted_one(killed, decoder):
    plain = uninterrupted(decoder, SETTINGS)
    figures = history(killed[1])
    assert [one["step"] for one in figures] == [*range(1, STEPS + 1)]
    assert [one["loss"] for one in figures] == pytest.approx(plain, rel=1e-4)


def test_a_run_whose_forwards_have_no_padding_reports_none(killed):
    assert [one["padding"] for one in history(killed[1])] == [0.0] * STEPS


def test_a_run_keeps_its_best_weights(killed):
    figures, made, _ = killed
    scores = {one["step"]: one["ndcg@10"] for one in history(made) if "ndcg@10" in one}
    assert [*scores] == [2, 4, 6, 8]
    best = max(scores, key=scores.get)
    assert best < 6, "it is older than the last checkpoint that was gone on from"
    assert figures["step"] == best and figures["ndcg@10"] == scores[best]
    found = evaluate_encoder(load_encoder(made), "teacher", sets())["scores"].values()
    assert np.mean([one["ndcg@10"] for one in found]) == pytest.approx(scores[best], abs=1e-9)
    assert not (made / "best.safetensors").exists()


def test_tensorboard_has_every_metric_of_every_step_once(killed):
    _, made, folder = killed
    logs = folder / ".logs" / "teacher-small-0"
    assert len([*logs.iterdir()]) == 3, "before the crashes and after them"
    drawn = curves(logs)
    kept = history(made)
    assert drawn.keys() == {
        name.replace("@", "_at_") for one in kept for name in one if name not in ("step", "steps")
    }
    for name, points in drawn.items():
        name = name.replace("_at_", "@")
        assert [step for step, _ in points] == [one["step"] for one in kept if name in one]
    for (_, value), one in zip(drawn["loss"], kept, strict=True):
        assert math.isclose(value, one["loss"], rel_tol=1e-6)


def test_ray_metrics_hold_a_run_s_metrics_and_progress(killed, cluster):
    kept = history(killed[1])
    names = {name.replace("@", "_at_") for one in kept for name in one} - {"steps"}
    names |= {"progress", "resumed_after"}
    deadline, shown = time.monotonic() + 60, {}
    while {f"ray_stillroom_training_{name}" for name in names} != shown.keys():
        assert time.monotonic() < deadline, shown
        with urllib.request.urlopen(cluster, timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if 'run="teacher-small-0"' in line:
                    shown.setdefault(line.split("{")[0], set()).add(float(line.split()[-1]))
    # One value of each worker that was the first, and who died may not have told its last.
    assert shown["ray_stillroom_training_step"] <= {one["step"] for one in kept}
    assert shown["ray_stillroom_training_progress"] <= {one["step"] / STEPS for one in kept}
    losses = [one["loss"] for one in kept]
    for loss in shown["ray_stillroom_training_loss"]:
        assert any(math.isclose(loss, one, rel_tol=1e-4) for one in losses)


# --- how it is computed ----------------------------------------------------------------------


def test_on_a_cpu_training_is_packed_where_the_architecture_allows_it(decoder):
    made = create_encoder(
        str(decoder), space="s", options=ContractOptions(attention="bidirectional", pooling="mean")
    )
    assert trains_packed(made, TrainingWorkers())
    assert not trains_packed(made, TrainingWorkers(packed=False))
    made.backbone = MPNetModel(
        MPNetConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    assert not trains_packed(made, TrainingWorkers())


# --- what the user must mend ----------------------------------------------------------------


def unreadable(traces, encoder, shard):
    (traces / f"{shard.rank}-{os.getpid()}").touch()
    raise UserError("corpus, row 7", "is unreadable", "Mend it")


def test_a_user_s_error_ends_the_run_without_retries(cluster, decoder, tmp_path):
    task = TrainingTask(
        functools.partial(start, decoder), functools.partial(unreadable, tmp_path),
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
    assert len([*tmp_path.glob("?-*")]) == 1, "it began once"


# --- told to stop ---------------------------------------------------------------------------


class Signals(Dies):
    """Batches that take a while, at some of which a process is asked to end, once."""

    def __call__(self, step):
        time.sleep(0.1)  # what a step of a large model takes
        trace = self.traces / str(step)
        if step in self.steps and not trace.exists():
            trace.touch()
            os.kill(self.steps[step] or os.getpid(), signal.SIGTERM)
        return self.batches(step)


def signalling(traces, signals, encoder, shard):
    made = batches(encoder, shard)
    return Signals(made, signals, traces) if shard.rank == 1 else made


@pytest.mark.promise("resume")
# Who is told: the driver, or first the worker itself, whose group then starts again.
@pytest.mark.parametrize("worker_too", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_stopped_run_saves_a_checkpoint_and_repeats_no_step(
    worker_too, cluster, decoder, tmp_path
):
    steps = 36
    signals = {10: os.getpid()} | ({5: 0} if worker_too else {})
    task = TrainingTask(
        functools.partial(start, decoder, dropout=0.0),
        functools.partial(signalling, tmp_path, signals),
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
        # Half of what Ray would keep of its own, had it been killed while it wrote it.
        snapshot = Path(checkpoints.base) / "checkpoint_manager_snapshot.json"
        snapshot.write_text('{"ray_version": "2.60.0", "checkpoint_res')
        fit(task, scale, Tracking(), draft)
        made = draft.publish({}).path
    figures = history(made)
    assert [one["step"] for one in figures] == [*range(1, steps + 1)]
    losses = uninterrupted(decoder, settings(steps))
    assert [one["loss"] for one in figures] == pytest.approx(losses, rel=1e-3)
    # However often it began, no step was made twice.
    drawn = [
        event.step
        for file in (tmp_path / "runs" / ".logs" / "teacher-small-0").iterdir()
        for event in events(file.read_bytes())
        if event.summary.value
    ]
    assert sorted(drawn) == [*range(1, steps + 1)]

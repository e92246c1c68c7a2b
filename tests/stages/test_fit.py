"""Training under Ray Train, two workers: evaluated, killed, resumed, and the best kept."""

import functools
import json
import math
import os
import sys

import numpy as np
import pytest
import ray

from events import curves
from stillroom.artifacts import Store
from stillroom.config import Contrastive as Settings
from stillroom.config import Tracking, Workers
from stillroom.encoders.store import create, load
from stillroom.learning.batches import Order, PairBatches, PairData
from stillroom.learning.engine import DeepSpeedEngine, TorchEngine
from stillroom.learning.gather import world
from stillroom.learning.loop import train
from stillroom.learning.objectives import Contrastive
from stillroom.measure.model import measure
from stillroom.stages.evaluation import Evaluation
from stillroom.stages.fit import Task, fit
from stillroom.text.formats import EvaluationSet
from workers import in_workers

STEPS = 8
WORDS = ["river", "stone", "cloud", "paper", "glass", "iron", "moss", "salt", "wind", "clay"]


def texts(n, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 12))) for _ in range(n)]


def sets():
    """Two sets, none of whose sizes is a multiple of the workers'."""
    found = {}
    for seed, name in enumerate(["one", "other"], start=1):
        passages = {f"p{i}": text for i, text in enumerate(texts(31 - seed, seed))}
        queries = {f"q{i}": " ".join(passages[f"p{i}"].split()[:3]) for i in range(9)}
        qrels = {f"q{i}": {f"p{i}": 1} for i in range(1, 9)}  # q0 is not judged
        found[name] = EvaluationSet(passages, queries, qrels)
    return found


def start(folder):
    lora = {"rank": 4, "alpha": 8, "dropout": 0.2, "targets": "all-linear"}
    return create(
        str(folder), space="s", attention="bidirectional", pooling="mean", precision="float32",
        prompts={"query": "find: ", "passage": ""}, lora=lora, seed=3,
    )  # fmt: skip


def batches(encoder, place):
    data = PairData(texts(24, 8), texts(24, 9), np.arange(24), np.zeros(24, int))
    return PairBatches(
        data, Order(data.source, seed=1, global_batch=8), encoder.prompter, hard_negatives=0,
        query_tokens=16, passage_tokens=16, **place,
    )  # fmt: skip


# --- evaluation -----------------------------------------------------------------------------


def trained(folder, kind, *, evaluated):
    """Losses, the score of each evaluation, and what `measure` says of the weights then."""
    encoder = start(folder).train()
    engine = TorchEngine(encoder, weight_decay=0.0, clip=1.0)
    if kind == "zero-3":
        engine = DeepSpeedEngine(
            encoder, weight_decay=0.0, clip=1.0, zero_stage=3, batch_per_worker=4
        )
    evaluation = Evaluation(encoder, engine, sets(), micro_tokens=64)
    scores, expected = [], []

    def report(figures):
        if "ndcg@10" in figures:
            assert encoder.training
            scores.append(figures["ndcg@10"])
            alone = start(folder)
            alone.load_state_dict(engine.trained(), strict=False)
            found = measure(alone, "teacher", sets())["scores"].values()
            expected.append(np.mean([one["ndcg@10"] for one in found]))

    rank, workers = world()
    losses = train(
        engine, Contrastive(temperature=0.05), batches(encoder, {"rank": rank, "world": workers}),
        steps=5, learning_rate=lambda step: 1e-2, seed=5, pad_id=encoder.pad_id, micro_tokens=64,
        report=report, checkpoint=lambda step: None, checkpoint_every=9,
        evaluate=evaluation if evaluated else None, evaluate_every=2,
    )  # fmt: skip
    return losses, scores, expected


def with_and_without(folder):
    return [
        [trained(folder, kind, evaluated=evaluated) for evaluated in (True, False)]
        for kind in ("torch", "zero-3")
    ]


def test_workers_together_measure_what_one_would_and_training_does_not_notice(decoder):
    for found in in_workers(2, with_and_without, decoder):
        for (losses, scores, expected), without in found:
            assert len(scores) == 3, "after steps 2 and 4, and the last"
            assert scores == pytest.approx(expected, abs=1e-9)
            assert len({*scores}) > 1, "the scores of weights that move"
            assert (losses, [], []) == without


def test_only_a_score_that_beats_the_best_is_said_to_improve(decoder):
    scores = iter([0.3, 0.5, 0.5, 0.6])
    said = []
    encoder = start(decoder).train()
    train(
        TorchEngine(encoder, weight_decay=0.0, clip=1.0), Contrastive(temperature=0.05),
        batches(encoder, {}), steps=4, learning_rate=lambda step: 1e-2, seed=5,
        pad_id=encoder.pad_id, micro_tokens=999, report=lambda figures: said.append(figures),
        checkpoint=lambda step: None, checkpoint_every=9, evaluate=lambda: next(scores),
        evaluate_every=1, improved=lambda: said.append("best"), best=0.4,
    )  # fmt: skip
    steps = [one if one == "best" else one["step"] for one in said]
    assert steps == [1, 2, "best", 3, 4, "best"]


# --- the whole ------------------------------------------------------------------------------


class DiesOnce:
    """Batches whose reader kills its process, the first time that a step's batch is asked for."""

    def __init__(self, batches, step, trace):
        self.batches, self.step, self.trace = batches, step, trace

    def ids(self, step):
        return self.batches.ids(step)

    def __call__(self, step):
        if step == self.step and not self.trace.exists():
            self.trace.touch()
            os._exit(1)
        return self.batches(step)


def dying(trace, encoder, place):
    made = batches(encoder, place)
    # It is read two steps ahead: when steps 1 to 5 are done, and checkpoints 2 and 4 written.
    return DiesOnce(made, 7, trace) if place["rank"] == 0 else made


@pytest.fixture(scope="module")
def cluster():
    # The workers cannot import a test.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(
        num_cpus=4, include_dashboard=False, logging_config=ray.LoggingConfig(log_level="ERROR")
    )
    yield
    ray.shutdown()


def run(folder, decoder, *, batches, **more):
    settings = Settings(
        objective="contrastive", steps=STEPS, global_batch=8, learning_rate=0.02,
        schedule="constant", query_tokens=16, passage_tokens=16,
    )  # fmt: skip
    task = Task(
        functools.partial(start, decoder), batches, Contrastive(temperature=0.05), settings,
        seed=5, **more,
    )  # fmt: skip
    scale = Workers(workers=2, cpus=1, micro_tokens=64, checkpoint_every=2)
    store = Store(str(folder))
    with store.draft("teacher", "small", "0") as draft:
        figures = fit(task, scale, Tracking(), draft)
        return figures, draft.publish({}).path


@pytest.fixture(scope="module")
def killed(cluster, decoder, tmp_path_factory):
    """Evaluated every second step, and killed once."""
    folder = tmp_path_factory.mktemp("killed")
    reads = functools.partial(dying, folder / "trace")
    figures, made = run(folder, decoder, batches=reads, sets=sets, evaluate_every=2)
    assert (folder / "trace").exists()
    return figures, made, folder


def history(made):
    return [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]


def test_a_killed_and_evaluated_run_retraces_a_plain_one(killed, decoder, tmp_path):
    _, made = run(tmp_path, decoder, batches=batches)
    plain, evaluated = history(made), history(killed[1])
    assert [one["step"] for one in plain] == [*range(1, STEPS + 1)]
    assert [one["step"] for one in evaluated] == [*range(1, STEPS + 1)]
    expected = [one["loss"] for one in plain]
    assert [one["loss"] for one in evaluated] == pytest.approx(expected, rel=1e-6)
    assert not any("ndcg@10" in one for one in plain)


def test_the_best_weights_are_what_a_run_leaves(killed):
    figures, made, _ = killed
    scores = {one["step"]: one["ndcg@10"] for one in history(made) if "ndcg@10" in one}
    assert [*scores] == [2, 4, 6, 8]
    best = max(scores, key=scores.get)
    assert best < 6, "the crash came after it"
    assert figures["step"] == best and figures["ndcg@10"] == scores[best]
    found = measure(load(made), "teacher", sets())["scores"].values()
    assert np.mean([one["ndcg@10"] for one in found]) == pytest.approx(scores[best], abs=1e-9)
    assert not (made / "best.safetensors").exists()


def test_tensorboard_draws_every_figure_of_every_step_once(killed):
    _, made, folder = killed
    logs = folder / ".logs" / "teacher-small-0"
    assert len([*logs.iterdir()]) == 2, "before the crash and after it"
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

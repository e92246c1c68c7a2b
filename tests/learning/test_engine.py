"""However many workers, and whatever engine: the same updates as one process makes alone."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.encoders.store import create
from stillroom.learning.batches import Order, PairBatches, PairData
from stillroom.learning.engine import DeepSpeedEngine, TorchEngine
from stillroom.learning.gather import world
from stillroom.learning.loop import NonFiniteLoss, schedule, train
from stillroom.learning.objectives import Contrastive, Distillation
from workers import in_workers

STEPS = 4
BATCH = 8
OBJECTIVES = {
    "contrastive": Contrastive(temperature=0.05),
    "distillation": Distillation(
        vector=1.0, scores=0.5, contrastive=1.0, temperature=0.05, teacher_temperature=0.1
    ),
}


def data(dims: int) -> PairData:
    rng = np.random.default_rng(0)
    words = ["river", "stone", "cloud", "paper", "glass", "iron", "moss", "salt", "wind", "clay"]

    def texts(n: int) -> list[str]:
        return [" ".join(rng.choice(words, size=rng.integers(3, 9))) for _ in range(n)]

    def vectors(n: int) -> np.ndarray:
        drawn = rng.normal(size=(n, dims))
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)

    return PairData(
        queries=texts(24),
        passages=texts(30),
        # Pairs 0 and 1 share a passage: wherever they land, neither is the other's negative.
        positive=np.concatenate([[0], np.arange(23)]),
        source=np.zeros(24, dtype=int),
        negatives=rng.integers(23, 30, size=(24, 3)),
        teacher_queries=vectors(24),
        teacher_passages=vectors(30),
    )


def trained(
    folder: Path,
    objective: str,
    engine: str,
    keep: Path | None = None,
    start: int = 0,
    dropout: float = 0.0,
    stop: int = STEPS,
    micro: int = 10**6,
    cached: bool = False,
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and trained weights of a few steps; saves into `keep` after step 2."""
    encoder = create(
        str(folder),
        space="s",
        attention="bidirectional",
        pooling="mean",
        precision="float32",
        prompts={"query": "find: ", "passage": ""},
        lora={"rank": 4, "alpha": 8, "dropout": dropout, "targets": "all-linear"},
        seed=3,
    )
    encoder.train()
    rank, workers = world()
    pairs = data(64)
    batches = PairBatches(
        pairs, Order(pairs.source, seed=1, global_batch=BATCH), encoder.prompter,
        hard_negatives=1, query_tokens=16, passage_tokens=16, rank=rank, world=workers,
    )  # fmt: skip
    made: TorchEngine | DeepSpeedEngine
    if engine == "torch":
        made = TorchEngine(encoder, weight_decay=0.01, clip=1.0)
    else:
        made = DeepSpeedEngine(
            encoder, weight_decay=0.01, clip=1.0, zero_stage=int(engine[-1]),
            batch_per_worker=BATCH // workers,
        )  # fmt: skip
    if start:
        assert keep is not None
        assert made.load(keep)["step"] == start
    losses = train(
        made, OBJECTIVES[objective], batches, steps=stop,
        learning_rate=functools.partial(schedule, steps=STEPS, warmup=1, peak=1e-2),
        seed=5, pad_id=encoder.pad_id, micro_tokens=micro, gradcache=cached, start=start, report=lambda figures: None,
        checkpoint=lambda step: None if keep is None else made.save(keep, {"step": step}),
        checkpoint_every=2,
    )  # fmt: skip
    return losses, made.trained()


@pytest.fixture(scope="module", params=OBJECTIVES)
def alone(request, decoder):
    return request.param, trained(decoder, request.param, "torch")


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_take_the_steps_that_one_takes_alone(workers, alone, decoder):
    objective, (losses, weights) = alone
    for theirs, their_weights in in_workers(workers, trained, decoder, objective, "torch"):
        torch.testing.assert_close(theirs, losses, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(their_weights, weights, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_deepspeed_takes_the_steps_of_plain_torch(zero, decoder):
    losses, weights = trained(decoder, "contrastive", "torch")
    for theirs, their_weights in in_workers(2, trained, decoder, "contrastive", f"zero-{zero}"):
        torch.testing.assert_close(theirs, losses, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(their_weights, weights, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("engine", ["torch", "zero-2", "zero-3"])
def test_a_resumed_run_retraces_the_uninterrupted_one(engine, decoder, tmp_path):
    [(whole, weights), _] = in_workers(2, trained, decoder, "contrastive", engine, tmp_path, 0, 0.2)
    [(rest, resumed), _] = in_workers(2, trained, decoder, "contrastive", engine, tmp_path, 2, 0.2)
    torch.testing.assert_close(rest, whole[2:], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(resumed, weights, atol=1e-6, rtol=1e-6)


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(decoder):
    encoder = create(str(decoder), space="s", pooling="mean", precision="float32")
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    pairs = data(64)
    batches = PairBatches(
        pairs, Order(pairs.source, seed=1, global_batch=BATCH), encoder.prompter,
        hard_negatives=0, query_tokens=16, passage_tokens=16,
    )  # fmt: skip

    def broken(forwards, batch):
        return forwards.vectors(batch.queries).sum() * float("nan"), {}

    with pytest.raises(NonFiniteLoss, match="step 0") as caught:
        train(
            TorchEngine(encoder, weight_decay=0.0, clip=1.0), broken, batches, steps=3,
            learning_rate=lambda step: 1e-3, seed=0, pad_id=encoder.pad_id, micro_tokens=999, report=lambda figures: None,
            checkpoint=lambda step: None, checkpoint_every=10,
        )  # fmt: skip
    assert set(caught.value.args[2]) == set(batches.ids(0))
    after = dict(encoder.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_nothing():
    rates = [schedule(step, steps=10, warmup=4, peak=1.0) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[4] == 1.0
    assert 0 < rates[-1] < 0.2

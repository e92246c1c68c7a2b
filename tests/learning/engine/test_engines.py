"""However many workers, whatever engine, cached or not: the steps that one process takes alone."""

import functools
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from stillroom.encoders.files.create import create
from stillroom.learning.batches import (
    GenerationBatches,
    JointBatches,
    MaskedBatches,
    PairBatches,
    PairData,
    TaughtTextBatches,
    TextBatches,
)
from stillroom.learning.engine.checkpoint import KINDS, read, write
from stillroom.learning.engine.deepspeed_engine import DeepSpeedEngine
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.gather import world
from stillroom.learning.loop import NonFiniteLoss, schedule, train
from stillroom.learning.objectives import contrastive as objectives
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.objectives.token_prediction import Joint, Mntp
from stillroom.learning.order import Order
from support.process_group import in_workers

STEPS = 2
MICRO = 48  # tokens: several micro-batches of every kind, on two workers
BATCH = 8
ALL = objectives.Contrastive(
    temperature=0.05,
    query_query=True,
    passage_passage=True,
    false_negative_margin=0.1,
    dims={64: 1.0, 16: 0.5},
)
OBJECTIVES = {
    "contrastive": objectives.Contrastive(temperature=0.05),
    "contrastive with everything": ALL,
    "hard negatives alone": objectives.Contrastive(temperature=0.05, in_batch=False),
    "simcse": objectives.Simcse(temperature=0.05),
    "mntp": Mntp(),
    "joint": Joint(objectives.Contrastive(temperature=0.05), weight=0.5, mean_over="token"),
    "joint over samples": Joint(
        objectives.Contrastive(temperature=0.05), weight=0.5, mean_over="sample"
    ),
    "distillation": Distillation(
        vector=1.0,
        similarity=20.0,
        order=10.0,
        across=0.5,
        scores=0.5,
        margins=1.0,
        contrastive=1.0,
        temperature=0.05,
        teacher_temperature=0.1,
        false_negative_margin=0.05,
        dims={64: 1.0, 16: 0.5},
    ),
    "distillation on texts": Distillation(vector=1.0, similarity=20.0, order=10.0, across=0.5),
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
        source=np.arange(24) % 2,
        prompts=(None, None),
        symmetric=(False, True),
        negatives=rng.integers(23, 30, size=(24, 3)),
        teacher_queries=vectors(24),
        teacher_passages=vectors(30),
        drawable=np.arange(29),
    )


def batches_of(objective: object, encoder):
    rank, workers = world()
    pairs = data(64)
    share = {"rank": rank, "world": workers}
    order = Order(pairs.source, seed=1, global_batch=BATCH)
    of_pairs = PairBatches(
        pairs, order, encoder.prompter, hard_negatives=1, query_tokens=16, passage_tokens=16,
        drawn=5, **share,
    )  # fmt: skip
    texts = TextBatches(
        pairs.passages, Order(np.zeros(30, int), seed=1, global_batch=BATCH), encoder.prompter,
        tokens=16, **share,
    )  # fmt: skip
    generation = GenerationBatches(
        list(zip(pairs.queries, pairs.passages[:24], strict=True)),
        Order(np.zeros(24, int), seed=1, global_batch=4), encoder.prompter, tokens=24, **share,
    )  # fmt: skip
    if isinstance(objective, Mntp):
        return MaskedBatches(texts, mask_id=9, mask_share=0.3)
    if isinstance(objective, objectives.Simcse):
        return texts
    if isinstance(objective, Joint):
        return JointBatches(of_pairs, generation)
    if objective is OBJECTIVES["distillation on texts"]:
        return TaughtTextBatches(
            pairs, Order(np.zeros(54, int), seed=1, global_batch=BATCH), encoder.prompter,
            query_tokens=16, passage_tokens=16, drawn=5, **share,
        )  # fmt: skip
    return of_pairs


class Killed(Exception):
    pass


class Watched:
    """Batches that note what was asked for, and of which one kills the run."""

    def __init__(self, batches, seen, killed_at):
        self.batches, self.seen, self.killed_at = batches, seen, killed_at
        self.ids = batches.ids

    def __call__(self, step):
        if step == self.killed_at:
            raise Killed
        self.seen.append((step, [*self.ids(step)]))
        return self.batches(step)


def trained(
    folder: Path,
    objective: str,
    engine: str,
    *,
    micro: int = 10**6,
    cached: bool = False,
    lora: bool = True,
    projected: bool = False,
    dropout: float = 0.0,
    keep: Path | None = None,
    start: Path | None = None,
    steps: int = STEPS,
    seen: list | None = None,
    killed_at: int | None = None,
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, norms of gradients and trained weights of a few steps. Adam does not see a
    gradient's size, so the norms must be compared as well.

    Args:
        keep: where the checkpoint of step 2 is left, and what was gathered then.
        start: a checkpoint to go on from.
        seen: gets each step and its batch's ids.
    """
    predicts = objective.startswith(("mntp", "joint"))
    encoder = create(
        str(folder),
        space="s",
        attention="bidirectional",
        pooling="mean",
        precision="float32",
        prompts={"query": "find: ", "passage": ""},
        lora={"rank": 4, "alpha": 8, "dropout": dropout, "targets": ["q_proj", "down_proj"]}
        if lora
        else None,
        projection_dims=48 if projected else None,
        head=predicts,
        seed=3,
    )
    encoder.train()
    made = engine_of(encoder, engine)

    def checkpoint(step: int) -> None:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            made.save(keep, step)
            gathered = made.trained()
            if world()[0] == 0:
                save_file(gathered, keep / "gathered.safetensors")

    norms: list[float] = []
    batches = batches_of(OBJECTIVES[objective], encoder)
    losses = train(
        made, OBJECTIVES[objective], Watched(batches, [] if seen is None else seen, killed_at),
        steps=steps, learning_rate=functools.partial(schedule, steps=steps, warmup=1, peak=1e-2),
        seed=5, pad_id=encoder.pad_id, micro_tokens=micro, gradcache=cached,
        start=0 if start is None else made.load(start),
        report=lambda figures: norms.append(figures["gradient_norm"]),
        checkpoint=checkpoint, checkpoint_every=2,
    )  # fmt: skip
    return losses, norms, made.trained()


def engine_of(module: torch.nn.Module, engine: str) -> TorchEngine | DeepSpeedEngine:
    if engine == "torch":
        return TorchEngine(module, weight_decay=0.01, clip=1.0)
    stage, _, offload = engine.removeprefix("zero-").partition(" ")
    made = DeepSpeedEngine(
        module, weight_decay=0.01, clip=1.0, zero_stage=int(stage),
        batch_per_worker=BATCH // world()[1], offload=offload or "none",
    )  # fmt: skip
    assert bool(offload) == made.engine.zero_cpu_offload()
    assert (offload == "parameters") == bool(made.engine.zero_offload_param())
    return made


def all_trained(folder: Path, engine: str, **how: object) -> dict[str, object]:
    """`trained` for every objective, in one process group."""
    return {name: trained(folder, name, engine, **how) for name in OBJECTIVES}


def plain_and_cached(folder: Path, engine: str) -> list[dict[str, object]]:
    """The same in micro-batches, without and with GradCache."""
    return [all_trained(folder, engine, micro=MICRO, cached=cached) for cached in (False, True)]


Trained = tuple[list[float], list[float], dict[str, torch.Tensor]]


def same(found: Trained, expected: Trained, name: str = "") -> None:
    for of_step, expected_of_step in zip(found[:2], expected[:2], strict=True):
        assert of_step == pytest.approx(expected_of_step, rel=1e-4), name
    assert found[2].keys() == expected[2].keys()
    for weight, tensor in expected[2].items():
        # Of whole tensors: where a gradient is next to nothing, Adam makes much of its rounding.
        distance = torch.linalg.vector_norm(found[2][weight] - tensor)
        assert distance <= 1e-3 * torch.linalg.vector_norm(tensor), f"{name}: {weight}"


def all_same(found: dict[str, Trained], expected: dict[str, Trained]) -> None:
    for name in OBJECTIVES:
        same(found[name], expected[name], name)


@pytest.fixture(scope="module")
def alone(decoder):
    """What one process does with plain torch and whole batches, the obvious way."""
    return all_trained(decoder, "torch")


def test_micro_batches_take_the_steps_of_whole_ones(alone, decoder):
    for theirs in plain_and_cached(decoder, "torch"):
        all_same(theirs, alone)


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_together_take_the_steps_that_one_takes_alone(workers, alone, decoder):
    for of_worker in in_workers(workers, plain_and_cached, decoder, "torch"):
        for theirs in of_worker:
            all_same(theirs, alone)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_deepspeed_takes_the_steps_of_plain_torch(zero, alone, decoder):
    for of_worker in in_workers(2, plain_and_cached, decoder, f"zero-{zero}"):
        for theirs in of_worker:
            all_same(theirs, alone)


OFFLOADING = ["zero-1 optimizer", "zero-2 optimizer", "zero-3 optimizer", "zero-3 parameters"]


def all_offloaded(folder: Path, keep: Path) -> list[dict[str, Trained]]:
    """For every way of offloading, in one process group: adapters, their last step resumed, and
    every weight; with a projection and a head, which some of a step's backwards do not reach."""
    how = {"micro": MICRO, "cached": True, "projected": True}
    return [
        {
            "adapters": trained(folder, "joint", engine, steps=3, keep=keep / engine, **how),
            "resumed": trained(folder, "joint", engine, steps=3, start=keep / engine, **how),
            "everything": trained(folder, "joint", engine, lora=False, **how),
        }
        for engine in OFFLOADING
    ]


def test_offloading_takes_the_steps_of_plain_torch(decoder, tmp_path):
    adapters = trained(decoder, "joint", "torch", steps=3, projected=True)
    everything = trained(decoder, "joint", "torch", projected=True, lora=False)
    losses, norms, weights = adapters
    for theirs in in_workers(2, all_offloaded, decoder, tmp_path):
        for engine, found in zip(OFFLOADING, theirs, strict=True):
            same(found["adapters"], adapters, engine)
            same(found["resumed"], (losses[2:], norms[2:], weights), engine)
            same(found["everything"], everything, engine)


@pytest.mark.parametrize("engine", ["torch", "zero-3"])
def test_every_weight_is_trained_alike_by_one_and_by_two(engine, decoder):
    alone = trained(decoder, "joint", "torch", lora=False)
    how = {"micro": MICRO, "cached": True, "lora": False}
    assert any(name.startswith("head") for name in alone[2])
    for theirs in in_workers(2, trained, decoder, "joint", engine, **how):
        same(theirs, alone)


def of_a_large_table(rows: list[list[int]]) -> tuple[dict[str, torch.Tensor], int]:
    """A step on one worker's rows, or on the mean of all: the weights, and the bytes reduced."""
    torch.manual_seed(0)
    made = TorchEngine(
        torch.nn.Sequential(torch.nn.Embedding(1000, 4), torch.nn.Linear(4, 2)),
        weight_decay=0.01, clip=1.0,
    )  # fmt: skip
    rank, workers = world()
    mine = rows if workers == 1 else [rows[rank]]
    losses = [made.forward(torch.tensor(one)).square().sum() for one in mine]
    made.backward(sum(losses) / len(losses), last=True)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
        made.step(1e-2)
    return made.trained(), sum(call.args[0].nbytes for call in reduce.call_args_list)


def test_of_a_table_of_embeddings_workers_send_the_rows_that_their_texts_have():
    rows = [[3, 7, 7], [7, 999]]
    alone, _ = of_a_large_table(rows)
    for theirs, sent in in_workers(2, of_a_large_table, rows):
        torch.testing.assert_close(theirs, alone)
        assert sent == 1000 + 3 * 4 * 4 + (4 * 2 + 2) * 4  # which rows, these, and the layer


@pytest.mark.parametrize("objective", ["contrastive", "simcse"])
def test_dropout_is_replayed_in_the_second_pass(objective, decoder):
    how = {"dropout": 0.3, "micro": MICRO}
    once = trained(decoder, objective, "torch", **how)
    same(trained(decoder, objective, "torch", cached=True, **how), once)
    without = trained(decoder, objective, "torch", micro=MICRO)
    with pytest.raises(AssertionError):
        same(once, without)  # dropout does something here


# --- resumed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", ["contrastive with everything", "simcse", "mntp", "joint", "distillation"]
)
def test_a_killed_run_resumed_retraces_the_uninterrupted_one(objective, decoder, tmp_path):
    how = {"dropout": 0.2, "micro": MICRO, "cached": True, "steps": 5}
    seen, before, after = [], [], []
    losses, norms, weights = trained(decoder, objective, "torch", seen=seen, **how)
    with pytest.raises(Killed):
        trained(decoder, objective, "torch", keep=tmp_path, seen=before, killed_at=3, **how)
    resumed = trained(decoder, objective, "torch", start=tmp_path, seen=after, **how)
    assert (before, after) == (seen[:3], seen[2:])
    assert resumed[:2] == (losses[2:], norms[2:])
    assert all(torch.equal(resumed[2][name], tensor) for name, tensor in weights.items())


ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]
CHECKPOINTED = {"micro": MICRO, "cached": True, "projected": True, "steps": 3}


def all_checkpointed(folder: Path, keep: Path) -> None:
    for engine in ENGINES:
        trained(folder, "joint", engine, keep=keep / engine, **CHECKPOINTED)


def all_resumed(folder: Path, kept: Path) -> list[Trained]:
    """Each engine goes on from the checkpoint of the one before it."""
    return [
        trained(folder, "joint", engine, start=kept / ENGINES[i - 1], **CHECKPOINTED)
        for i, engine in enumerate(ENGINES)
    ]


@pytest.fixture(scope="module")
def checkpoints(decoder, tmp_path_factory):
    """Those of every engine with one worker and with two; and what plain torch did alone."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for workers in (1, 2):
        in_workers(workers, all_checkpointed, decoder, folder / str(workers))
    plain = trained(decoder, "joint", "torch", keep=folder / "plain", projected=True, steps=3)
    return folder, plain


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_holds_every_trained_tensor_whole(engine, workers, checkpoints, decoder):
    folder, (_, _, weights) = checkpoints
    step, saved = read(folder / str(workers) / engine)
    _, expected = read(folder / "plain")
    gathered = load_file(folder / str(workers) / engine / "gathered.safetensors")
    assert step == 2
    assert gathered.keys() == weights.keys()
    for name, weight in weights.items():
        assert weight.numel() > 0
        assert torch.equal(saved(f"weight.{name}"), gathered[name])
        for kind in KINDS:
            found, right = saved(f"{kind}.{name}"), expected(f"{kind}.{name}")
            assert found.shape == weight.shape and found.dtype == torch.float32
            distance = torch.linalg.vector_norm(found - right)
            assert distance <= 1e-3 * torch.linalg.vector_norm(right), f"{kind}.{name}"
    assert len([*(folder / str(workers) / engine).glob("trained-*")]) == workers


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_any_engine_goes_on_from_any_other_with_any_number_of_workers(
    before, after, checkpoints, decoder
):
    folder, (losses, norms, weights) = checkpoints
    for of_worker in in_workers(after, all_resumed, decoder, folder / str(before)):
        for engine, found in zip(ENGINES, of_worker, strict=True):
            same(found, (losses[2:], norms[2:], weights), engine)


def uneven(folder: Path, engine: str) -> list[dict[str, torch.Tensor]]:
    """Nine weights and three: after a checkpoint, and after a step more, without and with it."""

    def step(made: TorchEngine | DeepSpeedEngine) -> dict[str, torch.Tensor]:
        made.backward(made.forward(torch.eye(3)).square().sum(), last=True)
        made.step(1e-2)
        return made.trained()

    torch.manual_seed(0)
    made = engine_of(torch.nn.Linear(3, 3), engine)
    first = step(made)
    made.save(folder, 1)
    second = step(made)
    again = engine_of(torch.nn.Linear(3, 3), engine)
    assert again.load(folder) == 1
    return [first, again.trained(), second, step(again)]


@pytest.mark.parametrize("engine", ENGINES + OFFLOADING)
def test_tensors_that_two_workers_cannot_share_evenly_are_resumed(engine, tmp_path):
    for first, resumed, second, resumed_second in in_workers(2, uneven, tmp_path, engine):
        torch.testing.assert_close(resumed, first, atol=0, rtol=0)
        torch.testing.assert_close(resumed_second, second, atol=0, rtol=0)
        assert not second["weight"].equal(first["weight"])


def test_no_worker_keeps_more_than_a_part_of_a_checkpoint_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.learning.engine.checkpoint.FILE_BYTES", 100)
    tensors = {f"weight.{number}": torch.full((20,), float(number)) for number in range(4)}
    write(tmp_path, 7, iter(tensors.items()))
    assert [len(load_file(file)) for file in sorted(tmp_path.iterdir())] == [2, 2]
    step, saved = read(tmp_path)
    assert step == 7
    assert all(torch.equal(saved(name), tensor) for name, tensor in tensors.items())
    with pytest.raises(RuntimeError, match=r"lacks weight\.4"):
        saved("weight.4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="no checkpoint"):
        read(tmp_path / "empty")


def test_a_loss_that_is_no_number_stops_before_it_spoils_the_weights(decoder):
    encoder = create(str(decoder), space="s", pooling="mean", precision="float32")
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    batches = batches_of(None, encoder)

    def broken(forwards, batch):
        return forwards.vectors(batch.queries).sum() * float("nan"), {}

    with pytest.raises(NonFiniteLoss, match="step 0.*no checkpoint yet") as caught:
        train(
            TorchEngine(encoder, weight_decay=0.0, clip=1.0), broken, batches, steps=3,
            learning_rate=lambda step: 1e-3, seed=0, pad_id=encoder.pad_id, micro_tokens=999,
            report=lambda figures: None, checkpoint=lambda step: None, checkpoint_every=10,
        )  # fmt: skip
    assert set(caught.value.args[2]) == set(batches.ids(0))
    after = dict(encoder.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_nothing():
    for shape in ("linear", "cosine"):
        rates = [schedule(step, steps=10, warmup=4, peak=1.0, shape=shape) for step in range(10)]
        assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
        assert rates[4:] == sorted(rates[4:], reverse=True)
        assert rates[4] == 1.0
        assert 0 < rates[-1] < 0.2
    assert schedule(9, steps=10, warmup=4, peak=1.0, shape="constant") == 1.0

"""Every engine, number of workers and kind of micro-batch takes the steps of one plain process."""

import functools
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.learning.batches import (
    DistillationTextBatches,
    GenerationBatches,
    JointBatches,
    MaskedBatches,
    PairBatches,
    PairData,
    TextBatches,
)
from stillroom.learning.engine.checkpoint import TENSOR_KINDS, read_checkpoint, write_checkpoint
from stillroom.learning.engine.deepspeed_engine import DeepSpeedEngine
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.gather import current_shard
from stillroom.learning.loop import (
    Callbacks,
    NonFiniteLoss,
    TrainOptions,
    scheduled_learning_rate,
    train,
)
from stillroom.learning.objectives import contrastive as objectives
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.objectives.token_prediction import Joint, Mntp
from stillroom.learning.order import BatchOrder
from support.process_group import in_workers

STEPS = 2
MICRO = 48  # tokens: gives several micro-batches of every kind, on two workers
BATCH = 8
EVERYTHING = objectives.Contrastive(
    temperature=0.05,
    query_to_query=True,
    passage_to_passage=True,
    false_negative_margin=0.1,
    dims={64: 1.0, 16: 0.5},
)
OBJECTIVES = {
    "contrastive": objectives.Contrastive(temperature=0.05),
    "contrastive with everything": EVERYTHING,
    "hard negatives alone": objectives.Contrastive(temperature=0.05, in_batch_negatives=False),
    "simcse": objectives.Simcse(temperature=0.05),
    "mntp": Mntp(),
    "joint": Joint(objectives.Contrastive(temperature=0.05), weight=0.5, mean_over="token"),
    "joint over samples": Joint(
        objectives.Contrastive(temperature=0.05), weight=0.5, mean_over="sample"
    ),
    "distillation": Distillation(
        cosine=1.0,
        pairwise_mse=20.0,
        similarity_order=10.0,
        ranking_kl=0.5,
        score_kl=0.5,
        margin_mse=1.0,
        contrastive=1.0,
        temperature=0.05,
        teacher_temperature=0.1,
        false_negative_margin=0.05,
        dims={64: 1.0, 16: 0.5},
    ),
    "distillation on texts": Distillation(
        cosine=1.0, pairwise_mse=20.0, similarity_order=10.0, ranking_kl=0.5
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
        source=np.arange(24) % 2,
        prompts=(None, None),
        symmetric=(False, True),
        negatives=rng.integers(23, 30, size=(24, 3)),
        teacher_queries=vectors(24),
        teacher_passages=vectors(30),
        sampleable_rows=np.arange(29),
    )


def batches_of(objective: object, encoder):
    pairs = data(64)
    shard = current_shard()
    order = BatchOrder(pairs.source, seed=1, global_batch=BATCH)
    pair_batches = PairBatches(
        pairs, order, encoder.prompter, hard_negatives=1, query_tokens=16, passage_tokens=16,
        sampled_passages=5, shard=shard,
    )  # fmt: skip
    texts = TextBatches(
        pairs.passages, BatchOrder(np.zeros(30, int), seed=1, global_batch=BATCH), encoder.prompter,
        max_tokens=16, shard=shard,
    )  # fmt: skip
    generation = GenerationBatches(
        list(zip(pairs.queries, pairs.passages[:24], strict=True)),
        BatchOrder(np.zeros(24, int), seed=1, global_batch=4), encoder.prompter, max_tokens=24,
        shard=shard,
    )  # fmt: skip
    if isinstance(objective, Mntp):
        return MaskedBatches(texts, mask_id=9, mask_probability=0.3)
    if isinstance(objective, objectives.Simcse):
        return texts
    if isinstance(objective, Joint):
        return JointBatches(pair_batches, generation)
    if objective is OBJECTIVES["distillation on texts"]:
        return DistillationTextBatches(
            pairs, BatchOrder(np.zeros(54, int), seed=1, global_batch=BATCH), encoder.prompter,
            query_tokens=16, passage_tokens=16, sampled_passages=5, shard=shard,
        )  # fmt: skip
    return pair_batches


class Killed(Exception):
    pass


class RecordedBatches:
    """Batches that record the steps asked for, and kill the run at one of them."""

    def __init__(self, batches, seen, killed_at):
        self.batches, self.seen, self.killed_at = batches, seen, killed_at
        self.ids = batches.ids

    def __call__(self, step):
        if step == self.killed_at:
            raise Killed
        self.seen.append((step, [*self.ids(step)]))
        return self.batches(step)


def train_steps(
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
    encoder = create_encoder(
        str(folder),
        space="s",
        options=ContractOptions(
            attention="bidirectional",
            pooling="mean",
            precision="float32",
            prompts={"query": "find: ", "passage": ""},
        ),
        lora=LoraOptions(4, 8, dropout, target_modules=["q_proj", "down_proj"]) if lora else None,
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
            gathered = made.trained_weights()
            if current_shard().rank == 0:
                save_file(gathered, keep / "gathered.safetensors")

    norms: list[float] = []
    batches = batches_of(OBJECTIVES[objective], encoder)
    losses = train(
        made, OBJECTIVES[objective],
        RecordedBatches(batches, [] if seen is None else seen, killed_at),
        TrainOptions(
            steps=steps, seed=5, pad_id=encoder.pad_id, micro_batch_tokens=micro, gradcache=cached,
            learning_rate=functools.partial(
                scheduled_learning_rate, steps=steps, warmup=1, peak=1e-2
            ),
            checkpoint_every=2,
        ),
        Callbacks(
            on_step=lambda metrics: norms.append(metrics["gradient_norm"]),
            save_checkpoint=checkpoint,
        ),
        start_step=0 if start is None else made.load(start),
    )  # fmt: skip
    return losses, norms, made.trained_weights()


def engine_of(module: torch.nn.Module, engine: str) -> TorchEngine | DeepSpeedEngine:
    if engine == "torch":
        return TorchEngine(module, weight_decay=0.01, max_grad_norm=1.0)
    stage, _, offload = engine.removeprefix("zero-").partition(" ")
    made = DeepSpeedEngine(
        module, weight_decay=0.01, max_grad_norm=1.0, zero_stage=int(stage),
        batch_per_worker=BATCH // current_shard().world, offload=offload or "none",
    )  # fmt: skip
    assert bool(offload) == made.engine.zero_cpu_offload()
    assert (offload == "parameters") == bool(made.engine.zero_offload_param())
    return made


def train_every_objective(folder: Path, engine: str, **how: object) -> dict[str, object]:
    """`train_steps` for every objective, in one process group."""
    return {name: train_steps(folder, name, engine, **how) for name in OBJECTIVES}


def train_plain_and_cached(folder: Path, engine: str) -> list[dict[str, object]]:
    """The same in micro-batches, without and with GradCache."""
    return [
        train_every_objective(folder, engine, micro=MICRO, cached=cached)
        for cached in (False, True)
    ]


def plain_or_cached(folder: Path, engine: str, odd: int) -> list[dict[str, object]]:
    """Half of these: every other objective with GradCache, and the rest without. An engine and the
    next, with `odd` 0 and 1, have every pair of engine, objective and GradCache between them."""
    return [
        {
            name: train_steps(folder, name, engine, micro=MICRO, cached=(number + odd) % 2 == 1)
            for number, name in enumerate(OBJECTIVES)
        }
    ]


Training = tuple[list[float], list[float], dict[str, torch.Tensor]]


def assert_same(found: Training, expected: Training, name: str = "") -> None:
    for values, expected_values in zip(found[:2], expected[:2], strict=True):
        assert values == pytest.approx(expected_values, rel=1e-4), name
    assert found[2].keys() == expected[2].keys()
    for weight, tensor in expected[2].items():
        # Of whole tensors: where a gradient is next to nothing, Adam makes much of its rounding.
        distance = torch.linalg.vector_norm(found[2][weight] - tensor)
        assert distance <= 1e-3 * torch.linalg.vector_norm(tensor), f"{name}: {weight}"


def assert_all_same(found: dict[str, Training], expected: dict[str, Training]) -> None:
    for name in OBJECTIVES:
        assert_same(found[name], expected[name], name)


@pytest.fixture(scope="module")
def alone(decoder):
    """What one process does with plain torch and whole batches, the obvious way."""
    return train_every_objective(decoder, "torch")


@pytest.mark.promise("gradients")
def test_micro_batches_take_the_steps_of_whole_batches(alone, decoder):
    for trainings in train_plain_and_cached(decoder, "torch"):
        assert_all_same(trainings, alone)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.promise("gradients")
def test_several_workers_take_the_steps_of_one(workers, alone, decoder):
    for worker in in_workers(workers, plain_or_cached, decoder, "torch", odd=workers // 4):
        for trainings in worker:
            assert_all_same(trainings, alone)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.promise("gradients")
def test_deepspeed_takes_the_steps_of_plain_torch(zero, alone, decoder):
    for worker in in_workers(2, plain_or_cached, decoder, f"zero-{zero}", odd=zero % 2):
        for trainings in worker:
            assert_all_same(trainings, alone)


@pytest.mark.full
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("engine", ["torch", "zero-0", "zero-1", "zero-2", "zero-3"])
@pytest.mark.promise("gradients")
def test_any_number_of_workers_of_any_engine_takes_the_steps_of_one(
    workers, engine, alone, decoder
):
    for worker in in_workers(workers, train_plain_and_cached, decoder, engine):
        for trainings in worker:
            assert_all_same(trainings, alone)


OFFLOADING = ["zero-1 optimizer", "zero-2 optimizer", "zero-3 optimizer", "zero-3 parameters"]


def all_offloaded(folder: Path, keep: Path) -> list[dict[str, Training]]:
    """For every way of offloading, in one process group: adapters, their last step resumed, and
    every weight; with a projection and a head, which some of a step's backwards do not reach."""
    how = {"micro": MICRO, "cached": True, "projected": True}
    return [
        {
            "adapters": train_steps(folder, "joint", engine, steps=3, keep=keep / engine, **how),
            "resumed": train_steps(folder, "joint", engine, steps=3, start=keep / engine, **how),
            "everything": train_steps(folder, "joint", engine, lora=False, **how),
        }
        for engine in OFFLOADING
    ]


@pytest.mark.promise("gradients")
def test_offloading_takes_the_steps_of_plain_torch(decoder, tmp_path):
    adapters = train_steps(decoder, "joint", "torch", steps=3, projected=True)
    everything = train_steps(decoder, "joint", "torch", projected=True, lora=False)
    losses, norms, weights = adapters
    for worker in in_workers(2, all_offloaded, decoder, tmp_path):
        for engine, found in zip(OFFLOADING, worker, strict=True):
            assert_same(found["adapters"], adapters, engine)
            assert_same(found["resumed"], (losses[2:], norms[2:], weights), engine)
            assert_same(found["everything"], everything, engine)


@pytest.mark.parametrize("engine", ["torch", "zero-3"])
@pytest.mark.promise("gradients")
def test_full_training_takes_the_same_steps_with_one_and_two_workers(engine, decoder):
    alone = train_steps(decoder, "joint", "torch", lora=False)
    how = {"micro": MICRO, "cached": True, "lora": False}
    assert any(name.startswith("head") for name in alone[2])
    for training in in_workers(2, train_steps, decoder, "joint", engine, **how):
        assert_same(training, alone)


def step_of_a_large_embedding(rows: list[list[int]]) -> tuple[dict[str, torch.Tensor], int]:
    """A step on one worker's rows, or on the mean of all: the weights, and the bytes reduced."""
    torch.manual_seed(0)
    made = TorchEngine(
        torch.nn.Sequential(torch.nn.Embedding(1000, 4), torch.nn.Linear(4, 2)),
        weight_decay=0.01, max_grad_norm=1.0,
    )  # fmt: skip
    shard = current_shard()
    local_rows = rows if shard.world == 1 else [rows[shard.rank]]
    losses = [made.forward(torch.tensor(ids)).square().sum() for ids in local_rows]
    made.backward(sum(losses) / len(losses), last=True)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
        made.step(1e-2)
    return made.trained_weights(), sum(call.args[0].nbytes for call in reduce.call_args_list)


def test_workers_exchange_only_the_embedding_rows_that_their_texts_use():
    rows = [[3, 7, 7], [7, 999]]
    alone, _ = step_of_a_large_embedding(rows)
    for weights, sent_bytes in in_workers(2, step_of_a_large_embedding, rows):
        torch.testing.assert_close(weights, alone)
        assert sent_bytes == 1000 + 3 * 4 * 4 + (4 * 2 + 2) * 4  # which rows, these, and the layer


@pytest.mark.parametrize("objective", ["contrastive", "simcse"])
@pytest.mark.promise("gradients")
def test_gradcache_repeats_dropout_in_its_second_pass(objective, decoder):
    how = {"dropout": 0.3, "micro": MICRO}
    once = train_steps(decoder, objective, "torch", **how)
    assert_same(train_steps(decoder, objective, "torch", cached=True, **how), once)
    without = train_steps(decoder, objective, "torch", micro=MICRO)
    with pytest.raises(AssertionError):
        assert_same(once, without)  # dropout does something here


# --- resumed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", ["contrastive with everything", "simcse", "mntp", "joint", "distillation"]
)
@pytest.mark.promise("resume")
def test_a_killed_run_resumed_retraces_the_uninterrupted_one(objective, decoder, tmp_path):
    how = {"dropout": 0.2, "micro": MICRO, "cached": True, "steps": 5}
    seen, before, after = [], [], []
    losses, norms, weights = train_steps(decoder, objective, "torch", seen=seen, **how)
    with pytest.raises(Killed):
        train_steps(decoder, objective, "torch", keep=tmp_path, seen=before, killed_at=3, **how)
    resumed = train_steps(decoder, objective, "torch", start=tmp_path, seen=after, **how)
    assert (before, after) == (seen[:3], seen[2:])
    assert resumed[:2] == (losses[2:], norms[2:])
    assert all(torch.equal(resumed[2][name], tensor) for name, tensor in weights.items())


ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]
CHECKPOINTED = {"micro": MICRO, "cached": True, "projected": True, "steps": 3}


def all_checkpointed(folder: Path, keep: Path) -> None:
    for engine in ENGINES:
        train_steps(folder, "joint", engine, keep=keep / engine, **CHECKPOINTED)


def all_resumed(folder: Path, kept: Path) -> list[Training]:
    """Each engine goes on from the checkpoint of the one before it."""
    return [
        train_steps(folder, "joint", engine, start=kept / ENGINES[i - 1], **CHECKPOINTED)
        for i, engine in enumerate(ENGINES)
    ]


@pytest.fixture(scope="module")
def checkpoints(decoder, tmp_path_factory):
    """Those of every engine with one worker and with two; and what plain torch did alone."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for workers in (1, 2):
        in_workers(workers, all_checkpointed, decoder, folder / str(workers))
    plain = train_steps(decoder, "joint", "torch", keep=folder / "plain", projected=True, steps=3)
    return folder, plain


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_has_every_trained_tensor_whole(engine, workers, checkpoints, decoder):
    folder, (_, _, weights) = checkpoints
    step, saved = read_checkpoint(folder / str(workers) / engine)
    _, expected = read_checkpoint(folder / "plain")
    gathered = load_file(folder / str(workers) / engine / "gathered.safetensors")
    assert step == 2
    assert gathered.keys() == weights.keys()
    for name, weight in weights.items():
        assert weight.numel() > 0
        assert torch.equal(saved(f"weight.{name}"), gathered[name])
        for kind in TENSOR_KINDS:
            found, right = saved(f"{kind}.{name}"), expected(f"{kind}.{name}")
            assert found.shape == weight.shape and found.dtype == torch.float32
            distance = torch.linalg.vector_norm(found - right)
            assert distance <= 1e-3 * torch.linalg.vector_norm(right), f"{kind}.{name}"
    assert len([*(folder / str(workers) / engine).glob("trained-*")]) == workers


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.promise("resume")
def test_any_engine_resumes_from_any_other_with_any_number_of_workers(
    before, after, checkpoints, decoder
):
    folder, (losses, norms, weights) = checkpoints
    for worker in in_workers(after, all_resumed, decoder, folder / str(before)):
        for engine, found in zip(ENGINES, worker, strict=True):
            assert_same(found, (losses[2:], norms[2:], weights), engine)


def resume_uneven(folder: Path, engine: str) -> list[dict[str, torch.Tensor]]:
    """Nine weights and three: after a checkpoint, and after a step more, without and with it."""

    def step(made: TorchEngine | DeepSpeedEngine) -> dict[str, torch.Tensor]:
        made.backward(made.forward(torch.eye(3)).square().sum(), last=True)
        made.step(1e-2)
        return made.trained_weights()

    torch.manual_seed(0)
    made = engine_of(torch.nn.Linear(3, 3), engine)
    first = step(made)
    made.save(folder, 1)
    second = step(made)
    again = engine_of(torch.nn.Linear(3, 3), engine)
    assert again.load(folder) == 1
    return [first, again.trained_weights(), second, step(again)]


@pytest.mark.parametrize("engine", ENGINES + OFFLOADING)
def test_tensors_that_two_workers_cannot_split_evenly_are_resumed(engine, tmp_path):
    for first, resumed, second, resumed_second in in_workers(2, resume_uneven, tmp_path, engine):
        torch.testing.assert_close(resumed, first, atol=0, rtol=0)
        torch.testing.assert_close(resumed_second, second, atol=0, rtol=0)
        assert not second["weight"].equal(first["weight"])


def test_a_checkpoint_is_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("stillroom.learning.engine.checkpoint.FILE_BYTES", 100)
    tensors = {f"weight.{number}": torch.full((20,), float(number)) for number in range(4)}
    write_checkpoint(tmp_path, 7, iter(tensors.items()))
    assert [len(load_file(file)) for file in sorted(tmp_path.iterdir())] == [2, 2]
    step, saved = read_checkpoint(tmp_path)
    assert step == 7
    assert all(torch.equal(saved(name), tensor) for name, tensor in tensors.items())
    with pytest.raises(RuntimeError, match=r"lacks weight\.4"):
        saved("weight.4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match="no checkpoint"):
        read_checkpoint(tmp_path / "empty")


def test_a_loss_of_nan_stops_training_before_it_spoils_the_weights(decoder):
    encoder = create_encoder(
        str(decoder), space="s", options=ContractOptions(pooling="mean", precision="float32")
    )
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    batches = batches_of(None, encoder)

    def broken(runner, batch):
        return runner.embed(batch.queries).sum() * float("nan"), {}

    with pytest.raises(NonFiniteLoss, match="step 0.*no checkpoint yet") as caught:
        train(
            TorchEngine(encoder, weight_decay=0.0, max_grad_norm=1.0), broken, batches,
            TrainOptions(
                steps=3, learning_rate=lambda step: 1e-3, seed=0, pad_id=encoder.pad_id,
                micro_batch_tokens=999, checkpoint_every=10,
            ),
        )  # fmt: skip
    assert set(caught.value.args[2]) == set(batches.ids(0))
    after = dict(encoder.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_learning_rate_rises_during_warm_up_and_then_falls_to_zero():
    for shape in ("linear", "cosine"):
        rates = [
            scheduled_learning_rate(step, steps=10, warmup=4, peak=1.0, shape=shape)
            for step in range(10)
        ]
        assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
        assert rates[4:] == sorted(rates[4:], reverse=True)
        assert rates[4] == 1.0
        assert 0 < rates[-1] < 0.2
    assert scheduled_learning_rate(9, steps=10, warmup=4, peak=1.0, shape="constant") == 1.0

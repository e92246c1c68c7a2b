"""Every engine, number of workers and kind of micro-batch takes the same steps as one process."""

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
    RehearsalBatches,
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
from stillroom.learning.objectives.distillation import Distillation, Rehearsal
from stillroom.learning.objectives.token_prediction import Joint, Mntp
from stillroom.learning.order import BatchOrder
from stillroom.learning.source_runs import SourceRuns
from support.process_group import in_workers

STEPS = 2
MICRO_BATCH_TOKENS = 48  # so few that two workers have several micro-batches of every kind
BATCH = 8
CONTRASTIVE_WITH_EVERY_OPTION = objectives.Contrastive(
    temperature=0.05,
    query_to_query=True,
    passage_to_passage=True,
    false_negative_margin=0.1,
    dims={64: 1.0, 16: 0.5},
)
OBJECTIVES = {
    "contrastive": objectives.Contrastive(temperature=0.05),
    "contrastive with everything": CONTRASTIVE_WITH_EVERY_OPTION,
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
    "rehearsal": Rehearsal(
        Distillation(score_kl=1.0, temperature=0.05, teacher_temperature=0.1),
        Distillation(cosine=1.0, pairwise_mse=20.0),
        weight=4.0,
    ),
}


def pair_data(dims: int) -> PairData:
    rng = np.random.default_rng(0)
    words = ["river", "stone", "cloud", "paper", "glass", "iron", "moss", "salt", "wind", "clay"]

    def texts(n: int) -> list[str]:
        return [" ".join(rng.choice(words, size=rng.integers(3, 9))) for _ in range(n)]

    def vectors(n: int) -> np.ndarray:
        values = rng.normal(size=(n, dims))
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)

    return PairData(
        queries=texts(24),
        passages=texts(30),
        # Pairs 0 and 1 share a passage: wherever they land, neither is the other's negative.
        positive=np.concatenate([[0], np.arange(23)]),
        source=SourceRuns.of(np.arange(24) % 2),
        prompts=(None, None),
        symmetric=(False, True),
        negatives=rng.integers(23, 30, size=(24, 3)),
        teacher_queries=vectors(24),
        teacher_passages=vectors(30),
        sampleable_rows=np.arange(29),
    )


def create_batches(objective: object, encoder):
    pairs = pair_data(64)
    shard = current_shard()
    order = BatchOrder(pairs.source, seed=1, global_batch=BATCH)
    pair_batches = PairBatches(
        pairs, order, encoder.prompter, hard_negatives=1, query_tokens=16, passage_tokens=16,
        sampled_passages=5, shard=shard,
    )  # fmt: skip
    texts = TextBatches(
        pairs.passages, BatchOrder(SourceRuns.single(30), seed=1, global_batch=BATCH),
        encoder.prompter, max_tokens=16, shard=shard,
    )  # fmt: skip
    generation = GenerationBatches(
        list(zip(pairs.queries, pairs.passages[:24], strict=True)),
        BatchOrder(SourceRuns.single(24), seed=1, global_batch=4), encoder.prompter, max_tokens=24,
        shard=shard,
    )  # fmt: skip
    if isinstance(objective, Mntp):
        return MaskedBatches(texts, mask_id=9, mask_probability=0.3)
    if isinstance(objective, objectives.Simcse):
        return texts
    if isinstance(objective, Joint):
        return JointBatches(pair_batches, generation)
    distilled = DistillationTextBatches(
        pairs, BatchOrder(SourceRuns.single(54), seed=2, global_batch=BATCH), encoder.prompter,
        query_tokens=16, passage_tokens=16, sampled_passages=5, shard=shard,
    )  # fmt: skip
    if objective is OBJECTIVES["distillation on texts"]:
        return distilled
    if objective is OBJECTIVES["rehearsal"]:
        return RehearsalBatches(pair_batches, distilled)
    return pair_batches


class Killed(Exception):
    """Raised in place of a kill."""


class RecordedBatches:
    """Batches that record the requested steps, and raise `Killed` at one of them."""

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
    micro_batch_tokens: int = 10**6,
    gradcache: bool = False,
    lora: bool = True,
    projected: bool = False,
    dropout: float = 0.0,
    save_to: Path | None = None,
    resume_from: Path | None = None,
    steps: int = STEPS,
    seen: list | None = None,
    killed_at: int | None = None,
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Trains a few steps; returns losses, gradient norms and trained weights. Adam is invariant
    to a gradient's scale, so the norms must be compared as well.

    Args:
        save_to: folder for the checkpoint of step 2 and the weights gathered then.
        resume_from: folder of a checkpoint to resume.
        seen: receives each step and its batch's ids.
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
    training_engine = create_engine(encoder, engine)

    def checkpoint(step: int) -> None:
        if save_to is not None:
            save_to.mkdir(parents=True, exist_ok=True)
            training_engine.save(save_to, step)
            gathered = training_engine.trained_weights()
            if current_shard().rank == 0:
                save_file(gathered, save_to / "gathered.safetensors")

    norms: list[float] = []
    batches = create_batches(OBJECTIVES[objective], encoder)
    losses = train(
        training_engine, OBJECTIVES[objective],
        RecordedBatches(batches, [] if seen is None else seen, killed_at),
        TrainOptions(
            steps=steps, seed=5, pad_id=encoder.pad_id, micro_batch_tokens=micro_batch_tokens,
            gradcache=gradcache,
            learning_rate=functools.partial(
                scheduled_learning_rate, steps=steps, warmup=1, peak=1e-2
            ),
            checkpoint_every=2,
        ),
        Callbacks(
            on_step=lambda metrics: norms.append(metrics["gradient_norm"]),
            save_checkpoint=checkpoint,
        ),
        start_step=0 if resume_from is None else training_engine.load(resume_from),
    )  # fmt: skip
    return losses, norms, training_engine.trained_weights()


def create_engine(module: torch.nn.Module, engine: str) -> TorchEngine | DeepSpeedEngine:
    if engine == "torch":
        return TorchEngine(module, weight_decay=0.01, max_grad_norm=1.0)
    stage, _, offload = engine.removeprefix("zero-").partition(" ")
    deepspeed_engine = DeepSpeedEngine(
        module, weight_decay=0.01, max_grad_norm=1.0, zero_stage=int(stage),
        batch_per_worker=BATCH // current_shard().world, offload=offload or "none",
    )  # fmt: skip
    assert bool(offload) == deepspeed_engine.engine.zero_cpu_offload()
    assert (offload == "parameters") == bool(deepspeed_engine.engine.zero_offload_param())
    return deepspeed_engine


def train_every_objective(folder: Path, engine: str, **options: object) -> dict[str, object]:
    """`train_steps` for every objective, in one process group."""
    return {name: train_steps(folder, name, engine, **options) for name in OBJECTIVES}


def train_plain_and_cached(folder: Path, engine: str) -> list[dict[str, object]]:
    """`train_every_objective` in micro-batches, without and with GradCache."""
    return [
        train_every_objective(
            folder, engine, micro_batch_tokens=MICRO_BATCH_TOKENS, gradcache=cached
        )
        for cached in (False, True)
    ]


def train_half_plain_half_cached(folder: Path, engine: str, odd: int) -> list[dict[str, object]]:
    """Half of `train_plain_and_cached`: every other objective with GradCache, the rest without.
    Two engines with `odd` 0 and 1 together cover every objective with and without GradCache."""
    return [
        {
            name: train_steps(
                folder,
                name,
                engine,
                micro_batch_tokens=MICRO_BATCH_TOKENS,
                gradcache=(number + odd) % 2 == 1,
            )
            for number, name in enumerate(OBJECTIVES)
        }
    ]


Training = tuple[list[float], list[float], dict[str, torch.Tensor]]


def assert_same(result: Training, expected: Training, name: str = "") -> None:
    for values, expected_values in zip(result[:2], expected[:2], strict=True):
        assert values == pytest.approx(expected_values, rel=1e-4), name
    assert result[2].keys() == expected[2].keys()
    for weight, tensor in expected[2].items():
        # Compare whole tensors: Adam magnifies rounding where a gradient is almost zero.
        distance = torch.linalg.vector_norm(result[2][weight] - tensor)
        assert distance <= 1e-3 * torch.linalg.vector_norm(tensor), f"{name}: {weight}"


def assert_all_same(results: dict[str, Training], expected: dict[str, Training]) -> None:
    for name in OBJECTIVES:
        assert_same(results[name], expected[name], name)


@pytest.fixture(scope="module")
def reference(decoder):
    """Trainings by one process, with plain torch and whole batches."""
    return train_every_objective(decoder, "torch")


@pytest.mark.promise("gradients")
def test_micro_batches_take_the_same_steps_as_whole_batches(reference, decoder):
    for trainings in train_plain_and_cached(decoder, "torch"):
        assert_all_same(trainings, reference)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.promise("gradients")
def test_several_workers_take_the_same_steps_as_one(workers, reference, decoder):
    for worker in in_workers(
        workers, train_half_plain_half_cached, decoder, "torch", odd=workers // 4
    ):
        for trainings in worker:
            assert_all_same(trainings, reference)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.promise("gradients")
def test_deepspeed_takes_the_same_steps_as_plain_torch(zero, reference, decoder):
    for worker in in_workers(
        2, train_half_plain_half_cached, decoder, f"zero-{zero}", odd=zero % 2
    ):
        for trainings in worker:
            assert_all_same(trainings, reference)


@pytest.mark.full
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("engine", ["torch", "zero-0", "zero-1", "zero-2", "zero-3"])
@pytest.mark.promise("gradients")
def test_any_number_of_workers_of_any_engine_takes_the_same_steps_as_one(
    workers, engine, reference, decoder
):
    for worker in in_workers(workers, train_plain_and_cached, decoder, engine):
        for trainings in worker:
            assert_all_same(trainings, reference)


OFFLOADING = ["zero-1 optimizer", "zero-2 optimizer", "zero-3 optimizer", "zero-3 parameters"]


def train_with_every_offloading(folder: Path, checkpoint_root: Path) -> list[dict[str, Training]]:
    """For every way of offloading, in one process group: trains adapters, resumes their last step,
    and trains all weights. A projection and a head are there, which some of a step's backwards do
    not reach."""
    options = {"micro_batch_tokens": MICRO_BATCH_TOKENS, "gradcache": True, "projected": True}
    return [
        {
            "adapters": train_steps(
                folder, "joint", engine, steps=3, save_to=checkpoint_root / engine, **options
            ),
            "resumed": train_steps(
                folder, "joint", engine, steps=3, resume_from=checkpoint_root / engine, **options
            ),
            "all weights": train_steps(folder, "joint", engine, lora=False, **options),
        }
        for engine in OFFLOADING
    ]


@pytest.mark.full
@pytest.mark.promise("gradients")
def test_offloading_takes_the_same_steps_as_plain_torch(decoder, tmp_path):
    adapters = train_steps(decoder, "joint", "torch", steps=3, projected=True)
    all_weights = train_steps(decoder, "joint", "torch", projected=True, lora=False)
    losses, norms, weights = adapters
    for worker in in_workers(2, train_with_every_offloading, decoder, tmp_path):
        for engine, results in zip(OFFLOADING, worker, strict=True):
            assert_same(results["adapters"], adapters, engine)
            assert_same(results["resumed"], (losses[2:], norms[2:], weights), engine)
            assert_same(results["all weights"], all_weights, engine)


@pytest.mark.parametrize("engine", ["torch", "zero-3"])
@pytest.mark.promise("gradients")
def test_full_training_takes_the_same_steps_with_one_and_two_workers(engine, decoder):
    reference = train_steps(decoder, "joint", "torch", lora=False)
    options = {"micro_batch_tokens": MICRO_BATCH_TOKENS, "gradcache": True, "lora": False}
    assert any(name.startswith("head") for name in reference[2])
    for training in in_workers(2, train_steps, decoder, "joint", engine, **options):
        assert_same(training, reference)


def step_of_a_large_embedding(rows: list[list[int]]) -> tuple[dict[str, torch.Tensor], int]:
    """Takes a step on this worker's rows (alone: the mean of all rows); returns the weights and
    the bytes that were reduced."""
    torch.manual_seed(0)
    engine = TorchEngine(
        torch.nn.Sequential(torch.nn.Embedding(1000, 4), torch.nn.Linear(4, 2)),
        weight_decay=0.01, max_grad_norm=1.0,
    )  # fmt: skip
    shard = current_shard()
    local_rows = rows if shard.world == 1 else [rows[shard.rank]]
    losses = [engine.forward(torch.tensor(ids)).square().sum() for ids in local_rows]
    engine.backward(sum(losses) / len(losses), last=True)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce:
        engine.step(1e-2)
    return engine.trained_weights(), sum(call.args[0].nbytes for call in reduce.call_args_list)


def test_workers_exchange_only_the_embedding_rows_that_their_texts_use():
    rows = [[3, 7, 7], [7, 999]]
    expected, _ = step_of_a_large_embedding(rows)
    for weights, sent_bytes in in_workers(2, step_of_a_large_embedding, rows):
        torch.testing.assert_close(weights, expected)
        assert sent_bytes == 1000 + 3 * 4 * 4 + (4 * 2 + 2) * 4  # row flags, 3 rows, the layer


@pytest.mark.parametrize("objective", ["contrastive", "simcse"])
@pytest.mark.promise("gradients")
def test_gradcache_repeats_dropout_in_its_second_pass(objective, decoder):
    options = {"dropout": 0.3, "micro_batch_tokens": MICRO_BATCH_TOKENS}
    once = train_steps(decoder, objective, "torch", **options)
    assert_same(train_steps(decoder, objective, "torch", gradcache=True, **options), once)
    without = train_steps(decoder, objective, "torch", micro_batch_tokens=MICRO_BATCH_TOKENS)
    with pytest.raises(AssertionError):
        assert_same(once, without)  # dropout does something here


# --- resumed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", ["contrastive with everything", "simcse", "mntp", "joint", "distillation"]
)
@pytest.mark.promise("resume")
def test_a_killed_run_resumed_repeats_the_losses_of_an_uninterrupted_one(
    objective, decoder, tmp_path
):
    options = {
        "dropout": 0.2,
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        "gradcache": True,
        "steps": 5,
    }
    seen, before, after = [], [], []
    losses, norms, weights = train_steps(decoder, objective, "torch", seen=seen, **options)
    with pytest.raises(Killed):
        train_steps(
            decoder, objective, "torch", save_to=tmp_path, seen=before, killed_at=3, **options
        )
    resumed = train_steps(decoder, objective, "torch", resume_from=tmp_path, seen=after, **options)
    assert (before, after) == (seen[:3], seen[2:])
    assert resumed[:2] == (losses[2:], norms[2:])
    assert all(torch.equal(resumed[2][name], tensor) for name, tensor in weights.items())


ENGINES = ["torch", "zero-0", "zero-1", "zero-2", "zero-3"]
CHECKPOINTED = {
    "micro_batch_tokens": MICRO_BATCH_TOKENS,
    "gradcache": True,
    "projected": True,
    "steps": 3,
}


def checkpoint_every_engine(folder: Path, checkpoint_root: Path) -> None:
    for engine in ENGINES:
        train_steps(folder, "joint", engine, save_to=checkpoint_root / engine, **CHECKPOINTED)


def resume_every_engine(folder: Path, checkpoint_root: Path) -> list[Training]:
    """Each engine resumes the checkpoint of the previous one."""
    return [
        train_steps(
            folder, "joint", engine, resume_from=checkpoint_root / ENGINES[i - 1], **CHECKPOINTED
        )
        for i, engine in enumerate(ENGINES)
    ]


@pytest.fixture(scope="module")
def checkpoints(decoder, tmp_path_factory):
    """Checkpoints of every engine with one worker and with two, and plain torch's training."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for workers in (1, 2):
        in_workers(workers, checkpoint_every_engine, decoder, folder / str(workers))
    plain = train_steps(
        decoder, "joint", "torch", save_to=folder / "plain", projected=True, steps=3
    )
    return folder, plain


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_checkpoint_holds_every_trained_tensor_in_full(engine, workers, checkpoints, decoder):
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
            tensor, expected_tensor = saved(f"{kind}.{name}"), expected(f"{kind}.{name}")
            assert tensor.shape == weight.shape and tensor.dtype == torch.float32
            distance = torch.linalg.vector_norm(tensor - expected_tensor)
            assert distance <= 1e-3 * torch.linalg.vector_norm(expected_tensor), f"{kind}.{name}"
    assert len([*(folder / str(workers) / engine).glob("trained-*")]) == workers


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.promise("resume")
def test_any_engine_resumes_from_any_other_with_any_number_of_workers(
    before, after, checkpoints, decoder
):
    folder, (losses, norms, weights) = checkpoints
    for worker in in_workers(after, resume_every_engine, decoder, folder / str(before)):
        for engine, result in zip(ENGINES, worker, strict=True):
            assert_same(result, (losses[2:], norms[2:], weights), engine)


def train_and_resume_uneven_tensors(folder: Path, engine: str) -> list[dict[str, torch.Tensor]]:
    """Weights (nine and three values) at a checkpoint and one step later, of the engine that saved
    it and of one that resumed it: saved, resumed, saved later, resumed later."""

    def step(engine: TorchEngine | DeepSpeedEngine) -> dict[str, torch.Tensor]:
        engine.backward(engine.forward(torch.eye(3)).square().sum(), last=True)
        engine.step(1e-2)
        return engine.trained_weights()

    torch.manual_seed(0)
    training_engine = create_engine(torch.nn.Linear(3, 3), engine)
    first = step(training_engine)
    training_engine.save(folder, 1)
    second = step(training_engine)
    resumed_engine = create_engine(torch.nn.Linear(3, 3), engine)
    assert resumed_engine.load(folder) == 1
    return [first, resumed_engine.trained_weights(), second, step(resumed_engine)]


@pytest.mark.parametrize("engine", ENGINES + OFFLOADING)
def test_tensors_that_two_workers_cannot_split_evenly_are_resumed(engine, tmp_path):
    for first, resumed, second, resumed_second in in_workers(
        2, train_and_resume_uneven_tensors, tmp_path, engine
    ):
        torch.testing.assert_close(resumed, first, atol=0, rtol=0)
        torch.testing.assert_close(resumed_second, second, atol=0, rtol=0)
        assert not second["weight"].equal(first["weight"])


def compiled_extension() -> object:
    import deepspeed

    create_engine(torch.nn.Linear(3, 3), "zero-1")
    return deepspeed.comm.comm.cdb.shm_comm_op


def test_deepspeed_compiles_nothing_on_a_cpu():
    assert in_workers(2, compiled_extension) == [None, None]


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
    with pytest.raises(RuntimeError, match="is not one step's checkpoint"):
        read_checkpoint(tmp_path / "empty")


def test_a_loss_of_nan_stops_training_before_it_spoils_the_weights(decoder):
    encoder = create_encoder(
        str(decoder), space="s", options=ContractOptions(pooling="mean", precision="float32")
    )
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    batches = create_batches(None, encoder)

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

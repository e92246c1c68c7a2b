"""The small recipes of published methods: every phase trains a tiny model."""

from pathlib import Path

import numpy as np
import pytest

from stillroom.config.corpus import Corpus
from stillroom.config.load import read_recipe
from stillroom.config.phases import JointPhase, MntpPhase
from stillroom.config.scale import Scale
from stillroom.encoders.contract import Contract
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import merge_adapters, save_encoder
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.loop import TrainOptions, train
from stillroom.learning.order import WorkerShard
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.corpus.stage import corpus
from stillroom.stages.teacher import initial_encoder, objective_and_batches
from stillroom.storage.artifacts import Store

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
SMALL = sorted([*RECIPES.glob("*-smollm2.yaml"), RECIPES / "e5-minilm.yaml"])
LONG = ("nv-embed-v1-smollm2",)  # whose pooling and phases are also its successor's
STEPS = 24


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(str(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def pairs(store):
    """A corpus so small that a few steps memorise it."""
    section = Corpus.model_validate_json(
        '{"sources": {"environment": {"format": "docstrings", "packages": ["numpy"]}},'
        ' "max_pairs": 24, "held_out": {"queries": 4, "passages": 8}}'
    )
    with store.draft("corpus", "tiny", "0" * 12) as draft:
        corpus(section=section, seed=0, scale=Scale(), out=draft)
        return draft.publish({})


@pytest.fixture(scope="module")
def mined(store, pairs):
    """Negatives of each pair: the passages of two other pairs."""
    files = CorpusData.open(pairs)
    positive = files.positive_rows
    rows = np.stack([np.roll(positive, 1), np.roll(positive, 5)], axis=1)
    with store.draft("negatives", "tiny", "0" * 12) as draft:
        np.save(draft.path / "negatives.npy", rows)
        return draft.publish({})


def train_phase(section, phase, before, corpus, negatives, folder):
    """Trains one phase without Ray, saves its encoder into the folder, and returns its losses."""
    encoder = initial_encoder(section, phase, 0, folder.name, before).train()
    objective, batches = objective_and_batches(phase, corpus, negatives, 0)
    engine = TorchEngine(encoder, weight_decay=0.0, max_grad_norm=1.0)
    losses = train(
        engine, objective, batches(encoder, WorkerShard()),
        TrainOptions(
            steps=STEPS, learning_rate=lambda step: 1e-3, seed=0, pad_id=encoder.pad_id,
            micro_batch_tokens=1024, gradcache=True,
        ),
    )  # fmt: skip
    if phase.merge_adapter_first:
        untrained = initial_encoder(section, phase, 0, folder.name, before)
        save_encoder(merge_adapters(untrained, engine.trained_weights()), folder)
    else:
        save_encoder(encoder, folder)
    return losses


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[pytest.mark.full] if file.stem in LONG else []) for file in SMALL],
    ids=lambda file: file.stem,
)
def test_every_phase_of_a_small_recipe_learns(file, pairs, mined, decoder, encoder, tmp_path):
    base = encoder if file.stem == "e5-minilm" else decoder
    section = read_recipe(file, [f"teacher.base={base}"]).teacher
    pooling = section.pooling or "mean"  # the tiny BERT, a plain model, names none
    section = section.model_copy(update={"precision": "float32", "pooling": pooling})
    before = None
    for number, phase in enumerate(section.phases):
        # The tiny tokenizer splits the same words into more tokens.
        smaller = {"global_batch": 8, "query_tokens": 96, "passage_tokens": 96}
        smaller = {key: value for key, value in smaller.items() if hasattr(phase, key)}
        if getattr(phase, "matryoshka", None):
            smaller["matryoshka"] = {64: 1.0, 16: 1.0}
        if isinstance(phase, JointPhase):
            smaller["generation_batch"] = 4
        phase = phase.model_copy(update=smaller)
        after = tmp_path / f"phase{number}"
        losses = train_phase(section, phase, before, pairs, mined, after)
        # The loss falls, or is near zero if the phase before has memorised these pairs.
        assert np.median(losses[-4:]) < max(np.median(losses[:4]) - 0.03, 0.2), losses
        before = after
    contract = Contract.read(before)
    assert (contract.base, contract.pooling) == (str(base), pooling)
    vectors = load_encoder(before).encode(["one text", "another"], "query")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_merging_an_adapter_keeps_what_it_learned(pairs, decoder, tmp_path):
    section = read_recipe(RECIPES / "llm2vec-smollm2.yaml", [f"teacher.base={decoder}"]).teacher
    section = section.model_copy(update={"precision": "float32"})
    first, second = section.phases[0], section.phases[-1]
    assert isinstance(first, MntpPhase) and second.merge_adapter_first
    first = first.model_copy(update={"global_batch": 8})
    train_phase(section, first, None, pairs, None, tmp_path / "first")
    second_start = initial_encoder(section, second, 0, "s", tmp_path / "first")
    np.testing.assert_allclose(
        second_start.encode(["one text"], "passage"),
        load_encoder(tmp_path / "first").encode(["one text"], "passage"),
        atol=1e-5,
    )
    # The saved model is complete: it opens without the folder of the phase before.
    save_encoder(
        merge_adapters(initial_encoder(section, second, 0, "s", tmp_path / "first"), {}),
        tmp_path / "second",
    )
    (tmp_path / "first").rename(tmp_path / "moved")
    np.testing.assert_allclose(
        load_encoder(tmp_path / "second").encode(["one text"], "passage"),
        second_start.encode(["one text"], "passage"),
        atol=1e-5,
    )


def test_a_phase_starts_from_the_weights_of_the_one_before(pairs, mined, decoder, tmp_path):
    section = read_recipe(RECIPES / "nv-embed-v1-smollm2.yaml", [f"teacher.base={decoder}"]).teacher
    section = section.model_copy(update={"precision": "float32"})
    smaller = {"global_batch": 8, "query_tokens": 96}
    first = section.phases[0].model_copy(update=smaller)
    train_phase(section, first, None, pairs, mined, tmp_path / "first")
    second_start = initial_encoder(section, section.phases[1], 0, "s", tmp_path / "first").eval()
    first_end = load_encoder(tmp_path / "first", trainable=True).eval()
    for (name, weight), (_, expected) in zip(
        second_start.named_parameters(), first_end.named_parameters(), strict=True
    ):
        assert weight.equal(expected), name

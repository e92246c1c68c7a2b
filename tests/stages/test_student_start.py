"""The start of a student: counted layers, a fitted projection, and what is kept of both."""

import functools
import json

import numpy as np
import pytest
import torch

from stillroom.config.student import Student
from stillroom.encoders.contract import BaseContract
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.inputs import model_tokenizer
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.local_maps import LocalMaps
from stillroom.encoders.tokens.prune import count_tokens
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.student import initial_encoder, untrained_student
from stillroom.stages.student_start import (
    FitSample,
    StudentStart,
    all_texts,
    describe_start,
    fit_start,
    needs_start,
)
from stillroom.storage.columns import Ragged

TEXTS = {"data": "texts", "steps": 1, "global_batch": 8, "learning_rate": 1e-3}
PAIRS = {**TEXTS, "data": "pairs", "losses": {"score_kl": 1}}


class StoredCorpus:
    """A corpus of queries and passages in memory, with a teacher's vectors."""

    def __init__(self, teacher, skipped=()):
        queries = [f"about {i}" for i in range(90)]
        passages = [f"it is {i} and {i * i} " * (1 + i % 5) for i in range(150)]
        no_lengths = np.empty(0, dtype=np.int32)
        self.corpus_data = CorpusData(
            queries, no_lengths, np.arange(90), Ragged.of([[]] * 90), np.zeros(90, np.int16),
            passages, no_lengths, np.zeros(150, np.int16), ["own"], [None], [False], ["en"],
        )  # fmt: skip
        self.vectors = (
            Rows(teacher.encode(queries, "query"), skipped),
            Rows(teacher.encode(passages, "passage"), ()),
        )

    def rows(self, device):
        return self.vectors


class Rows:
    def __init__(self, vectors, skipped):
        self.vectors, self.skipped = vectors.copy(), skipped
        self.vectors[list(skipped)] = np.nan

    def __getitem__(self, rows):
        return self.vectors[rows]


@pytest.fixture(scope="module")
def teacher(decoder, tmp_path_factory):
    """(encoder, folder)"""
    options = ContractOptions(pooling="mean", precision="float32")
    encoder = create_encoder(str(decoder), space="t", options=options).eval()
    folder = tmp_path_factory.mktemp("start") / "teacher"
    save_encoder(encoder, folder)
    return encoder, folder


def section(base, phase=TEXTS, **fields):
    content = {"base": str(base), "pooling": "mean", "precision": "float32", "phases": [phase]}
    return Student.model_validate_json(json.dumps({**content, "space": "teacher", **fields}))


def start_of(settings, corpus, folder, **options):
    """The start, and the student of it."""
    initial = functools.partial(
        initial_encoder, settings, 0, "t", BaseContract.read(folder), corpus
    )
    start = fit_start(settings, settings.phases[0], 0, corpus, initial, **options)
    return start, initial(start).eval()


def test_a_number_of_layers_is_chosen_and_logged(encoder, teacher):
    settings = section(encoder, layers=1)
    start, student = start_of(settings, StoredCorpus(teacher[0]), teacher[1])
    assert start.layers in [(0,), (1,)]
    assert student.backbone.config.num_hidden_layers == 1
    assert set(start.figures["layer_scores"]) == {"0", "1"}
    first, *others = describe_start(start)
    assert first.startswith(f"keeps layers {start.layers[0]} of the base: of 2 subsets")
    assert any("the projection starts as" in line for line in others)
    assert start.summary()["layers"] == start.layers


def test_tokens_are_counted_once_and_give_the_vocabulary_of_a_count_in_each_process(
    encoder, teacher, tmp_path
):
    settings = section(encoder, PAIRS, space="own", vocabulary_size=400)
    corpus = StoredCorpus(teacher[0])
    start, student = start_of(settings, corpus, teacher[1])
    start.write(tmp_path)
    read = StudentStart.read(tmp_path)
    counted = count_tokens(model_tokenizer(str(encoder)), all_texts(corpus.corpus_data))
    np.testing.assert_array_equal(read.token_counts, counted)
    here = untrained_student(settings, corpus.corpus_data, StudentStart(), seed=0, space="s")
    assert student.tokenizer.get_vocab() == here.tokenizer.get_vocab()


def test_a_listed_layer_is_kept_without_a_search(encoder, teacher):
    settings = section(encoder, layers=[1])
    start, _ = start_of(settings, StoredCorpus(teacher[0]), teacher[1])
    assert start.layers == (1,)
    assert "layer_scores" not in start.figures


def test_fewer_layers_start_nearer_to_the_teacher_by_way_of_the_whole_base(
    encoder, teacher, tmp_path
):
    corpus, settings = StoredCorpus(teacher[0]), section(encoder, layers=[1])
    start, student = start_of(settings, corpus, teacher[1])
    start.write(tmp_path)
    initial = functools.partial(
        initial_encoder, settings, 0, "t", BaseContract.read(teacher[1]), corpus
    )
    base = initial(StudentStart.read(tmp_path).of_base()).eval()
    assert base.backbone.config.num_hidden_layers == 2
    assert isinstance(base.projection, LocalMaps)
    passages = corpus.corpus_data.passages
    by_base = base.encode(passages, "passage")
    by_teacher = teacher[0].encode(passages, "passage")
    assert (by_base * by_teacher).sum(1).mean() > 0.8
    assert (student.encode(passages, "passage") * by_base).sum(1).mean() > 0.9
    assert set(start.figures) == {"base_maps", "projection"}
    lines = list(describe_start(start))
    assert lines[0].startswith("the whole base has 1 maps into the teacher's space")
    assert any("of the base's nearest neighbours" in line for line in lines)


def test_a_whole_base_that_teaches_has_maps_and_the_student_starts_at_the_teacher(encoder, teacher):
    corpus = StoredCorpus(teacher[0])
    plain, _ = start_of(section(encoder), corpus, teacher[1])
    start, _ = start_of(section(encoder), corpus, teacher[1], base_teaches=True)
    assert plain.base_maps is None and start.base_maps is not None
    torch.testing.assert_close(start.weight, plain.weight, rtol=0, atol=0)
    assert any("of the teacher's nearest neighbours" in line for line in describe_start(start))


@pytest.mark.parametrize(("similarity", "map_name"), [
    (None, "procrustes, whitened 0.2"), ("dot", "procrustes"),
])  # fmt: skip
def test_states_are_whitened_in_part_where_lengths_do_not_count(
    encoder, teacher, similarity, map_name
):
    settings = section(encoder)
    contract = BaseContract.read(teacher[1])
    if similarity is not None:
        contract = contract.model_copy(update={"similarity": similarity, "normalise": False})
    corpus = StoredCorpus(teacher[0])
    initial = functools.partial(initial_encoder, settings, 0, "t", contract, corpus)
    start = fit_start(settings, settings.phases[0], 0, corpus, initial)
    assert start.figures["projection"]["map"] == map_name


@pytest.mark.parametrize("map_name", ["auto", "procrustes", "ridge"])
def test_the_start_is_near_the_teacher_s_vectors(encoder, teacher, map_name):
    corpus = StoredCorpus(teacher[0])
    settings = section(encoder, start={"map": map_name, "whitening": 0})
    start, student = start_of(settings, corpus, teacher[1])
    passages = corpus.corpus_data.passages
    vectors = teacher[0].encode(passages, "passage")
    cosines = (student.encode(passages, "passage") * vectors).sum(1)
    assert cosines.mean() > 0.8
    assert map_name == "auto" or start.figures["projection"]["map"].startswith(map_name)
    assert start.figures["projection"]["texts"] == 240
    np.testing.assert_array_equal(
        student.projection.linear.weight.detach().numpy(), start.weight.numpy()
    )


def test_a_start_is_read_back_as_it_was_written(encoder, teacher, tmp_path):
    start, _ = start_of(section(encoder, layers=1), StoredCorpus(teacher[0]), teacher[1])
    start.write(tmp_path)
    read = StudentStart.read(tmp_path)
    assert (read.layers, read.figures) == (start.layers, start.figures)
    torch.testing.assert_close(read.weight, start.weight, rtol=0, atol=0)
    assert StudentStart.read(tmp_path / "nowhere") is None


def test_texts_without_a_teacher_s_vector_are_left_out(encoder, teacher):
    corpus = StoredCorpus(teacher[0], skipped=(0, 7, 89))
    start, _ = start_of(section(encoder), corpus, teacher[1])
    assert torch.isfinite(start.weight).all()
    assert start.figures["projection"]["texts"] == 237


def test_a_limit_on_texts_is_shared_by_both_roles(encoder, teacher):
    corpus, settings = StoredCorpus(teacher[0]), section(encoder)
    student = create_encoder(
        str(encoder), space="s", options=ContractOptions(pooling="mean"), projection_dims=64
    )
    for limit, queries, passages in ((100, 50, 50), (200, 90, 110), (1000, 90, 150)):
        sample = FitSample(corpus, settings.phases[0], student, limit)
        assert [len(rows) for rows in sample.rows] == [queries, passages]
        assert len(sample.tokens) == queries + passages
    numbers = np.array([200, 3, 95, 0])  # in any order
    expected = [
        corpus.vectors[role].vectors[row] for role, row in ((1, 110), (0, 3), (1, 5), (0, 0))
    ]
    np.testing.assert_allclose(sample.vectors(numbers), expected, atol=1e-6)


def test_a_smaller_student_in_its_own_space_keeps_its_base_s_scores_best(encoder, teacher):
    corpus = StoredCorpus(teacher[0])
    settings = section(encoder, PAIRS, space="own", output_dims=8)
    start, student = start_of(settings, corpus, teacher[1])
    assert start.figures == {}
    texts = corpus.corpus_data.passages
    base = create_encoder(
        str(encoder), space="b", options=ContractOptions(pooling="mean", precision="float32")
    ).encode(texts, "passage")

    def error(encoder):
        vectors = encoder.encode(texts, "passage")
        return np.square(vectors @ vectors.T - base @ base.T).mean()

    fitted = error(student)
    for seed in range(5):
        torch.manual_seed(seed)
        torch.nn.init.orthogonal_(student.projection.linear.weight)
        assert fitted < error(student), "a random map"


def test_only_a_student_with_something_to_choose_has_a_start(encoder):
    own = functools.partial(section, encoder, PAIRS, space="own")
    assert not needs_start(own())
    assert not needs_start(own(layers=[0]))
    for fields in ({"layers": 1}, {"output_dims": 8}, {"vocabulary_size": 400}):
        assert needs_start(own(**fields))
    assert needs_start(section(encoder))

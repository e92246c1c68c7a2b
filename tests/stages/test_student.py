"""Training phases of a student, from stored and from online vectors of a tiny teacher."""

import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from stillroom.config.recipe import Vectors
from stillroom.config.scale import Scale
from stillroom.config.student import Student, rehearsed_phase
from stillroom.encoders.contract import BaseContract, Comparison, Contract, index_conflict
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.loop import TrainOptions, train
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.order import WorkerShard
from stillroom.stages import student as student_stage
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.student import (
    base_vectors,
    check_losses,
    initial_encoder,
    load_next_phase,
    student_comparison,
    untrained_student,
)
from stillroom.stages.student_start import StudentStart, fit_start
from stillroom.stages.training_batches import distillation_batches
from stillroom.stages.vectors.stage import vectors
from stillroom.stages.vectors.teacher_vectors import TeacherVectors, online_vectors, stored_vectors
from stillroom.storage.artifacts import Store
from stillroom.storage.column_writer import TableWriter
from stillroom.storage.columns import TextColumn
from support.run_stages import embedding_in_process, publish_corpus, publish_teacher

STEPS = 30
PROMPTS = {"query": "find: ", "passage": ""}


@pytest.fixture(scope="module")
def artifacts(decoder, tmp_path_factory):
    """(corpus, teacher, vectors): published artifacts."""
    folder = tmp_path_factory.mktemp("runs")
    store = Store(str(folder / "runs"))
    rows = [
        {"query": f"about {i}", "positive": f"it is {i} and {i * i} " * (i + 1)} for i in range(16)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "more.txt").write_text("".join(f"a passage of {i} words\n" for i in range(12)))
    files = {"pairs": [str(folder / "pairs.jsonl")], "passages": [str(folder / "more.txt")]}
    content = {
        "sources": {"own": {"format": "files", **files}},
        "held_out": {"queries": 2, "passages": 4},
    }
    texts = publish_corpus(store, "tiny", content)
    encoder = create_encoder(
        str(decoder),
        space="tiny-k",
        options=ContractOptions(pooling="mean", prompts=PROMPTS, precision="float32"),
    )
    encoder.contract = encoder.contract.model_copy(update={"dims": (64, 32)})
    teacher = publish_teacher(store, "tiny", encoder)
    with store.draft("vectors", "tiny", "k") as draft, embedding_in_process():
        scale = Scale()
        vectors(
            section=Vectors(shard_size=8), corpus=texts, teacher=teacher, scale=scale, out=draft
        )
        teacher_vectors = draft.publish({})
    return texts, teacher, teacher_vectors


def student_section(encoder, *phases, **fields):
    numbers = {"steps": STEPS, "global_batch": 8, "learning_rate": 1e-3}
    content = {
        "base": str(encoder),
        "pooling": "mean",
        "precision": "float32",
        "space": "teacher",
        # Vectors of random models are alike but for little, and whitening takes away what is alike.
        "start": {"map": "auto", "whitening": 0},
        "phases": [{**numbers, **phase} for phase in phases],
        **fields,
    }
    return Student.model_validate_json(json.dumps(content))


TEXTS = {"data": "texts", "query_tokens": 32, "passage_tokens": 48}
PAIRS = {"data": "pairs", "query_tokens": 32, "passage_tokens": 48, "hard_negatives": 0}


def train_phase(section, number, texts, teacher, vectors, folder=None, before=None):
    """Trains one phase without Ray, saves its encoder into the folder, and returns its losses."""
    phase = section.phases[number]

    def rows(files, device):
        if vectors is None:
            return online_vectors(files, load_encoder(teacher.path))
        return stored_vectors(files, teacher, vectors)

    teacher_vectors = TeacherVectors(texts, rows)
    if before is None:
        initial = functools.partial(
            initial_encoder, section, 0, "tiny-k", BaseContract.read(teacher.path), teacher_vectors
        )
        encoder = initial(fit_start(section, phase, 0, teacher_vectors, initial)).train()
    else:
        encoder = load_next_phase(section, before, "tiny")
    losses = train(
        TorchEngine(encoder, weight_decay=0.0, max_grad_norm=1.0),
        Distillation(
            **phase.losses.model_dump(),
            dims=section.matryoshka,
            normalise=encoder.contract.normalise,
            teacher_normalise=BaseContract.read(teacher.path).normalise,
        ),
        distillation_batches(teacher_vectors, None, phase, 0, encoder, WorkerShard()),
        TrainOptions(
            steps=STEPS, learning_rate=lambda step: 1e-3, seed=0, pad_id=encoder.pad_id,
            micro_batch_tokens=512,
        ),
    )  # fmt: skip
    if folder is not None:
        save_encoder(encoder, folder)
    return losses


def test_each_phase_starts_from_the_one_before_in_the_teacher_s_space(artifacts, encoder, tmp_path):
    section = student_section(
        encoder, TEXTS, {**PAIRS, "losses": {"cosine": 1, "score_kl": 1, "contrastive": 0}},
        matryoshka={32: 0.5, 16: 0.5},
    )  # fmt: skip
    first = train_phase(section, 0, *artifacts, folder=tmp_path / "first")
    assert np.mean(first[-5:]) < np.mean(first[:5]), first
    train_phase(section, 1, *artifacts, folder=tmp_path / "second", before=tmp_path / "first")
    contract = Contract.read(tmp_path / "second")
    assert contract.space == "tiny-k"
    assert contract.dims == (64, 32, 16)
    # Trained, its vectors are near the teacher's; untrained, they are not.
    texts = ["it is 9 and 81 it is 9 and 81", "a passage of 7 words"]
    teacher_vectors = load_encoder(artifacts[1].path).encode(texts, "passage")
    untrained = untrained_student(
        section,
        CorpusData.open(artifacts[0]),
        StudentStart(),
        seed=0,
        space="x",
        projection_dims=64,
    )
    cosines = [
        (student.encode(texts, "passage") * teacher_vectors).sum(1).min()
        for student in (
            untrained,
            load_encoder(tmp_path / "first"),
            load_encoder(tmp_path / "second"),
        )
    ]
    assert cosines[0] < 0.5 < 0.8 < min(cosines[1:]), cosines


@pytest.fixture(scope="module")
def dot_teacher(decoder, artifacts, tmp_path_factory):
    """A published teacher whose vectors have lengths from about 4 to 8, and dims (64, 32)."""
    store = Store(str(tmp_path_factory.mktemp("dot")))
    with store.draft("teacher", "dot", "k") as draft:
        options = ContractOptions(
            pooling="mean", prompts=PROMPTS, precision="float32", similarity="dot", dims=(64, 32)
        )
        save_encoder(create_encoder(str(decoder), space="tiny-k", options=options), draft.path)
        return draft.publish({})


def test_a_student_in_the_space_of_a_dot_teacher_learns_its_vectors_lengths(
    artifacts, dot_teacher, encoder, tmp_path
):
    losses = {"squared_l2": 1, "score_kl": 1, "contrastive": 0}
    section = student_section(
        encoder, {**TEXTS, "losses": {"squared_l2": 1}}, {**PAIRS, "losses": losses},
        matryoshka={64: 1.0, 32: 0.5},
    )  # fmt: skip
    train_phase(section, 0, artifacts[0], dot_teacher, None, folder=tmp_path / "first")
    train_phase(
        section, 1, artifacts[0], dot_teacher, None,
        folder=tmp_path / "second", before=tmp_path / "first",
    )  # fmt: skip
    contract = Contract.read(tmp_path / "second")
    assert (contract.similarity, contract.normalise) == ("dot", False)
    assert index_conflict(contract, BaseContract.read(dot_teacher.path)) is None
    texts = [f"it is {i} and {i * i} " * (i + 1) for i in range(9)]
    teacher, student = (
        load_encoder(folder).encode(texts, "passage")
        for folder in (dot_teacher.path, tmp_path / "second")
    )
    for size in (64, 32):  # a cut is a plain prefix
        error = np.linalg.norm(student[:, :size] - teacher[:, :size], axis=1)
        # A vector of unit length would miss these by more than eight tenths.
        assert error.mean() < 0.5 * np.linalg.norm(teacher[:, :size], axis=1).mean(), error
    assert np.linalg.norm(student, axis=1).mean() == pytest.approx(
        np.linalg.norm(teacher, axis=1).mean(), rel=0.25
    )


def test_a_student_of_cosines_learns_the_ranking_of_a_dot_teacher(artifacts, dot_teacher, encoder):
    fields = {"space": "own", "similarity": "cosine"}
    section = student_section(
        encoder, {**PAIRS, "losses": {"score_kl": 1, "contrastive": 0}}, **fields
    )
    terms = BaseContract.read(dot_teacher.path)
    assert student_comparison(section, terms.comparison, Comparison("dot", False)).normalise
    teacher_vectors = TeacherVectors(
        artifacts[0], lambda files, device: online_vectors(files, load_encoder(dot_teacher.path))
    )
    student = initial_encoder(section, 0, "own-k", terms, teacher_vectors, StudentStart())
    assert student.contract.comparison == ("cosine", True)
    losses = train(
        TorchEngine(student.train(), weight_decay=0.0, max_grad_norm=1.0),
        Distillation(**section.phases[0].losses.model_dump(), teacher_normalise=False),
        distillation_batches(teacher_vectors, None, section.phases[0], 0, student, WorkerShard()),
        TrainOptions(
            steps=STEPS, learning_rate=lambda step: 1e-3, seed=0, pad_id=student.pad_id,
            micro_batch_tokens=512,
        ),
    )  # fmt: skip
    assert np.mean(losses[-5:]) < np.mean(losses[:5]), losses


COSINE, RAW = Comparison("cosine", True), Comparison("dot", False)


@pytest.mark.parametrize(
    ("space", "similarity", "teacher", "base", "expected"),
    [
        ("teacher", None, RAW, COSINE, RAW),
        ("teacher", None, COSINE, RAW, COSINE),
        ("teacher", "dot", RAW, COSINE, RAW),
        ("own", None, RAW, COSINE, COSINE),
        ("own", None, COSINE, RAW, RAW),
        ("own", "cosine", COSINE, RAW, COSINE),
        ("own", "dot", RAW, COSINE, RAW),
    ],
)
def test_a_student_is_compared_as_its_space_or_its_base_or_its_recipe_says(
    space, similarity, teacher, base, expected
):
    phase = {**PAIRS, "losses": {"score_kl": 1}}
    section = student_section("b", phase, space=space, similarity=similarity)
    assert student_comparison(section, teacher, base) == expected


def test_a_similarity_that_the_teacher_s_space_does_not_have_is_refused():
    section = student_section("b", {**PAIRS, "losses": {"score_kl": 1}}, similarity="cosine")
    with pytest.raises(UserError, match="is cosine, and the teacher's space is searched by dot"):
        student_comparison(section, RAW, COSINE)


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "problem"),
    [
        ("cosine", RAW, RAW, "does not see the lengths"),
        ("pairwise_mse", COSINE, RAW, "have another scale"),
        ("margin_mse", COSINE, RAW, "have another scale"),
        ("squared_l2", RAW, RAW, None),
        ("ranking_kl", RAW, RAW, None),
        ("pairwise_mse", RAW, RAW, None),
        ("margin_mse", RAW, COSINE, None),
        ("similarity_order", COSINE, RAW, None),
        ("score_kl", COSINE, RAW, None),
        ("cosine", COSINE, COSINE, None),
        ("cosine", Comparison("dot", True), Comparison("dot", True), None),
    ],
)
def test_a_loss_that_would_lose_what_dot_compares_is_refused(loss, student, teacher, problem):
    losses = student_section("b", {**PAIRS, "losses": {loss: 1}}).phases[0].losses
    if problem is None:
        check_losses(losses, student, teacher, "student.phases[0].losses")
        return
    with pytest.raises(UserError, match=rf"student\.phases\[0\]\.losses\.{loss}: .*{problem}"):
        check_losses(losses, student, teacher, "student.phases[0].losses")


@pytest.mark.parametrize("other", [{"space": "teacher"}, {"space": "own", "output_dims": 32}])
def test_a_layer_norm_of_vectors_that_a_new_map_replaces_is_refused(other):
    phase = {**PAIRS, "losses": {"score_kl": 1}}
    with pytest.raises(ValueError, match="layer_norm is of the base's own vectors"):
        student_section("b", phase, layer_norm=True, **other)


def test_an_online_teacher_gives_the_losses_of_its_stored_vectors(artifacts, encoder):
    texts, teacher, vectors_artifact = artifacts
    for phase in (TEXTS, {**PAIRS, "losses": {"cosine": 1.0}}):
        section = student_section(encoder, phase)
        stored = train_phase(section, 0, texts, teacher, vectors_artifact)
        online = train_phase(section, 0, texts, teacher, None)
        # Both are float16, and another batch may round differently.
        np.testing.assert_allclose(stored, online, rtol=2e-3)


def test_a_phase_on_the_base_s_vectors_gets_those_of_all_its_layers_in_the_teacher_s_space(
    artifacts, encoder, tmp_path
):
    texts = artifacts[0]
    section = student_section(encoder, {**TEXTS, "target": "base"}, layers=[1])
    initial, of_teacher = start_of(section, artifacts)
    start = fit_start(section, section.phases[0], 0, of_teacher, initial)
    start.write(tmp_path)
    base = initial(StudentStart.read(tmp_path).of_base())
    assert base.backbone.config.num_hidden_layers == 2
    queries, passages = base_vectors(texts, lambda: base).rows(torch.device("cpu"))
    rows = np.arange(4)
    for role, source in (("query", queries), ("passage", passages)):
        chosen = [of_teacher.corpus_data.all_texts(role)[row] for row in rows]
        np.testing.assert_allclose(source[rows], base.encode(chosen, role), atol=1e-3)


@pytest.mark.parametrize("target", ["teacher", "base"])
def test_rehearsed_texts_keep_a_student_near_what_it_learned_before(
    artifacts, encoder, tmp_path, monkeypatch, target
):
    texts, teacher, vectors_artifact = artifacts
    pairs = {**PAIRS, "losses": {"contrastive": 1}, "learning_rate": 3e-3}
    section = student_section(encoder, {**TEXTS, "target": target}, pairs, layers=[1])
    initial, of_teacher = start_of(section, artifacts)
    start = fit_start(section, section.phases[0], 0, of_teacher, initial)
    first = initial(start)
    save_encoder(first, tmp_path / "first")
    start.write(tmp_path / "first")

    def fit(task, *others):
        student = task.make_encoder().train()
        batches = task.make_batches(student, WorkerShard())
        options = TrainOptions(
            steps=STEPS, learning_rate=lambda step: task.phase.learning_rate, seed=0,
            pad_id=student.pad_id, micro_batch_tokens=512,
        )  # fmt: skip
        engine = TorchEngine(student, weight_decay=0.0, max_grad_norm=1.0)
        train(engine, task.objective, batches, options)
        trained.append(student.eval())
        return {}

    trained = []
    monkeypatch.setattr(student_stage, "fit", fit)
    for batch in (0, 8):
        both = (section.phases[0], section.phases[1].model_copy(update={"rehearsal_batch": batch}))
        student_stage.student(
            section=section, phase=both[1], rehearsed=rehearsed_phase(both, 1), seed=0,
            corpus=texts, teacher=teacher, vectors=vectors_artifact, student=tmp_path / "first",
            scale=Scale(), out=SimpleNamespace(path=tmp_path),
        )  # fmt: skip
    passages = of_teacher.corpus_data.passages
    model = load_encoder(teacher.path) if target == "teacher" else initial(start.of_base()).eval()
    targets = model.encode(passages, "passage")
    forgot, kept = (
        (student.encode(passages, "passage") * targets).sum(1).mean() for student in trained
    )
    assert kept > forgot + 0.05, (kept, forgot)


def start_of(section, artifacts):
    """What makes a student from its start, and the teacher's stored vectors."""
    texts, teacher, vectors_artifact = artifacts
    stored = functools.partial(stored_vectors, teacher=teacher, vectors=vectors_artifact)
    of_teacher = TeacherVectors(texts, lambda corpus, device: stored(corpus))
    contract = BaseContract.read(teacher.path)
    return functools.partial(initial_encoder, section, 0, "tiny", contract, of_teacher), of_teacher


def test_a_worker_opens_its_teacher_once(artifacts, encoder):
    texts, teacher, vectors_artifact = artifacts
    devices = []

    def rows(files, device):
        devices.append(device)
        return stored_vectors(files, teacher, vectors_artifact)

    teacher_vectors, section = TeacherVectors(texts, rows), student_section(encoder, TEXTS)
    initial = functools.partial(
        initial_encoder, section, 0, "tiny-k", BaseContract.read(teacher.path), teacher_vectors
    )
    student = initial(fit_start(section, section.phases[0], 0, teacher_vectors, initial))
    distillation_batches(teacher_vectors, None, section.phases[0], 0, student, WorkerShard())
    assert devices == [student.device]


def test_a_student_of_the_teacher_s_prefix_learns_that_prefix(artifacts, encoder):
    section = student_section(encoder, TEXTS, output_dims=32)
    losses = train_phase(section, 0, *artifacts)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]), losses
    with pytest.raises(UserError, match=r"output_dims: 48 is not a size .* Use 64, 32"):
        train_phase(student_section(encoder, TEXTS, output_dims=48), 0, *artifacts)
    with pytest.raises(UserError, match=r"student.matryoshka: 128 is more than the vectors' 64"):
        train_phase(student_section(encoder, TEXTS, matryoshka={128: 1.0}), 0, *artifacts)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_phase_has_the_recipe_s_dropout(artifacts, encoder, tmp_path, dropout):
    assert json.loads((encoder / "config.json").read_text())["hidden_dropout_prob"] == 0.1
    fields = {} if dropout == 0.0 else {"dropout": dropout}
    section = student_section(encoder, TEXTS, PAIRS, **fields)
    teacher_vectors = TeacherVectors(
        artifacts[0], lambda files, device: stored_vectors(files, artifacts[1], artifacts[2])
    )
    first = initial_encoder(
        section, 0, "tiny-k", BaseContract.read(artifacts[1].path), teacher_vectors, StudentStart()
    )
    save_encoder(first, tmp_path / "first")
    for student in (first, load_next_phase(section, tmp_path / "first", "tiny")):
        rates = {m.p for m in student.backbone.modules() if isinstance(m, torch.nn.Dropout)}
        assert rates == {dropout}


def test_listed_layers_are_those_of_a_student_in_a_space_of_its_own(
    artifacts, encoder, tmp_path, monkeypatch
):
    tasks = []
    monkeypatch.setattr(student_stage, "fit", lambda task, *others: tasks.append(task) or {})
    phase = {**TEXTS, "losses": {"pairwise_mse": 1.0}}
    section = student_section(encoder, phase, space="own", layers=[1])
    corpus, teacher, stored = artifacts
    student_stage.student(
        section=section, phase=section.phases[0], seed=0, corpus=corpus, teacher=teacher,
        vectors=stored, scale=Scale(), out=SimpleNamespace(path=tmp_path),
    )  # fmt: skip
    student, base = tasks[0].make_encoder(), load_base(encoder)
    assert student.backbone.config.num_hidden_layers == 1
    kept, last = (next(reversed(e.backbone.encoder.layer)).state_dict() for e in (student, base))
    for name, weight in last.items():
        torch.testing.assert_close(kept[name], weight)


def load_base(folder):
    """A base as it is."""
    options = ContractOptions(pooling="mean", precision="float32")
    return create_encoder(str(folder), space="s", options=options)


def test_a_smaller_vocabulary_keeps_the_corpus_s_tokens(artifacts, encoder):
    section = student_section(encoder, TEXTS, vocabulary_size=400)
    losses = train_phase(section, 0, *artifacts)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]), losses
    files = CorpusData.open(artifacts[0])
    smaller, full = (
        untrained_student(student_config, files, StudentStart(), seed=0, space="x")
        for student_config in (section, student_section(encoder, TEXTS))
    )
    assert smaller.backbone.config.vocab_size == 400 < full.backbone.config.vocab_size
    np.testing.assert_allclose(
        smaller.encode(files.passages, "passage"), full.encode(files.passages, "passage"),
        atol=1e-5,
    )  # fmt: skip


def write_passages(texts, changed):
    with TableWriter(texts.path / "passages", texts=["text"], numbers={}) as table:
        table.append(text=pa.array(changed))


def another_text(texts, teacher, vectors_artifact):
    write_passages(texts, [f"{text} indeed" for text in TextColumn(texts, "passages/text")])
    return "holds the vector of another text or prompt than"


def fewer_texts(texts, teacher, vectors_artifact):
    write_passages(texts, list(TextColumn(texts, "passages/text"))[:-1])
    return "holds vectors of 24 texts, and there are 23"


def another_prompt(texts, teacher, vectors_artifact):
    sources = json.loads((texts.path / "sources.json").read_text())
    sources[0]["prompts"] = {"query": "seek: ", "passage": ""}
    (texts.path / "sources.json").write_text(json.dumps(sources))
    return "holds the vector of another text or prompt than"


def another_teacher(texts, teacher, vectors_artifact):
    contract = Contract.read(teacher.path)
    contract.model_copy(update={"pooling": "last"}).write(teacher.path)
    return "holds the vectors of another teacher than"


@pytest.mark.parametrize("change", [another_text, fewer_texts, another_prompt, another_teacher])
def test_vectors_of_other_texts_prompts_or_teachers_are_refused(
    artifacts, encoder, tmp_path, change
):
    copies = []
    for artifact in artifacts:
        path = tmp_path / artifact.stage
        shutil.copytree(artifact.path, path)
        copies.append(dataclasses.replace(artifact, path=path))
    problem = change(*copies)
    with pytest.raises(UserError, match=problem):
        train_phase(student_section(encoder, TEXTS), 0, *copies)

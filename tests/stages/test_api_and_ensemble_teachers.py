"""Teachers that are several models, or an API, through the stages and the commands."""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.config.load import read_recipe
from stillroom.encoders.contract import Terms
from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.encoders.vectors.quantise import write_calibrations
from stillroom.errors import UserError
from stillroom.evaluation.evaluate import measure
from stillroom.pipeline.plan import pipeline
from stillroom.pipeline.run import stage
from stillroom.preflight.recipe import check_recipe
from stillroom.release.reader import Release
from stillroom.serving.app import build
from stillroom.serving.replica.batching import Batcher
from stillroom.stages.api_teacher import remote_of
from stillroom.stages.corpus.artifact import CorpusFiles, evaluation_sets
from stillroom.stages.release.stage import release
from stillroom.stages.student import fit_start, start
from stillroom.stages.vectors.teacher_vectors import Taught, stored
from stillroom.storage.artifacts import Store
from support.openai_endpoint import Endpoint, Reply, embeddings


@pytest.fixture(scope="module")
def cluster():
    ray.init("local", num_cpus=1, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save(create(str(encoder), space="one", pooling="mean", precision="float32"), folder)
    return folder


@pytest.fixture
def recipe(encoder, tmp_path):
    """Of a teacher's section, the tiny recipe; files of 24 pairs in place of docstrings."""
    rows = [{"query": f"what is {i}?", "positive": f"it is {i}. " * (1 + i % 3)} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "root": str(tmp_path / "runs"),
        "corpus": {
            "sources": {"own": {"format": "files", "pairs": [str(tmp_path / "pairs.jsonl")]}},
            "held_out": {"queries": 4, "passages": 8},
        },
        "vectors": {"shard": 8},
        "negatives": {"sample_from": 2, "per_query": 1, "max_share_of_positive": None},
        "student": {
            "base": str(encoder), "pooling": "mean", "space": "teacher",
            "phases": [
                {"data": "pairs", "steps": 2, "global_batch": 4, "learning_rate": 1e-4,
                 "losses": {"vector": 1.0}}
            ],
        },
        "report": {"bm25": False, "bases": False},
    }  # fmt: skip

    def read(teacher, *overrides):
        path = tmp_path / "tiny.yaml"
        path.write_text(json.dumps({**content, "teacher": teacher}))
        return read_recipe(path, overrides)

    return read


def made(recipe, *stages):
    """The artifacts of the plan's stages, by stage."""
    store, found = Store(recipe.root), {}
    for step in pipeline(recipe, gate=False):
        if step.stage in stages:
            given = {role: found[of.stage] for role, of in step.inputs.items()}
            with store.draft(step.stage, step.name, step.key) as draft:
                if draft.done is None:
                    stage(step.stage)(**step.args, **given, scale=recipe.scale, out=draft)
                found[step.stage] = draft.done or draft.publish(step.made_by)
    return found


def check_vectors(artifacts, expected):
    files = CorpusFiles.read(artifacts["corpus"])
    for role, kept, texts in zip(
        ("query", "passage"), stored(files, artifacts["teacher"], artifacts["vectors"]),
        (files.queries, files.passages), strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(kept[np.arange(len(texts))], expected(texts, role), atol=1e-3)


def begun(read, artifacts):
    """The student before its first step."""
    terms = Terms.read(artifacts["teacher"].path)
    taught = Taught(
        artifacts["corpus"],
        lambda files, device: stored(files, artifacts["teacher"], artifacts["vectors"]),
    )
    encoder = start(read.student, 0, terms.space, terms, taught)
    fit_start(taught, read.student.phases[0], encoder)
    return encoder


def released(read, artifacts, student):
    """The release of a teacher and a student, of a report of nothing."""
    store = Store(read.root)
    with store.draft("student", "tiny", "k") as draft:
        save(student, draft.path)
        small = draft.publish({"inputs": {}, "section": {}})
    with store.draft("report", "tiny", "k") as draft:
        scores = {"held-out": {"ndcg@10": 0.5, "recall@100": 0.5, "mrr@10": 0.5}}
        models = {
            name: {
                "role": name,
                "scores": scores,
                "parameters": 0,
                "dims": 1,
                "texts_per_second": None,
            }
            for name in ("teacher", "student")
        }
        told = {
            "sets": {"held-out": {"queries": 4, "passages": 8}},
            "models": models,
            "retention": {"held-out": 1.0, "mean": 1.0},
            "hardware": "none",
        }
        (draft.path / "report.json").write_text(json.dumps(told))
        (draft.path / "report.html").write_text("")
        write_calibrations(draft.path, {})
        report = draft.publish({})
    with store.draft("release", "tiny", "k") as draft:
        release(
            section=read.release, gate=False, corpus=artifacts["corpus"],
            teacher=artifacts["teacher"], student=small, report=report, scale=read.scale,
            out=draft,
        )  # fmt: skip
        return draft.publish({}).path


def test_two_teachers_together_teach_and_are_released_whole(
    cluster, recipe, model, decoder, tmp_path
):
    prompts = {"query": "Instruct: find\nQuery: ", "passage": ""}
    alone = create(str(decoder), space="b", pooling="last", prompts=prompts, precision="float32")
    members = [
        {"base": str(model)},
        {"base": str(decoder), "pooling": "last", "prompts": prompts},
    ]
    read = recipe({"members": members, "precision": "float32"})
    check_recipe(read, pipeline(read))
    artifacts = made(read, "corpus", "teacher", "vectors")
    one, two = load(model), alone.eval()

    def expected(texts, role):
        both = np.concatenate([one.encode(texts, role), two.encode(texts, role)], axis=1)
        return both / np.sqrt(2)

    check_vectors(artifacts, expected)
    student = begun(read, artifacts)
    space = artifacts["teacher"].path.name
    assert (student.contract.space, student.contract.dims) == (space, (128,))
    # To another place, where nothing else is.
    shutil.move(released(read, artifacts, student), tmp_path / "elsewhere")
    there = Release.open(str(tmp_path / "elsewhere"), "nowhere")
    build({"releases": [str(tmp_path / "elsewhere")], "policy": "asymmetric"})
    texts = ["some text", "another", "a longer text than those two"]
    served = load(there.encoder_folder("teacher"))
    batcher = Batcher(lambda tokens, _: served.encode_tokens(tokens), budget=8, wait_s=0)

    async def batched():
        return (await batcher.encode(served.prompter(texts, "query"))).rows

    np.testing.assert_allclose(asyncio.run(batched()), expected(texts, "query"), atol=1e-5)


def test_a_member_s_weights_and_the_way_to_combine_make_another_key(recipe, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    members = [{"base": str(model)}, {"base": str(copy)}]

    def key(**changes):
        steps = pipeline(recipe({"members": members, **changes}))
        return next(step.key for step in steps if step.stage == "teacher")

    keys = [key(), key(combine="average")]
    save(create(str(copy), space="s", layers=[0]), copy)
    keys.append(key())
    assert len(set(keys)) == 3


API = {"model": "m", "dims": 64, "max_tokens": 64, "prompts": {"query": "find: "}}


def test_an_api_teaches_is_paid_once_and_its_student_is_served(
    cluster, recipe, model, tmp_path, monkeypatch
):
    monkeypatch.setenv("TEACHER_KEY", "secret")
    encoder = load(model)
    texts_asked = []
    fail = [5]

    def answer(route, body):
        fail[0] -= 1
        if fail[0] == 0:
            raise Reply(401, text="no more credit")
        texts_asked.extend(body["input"])
        return embeddings(encoder)(route, body)

    with Endpoint(answer) as server:
        api = {**API, "base_url": server.url}
        scale = ["scale.teacher_api.key_variable=TEACHER_KEY", "scale.teacher_api.texts=4"]
        read = recipe({"api": api}, *scale)
        with pytest.raises(UserError, match="no more credit"):
            made(read, "corpus", "teacher", "vectors")
        # Before it goes on: what it would take, and whether that is allowed.
        steps = pipeline(read)
        priced = [*scale, "scale.teacher_api.budget.price_in=1e6"]
        [told] = [
            f for f in check_recipe(recipe({"api": api}, *priced), steps) if f.what == "teacher.api"
        ]
        poor = [*priced, "scale.teacher_api.budget.cost=1"]
        with pytest.raises(UserError, match="scale.teacher_api.budget"):
            check_recipe(recipe({"api": api}, *poor), steps)
        artifacts = made(read, "corpus", "teacher", "vectors")
        measured = measure(
            remote_of(artifacts["teacher"].path, read.scale.teacher_api, Store(read.root)),
            "teacher",
            evaluation_sets(artifacts["corpus"]),
        )
        assert measured["scores"].keys() == {"held-out"}
        assert len(texts_asked) == len(set(texts_asked)), "no text is paid for twice"
        assert {h["Authorization"] for h in server.headers} == {"Bearer secret"}
        # By itself, the artifact asks nobody; told to, it answers from what is kept.
        count = len(server.calls)
        arguments = ["encode", str(artifacts["teacher"].path), "--root", read.root]
        refused = CliRunner().invoke(app, arguments, input="it is 1.\n")
        assert "to which texts would go" in str(refused.exception)
        arguments += ["--key-variable", "TEACHER_KEY"]
        done = CliRunner().invoke(app, arguments, input="it is 1. it is 1. \n")
        assert len(server.calls) == count
        vector = json.loads(done.stdout)["vector"]
        np.testing.assert_allclose(
            vector, encoder.encode(["it is 1. it is 1. "], "passage")[0], atol=1e-5
        )
    estimate = int(told.detail.split("at most ")[1].split(" tokens")[0].replace(",", ""))
    assert estimate == sum(-(-len(text.encode()) // 3) for text in texts_asked if text != "1. it")
    assert f"{estimate:,}.00 at 1e+06 a million" in told.detail
    check_vectors(
        artifacts,
        lambda texts, role: encoder.encode(
            [("find: " if role == "query" else "") + text for text in texts], "passage"
        ),
    )
    student = begun(read, artifacts)
    assert student.contract.space == f"{server.url}/m/64"
    folder = str(released(read, artifacts, student))
    assert "secret" not in "".join(
        file.read_text(errors="ignore") for file in Path(read.root).rglob("*") if file.is_file()
    )
    there = Release.open(folder, read.root)
    assert there.contracts.keys() == {"student"} and there.elsewhere == {"teacher": server.url}
    build({"releases": [folder]})
    with pytest.raises(UserError, match="needs tiny/teacher, which is not served"):
        build({"releases": [folder], "policy": "asymmetric"})


def test_only_what_decides_an_api_s_vectors_makes_another_key(recipe):
    def keys(overrides=(), **changes):
        api = {**API, "base_url": "http://a/v1", **changes}
        steps = pipeline(recipe({"api": api}, *overrides))
        return [step.key for step in steps if step.stage in ("teacher", "vectors")]

    scale = [
        "scale.teacher_api.key_variable=K", "scale.teacher_api.budget.tokens=5",
        "scale.teacher_api.requests_a_minute=60", "scale.teacher_api.at_once=1",
    ]  # fmt: skip
    assert keys() == keys(scale)
    others = (
        {"base_url": "http://b/v1"}, {"model": "n"}, {"dims": 32}, {"prompts": {}},
        {"max_tokens": 32}, {"asks_dims": True}, {"extra_body": {"query": {"a": 1}}},
    )  # fmt: skip
    for change in others:
        assert not set(keys()) & set(keys(**change)), change


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({}, "name one of base, members, api: there is none"),
        ({"base": "a/b", "api": {**API, "base_url": "u"}}, "not base and api"),
        ({"base": "a/b", "combine": "average"}, "base leaves no sense to combine"),
        ({"api": {**API, "base_url": "u"}, "pooling": "mean"}, "api leaves no sense to pooling"),
        ({"api": {**API, "base_url": "u"}, "trust_remote_code": True}, "trust_remote_code"),
        ({"members": [{"base": "a/b"}]}, "members"),
        (
            {
                "members": [{"base": "a/b"}, {"base": "c/d"}],
                "phases": [
                    {"objective": "contrastive", "steps": 1, "global_batch": 4,
                     "learning_rate": 1e-3}
                ],
            },
            "members leaves no sense to phases: each member says how it encodes, and none is",
        ),
    ],
)  # fmt: skip
def test_what_a_kind_of_teacher_cannot_have_is_refused_by_its_field(recipe, teacher, message):
    with pytest.raises(UserError, match=f"teacher.*{message}"):
        recipe(teacher)


def test_a_key_that_is_not_there_and_a_member_that_needs_trust_are_told_at_once(
    recipe, model, tmp_path
):
    read = recipe(
        {"api": {**API, "base_url": "http://a/v1"}}, "scale.teacher_api.key_variable=NOT_SET"
    )
    with pytest.raises(UserError, match="teacher_api.key_variable: the environment has no NOT_SET"):
        check_recipe(read, pipeline(read))
    own = shutil.copytree(model, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    names = {"AutoConfig": "own.C", "AutoModel": "own.M"}
    (own / "config.json").write_text(json.dumps({**config, "model_type": "x", "auto_map": names}))
    read = recipe({"members": [{"base": str(model)}, {"base": str(own)}]})
    with pytest.raises(UserError, match="AutoModel is own.M"):
        check_recipe(read, pipeline(read))


def test_whom_the_recipe_trusts_is_told_to_the_stages_and_else_no_key_changes(recipe, model):
    plain = recipe({"base": str(model)})
    trusting = recipe({"base": str(model), "trust_remote_code": True})
    told = {step.stage: step.args.get("trusted") for step in pipeline(trusting)}
    assert (told["vectors"], told["report"]) == (["teacher"], ["teacher"])
    assert not any("trusted" in step.args for step in pipeline(plain))

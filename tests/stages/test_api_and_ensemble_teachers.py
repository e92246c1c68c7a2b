"""Teachers that are an ensemble or an API, through the stages and the commands."""

import asyncio
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.config.load import read_recipe
from stillroom.encoders.contract import BaseContract
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions, Resize
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.vectors.quantise import write_calibrations
from stillroom.errors import UserError
from stillroom.evaluation.evaluate import evaluate_encoder
from stillroom.pipeline.plan import pipeline
from stillroom.preflight.recipe import check_recipe
from stillroom.release.reader import Release
from stillroom.serving.app import build
from stillroom.serving.replica.batching import Batcher
from stillroom.stages.api_teacher import api_encoder
from stillroom.stages.corpus.artifact import CorpusData, read_evaluation_sets
from stillroom.stages.release.stage import release
from stillroom.stages.student import initial_encoder
from stillroom.stages.student_start import fit_start
from stillroom.stages.vectors.teacher_vectors import TeacherVectors, stored_vectors
from stillroom.storage.artifacts import Store
from support.library_folders import save_library_model, static_embedding
from support.openai_endpoint import Endpoint, Reply, embeddings
from support.run_stages import embedding_in_process, run_stages


@pytest.fixture(scope="module")
def model(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_encoder(
        create_encoder(
            str(encoder), space="one", options=ContractOptions(pooling="mean", precision="float32")
        ),
        folder,
    )
    return folder


@pytest.fixture
def recipe(encoder, tmp_path):
    """Reads a tiny recipe with a given teacher section; its source is a file of 24 pairs."""
    rows = [{"query": f"what is {i}?", "positive": f"it is {i}. " * (1 + i % 3)} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "root": str(tmp_path / "runs"),
        "corpus": {
            "sources": {"own": {"format": "files", "pairs": [str(tmp_path / "pairs.jsonl")]}},
            "held_out": {"queries": 4, "passages": 8},
        },
        "vectors": {"shard_size": 8},
        "negatives": {"sample_from": 2, "per_query": 1, "max_share_of_positive": None},
        "student": {
            "base": str(encoder), "pooling": "mean", "space": "teacher",
            "phases": [
                {"data": "pairs", "steps": 2, "global_batch": 4, "learning_rate": 1e-4,
                 "losses": {"cosine": 1.0}}
            ],
        },
        "report": {"bm25": False, "base_models": False},
    }  # fmt: skip

    def read(teacher, *overrides):
        path = tmp_path / "tiny.yaml"
        path.write_text(json.dumps({**content, "teacher": teacher}))
        return read_recipe(path, overrides)

    return read


def check_vectors(artifacts, expected):
    files = CorpusData.open(artifacts["corpus"])
    for role, stored, texts in zip(
        ("query", "passage"), stored_vectors(files, artifacts["teacher"], artifacts["vectors"]),
        (files.queries, files.passages), strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(stored[np.arange(len(texts))], expected(texts, role), atol=1e-3)


def untrained_student(recipe, artifacts):
    """The student before its first training step."""
    base_contract = BaseContract.read(artifacts["teacher"].path)
    teacher_vectors = TeacherVectors(
        artifacts["corpus"],
        lambda files, device: stored_vectors(files, artifacts["teacher"], artifacts["vectors"]),
    )
    initial = functools.partial(
        initial_encoder, recipe.student, 0, base_contract.space, base_contract, teacher_vectors
    )
    return initial(fit_start(recipe.student, recipe.student.phases[0], 0, teacher_vectors, initial))


def publish_release(recipe, artifacts, student):
    """Publishes a release with placeholder scores; returns its folder."""
    store = Store(recipe.root)
    with store.draft("student", "tiny", "k") as draft:
        save_encoder(student, draft.path)
        student_artifact = draft.publish({"inputs": {}, "section": {}})
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
        content = {
            "sets": {"held-out": {"queries": 4, "passages": 8}},
            "models": models,
            "retention": {"held-out": 1.0, "mean": 1.0},
            "hardware": "none",
        }
        (draft.path / "report.json").write_text(json.dumps(content))
        (draft.path / "report.html").write_text("")
        write_calibrations(draft.path, {})
        report = draft.publish({})
    with store.draft("release", "tiny", "k") as draft:
        release(
            section=recipe.release, gate=False, corpus=artifacts["corpus"],
            teacher=artifacts["teacher"], student=student_artifact, report=report,
            scale=recipe.scale, out=draft,
        )  # fmt: skip
        return draft.publish({}).path


def test_an_ensemble_of_teachers_trains_a_student_and_is_released_with_its_members(
    ray_cluster, recipe, model, decoder, tmp_path
):
    prompts = {"query": "Instruct: find\nQuery: ", "passage": ""}
    second_member = create_encoder(
        str(decoder),
        space="b",
        options=ContractOptions(pooling="last", prompts=prompts, precision="float32"),
    )
    members = [
        {"base": str(model)},
        {"base": str(decoder), "pooling": "last", "prompts": prompts},
    ]
    settings = recipe({"members": members, "precision": "float32"})
    check_recipe(settings, pipeline(settings))
    with embedding_in_process():
        artifacts = run_stages(settings, "corpus", "teacher", "vectors")
    first, second = load_encoder(model), second_member.eval()

    def expected(texts, role):
        both = np.concatenate([first.encode(texts, role), second.encode(texts, role)], axis=1)
        return both / np.sqrt(2)

    check_vectors(artifacts, expected)
    student = untrained_student(settings, artifacts)
    space = artifacts["teacher"].path.name
    assert (student.contract.space, student.contract.dims) == (space, (128,))
    # The moved release needs nothing from the folder where it was made.
    shutil.move(publish_release(settings, artifacts, student), tmp_path / "elsewhere")
    moved_release = Release.open(str(tmp_path / "elsewhere"), "nowhere")
    build({"releases": [str(tmp_path / "elsewhere")], "policy": "asymmetric"})
    texts = ["some text", "another", "a longer text than those two"]
    served = load_encoder(moved_release.encoder_folder("teacher"))
    batcher = Batcher(lambda tokens, _: served.encode_tokens(tokens), batch_tokens=8, max_wait_s=0)

    async def batched():
        return (await batcher.encode(served.prompter(texts, "query"))).vectors

    np.testing.assert_allclose(asyncio.run(batched()), expected(texts, "query"), atol=1e-5)


def test_a_teacher_that_sentence_transformers_runs_teaches_a_student_and_is_served(
    ray_cluster, recipe, tmp_path
):
    base = save_library_model(tmp_path / "static", [static_embedding()])
    settings = recipe({"base": str(base)})
    [finding] = [f for f in check_recipe(settings, pipeline(settings)) if f.what == "teacher.base"]
    assert "run by sentence-transformers" in finding.detail
    with embedding_in_process():
        artifacts = run_stages(settings, "corpus", "teacher", "vectors")
    library = SentenceTransformer(str(base), device="cpu")

    def expected(texts, role):
        return library.encode(list(texts), normalize_embeddings=True)

    check_vectors(artifacts, expected)
    contract = BaseContract.read(artifacts["teacher"].path)
    assert contract.base == str(base) and contract.space == artifacts["teacher"].path.name
    student = untrained_student(settings, artifacts)
    assert (student.contract.space, student.contract.dims) == (contract.space, (64,))
    folder = publish_release(settings, artifacts, student)
    build({"releases": [str(folder)], "policy": "asymmetric"})
    served = load_encoder(Release.open(str(folder), "nowhere").encoder_folder("teacher"))
    texts = ["what is this?", "it is that"]
    np.testing.assert_allclose(
        served.encode_batch(served.prompter(texts, "passage")),
        expected(texts, "passage"),
        atol=1e-5,
    )


def test_members_weights_and_combination_are_part_of_the_key(recipe, model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    members = [{"base": str(model)}, {"base": str(copy)}]

    def key(**changes):
        steps = pipeline(recipe({"members": members, **changes}))
        return next(step.key for step in steps if step.stage == "teacher")

    keys = [key(), key(combine="average")]
    save_encoder(create_encoder(str(copy), space="s", resize=Resize(layers=[0])), copy)
    keys.append(key())
    assert len(set(keys)) == 3


API = {"model": "m", "dims": 64, "max_tokens": 64, "prompts": {"query": "find: "}}


def test_an_api_teacher_is_paid_once_and_its_student_is_served(
    ray_cluster, recipe, model, tmp_path, monkeypatch
):
    monkeypatch.setenv("TEACHER_KEY", "secret")
    encoder = load_encoder(model)
    sent_texts = []
    requests_until_failure = [5]

    def answer(route, body):
        requests_until_failure[0] -= 1
        if requests_until_failure[0] == 0:
            raise Reply(401, text="no more credit")
        sent_texts.extend(body["input"])
        return embeddings(encoder)(route, body)

    with Endpoint(answer) as server:
        api = {**API, "base_url": server.url}
        scale = [
            "scale.teacher_api.api_key_env=TEACHER_KEY",
            "scale.teacher_api.texts_per_request=4",
            "evaluation.made_guards.sets=0",
        ]
        settings = recipe({"api": api}, *scale)
        with pytest.raises(UserError, match="no more credit"):
            run_stages(settings, "corpus", "teacher", "vectors")
        # Before the run continues: its estimate, and whether the budget allows it.
        steps = pipeline(settings)
        priced = [*scale, "scale.teacher_api.budget.price_in=1e6"]
        [finding] = [
            finding
            for finding in check_recipe(recipe({"api": api}, *priced), steps)
            if finding.what == "teacher.api"
        ]
        too_small = [*priced, "scale.teacher_api.budget.cost=1"]
        with pytest.raises(UserError, match="scale.teacher_api.budget"):
            check_recipe(recipe({"api": api}, *too_small), steps)
        artifacts = run_stages(settings, "corpus", "teacher", "vectors")
        measured = evaluate_encoder(
            api_encoder(
                artifacts["teacher"].path, settings.scale.teacher_api, Store(settings.root)
            ),
            "teacher",
            read_evaluation_sets(artifacts["corpus"]),
        )
        assert measured["scores"].keys() == {"held-out"}
        assert len(sent_texts) == len(set(sent_texts)), "no text is paid for twice"
        assert {h["Authorization"] for h in server.headers} == {"Bearer secret"}
        # Without a key nothing is sent; with one, stored answers are used.
        count = len(server.calls)
        arguments = ["encode", str(artifacts["teacher"].path), "--root", settings.root]
        refused = CliRunner().invoke(app, arguments, input="it is 1.\n")
        assert "to which texts would go" in str(refused.exception)
        arguments += ["--api-key-env", "TEACHER_KEY"]
        encoded = CliRunner().invoke(app, arguments, input="it is 1. it is 1. \n")
        assert len(server.calls) == count
        vector = json.loads(encoded.stdout)["vector"]
        np.testing.assert_allclose(
            vector, encoder.encode(["it is 1. it is 1. "], "passage")[0], atol=1e-5
        )
    estimate = int(finding.detail.split("at most ")[1].split(" tokens")[0].replace(",", ""))
    assert estimate == sum(-(-len(text.encode()) // 3) for text in sent_texts if text != "1. it")
    assert f"{estimate:,}.00 at 1e+06 per million" in finding.detail
    check_vectors(
        artifacts,
        lambda texts, role: encoder.encode(
            [("find: " if role == "query" else "") + text for text in texts], "passage"
        ),
    )
    student = untrained_student(settings, artifacts)
    assert student.contract.space == f"{server.url}/m/64"
    folder = str(publish_release(settings, artifacts, student))
    assert "secret" not in "".join(
        file.read_text(errors="ignore") for file in Path(settings.root).rglob("*") if file.is_file()
    )
    opened_release = Release.open(folder, settings.root)
    assert opened_release.contracts.keys() == {"student"}
    assert opened_release.api_urls == {"teacher": server.url}
    build({"releases": [folder]})
    with pytest.raises(UserError, match="needs tiny/teacher, which is not served"):
        build({"releases": [folder], "policy": "asymmetric"})


def test_only_fields_that_decide_an_api_s_vectors_change_the_key(recipe):
    def keys(overrides=(), **changes):
        api = {**API, "base_url": "http://a/v1", **changes}
        steps = pipeline(recipe({"api": api}, *overrides))
        return [step.key for step in steps if step.stage in ("teacher", "vectors")]

    scale = [
        "scale.teacher_api.api_key_env=K", "scale.teacher_api.budget.tokens=5",
        "scale.teacher_api.requests_per_minute=60", "scale.teacher_api.max_concurrency=1",
    ]  # fmt: skip
    assert keys() == keys(scale)
    others = (
        {"base_url": "http://b/v1"}, {"model": "n"}, {"dims": 32}, {"prompts": {}},
        {"max_tokens": 32}, {"send_dimensions": True}, {"extra_body": {"query": {"a": 1}}},
    )  # fmt: skip
    for change in others:
        assert not set(keys()) & set(keys(**change)), change


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({}, "set one of base, members, api: none is set"),
        ({"base": "a/b", "api": {**API, "base_url": "u"}}, "not base and api"),
        ({"base": "a/b", "combine": "average"}, "with base, combine has no effect"),
        ({"api": {**API, "base_url": "u"}, "pooling": "mean"}, "with api, pooling has no effect"),
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
            "with members, phases has no effect: each member sets how it encodes, and members",
        ),
    ],
)  # fmt: skip
def test_fields_that_a_kind_of_teacher_cannot_have_are_refused(recipe, teacher, message):
    with pytest.raises(UserError, match=f"teacher.*{message}"):
        recipe(teacher)


def test_a_missing_api_key_and_an_untrusted_member_are_reported_at_once(recipe, model, tmp_path):
    settings = recipe(
        {"api": {**API, "base_url": "http://a/v1"}}, "scale.teacher_api.api_key_env=NOT_SET"
    )
    with pytest.raises(UserError, match="teacher_api.api_key_env: the environment has no NOT_SET"):
        check_recipe(settings, pipeline(settings))
    untrusted = shutil.copytree(model, tmp_path / "own")
    config = json.loads((untrusted / "config.json").read_text())
    names = {"AutoConfig": "own.C", "AutoModel": "own.M"}
    (untrusted / "config.json").write_text(
        json.dumps({**config, "model_type": "x", "auto_map": names})
    )
    settings = recipe({"members": [{"base": str(model)}, {"base": str(untrusted)}]})
    with pytest.raises(UserError, match="AutoModel is own.M"):
        check_recipe(settings, pipeline(settings))


def test_trusted_models_are_passed_to_the_stages_and_change_no_other_key(recipe, model):
    plain = recipe({"base": str(model)})
    trusting = recipe({"base": str(model), "trust_remote_code": True})
    trusted = {step.stage: step.args.get("trusted") for step in pipeline(trusting)}
    assert (trusted["vectors"], trusted["report"]) == (["teacher"], ["teacher"])
    assert not any("trusted" in step.args for step in pipeline(plain))

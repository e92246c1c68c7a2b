"""A teacher's vectors are made once: artifacts, and other teams, take them by text."""

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest

from stillroom.config.scale import EmbeddingActors
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.usable_vectors import UnusableVectorError
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.errors import UserError
from stillroom.stages.vectors import digests as digests_module
from stillroom.stages.vectors.digests import DigestIndex, IndexWriter, text_digests
from stillroom.stages.vectors.embed import embed
from stillroom.stages.vectors.reuse import KnownVectors, teacher_identity
from stillroom.stages.vectors.texts import TextsToEmbed
from stillroom.storage.artifacts import Store
from stillroom.storage.column_writer import TableWriter
from stillroom.storage.columns import TextColumn
from support.in_process_cli import run_command

TEXTS = [f"{'word ' * (i % 7)}number {i}" for i in range(40)]
NEW = ["a new text", "another new and longer text"]


class CountingEncoder:
    """The teacher, which lists what it was given; texts with "quagga" have no vector."""

    def __init__(self, folder):
        self.encoder, self.texts = load_encoder(folder), []
        self.contract = self.encoder.contract

    def encode(self, texts, role, *, prompt):
        self.texts += texts
        for row, text in enumerate(texts):
            if "quagga" in text:
                raise UnusableVectorError.of_text(row, "its vector is not finite", text)
        return self.encoder.encode(texts, role, prompt=prompt)


def published_teacher(store, model, name, **options):
    encoder = create_encoder(
        str(model),
        space=name,
        options=ContractOptions(pooling="mean", precision="float32", **options),
    )
    with store.draft("teacher", name, "k") as draft:
        save_encoder(encoder, draft.path)
        return draft.publish({"sources": {"base": "one"}})


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "runs"))


@pytest.fixture
def teacher(store, encoder):
    return published_teacher(store, encoder, "first")


def embed_texts(store, teacher, name, texts, *, prompts=None, role="passage", skip=False):
    """A `vectors` artifact of the texts; returns it, its counts, and what the encoder was given."""
    identity = teacher_identity(teacher)
    part = TextsToEmbed("passages", role, texts, prompts or [None] * len(texts))
    counting = CountingEncoder(teacher.path)
    with store.draft("vectors", name, "k") as draft:
        counts = embed(
            lambda: [part],
            teacher,
            draft.path,
            6,
            EmbeddingActors(on_error="skip" if skip else "fail"),
            api=counting,
            known=KnownVectors.open(store, teacher, identity),
        )
        artifact = draft.publish({"summary": {"teacher": identity}})
    return artifact, counts, counting.texts


def stored(artifact):
    return StoredVectors(artifact.path / "passages")


def test_only_new_texts_are_encoded_and_known_ones_get_the_stored_vector(store, teacher):
    first, counts, _ = embed_texts(store, teacher, "first", TEXTS)
    assert (counts.reused, counts.encoded) == (0, 40)
    texts = [*TEXTS[30:], *NEW, *TEXTS[:20]]
    second, counts, given = embed_texts(store, teacher, "second", texts)
    assert sorted(given) == sorted(NEW)
    assert (counts.reused, counts.encoded, counts.resumed) == (30, 2, 0)
    rows_before = np.array([*range(30, 40), *range(20)])
    rows = np.array([row for row, text in enumerate(texts) if text not in NEW])
    np.testing.assert_array_equal(stored(second)[rows], stored(first)[rows_before])
    # A fresh encode differs by the float noise of its batches only.
    fresh = load_encoder(teacher.path).encode(texts, "passage")
    np.testing.assert_allclose(stored(second)[np.arange(len(texts))], fresh, atol=1e-3)
    # What was copied is found in its copy as well.
    store.remove(first)
    _, counts, given = embed_texts(store, teacher, "third", [*NEW, *TEXTS[:20]])
    assert (counts.reused, given) == (22, [])


def test_another_machine_takes_texts_and_vectors_from_a_bucket(
    bucket, encoder, tmp_path, monkeypatch
):
    root = f"s3://{bucket}/{tmp_path.name}"
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "one"))
    store = Store(root)
    teacher = published_teacher(store, encoder, "first")
    with store.draft("corpus", "texts", "k") as draft:
        with TableWriter(draft.path, texts=["text"], numbers={}) as table:
            table.append(text=pa.array([*NEW, *TEXTS]))
        texts = draft.publish({})
    reference = pickle.dumps(TextColumn(texts, "text"))
    assert len(reference) < 500
    first, _, _ = embed_texts(store, teacher, "first", TEXTS)

    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "two"))
    store = Store(root)
    teacher = store.find("teacher/first")
    second, counts, given = embed_texts(store, teacher, "second", pickle.loads(reference))
    assert (counts.reused, sorted(given)) == (40, sorted(NEW))
    rows = np.arange(40)
    np.testing.assert_array_equal(stored(second)[rows + 2], stored(first)[rows])
    assert second.path.is_relative_to(tmp_path / "two")


def test_a_text_in_another_role_or_with_another_prompt_is_another_text(store, teacher):
    embed_texts(store, teacher, "first", TEXTS)
    _, counts, _ = embed_texts(store, teacher, "queries", TEXTS, role="query")
    assert counts.reused == 0
    prompts = ["Find: "] * 20 + [None] * 20
    _, counts, given = embed_texts(store, teacher, "prompts", TEXTS, prompts=prompts)
    assert (counts.reused, sorted(given)) == (20, sorted(TEXTS[:20]))


def test_a_teacher_of_another_name_is_the_same_and_one_of_other_tokens_another(
    store, teacher, encoder
):
    embed_texts(store, teacher, "first", TEXTS)
    renamed = published_teacher(store, encoder, "renamed")
    assert teacher_identity(renamed) == teacher_identity(teacher)
    assert embed_texts(store, renamed, "renamed", TEXTS)[1].reused == 40
    shorter = published_teacher(store, encoder, "shorter", max_tokens=8)
    assert embed_texts(store, shorter, "shorter", TEXTS)[1].reused == 0


@pytest.mark.parametrize("broken", ["shard", "index", "cut", "unfinished"])
def test_what_is_altered_or_unfinished_is_encoded_again(store, teacher, broken, caplog):
    first, _, _ = embed_texts(store, teacher, "first", TEXTS)
    folder = first.path / "passages"
    if broken == "shard":
        for file in folder.glob("shard-*.npy"):
            content = bytearray(file.read_bytes())
            content[-1] ^= 1  # of the same size
            file.write_bytes(content)
    elif broken == "index":
        np.save(folder / "sorted-rows.npy", np.arange(40)[::-1])
    elif broken == "cut":
        (folder / "shard-000000.npy").write_bytes(b"")
    else:
        (first.path / "manifest.json").unlink()
    second, counts, given = embed_texts(store, teacher, "second", TEXTS)
    assert (counts.reused, len(given)) == (0, 40)
    assert ("vectors/first-k is not reused" in caplog.text) == (broken != "unfinished")
    fresh = load_encoder(teacher.path).encode(TEXTS, "passage")
    np.testing.assert_allclose(stored(second)[np.arange(40)], fresh, atol=1e-3)


def test_a_text_that_was_skipped_is_tried_again_and_never_reused_as_zeros(store, teacher):
    texts = [*TEXTS[:10], "a quagga", "quagga", *TEXTS[10:]]
    first, _, _ = embed_texts(store, teacher, "first", texts, skip=True)
    assert sorted(stored(first).skipped) == [10, 11]
    with pytest.raises(UserError, match="quagga"):
        embed_texts(store, teacher, "second", texts)
    second, counts, given = embed_texts(store, teacher, "second", texts, skip=True)
    assert {*given} == {"a quagga", "quagga"}
    assert (counts.reused, counts.encoded) == (40, 2)
    assert sorted(stored(second).skipped) == [10, 11]


def test_a_stage_that_was_killed_keeps_its_shards_and_still_gets_an_index(store, teacher):
    identity = teacher_identity(teacher)
    first, _, _ = embed_texts(store, teacher, "first", TEXTS)
    part = TextsToEmbed("passages", "passage", TEXTS, [None] * 40)
    with store.draft("vectors", "again", "k") as draft:
        shutil.copytree(first.path / "passages", draft.path / "passages")
        for file in draft.path.glob("passages/sorted-*"):
            file.unlink()
        known = KnownVectors.open(store, teacher, identity)
        counts = embed(lambda: [part], teacher, draft.path, 6, EmbeddingActors(), known=known)
        assert (counts.reused, counts.encoded, counts.resumed) == (0, 0, 40)
        found = DigestIndex(draft.path / "passages").find(
            text_digests("passage", [None] * 40, TEXTS)
        )
    np.testing.assert_array_equal(found, np.arange(40))


def test_an_index_finds_every_digest_whatever_bytes_it_has(tmp_path, monkeypatch):
    random = np.random.default_rng(0).integers(0, 3, (500, 16), dtype=np.uint8)
    unique = np.unique(random, axis=0)  # zeros in the middle and at the end
    digests = np.random.default_rng(1).permutation(unique).copy().view("S16").ravel()
    monkeypatch.setattr(digests_module, "SORTED_AT_ONCE", 64)  # several runs and ranges
    index = IndexWriter(tmp_path / "work", len(digests))
    index.add(digests[:200])
    index.add(digests[200:-9])
    index.write(tmp_path, without=[3])
    rows = DigestIndex(tmp_path).find(digests)
    expected = np.arange(len(digests))
    expected[[3, *range(-9, 0)]] = -1
    np.testing.assert_array_equal(rows, expected)
    IndexWriter(tmp_path / "none", 0).write(tmp_path, without=[])
    assert DigestIndex(tmp_path).find(digests[:2]).tolist() == [-1, -1]


def test_prompt_and_text_are_not_run_together_in_a_digest():
    digests = text_digests("query", [None, "a", "ab", ""], ["abc", "bc", "c", "abc"])
    assert len({*digests.tolist()}) == 4


def test_an_identity_changes_with_a_weight_and_with_the_base_of_an_adapter(store, teacher):
    identity = teacher_identity(teacher)
    for change in ({"model.safetensors": "0" * 64}, {"metrics.jsonl": "1" * 64}):
        manifest = json.loads(json.dumps(teacher.manifest))
        for file, digest in change.items():
            manifest["files"][file] = {"bytes": 1, "sha256": digest}
        changed = type(teacher)(**{**vars(teacher), "manifest": manifest})
        assert (teacher_identity(changed) != identity) == ("model.safetensors" in change)
    manifest = {**teacher.manifest, "made_by": {"sources": {"base": "two"}}}
    assert teacher_identity(type(teacher)(**{**vars(teacher), "manifest": manifest})) != identity


@pytest.fixture
def stillroom(tmp_path):
    def run(*words):
        return run_command(*words, cwd=tmp_path)

    return run


@pytest.fixture
def other_team(tmp_path):
    return Store(str(tmp_path / "other"))


def test_published_vectors_hold_no_text_and_are_reused_after_an_import(
    store, other_team, teacher, encoder, stillroom, tmp_path
):
    texts = ["a quagga in secret", *TEXTS]
    first, _, _ = embed_texts(store, teacher, "first", texts, skip=True)
    shared = tmp_path / "shared"
    done = stillroom("vectors", "publish", "vectors/first", "--to", shared, "--root", store.root)
    identity = teacher_identity(teacher)
    assert f"40 texts of teacher {identity}, published" in done.stdout
    content = b"".join(file.read_bytes() for file in shared.rglob("*") if file.is_file())
    assert b"quagga" not in content and b"number" not in content
    assert [*first.path.rglob("skipped-*")] and not [*shared.rglob("skipped-*")]

    same = published_teacher(other_team, encoder, "of-the-other-team")
    for outcome in ("imported", "was imported before"):
        done = stillroom("vectors", "import", shared, "--root", other_team.root)
        assert f"40 texts of teacher {identity}, {outcome}" in done.stdout
        assert "used for teacher/of-the-other-team-k" in done.stdout
    mine, counts, given = embed_texts(other_team, same, "mine", [*NEW, *TEXTS])
    assert (counts.reused, sorted(given)) == (40, sorted(NEW))
    rows = np.arange(40)
    np.testing.assert_array_equal(stored(mine)[rows + 2], stored(first)[rows + 1])


def test_imported_vectors_of_another_teacher_are_never_used_and_that_is_said(
    store, other_team, teacher, encoder, stillroom, caplog, tmp_path
):
    embed_texts(store, teacher, "first", TEXTS)
    shared = tmp_path / "shared"
    stillroom("vectors", "publish", "vectors/first", "--to", shared, "--root", store.root)
    another = published_teacher(other_team, encoder, "another", max_tokens=8)
    done = stillroom("vectors", "import", shared, "--root", other_team.root)
    assert done.returncode == 0 and "not used so far: no teacher under" in done.stdout
    with caplog.at_level("INFO"):
        assert embed_texts(other_team, another, "mine", TEXTS)[1].reused == 0
    assert f"is not used: its teacher is {teacher_identity(teacher)}" in caplog.text


def test_what_cannot_be_shared_or_was_altered_is_refused(
    store, other_team, teacher, stillroom, tmp_path
):
    shared = tmp_path / "shared"
    publish = ["vectors", "publish", "vectors/first", "--to", shared, "--root", store.root]
    fetch = ["vectors", "import", shared, "--root", other_team.root]
    with store.draft("vectors", "first", "k") as draft:
        (draft.path / "contract.json").write_text("{}")
        old = draft.publish({})
    assert "has no index of its texts" in stillroom(*publish).stderr
    assert "holds no published vectors" in stillroom(*fetch).stderr
    store.remove(old)
    embed_texts(store, teacher, "first", TEXTS)
    assert stillroom(*publish).returncode == 0
    [shard] = shared.rglob("shard-000000.npy")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    refused = stillroom(*fetch)
    assert refused.returncode == 2 and "differs from its artifact's manifest" in refused.stderr
    assert not other_team.list_artifacts()

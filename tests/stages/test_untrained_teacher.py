"""A teacher that is used as it is: what runs it, and the proof of its vectors."""

import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from stillroom.config.teacher import Teacher, TeacherMember
from stillroom.encoders.contract import BaseContract, Contract, LibraryContract
from stillroom.encoders.files.load import load_encoder
from stillroom.errors import UserError
from stillroom.stages.untrained_teacher import write_untrained_teacher
from stillroom.storage.artifacts import Store
from support.library_folders import (
    of_transformer,
    own_architecture,
    save_library_model,
    static_embedding,
)


@pytest.fixture(scope="module")
def mean(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "mean"
    return save_library_model(folder, of_transformer(encoder, "mean", Normalize()))


@pytest.fixture(scope="module")
def static(tmp_path_factory):
    return save_library_model(tmp_path_factory.mktemp("bases") / "static", [static_embedding()])


@pytest.fixture
def write(tmp_path):
    """Writes the artifact of a teacher's section; returns its folder and the stage's summary."""
    drafts = Store(str(tmp_path / "runs"))

    def write(**fields):
        with drafts.draft("teacher", "t", str(len(fields))) as draft:
            summary = write_untrained_teacher(Teacher(**fields), draft)
            return shutil.copytree(draft.path, tmp_path / "written"), summary

    return write


def test_a_base_of_the_library_s_format_has_its_proof_in_the_summary(write, mean):
    folder, summary = write(base=str(mean), precision="bfloat16")
    proof = summary["proof"][str(mean)]
    assert proof["texts"] >= 20
    assert proof["min_cosine"] > 0.9999  # compared in float32, whatever the contract computes in
    assert "sentence-transformers" in proof["versions"]
    assert Contract.read(folder).precision == "bfloat16"


def test_a_recipe_that_changes_how_a_base_is_read_gets_no_proof(write, mean):
    folder, summary = write(base=str(mean), pooling="cls")
    assert "proof" not in summary and Contract.read(folder).pooling == "cls"


def test_a_base_whose_vectors_differ_from_the_library_s_is_refused(write, mean, monkeypatch):
    from stillroom.encoders.layers import pooling

    monkeypatch.setitem(pooling.POOLINGS, "mean", pooling.POOLINGS["cls"])
    with pytest.raises(UserError, match="the pooled state differs first"):
        write(base=str(mean))


def test_a_recipe_can_have_the_library_run_a_base(write, mean):
    folder, summary = write(base=str(mean), encoder="sentence_transformers", max_tokens=20)
    assert isinstance(BaseContract.read(folder), LibraryContract) and "proof" not in summary
    model = SentenceTransformer(str(mean), device="cpu")
    model.max_seq_length = 20
    texts = ["a house", "many words " * 50]
    np.testing.assert_allclose(
        load_encoder(folder).encode(texts, "query"), model.encode(texts), atol=1e-5
    )


def test_members_are_run_each_in_its_own_way_and_proven(write, mean, static):
    members = (
        TeacherMember(base=str(mean)),
        TeacherMember(base=str(static)),
        TeacherMember(base=str(mean), encoder="sentence_transformers"),
    )
    folder, summary = write(members=members, precision="float32")
    kinds = [type(BaseContract.read(folder / f"members/{i}")) for i in range(3)]
    assert kinds == [Contract, LibraryContract, LibraryContract]
    assert list(summary["proof"]) == [str(mean)]
    vectors = load_encoder(folder).encode(["a house", "many words " * 50], "query")
    np.testing.assert_allclose(vectors[:, :64], vectors[:, 128:], atol=1e-5)


def test_a_model_of_its_own_code_is_the_library_s_unless_our_forward_is_asked_for(
    write, mean, tmp_path
):
    base = own_architecture(shutil.copytree(mean, tmp_path / "own"))
    trusted = {"base": str(base), "trust_remote_code": True}
    with pytest.raises(UserError, match="can be loaded only by running its own code"):
        write(base=str(base))
    assert isinstance(BaseContract.read(write(**trusted)[0]), LibraryContract)


@pytest.mark.parametrize("choice", [{"encoder": "stillroom"}, {"pooling": "mean"}])
def test_our_own_forward_runs_a_model_of_its_own_code_when_the_recipe_asks_for_it(
    write, mean, tmp_path, choice
):
    base = own_architecture(shutil.copytree(mean, tmp_path / "own"))
    folder, _ = write(base=str(base), trust_remote_code=True, **choice)
    assert isinstance(BaseContract.read(folder), Contract)

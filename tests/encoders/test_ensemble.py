"""Several encoders as one, against their vectors put together by hand."""

import shutil

import numpy as np
import pytest

from stillroom.encoders.contract import Contract, Terms
from stillroom.encoders.files.create import combine, create
from stillroom.encoders.files.load import load, weights_of
from stillroom.encoders.files.save import save
from stillroom.errors import UserError

TEXTS = ["a short text", "another text, which has quite a few more words", "", "naïve 漢字"]


@pytest.fixture(scope="module")
def members(encoder, decoder):
    one = create(
        str(encoder), space="a", pooling="mean", prompts={"query": "find: "}, precision="float32"
    )
    two = create(
        str(decoder), space="b", pooling="last", append_eos=True, max_tokens=32,
        prompts={"query": "Instruct: find\nQuery: "}, precision="float32",
    )  # fmt: skip
    for member in (one, two):
        member.contract = member.contract.model_copy(update={"dims": (64, 32)})
    return [one.eval(), two.eval()]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


BY_HAND = {
    "concatenate": lambda a, b: unit(np.concatenate([unit(a), unit(b)], axis=1)),
    "average": lambda a, b: unit(unit(a) + unit(b)),
}


@pytest.mark.parametrize(("way", "dims"), [("concatenate", (128,)), ("average", (64, 32))])
@pytest.mark.parametrize("normalised", [True, False])
def test_vectors_are_the_members_put_together_wherever_the_folder_lies(
    members, tmp_path, way, dims, normalised
):
    for member in members:
        member.contract = member.contract.model_copy(update={"normalise": normalised})
    made = combine(members, way, space="both")
    assert (made.contract.dims, made.contract.max_tokens) == (dims, 32)
    save(made, tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    again = load(tmp_path / "there")
    assert again.contract == made.contract == Terms.read(tmp_path / "there")
    assert again.parameters_total == sum(member.parameters_total for member in members)
    for role in ("query", "passage"):
        for prompt in (None, "given: "):
            expected = BY_HAND[way](*(m.encode(TEXTS, role, prompt=prompt) for m in members))
            for encoder in (made, again):
                found = encoder.encode(TEXTS, role, prompt=prompt)
                np.testing.assert_allclose(found, expected, atol=2e-6)
                alone = np.concatenate([encoder.encode([t], role, prompt=prompt) for t in TEXTS])
                np.testing.assert_allclose(alone, expected, atol=2e-6)
            for size in dims:
                found = again.encode(TEXTS, role, prompt=prompt, dims=size)
                np.testing.assert_allclose(found, unit(expected[:, :size]), atol=2e-6)
    assert again.encode([], "query").shape == (0, dims[0])
    with pytest.raises(UserError, match="7 is not a size"):
        again.encode(TEXTS, "query", dims=7)


def test_vectors_of_two_sizes_are_not_averaged(members, encoder):
    wide = create(str(encoder), space="c", pooling="mean", projection_dims=96)
    with pytest.raises(UserError, match="have 64, 96 dims"):
        combine([members[0], wide], "average", space="both")
    assert combine([members[0], wide], "concatenate", space="both").contract.dims == (160,)


def test_what_needs_one_model_s_weights_is_refused(members, tmp_path):
    save(combine(members, "average", space="both"), tmp_path)
    found = load(tmp_path)
    for ask in (
        lambda: load(tmp_path, trainable=True),
        lambda: load(tmp_path, head=True),
        lambda: create(str(tmp_path), space="t"),
        lambda: Contract.read(tmp_path),
        lambda: weights_of(found, "it"),
    ):
        with pytest.raises(UserError, match="is several models, which have no weights as one"):
            ask()
    with pytest.raises(UserError, match="several tokenizers"):
        found.prompter.of_ids([[1, 2]], "query")


def test_a_member_that_is_not_there_is_named(members, tmp_path):
    save(combine(members, "average", space="both"), tmp_path)
    shutil.rmtree(tmp_path / "members" / "1")
    with pytest.raises(UserError, match="members/1"):
        load(tmp_path)

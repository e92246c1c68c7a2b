"""An ensemble's vectors equal its members' vectors combined by hand."""

import shutil

import numpy as np
import pytest

from stillroom.encoders.contract import BaseContract, Contract
from stillroom.encoders.files.create import combine_encoders, create_encoder
from stillroom.encoders.files.load import load_encoder, require_weights
from stillroom.encoders.files.save import save_encoder
from stillroom.errors import UserError
from support.make_encoder import make_encoder

TEXTS = ["a short text", "another text, which has quite a few more words", "", "naïve 漢字"]


@pytest.fixture(scope="module")
def members(encoder, decoder):
    first = make_encoder(encoder, space="a", prompts={"query": "find: "}, precision="float32")
    second = make_encoder(
        decoder,
        space="b",
        pooling="last",
        append_eos=True,
        max_tokens=32,
        prompts={"query": "Instruct: find\nQuery: "},
        precision="float32",
    )
    for member in (first, second):
        member.contract = member.contract.model_copy(update={"dims": (64, 32)})
    return [first.eval(), second.eval()]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


BY_HAND = {
    "concatenate": lambda a, b: unit(np.concatenate([unit(a), unit(b)], axis=1)),
    "average": lambda a, b: unit(unit(a) + unit(b)),
}


@pytest.mark.parametrize(("method", "dims"), [("concatenate", (128,)), ("average", (64, 32))])
def test_vectors_combine_the_members_wherever_the_folder_is(members, tmp_path, method, dims):
    ensemble = combine_encoders(members, method, space="both")
    assert (ensemble.contract.dims, ensemble.contract.max_tokens) == (dims, 32)
    save_encoder(ensemble, tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    loaded = load_encoder(tmp_path / "there")
    assert loaded.contract == ensemble.contract == BaseContract.read(tmp_path / "there")
    assert loaded.parameters_total == sum(member.parameters_total for member in members)
    for role in ("query", "passage"):
        for prompt in (None, "given: "):
            expected = BY_HAND[method](*(m.encode(TEXTS, role, prompt=prompt) for m in members))
            for encoder in (ensemble, loaded):
                vectors = encoder.encode(TEXTS, role, prompt=prompt)
                np.testing.assert_allclose(vectors, expected, atol=2e-6)
                single = np.concatenate([encoder.encode([t], role, prompt=prompt) for t in TEXTS])
                np.testing.assert_allclose(single, expected, atol=2e-6)
            for size in dims:
                vectors = loaded.encode(TEXTS, role, prompt=prompt, dims=size)
                np.testing.assert_allclose(vectors, unit(expected[:, :size]), atol=2e-6)
    assert loaded.encode([], "query").shape == (0, dims[0])
    with pytest.raises(UserError, match="7 is not a size"):
        loaded.encode(TEXTS, "query", dims=7)


def test_vectors_of_two_sizes_are_not_averaged(members, encoder):
    wide = make_encoder(encoder, space="c", projection_dims=96)
    with pytest.raises(UserError, match="have 64, 96 dims"):
        combine_encoders([members[0], wide], "average", space="both")
    assert combine_encoders([members[0], wide], "concatenate", space="both").contract.dims == (160,)


def test_an_ensemble_is_refused_where_one_model_s_weights_are_needed(members, tmp_path):
    save_encoder(combine_encoders(members, "average", space="both"), tmp_path)
    ensemble = load_encoder(tmp_path)
    for attempt in (
        lambda: load_encoder(tmp_path, trainable=True),
        lambda: load_encoder(tmp_path, head=True),
        lambda: create_encoder(str(tmp_path), space="t"),
        lambda: Contract.read(tmp_path),
        lambda: require_weights(ensemble, "it"),
    ):
        with pytest.raises(UserError, match="is several models, which have no weights as one"):
            attempt()
    with pytest.raises(UserError, match="several tokenizers"):
        ensemble.prompter.from_ids([[1, 2]], "query")


def test_a_missing_member_is_named(members, tmp_path):
    save_encoder(combine_encoders(members, "average", space="both"), tmp_path)
    shutil.rmtree(tmp_path / "members" / "1")
    with pytest.raises(UserError, match="members/1"):
        load_encoder(tmp_path)

"""No vector that is not finite, and none of length zero, leaves an encoder: the text is named, or
the weight."""

import copy
import pickle

import numpy as np
import pytest
import torch

from stillroom.encoders.contract import ProjectionLayer
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.ensemble import EnsembleEncoder, ensemble_contract
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.interface import TokenEncoder
from stillroom.encoders.layers.projection import Projection
from stillroom.encoders.micro_batches import encode_in_batches
from stillroom.encoders.usable_vectors import (
    BrokenModelError,
    UnusableVectorError,
    require_usable,
)
from support.make_encoder import make_encoder

TEXTS = ["a short text", "another one, of more words", "about a quagga", "the last one"]


@pytest.fixture
def model(encoder):
    return make_encoder(encoder, precision="float32").eval()


def set_embedding(model, text, value):
    """Sets the embedding of a token that only this text has."""
    others = {i for other in TEXTS if other != text for i in model.tokenizer(other)["input_ids"]}
    number = next(i for i in model.tokenizer(text)["input_ids"] if i not in others)
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight[number] = value


def with_projection(model, *, relu, rows, **contract):
    """The model with a dense layer of these weights."""
    layer = ProjectionLayer(dims=len(rows), activation="relu" if relu else "identity")
    projection = Projection(64, [layer])
    projection.linear.weight.data.copy_(rows)
    changes = {"projection": (layer,), "dims": (len(rows),), **contract}
    return Encoder(
        model.contract.model_copy(update=changes), model.tokenizer, model.backbone, projection
    ).eval()


@pytest.mark.parametrize("batch_tokens", [None, 1])
def test_a_text_whose_vector_overflows_is_named_by_its_row(model, batch_tokens):
    set_embedding(model, TEXTS[2], 3e38)
    with pytest.raises(UnusableVectorError) as refused:
        model.encode(TEXTS, "passage", batch_tokens=batch_tokens)
    assert str(refused.value) == (
        "text 3 'about a quagga': its vector is not finite. "
        "Change or leave out that text, or use another model."
    )
    assert pickle.loads(pickle.dumps(refused.value)).row == 2
    assert np.isfinite(model.encode([*TEXTS[:2], TEXTS[3]], "passage")).all()


def test_a_weight_that_is_not_finite_is_named_instead_of_the_text(model):
    set_embedding(model, TEXTS[2], float("nan"))
    with pytest.raises(
        BrokenModelError,
        match=r"^model: backbone\.embeddings\.word_embeddings\.weight: holds numbers that are not",
    ):
        model.encode(TEXTS, "passage")


def test_a_model_whose_weights_cannot_be_read_is_at_fault_if_a_plain_text_fails_too(model):
    class Graph(TokenEncoder):
        contract, prompter = model.contract, model.prompter

        def encode_tokens(self, tokens, *, batch_tokens=None, dims=None):
            return encode_in_batches(
                lambda batch: np.full((len(batch.ids_bl), 64), np.nan, np.float32),
                tokens, self.contract, 0, max_tokens=99,
            )  # fmt: skip

    with pytest.raises(BrokenModelError, match=r"gives vectors that are not finite, even of 'A sh"):
        Graph().encode(["漢字"], "query")


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_vector_of_zeros_is_refused_whatever_compares_it(model, similarity):
    contract = {"similarity": similarity, "normalise": similarity == "cosine"}
    model = with_projection(model, relu=True, rows=torch.zeros(8, 64), **contract)
    with pytest.raises(
        UnusableVectorError, match=r"^text 1 'a short text': its vector has length zero"
    ):
        model.encode(TEXTS[:1], "query")


def test_a_vector_too_short_to_be_normalised_is_refused(model):
    model = with_projection(model, relu=False, rows=torch.full((8, 64), 1e-30))
    with pytest.raises(UnusableVectorError, match="length zero"):
        model.encode(TEXTS, "query")


def test_a_prefix_of_zeros_is_refused_though_the_whole_vector_is_usable(model):
    rows = torch.cat([torch.zeros(8, 64), torch.eye(8, 64)])
    model = with_projection(model, relu=False, rows=rows, dims=(16, 8))
    assert model.encode(TEXTS, "query").shape == (4, 16)
    with pytest.raises(UnusableVectorError, match="length zero"):
        model.encode(TEXTS, "query", dims=8)


def test_members_whose_vectors_cancel_each_other_are_refused(model):
    members = [with_projection(model, relu=False, rows=s * torch.eye(8, 64)) for s in (1, -1)]
    both = EnsembleEncoder(ensemble_contract(members, "average", space="s"), members)
    with pytest.raises(UnusableVectorError, match="text 1 'a short text': .* length zero"):
        both.encode(TEXTS, "query")


def test_a_member_s_broken_weight_is_named_with_its_number(model):
    members = [model, copy.deepcopy(model)]
    both = EnsembleEncoder(ensemble_contract(members, "concatenate", space="s"), members)
    set_embedding(members[1], TEXTS[2], float("inf"))
    with pytest.raises(BrokenModelError, match=r"^model: members\.1\.backbone\.embeddings\.word_"):
        both.encode(TEXTS, "query")


@pytest.mark.parametrize(
    ("vectors", "normalised", "usable"),
    [
        (np.ones((2, 4), np.float32) / 2, True, True),
        (np.full((2, 4), 300, np.float16), False, True),  # the sum of squares is not a float16
        (np.full((2, 4), 1e25, np.float32), False, False),  # no inner product is a float32
        (np.full((2, 4), 1e-4, np.float32), True, False),
        (np.full((2, 4), 1e-4, np.float32), False, True),
        (np.array([[1, 0], [np.inf, 0]], np.float16), False, False),
        (np.empty((0, 4), np.float32), True, True),
    ],
)
def test_usable_vectors_have_a_length_and_unit_vectors_have_that(vectors, normalised, usable):
    if usable:
        require_usable(vectors, normalised=normalised)
    else:
        with pytest.raises(UnusableVectorError):
            require_usable(vectors, normalised=normalised)


@pytest.mark.parametrize(
    ("weight", "where"),
    [
        (
            "backbone.encoder.layer.1.attention.self.query.weight",
            "model.safetensors: encoder.layer.1.attention.self.query.weight",
        ),
        ("projection.0.weight", "projection.safetensors: 0.weight"),
    ],
)
def test_a_weight_that_is_not_finite_is_named_with_its_file_when_it_is_loaded(
    encoder, tmp_path, weight, where
):
    model = make_encoder(encoder, precision="float32", projection_dims=8)
    with torch.no_grad():
        model.get_parameter(weight)[3, 4] = float("-inf")
    save_encoder(model, tmp_path)
    with pytest.raises(BrokenModelError) as refused:
        load_encoder(tmp_path)
    assert refused.value.where == f"{tmp_path}/{where}"

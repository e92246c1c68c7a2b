"""The proof that a folder gives the library's vectors here, and that it finds each step apart."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.modules import Normalize

from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.small_copy import small_copy
from stillroom.encoders.proof import TEXTS, probe, prove
from stillroom.errors import UserError
from support.library_folders import of_transformer, projection_chain, save_library_model

MODELS = {
    "mean with prompts": lambda encoder, decoder: (
        of_transformer(encoder, "mean", Normalize()),
        {"prompts": {"query": "query: ", "document": "passage: "}},
    ),
    "a chain of layers, cut": lambda encoder, decoder: (
        of_transformer(encoder, "cls", *projection_chain()),
        {"truncate_dim": 24},
    ),
    "dot, not normalised": lambda encoder, decoder: (
        of_transformer(encoder, "max"),
        {"similarity_fn_name": "dot"},
    ),
    "a decoder's last token": lambda encoder, decoder: (
        of_transformer(decoder, "lasttoken", Normalize()),
        {"prompts": {"query": "Instruct: find it\nQuery: "}},
    ),
    "a prompt that is not pooled": lambda encoder, decoder: (
        of_transformer(encoder, "mean", include_prompt=False),
        {"prompts": {"query": "query: "}},
    ),
}


@pytest.fixture(scope="module")
def folders(encoder, decoder, tmp_path_factory):
    root = tmp_path_factory.mktemp("proof")
    saved = {}
    for name, build in MODELS.items():
        modules, options = build(encoder, decoder)
        saved[name] = save_library_model(root / name, modules, **options)
    return saved


@pytest.mark.parametrize("name", MODELS)
def test_our_vectors_are_proven_with_the_weights_themselves(folders, name):
    proof = prove(probe(load_encoder(folders[name]), name), folders[name])
    assert proof.min_cosine > 0.99999
    assert proof.texts >= 2 * len(TEXTS)  # the empty text may be left out, the long one is added
    assert proof.versions["sentence-transformers"]


@pytest.mark.parametrize("name", MODELS)
def test_our_vectors_are_proven_on_a_small_copy(folders, name, tmp_path):
    copy = small_copy(folders[name], tmp_path / "copy")
    encoder = load_encoder(copy)
    assert encoder.parameters_total < 80_000
    assert prove(probe(encoder, name, full_length=True), copy).min_cosine > 0.99999


def test_a_small_copy_keeps_what_is_not_a_size_and_tells_texts_apart(folders, tmp_path):
    folder = folders["a chain of layers, cut"]
    copy = small_copy(folder, tmp_path / "copy")
    before, after = (json.loads((f / "config.json").read_text()) for f in (folder, copy))
    for kept in ("model_type", "vocab_size", "max_position_embeddings", "hidden_act"):
        assert before[kept] == after[kept]
    assert (copy / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert sum(f.stat().st_size for f in copy.rglob("*.safetensors")) < 1 << 20
    vectors = load_encoder(copy).encode([text for text in TEXTS if text], "query")
    cosines = vectors @ vectors.T
    assert np.median(cosines[np.triu_indices(len(cosines), 1)]) < 0.99
    assert load_file(folder / "model.safetensors").keys() >= {"embeddings.LayerNorm.bias"}


# What goes wrong in our own forward → the first step that the error must name.
FAULTS = {
    "the token ids": ("mean with prompts", lambda encoder: _other_template(encoder)),
    "the transformer's state of token": (
        "mean with prompts",
        lambda encoder: _shift(encoder.backbone.encoder.layer[1].output.LayerNorm.bias),
    ),
    "the pooled state": (
        "mean with prompts",
        lambda encoder: _changed(encoder, pooling="cls"),
    ),
    "the vector behind the projection": (
        "a chain of layers, cut",
        lambda encoder: _shift(encoder.projection[1].bias),
    ),
    "the vector (cut and normalised)": (
        "dot, not normalised",
        lambda encoder: _changed(encoder, normalise=True),
    ),
}


def _changed(encoder, **fields):
    encoder.contract = encoder.contract.model_copy(update=fields)


def _other_template(encoder):
    encoder.prompter.end = []


def _shift(bias):
    """Adds other numbers to each, as a normalisation behind it would take out a constant."""
    bias.add_(torch.linspace(-1, 1, len(bias)))


@pytest.mark.parametrize("step", FAULTS)
def test_the_error_names_the_first_step_at_which_they_part_and_the_text(folders, step):
    name, break_it = FAULTS[step]
    encoder = load_encoder(folders[name])
    with torch.no_grad():
        break_it(encoder)
    with pytest.raises(UserError) as raised:
        prove(probe(encoder, name), folders[name])
    assert f"{step}" in raised.value.problem and "differs first" in raised.value.problem
    assert " as query" in raised.value.problem
    assert raised.value.where == str(folders[name])


def test_a_text_whose_vector_depends_on_its_batch_is_refused(folders, monkeypatch):
    encoder = load_encoder(folders["mean with prompts"])
    alone = type(encoder).encode_batch
    monkeypatch.setattr(
        type(encoder), "encode_batch", lambda self, tokens: alone(self, tokens)[::-1]
    )
    with pytest.raises(UserError, match="another vector in a batch of texts of all lengths"):
        probe(encoder, "it")


def test_an_index_out_of_range_is_reported_with_its_text(folders):
    encoder = load_encoder(folders["mean with prompts"])
    encoder.backbone.embeddings.word_embeddings = torch.nn.Embedding(10, 64)
    with pytest.raises(UserError, match="cannot encode .*IndexError"):
        probe(encoder, "it")


def test_a_broken_weight_is_never_proven(folders):
    encoder = load_encoder(folders["mean with prompts"])
    encoder.backbone.encoder.layer[1].output.dense.bias.data[0] = float("nan")
    with pytest.raises(UserError):
        prove(probe(encoder, "it"), folders["mean with prompts"])


def test_an_end_that_the_library_forgets_is_given_to_it_so_that_the_rest_is_compared(
    folders, tmp_path
):
    folder = shutil.copytree(folders["a decoder's last token"], tmp_path / "e5")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_eos_token": True}))
    encoder = load_encoder(folder)
    assert encoder.prompter(["a"], "passage")[0].ids[-1] == encoder.tokenizer.eos_token_id
    assert prove(probe(encoder, "it"), folder).min_cosine > 0.99999

"""How an encoder's vectors are compared decides their lengths, cuts, exports and combinations."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Comparison, Contract
from stillroom.encoders.export.formats import FORMATS, export_encoder
from stillroom.encoders.export.int8 import row_agreement
from stillroom.encoders.files.create import combine_encoders
from stillroom.encoders.files.folder import read_comparison
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.tokens.batch import pad
from stillroom.errors import UserError
from stillroom.evaluation.fidelity import compare_encoders, texts_with_roles
from support.make_encoder import make_encoder

TEXTS = ["a short text", "another text, which has quite a few more words than that", "naïve 漢字"]
SETS = {"one": EvaluationSet({str(i): text for i, text in enumerate(TEXTS)}, {"q": "text"}, {})}


def states(encoder):
    """The texts' pooled states."""
    with torch.no_grad():
        return encoder.pooled(pad(encoder.prompter(TEXTS, "passage"), encoder.pad_id))


def uneven_encoder(encoder, **fields):
    """An encoder whose states have means and lengths that differ by text, as trained ones have."""
    model = make_encoder(encoder, precision="float32", **fields).eval()
    with torch.no_grad():
        last = model.backbone.encoder.layer[-1].output.LayerNorm
        last.weight.mul_(torch.linspace(0.1, 6, 64))
        last.bias.add_(torch.linspace(0, 3, 64))
    return model


@pytest.fixture(scope="module")
def raw(encoder):
    """An encoder that dot compares, whose vectors may be cut."""
    return uneven_encoder(encoder, similarity="dot", dims=(64, 16))


@pytest.mark.parametrize(
    ("own", "requested", "expected"),
    [
        (("cosine", True), None, ("cosine", True)),
        (("cosine", True), "cosine", ("cosine", True)),
        (("cosine", True), "dot", ("dot", False)),
        (("dot", False), "cosine", ("cosine", True)),
        (("dot", False), "dot", ("dot", False)),
        (("dot", True), "dot", ("dot", True)),  # a folder that normalises, and says dot
        (("dot", True), None, ("dot", True)),
    ],
)
def test_only_another_similarity_changes_the_lengths(own, requested, expected):
    assert Comparison(*own).changed_to(requested) == Comparison(*expected)


def test_an_encoder_that_dot_compares_keeps_lengths_and_cuts_them_plainly(raw):
    expected = states(raw).numpy()
    assert np.ptp(np.linalg.norm(expected, axis=1)) > 0.1
    np.testing.assert_allclose(raw.encode(TEXTS, "passage"), expected, atol=1e-5)
    np.testing.assert_allclose(raw.encode(TEXTS, "passage", dims=16), expected[:, :16], atol=1e-5)


def test_how_vectors_are_compared_is_known_without_loading_weights(raw, encoder, tmp_path):
    save_encoder(raw, tmp_path / "ours")
    assert read_comparison(tmp_path / "ours") == ("dot", False)
    (tmp_path / "ours" / "contract.json").unlink()
    assert read_comparison(tmp_path / "ours") == ("dot", False)  # of sentence-transformers' files
    for weights in tmp_path.rglob("*.safetensors"):
        weights.unlink()
    assert read_comparison(tmp_path / "ours") == ("dot", False)
    assert read_comparison(encoder) == ("cosine", True)  # a plain model


@pytest.mark.parametrize("format", ["sentence-transformers", "onnx"])
def test_exports_keep_lengths(raw, tmp_path, format):
    export_encoder(raw, format, tmp_path / format, texts_with_roles(SETS))
    vectors = FORMATS[format].reopen(tmp_path / format)(TEXTS, "passage")
    np.testing.assert_allclose(vectors, raw.encode(TEXTS, "passage"), atol=1e-4)


def test_an_export_that_loses_lengths_is_refused(raw):
    def normalised(texts, role):
        vectors = raw.encode(texts, role)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    with pytest.raises(UserError, match="4 of 4 texts"):
        compare_encoders(raw.encode, normalised, SETS, floor=0.9999, name="onnx")
    check = compare_encoders(raw.encode, raw.encode, SETS, floor=0.9999, name="onnx")
    assert check["cosine"]["min"] == pytest.approx(1.0)


def test_agreement_is_the_cosine_of_vectors_of_one_length_and_less_of_others():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(50, 7)) for _ in range(2))
    unit_a, unit_b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    cosines = (unit_a * unit_b).sum(1)
    np.testing.assert_allclose(row_agreement(5 * unit_a, 5 * unit_b), cosines)
    np.testing.assert_allclose(row_agreement(a, a), 1.0)
    for x, y, agreement in zip(a, b, row_agreement(a, b), strict=True):
        assert agreement == pytest.approx(2 * sum(x * y) / (sum(x * x) + sum(y * y)))
    assert (row_agreement(a, 1.1 * a) < 0.9999).all()


@pytest.mark.parametrize("method", ["concatenate", "average"])
def test_a_member_whose_scores_depend_on_lengths_is_refused(raw, encoder, method):
    unit = make_encoder(encoder, precision="float32")
    with pytest.raises(UserError, match=r"teacher\.members\.1: .* is compared by dot"):
        combine_encoders([unit, raw], method, space="both")
    by_cosine = make_encoder(encoder, precision="float32", similarity="cosine")
    assert combine_encoders([unit, by_cosine], method, space="both").contract.similarity == "cosine"


def layer_normed(pooled, dims):
    """As nomic-embed-text-v1.5's card has it."""
    normed = F.layer_norm(pooled, normalized_shape=(pooled.shape[1],))
    return F.normalize(normed[:, :dims], p=2, dim=1).numpy()


def test_vectors_are_cut_after_a_layer_norm_without_weights(encoder, tmp_path):
    model = uneven_encoder(encoder, layer_norm=True, dims=(64, 32, 8))
    pooled = states(model)
    assert abs(layer_normed(pooled, 8) - F.normalize(pooled[:, :8]).numpy()).max() > 1e-3
    save_encoder(model, tmp_path / "saved")
    for opened in (model, load_encoder(tmp_path / "saved")):
        assert opened.contract.dims == (64, 32, 8)
        for dims in opened.contract.dims:
            np.testing.assert_allclose(
                opened.encode(TEXTS, "passage", dims=dims), layer_normed(pooled, dims), atol=1e-5
            )
    export_encoder(model, "onnx", tmp_path / "onnx", texts_with_roles(SETS))
    np.testing.assert_allclose(
        FORMATS["onnx"].reopen(tmp_path / "onnx")(TEXTS, "passage"),
        layer_normed(pooled, 64),
        atol=1e-5,
    )
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu", truncate_dim=8)
    np.testing.assert_allclose(
        theirs.encode(TEXTS, normalize_embeddings=True, prompt_name="document"),
        layer_normed(pooled, 8),
        atol=1e-5,
    )


def test_a_base_that_is_always_cut_is_cut_after_its_layer_norm(encoder, tmp_path):
    model = uneven_encoder(encoder, layer_norm=True, dims=(16,))
    save_encoder(model, tmp_path)
    expected = layer_normed(states(model), 16)
    for opened in (model, load_encoder(tmp_path)):
        np.testing.assert_allclose(opened.encode(TEXTS, "passage"), expected, atol=1e-5)


def test_a_layer_norm_stands_behind_the_base_s_own_layers(encoder, tmp_path):
    save_encoder(make_encoder(encoder, precision="float32", projection_dims=24), tmp_path)
    model = make_encoder(tmp_path, pooling=None, precision="float32", layer_norm=True).eval()
    assert [layer.kind for layer in model.contract.projection] == ["dense", "layer_norm"]
    assert Contract.read(tmp_path).dims == model.contract.dims == (24,)
    dense = states(model) @ model.projection[0].weight.detach().T
    np.testing.assert_allclose(model.encode(TEXTS, "passage"), layer_normed(dense, 24), atol=1e-5)


@pytest.mark.parametrize("dims", [(128,), (32, 64), (32, 32), ()])
def test_sizes_that_vectors_cannot_be_cut_to_are_refused(encoder, dims):
    with pytest.raises(UserError, match="sizes of at most 64, the largest first"):
        make_encoder(encoder, dims=dims)

"""A `random:` name gives the same tiny model on every machine, without a download."""

import hashlib
import os
from pathlib import Path

import pytest
import torch

from stillroom.config.load import read_recipe
from stillroom.encoders.files.random_model import build_random_model
from stillroom.encoders.model_names import locate_model, model_fingerprint, read_config
from stillroom.encoders.safe_read import read_tensors
from stillroom.errors import UserError
from support.make_encoder import make_encoder

TINY_RECIPE = Path(__file__).parents[3] / "jobs" / "recipes" / "tiny.yaml"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLROOM_CACHE", str(tmp_path / "cache"))


def digest(data):
    return hashlib.sha256(data).hexdigest()[:8]


@pytest.mark.parametrize("family", ["llama", "mistral", "bert"])
def test_two_builds_are_equal_byte_for_byte(family, tmp_path):
    first, second = (
        build_random_model(f"random:{family}", tmp_path / number) for number in ("1", "2")
    )
    assert {file.name: file.read_bytes() for file in first.iterdir()} == {
        file.name: file.read_bytes() for file in second.iterdir()
    }


# Digests of embeddings and of tokens, which change only with VERSION.
@pytest.mark.parametrize(
    ("name", "weight", "expected"),
    [
        ("random:llama", "model.embed_tokens.weight", ("eeba010d", "2b4a4008")),
        ("random:bert", "embeddings.word_embeddings.weight", ("07c1f788", "9906b547")),
    ],
)
def test_weights_and_tokens_are_the_same_on_every_machine(name, weight, expected):
    model = make_encoder(name, precision="float32")
    embeddings = read_tensors(locate_model(name) / "model.safetensors")[weight]
    vocabulary = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = "\n".join(token for token, _ in vocabulary)
    assert (digest(embeddings.numpy().tobytes()), digest(tokens.encode())) == expected


def test_a_random_model_s_name_sets_its_sizes():
    config = read_config("random:mistral:layers=3,hidden=32,heads=2,vocabulary=600,seed=7")
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    assert [config[size] for size in sizes] == [3, 32, 2, 600]


def test_another_seed_gives_other_weights_and_the_same_tokenizer():
    first, second = locate_model("random:bert"), locate_model("random:bert:seed=1")
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def test_a_random_model_is_built_once_and_its_fingerprint_needs_no_files(tmp_path):
    before = model_fingerprint("random:llama")
    assert not (tmp_path / "cache").exists()
    folder = locate_model("random:llama")
    assert locate_model("random:llama") == folder and model_fingerprint("random:llama") == before
    assert model_fingerprint("random:llama:seed=1") != before


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("random:gpt", "there is no family 'gpt'. Use one of llama, mistral, bert"),
        ("random:llama:width=3", "there is no size 'width'. Use layers, hidden, heads"),
        ("random:llama:layers=two", "layers=two is not a positive integer"),
        ("random:llama:layers=0", "layers=0 is not a positive integer"),
        ("random:llama:hidden=60", "hidden=60 is not a multiple of twice heads=4"),
    ],
)
def test_an_unknown_family_or_size_is_refused_by_name(name, problem):
    for call in (locate_model, model_fingerprint, read_config):
        with pytest.raises(UserError, match=f"{name}: {problem}"):
            call(name)


def test_too_large_a_vocabulary_is_refused_and_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"its tokenizer has \d+ tokens, not 90000"):
        locate_model("random:bert:vocabulary=90000")
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_a_build_does_not_change_the_caller_s_random_state(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_random_model("random:bert", tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_the_tiny_recipe_needs_no_environment_variable(monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    recipe = read_recipe(TINY_RECIPE)
    assert (recipe.teacher.base, recipe.student.base) == ("random:llama", "random:bert")
    overridden = read_recipe(TINY_RECIPE, ["teacher.base=random:mistral:layers=3,hidden=32"])
    assert overridden.teacher.base == "random:mistral:layers=3,hidden=32"

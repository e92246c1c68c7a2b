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

TINY = Path(__file__).parents[3] / "jobs" / "recipes" / "tiny.yaml"


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


# Of embeddings and tokens. They change only with VERSION.
@pytest.mark.parametrize(
    ("name", "weight", "expected"),
    [
        ("random:llama", "model.embed_tokens.weight", ("eeba010d", "2b4a4008")),
        ("random:bert", "embeddings.word_embeddings.weight", ("07c1f788", "9906b547")),
    ],
)
def test_weights_and_tokens_are_those_of_every_other_machine(name, weight, expected):
    model = make_encoder(name, precision="float32")
    embeddings = read_tensors(locate_model(name) / "model.safetensors")[weight]
    vocabulary = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = "\n".join(token for token, _ in vocabulary)
    assert (digest(embeddings.numpy().tobytes()), digest(tokens.encode())) == expected


def test_the_name_says_the_sizes():
    config = read_config("random:mistral:layers=3,hidden=32,heads=2,vocabulary=600,seed=7")
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    assert [config[size] for size in sizes] == [3, 32, 2, 600]


def test_another_seed_gives_other_weights_and_the_same_tokenizer():
    one, other = locate_model("random:bert"), locate_model("random:bert:seed=1")
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_it_is_made_once_and_its_fingerprint_needs_no_files(tmp_path):
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


def test_more_tokens_than_there_are_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"its tokenizer has \d+ tokens, not 90000"):
        locate_model("random:bert:vocabulary=90000")
    assert not [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


def test_a_build_leaves_the_caller_s_random_numbers_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_random_model("random:bert", tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_the_tiny_recipe_needs_no_environment_variable(monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    recipe = read_recipe(TINY)
    assert (recipe.teacher.base, recipe.student.base) == ("random:llama", "random:bert")
    other = read_recipe(TINY, ["teacher.base=random:mistral:layers=3,hidden=32"])
    assert other.teacher.base == "random:mistral:layers=3,hidden=32"

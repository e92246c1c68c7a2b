"""Folders that are broken, incomplete or of two models are refused by the file's name, by loading
and by the check before a run."""

import json
import logging
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

from stillroom.config.teacher import TeacherMember
from stillroom.encoders.files.weight_files import inspect_weights
from stillroom.encoders.model_names import locate_model
from stillroom.errors import UserError
from stillroom.preflight.models import BaseModel, check_model
from stillroom.preflight.trial import try_model
from support.make_encoder import make_encoder

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(decoder, tmp_path):
    return shutil.copytree(decoder, tmp_path / "model")


def refusals(folder):
    """What loading says, and what the check before a run says without its field's name."""
    with pytest.raises(UserError) as loading:
        make_encoder(folder, precision="float32")
    member = TeacherMember(base=str(folder), pooling="mean")
    model = BaseModel("teacher.base", member.base, "mean", trusted=False, section=member)
    with pytest.raises(UserError) as checking:
        check_model(model)
        try_model(model)
    return str(loading.value), str(checking.value).removeprefix("teacher.base: ")


def refused(folder, message):
    for refusal in refusals(folder):
        assert re.search(message, refusal), refusal
        assert str(folder) in refusal
    return True


def write_shards(folder):
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    weight_map = {name: SHARDS[number % 2] for number, name in enumerate(names)}
    for shard in SHARDS:
        part = {name: tensors[name] for name in names if weight_map[name] == shard}
        save_file(part, folder / shard, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def change_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def change_weight(folder, change):
    tensors = load_file(folder / WEIGHTS)
    tensors[UP] = change(tensors[UP])
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json: is not JSON: "),
        ("config.json", "[]", r"config\.json: is not a JSON object"),
        ("config.json", "{}", r"config\.json: does not say its model_type"),
        ("config.json", '{"model_type": "qwen9"}', r"model_type: is 'qwen9', which transformers "),
        ("config.json", LFS, r"config\.json: is a pointer of Git LFS .* Run git lfs pull in "),
        ("config.json", "", r"config\.json: is empty"),
        ("tokenizer.json", "{", r"tokenizer\.json: is not JSON"),
        ("tokenizer.json", "{}", r"has no tokenizer that loads: KeyError: 'added_tokens'"),
        ("tokenizer.json", LFS, r"tokenizer\.json: is a pointer of Git LFS"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json: is not JSON"),
        (WEIGHTS, LFS, r"model\.safetensors: is a pointer of Git LFS"),
        (WEIGHTS, "", r"model\.safetensors: is empty"),
    ],
)
def test_a_broken_file_is_named(folder, file, content, message):
    (folder / file).write_text(content)
    assert refused(folder, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 32},
            rf"{WEIGHTS}: .*: is of the shape \(1000, 64\), and config\.json say",
        ),
        ({"intermediate_size": 100}, r"mlp\.\w+\.weight: is of the shape .* config\.json says"),
        ({"num_hidden_layers": 3}, r"lacks 9 weights of its architecture, layers\.2\.input_layern"),
        (
            {"num_hidden_layers": 1},
            rf"{WEIGHTS}: model\.layers\.1\.input_layernorm\.weight: is one of 9 weights of layers",
        ),
        ({"num_attention_heads": "four"}, r"config\.json: cannot be read: .*num_attention_heads"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"config\.json: quantization_config: says that the weights are quantised \(gptq\)",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused_by_its_field(folder, changes, message):
    change_config(folder, **changes)
    assert refused(folder, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.to(torch.int8), "is of the type I8: quantised weights are not read"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "is of the type F8_E4M3: quantised"),
        (lambda weight: weight * float("nan"), "holds numbers that are not finite"),
    ],
)
def test_a_weight_that_cannot_be_used_is_named_with_its_file(folder, change, message):
    change_weight(folder, change)
    assert refused(folder, f"{WEIGHTS}: {re.escape(UP)}: {message}")


@pytest.mark.parametrize("kept", [0.9, 0.01])
def test_weights_that_are_cut_short_are_named(folder, kept):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(kept * len(content))])
    assert refused(folder, rf"{WEIGHTS}: is cut short, or was changed\. Copy or download that file")


def test_a_shard_that_is_cut_short_or_lost_is_named(folder):
    write_shards(folder)
    (folder / WEIGHTS).unlink()
    make_encoder(folder)
    shard = folder / SHARDS[1]
    shard.write_bytes(shard.read_bytes()[:-20])
    assert refused(folder, rf"{SHARDS[1]}: is cut short")
    shard.unlink()
    assert refused(folder, rf"{SHARDS[1]}: does not exist, and {INDEX} names it")
    shard.symlink_to("/nowhere/blobs/1")
    assert refused(folder, rf"{SHARDS[1]}: is a link to /nowhere/blobs/1, which does not exist")
    (folder / INDEX).write_text('{"weight_map": {}}')
    shard.unlink()
    assert refused(folder, rf"{INDEX}: does not say which file holds which weight")


def test_two_sets_of_weights_are_refused(folder):
    write_shards(folder)
    assert refused(
        folder, rf"holds two sets of weights: {WEIGHTS}, and {SHARDS[0]}, {SHARDS[1]} of"
    )


def test_an_index_without_its_shards_beside_whole_weights_is_ignored(folder):
    write_shards(folder)  # as transformers leaves it that saves a smaller model there
    for shard in SHARDS:
        (folder / shard).unlink()
    assert list(inspect_weights(folder).shapes) == [folder / WEIGHTS]


def test_consolidated_weights_are_not_read_and_the_log_says_so(folder, caplog):
    (folder / "consolidated.safetensors").write_bytes(b"of another program")
    caplog.set_level(logging.INFO, "stillroom")
    make_encoder(folder)
    assert f"{folder}: reads {WEIGHTS}, not consolidated.safetensors" in caplog.messages


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "pytorch_model.bin",
            r"only pytorch_model\.bin\. Save the weights as Safetensors: pickled",
        ),
        ("model-q4.gguf", r"only model-q4\.gguf\. Convert them to Safetensors"),
        ("flax_model.msgpack", r"only flax_model\.msgpack\. Convert them to Safetensors"),
        ("weights.safetensors", rf"holds weights\.safetensors, but neither {WEIGHTS} nor {INDEX}"),
        ("notes.md", "holds no weights. Copy or download"),
    ],
)
def test_weights_of_another_format_or_name_are_named(folder, name, message):
    (folder / WEIGHTS).rename(folder / name)
    assert refused(folder, message)


@pytest.mark.parametrize("special", [True, False])
def test_a_tokenizer_with_more_tokens_than_the_model_has_embeddings_is_refused(folder, special):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>", "<newer>"], special_tokens=special)
    tokenizer.save_pretrained(folder)
    assert refused(
        folder,
        r"has a tokenizer with 2 tokens too many: '<new>' has the id 1000, and the model has 1000",
    )


def test_the_token_of_pictures_that_a_text_model_lacks_is_read_as_text(folder, decoder):
    # As in Gemma 3's versions for texts alone.
    content = json.loads((folder / "tokenizer.json").read_text())
    token = content["added_tokens"][-1] | {"id": 1000, "content": "<image_soft_token>"}
    content["added_tokens"].append(token)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["extra_special_tokens"] = {"image_token": token["content"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert len(AutoTokenizer.from_pretrained(folder)) == 1001
    texts = ["a text with <image_soft_token> in it"]
    with_token, without = make_encoder(folder), make_encoder(decoder)
    assert with_token.prompter(texts, "query") == without.prompter(texts, "query")


def test_a_token_that_the_tokenizer_s_class_adds_by_itself_is_read_as_text(decoder, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen2Model(Qwen2Config(vocab_size=1000, **sizes, **heads)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(decoder).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "Qwen2Tokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab()["<|endoftext|>"] == 1000
    [tokens] = make_encoder(tmp_path).prompter(["a text with <|endoftext|> in it"], "query")
    assert max(tokens.ids) < 1000


@pytest.mark.parametrize("file", ["modules.json", "contract.json"])
def test_a_link_that_leads_nowhere_is_no_missing_file(folder, file):
    (folder / file).symlink_to("/nowhere/at/all")  # without it, this is a plain model
    with pytest.raises(UserError, match=rf"{file}: is a link to /nowhere/at/all, which does not"):
        locate_model(str(folder))

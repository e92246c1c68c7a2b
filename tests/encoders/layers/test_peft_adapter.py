"""A LoRA adapter in PEFT's own format as an encoder's base, against PEFT itself."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.model_names import model_fingerprint
from stillroom.errors import UserError
from stillroom.preflight.models import BaseModel, check_model
from support.make_encoder import make_encoder

TEXTS = ["a short text", "another text, which has quite a few more words than the first"]


def adapter(base, folder, kind, **settings):
    """An adapter trained with PEFT alone."""
    torch.manual_seed(1)
    names = ["q_proj", "v_proj", "lm_head"] if kind is AutoModelForCausalLM else "all-linear"
    config = {"r": 4, "target_modules": names} | settings
    model = get_peft_model(kind.from_pretrained(base), LoraConfig(**config))
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(folder)
    return folder


def vectors_of_peft(base, folder, kind):
    """Mean-pooled unit vectors of the model that PEFT itself merges, causal as it was trained."""
    model = PeftModel.from_pretrained(kind.from_pretrained(base), str(folder)).merge_and_unload()
    model = getattr(model, "model", model).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = []
    for text in TEXTS:
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(states.mean(0), dim=0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (AutoModel, {}),
        (AutoModelForCausalLM, {"task_type": "CAUSAL_LM"}),
        (
            AutoModelForCausalLM,
            {"use_dora": True, "layers_to_transform": [1], "target_modules": ["up_proj"]},
        ),
        (AutoModelForCausalLM, {"rank_pattern": {"model.layers.0.self_attn.q_proj": 2}}),
    ],
)
def test_an_adapter_s_vectors_are_those_of_peft_s_own_merged_model(
    decoder, tmp_path, kind, settings
):
    folder = adapter(decoder, tmp_path / "adapter", kind, **settings)
    ours = make_encoder(folder, precision="float32")
    expected = vectors_of_peft(decoder, folder, kind)
    np.testing.assert_allclose(ours.encode(TEXTS, "query"), expected, atol=1e-5)
    without = make_encoder(decoder, precision="float32")
    assert abs(without.encode(TEXTS, "query") - expected).max() > 0.01
    save_encoder(ours, tmp_path / "whole")
    np.testing.assert_allclose(
        load_encoder(tmp_path / "whole").encode(TEXTS, "query"), expected, atol=1e-5
    )


def test_training_starts_from_the_merged_adapter_and_is_saved_on_top_of_it(decoder, tmp_path):
    folder = adapter(decoder, tmp_path / "adapter", AutoModel)
    lora = LoraOptions(rank=2, alpha=4)
    model = make_encoder(folder, precision="float32", lora=lora, head=True)
    expected = vectors_of_peft(decoder, folder, AutoModel)
    np.testing.assert_allclose(model.encode(TEXTS, "query"), expected, atol=1e-5)
    for p in model.backbone.parameters():
        if p.requires_grad:
            p.data += 0.2
    save_encoder(model, tmp_path / "ours")
    np.testing.assert_allclose(
        load_encoder(tmp_path / "ours").encode(TEXTS, "query"),
        model.encode(TEXTS, "query"),
        atol=1e-5,
    )


def test_an_adapter_on_a_base_that_knows_its_pooling_needs_none(encoder, tmp_path):
    base = tmp_path / "base"
    save_encoder(make_encoder(encoder, pooling="cls", prompts={"query": "find: "}), base)
    (base / "contract.json").unlink()  # now it is a sentence-transformers folder
    before = model_fingerprint(str(base))
    folder = adapter(base, tmp_path / "adapter", AutoModel)
    loaded = load_encoder(folder)
    assert (loaded.contract.pooling, loaded.contract.prompts.query) == ("cls", "find: ")
    fingerprint = model_fingerprint(str(folder))
    assert fingerprint.endswith(before)
    weights = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert check_model(BaseModel("teacher.base", str(folder), "cls", trusted=False)) == weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": None}, "does not say which model it adapts"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "there is no such folder"),
        ({"peft_type": "IA3"}, "is a .*IA3 adapter"),
        ({"r": 8}, "does not fit LlamaModel"),
        ({"target_modules": ["q_proj"]}, "does not fit LlamaModel: .* weights of one are not"),
        ({"target_modules": ["query"]}, "does not fit LlamaModel"),
    ],
)
def test_an_unusable_adapter_is_refused_with_the_reason(decoder, tmp_path, change, message):
    folder = adapter(decoder, tmp_path / "adapter", AutoModel)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        make_encoder(folder)


@pytest.mark.parametrize(
    ("kind", "modules_to_save"),
    [
        (AutoModel, None),
        (AutoModel, ["embed_tokens"]),
        (AutoModelForCausalLM, None),
        (AutoModelForCausalLM, ["embed_tokens", "lm_head"]),
    ],
)
def test_an_adapter_over_a_resized_vocabulary_brings_its_embeddings(
    decoder, tmp_path, kind, modules_to_save
):
    folder = tmp_path / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.add_tokens(["<query>", "<passage>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    base = kind.from_pretrained(decoder)
    base.resize_token_embeddings(len(tokenizer))
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=modules_to_save)
    )
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn_like(p)
    model.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(decoder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    merged = model.merge_and_unload()
    transformer = getattr(merged, "model", merged).eval()
    ids = tokenizer("<query> a short text", return_tensors="pt")
    with torch.inference_mode():
        states = transformer(**ids).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
    ours = make_encoder(folder, precision="float32")
    np.testing.assert_allclose(
        ours.encode(["<query> a short text"], "query")[0], expected, atol=1e-5
    )


def test_an_adapter_of_another_base_s_sizes_is_refused_before_a_run(decoder, tmp_path):
    folder = adapter(decoder, tmp_path / "adapter", AutoModel)
    check_model(BaseModel("teacher.base", str(folder), "mean", trusted=False))
    path = folder / "adapter_config.json"
    other = {"base_model_name_or_path": "random:llama:hidden=128"}
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    with pytest.raises(
        UserError, match=r"down_proj.weight is of the shape \(128, 256\), and the adapter's \(64"
    ):
        check_model(BaseModel("teacher.base", str(folder), "mean", trusted=False))
    with pytest.raises(UserError, match="does not fit LlamaModel: .*size mismatch"):
        make_encoder(folder)


def test_pickled_weights_of_an_adapter_are_refused(decoder, tmp_path):
    folder = adapter(decoder, tmp_path / "adapter", AutoModel)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for load in (load_encoder, model_fingerprint):
        with pytest.raises(UserError, match="pickled weights .* are never loaded"):
            load(str(folder))

"""Latent attention against a loop over tokens and heads; on disk; under LoRA."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillroom.encoders.contract import LatentAttentionSizes
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.files.save import save_encoder
from stillroom.encoders.layers.latent_attention import LatentAttention
from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.tokens.batch import pad
from stillroom.errors import UserError
from support.make_encoder import make_encoder

TEXTS = ["a short text", "another text, which has quite a few more words than the first one", "x"]
LORA = LoraOptions(rank=4, alpha=8)
SIZES = {"count": 7, "heads": 3, "head_dims": 5}


def pooled_by_latents(folder, **changes):
    fields = {"attention": "bidirectional", "precision": "float32", "latents": SIZES, **changes}
    return make_encoder(folder, pooling="latent", **fields)


def norm(x, layer):
    centred = x - x.mean()
    return centred / torch.sqrt(centred.square().mean() + layer.eps) * layer.weight + layer.bias


def transform_slowly(module, states_ld):
    """Transforms one text's states token by token and head by head."""
    attend, feed = module.cross_attend_blocks
    heads, e = SIZES["heads"], SIZES["head_dims"]
    transformed = []
    for state in states_ld:
        query = attend.to_q.weight @ norm(state, attend.norm)
        answer = []
        for head in range(heads):
            dims = slice(head * e, (head + 1) * e)
            scores, values = [], []
            for latent in module.latents:
                key, value = (attend.to_kv.weight @ norm(latent, attend.norm_context)).chunk(2)
                scores.append(query[dims] @ key[dims] / math.sqrt(e))
                values.append(value[dims])
            shares = torch.stack(scores).softmax(0)
            answer.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        state = state + attend.to_out.weight @ torch.cat(answer)
        wide, _, narrow = feed.net
        value, gate = (wide.weight @ norm(state, feed.norm) + wide.bias).chunk(2)
        gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
        transformed.append(state + narrow.weight @ (value * gelu) + narrow.bias)
    return torch.stack(transformed)


def test_latent_attention_is_what_a_loop_over_tokens_and_heads_computes():
    torch.manual_seed(0)
    module = LatentAttention(16, LatentAttentionSizes(**SIZES))
    for p in module.parameters():  # norms start as the identity and would prove nothing
        p.data += 0.1 * torch.randn_like(p)
    states = torch.randn(2, 4, 16)
    expected = torch.stack([transform_slowly(module, text_states) for text_states in states])
    torch.testing.assert_close(module(states), expected, rtol=1e-5, atol=1e-5)


def test_a_vector_is_the_mean_of_the_transformed_states_of_pooled_tokens(decoder):
    model = pooled_by_latents(decoder, prompts={"query": "find: "}, pool_prompt=False).eval()
    [tokens] = model.prompter(TEXTS[:1], "query")
    assert tokens.pool_from > 0
    states = model.backbone(input_ids=torch.tensor([tokens.ids])).last_hidden_state[0]
    expected = transform_slowly(model.latent_attention, states)[tokens.pool_from :].mean(0)
    [vector] = model(pad([tokens], model.pad_id))
    torch.testing.assert_close(vector, expected / expected.norm(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_affect_a_vector_pooled_by_latents(decoder, side):
    model = pooled_by_latents(decoder).eval()
    tokens = model.prompter(TEXTS, "passage")
    single = torch.cat([model(pad([text], model.pad_id)) for text in tokens])
    batched = model(pad(tokens, model.pad_id, side=side))
    torch.testing.assert_close(batched, single, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("lora", [None, LORA])
def test_latents_are_trained_saved_and_loaded_as_they_were(decoder, tmp_path, lora):
    model = pooled_by_latents(decoder, lora=lora)
    model(pad(model.prompter(TEXTS, "query"), model.pad_id))[:, 0].sum().backward()
    for name, p in model.latent_attention.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
        p.data -= p.grad
    assert any(p.requires_grad for p in model.backbone.parameters())
    save_encoder(model, tmp_path)
    assert "cross_attend_blocks.0.to_kv.weight" in load_file(tmp_path / "pooling.safetensors")
    for trainable in (False, True):
        loaded = load_encoder(tmp_path, trainable=trainable)
        assert loaded.contract == model.contract
        assert loaded.contract.latents == LatentAttentionSizes(**SIZES)
        np.testing.assert_allclose(
            loaded.encode(TEXTS, "query"), model.encode(TEXTS, "query"), atol=1e-5
        )
    # sentence-transformers would open the folder without its latents, so it is not offered one.
    assert not (tmp_path / "modules.json").exists()


def test_a_further_phase_keeps_the_latents_and_another_pooling_drops_them(decoder, tmp_path):
    first = pooled_by_latents(decoder)
    save_encoder(first, tmp_path)
    second = create_encoder(
        str(tmp_path),
        space="t",
        options=ContractOptions(latents={"count": 9}, precision="float32"),
        lora=LORA,
    )
    assert second.contract.latents == first.contract.latents
    assert torch.equal(second.latent_attention.latents, first.latent_attention.latents)
    without_latents = make_encoder(tmp_path, space="t")
    assert (without_latents.contract.latents, without_latents.latent_attention) == (None, None)


def test_the_first_latents_are_a_function_of_the_seed(decoder):
    first, same, other = (
        pooled_by_latents(decoder, seed=seed).latent_attention.latents for seed in (1, 1, 2)
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_latents_served_in_bfloat16_take_half_the_memory_and_keep_the_vectors(decoder, tmp_path):
    model = pooled_by_latents(decoder, precision="bfloat16", lora=LORA)
    assert {p.dtype for p in model.latent_attention.parameters()} == {torch.float32}
    save_encoder(model, tmp_path)
    served = load_encoder(tmp_path)
    assert {p.dtype for p in served.latent_attention.parameters()} == {torch.bfloat16}
    cosines = (model.encode(TEXTS, "query") * served.encode(TEXTS, "query")).sum(1)
    assert cosines.min() > 0.999


def test_missing_latents_are_an_error_and_not_random(decoder, tmp_path):
    save_encoder(pooled_by_latents(decoder), tmp_path)
    (tmp_path / "pooling.safetensors").unlink()
    with pytest.raises(UserError, match="pooling.safetensors: does not exist"):
        load_encoder(tmp_path)

"""Latent attention against a loop over tokens and heads; on disk; under LoRA."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillroom.encoders.contract import Latents
from stillroom.encoders.files.create import create
from stillroom.encoders.files.load import load
from stillroom.encoders.files.save import save
from stillroom.encoders.layers.latent_attention import LatentAttention
from stillroom.encoders.tokens.prompter import pad
from stillroom.errors import UserError

TEXTS = ["a short text", "another text, which has quite a few more words than the first one", "x"]
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
SIZES = {"count": 7, "heads": 3, "head_dims": 5}


def pooled_by_latents(folder, **changes):
    fields = {"attention": "bidirectional", "precision": "float32", "latents": SIZES, **changes}
    return create(str(folder), space="s", pooling="latent", **fields)


def norm(x, layer):
    centred = x - x.mean()
    return centred / torch.sqrt(centred.square().mean() + layer.eps) * layer.weight + layer.bias


def slow(module, states_ld):
    """One text's states, token by token and head by head."""
    attend, feed = module.cross_attend_blocks
    heads, e = SIZES["heads"], SIZES["head_dims"]
    found = []
    for state in states_ld:
        query = attend.to_q.weight @ norm(state, attend.norm)
        answer = []
        for head in range(heads):
            own = slice(head * e, (head + 1) * e)
            scores, values = [], []
            for latent in module.latents:
                key, value = (attend.to_kv.weight @ norm(latent, attend.norm_context)).chunk(2)
                scores.append(query[own] @ key[own] / math.sqrt(e))
                values.append(value[own])
            shares = torch.stack(scores).softmax(0)
            answer.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        state = state + attend.to_out.weight @ torch.cat(answer)
        wide, _, narrow = feed.net
        value, gate = (wide.weight @ norm(state, feed.norm) + wide.bias).chunk(2)
        gelu = gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
        found.append(state + narrow.weight @ (value * gelu) + narrow.bias)
    return torch.stack(found)


def test_latent_attention_is_what_a_loop_over_tokens_and_heads_computes():
    torch.manual_seed(0)
    module = LatentAttention(16, Latents(**SIZES))
    for p in module.parameters():  # norms begin as the identity, and would prove nothing
        p.data += 0.1 * torch.randn_like(p)
    states = torch.randn(2, 4, 16)
    expected = torch.stack([slow(module, one) for one in states])
    torch.testing.assert_close(module(states), expected, rtol=1e-5, atol=1e-5)


def test_a_vector_is_the_mean_of_the_transformed_states_that_count(decoder):
    model = pooled_by_latents(decoder, prompts={"query": "find: "}, pool_prompt=False).eval()
    [tokens] = model.prompter(TEXTS[:1], "query")
    assert tokens.pool_from > 0
    states = model.backbone(input_ids=torch.tensor([tokens.ids])).last_hidden_state[0]
    expected = slow(model.latent_attention, states)[tokens.pool_from :].mean(0)
    [vector] = model(pad([tokens], model.pad_id))
    torch.testing.assert_close(vector, expected / expected.norm(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_reach_a_vector_that_latents_pooled(decoder, side):
    model = pooled_by_latents(decoder).eval()
    tokens = model.prompter(TEXTS, "passage")
    alone = torch.cat([model(pad([one], model.pad_id)) for one in tokens])
    together = model(pad(tokens, model.pad_id, side=side))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("lora", [None, LORA])
def test_latents_are_trained_saved_and_loaded_as_they_were(decoder, tmp_path, lora):
    model = pooled_by_latents(decoder, lora=lora)
    model(pad(model.prompter(TEXTS, "query"), model.pad_id))[:, 0].sum().backward()
    for name, p in model.latent_attention.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
        p.data -= p.grad
    assert any(p.requires_grad for p in model.backbone.parameters())
    save(model, tmp_path)
    assert "cross_attend_blocks.0.to_kv.weight" in load_file(tmp_path / "pooling.safetensors")
    for trainable in (False, True):
        again = load(tmp_path, trainable=trainable)
        assert again.contract == model.contract
        assert again.contract.latents == Latents(**SIZES)
        np.testing.assert_allclose(
            again.encode(TEXTS, "query"), model.encode(TEXTS, "query"), atol=1e-5
        )
    # What sentence-transformers would open without its latents is not offered to it.
    assert not (tmp_path / "modules.json").exists()


def test_a_further_phase_keeps_the_latents_and_another_pooling_drops_them(decoder, tmp_path):
    first = pooled_by_latents(decoder)
    save(first, tmp_path)
    second = create(str(tmp_path), space="t", lora=LORA, latents={"count": 9}, precision="float32")
    assert second.contract.latents == first.contract.latents
    assert torch.equal(second.latent_attention.latents, first.latent_attention.latents)
    other = create(str(tmp_path), space="t", pooling="mean")
    assert (other.contract.latents, other.latent_attention) == (None, None)


def test_the_first_latents_are_a_function_of_the_seed(decoder):
    one, same, other = (
        pooled_by_latents(decoder, seed=seed).latent_attention.latents for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_served_in_bfloat16_latents_take_half_the_memory_and_keep_the_vectors(decoder, tmp_path):
    model = pooled_by_latents(decoder, precision="bfloat16", lora=LORA)
    assert {p.dtype for p in model.latent_attention.parameters()} == {torch.float32}
    save(model, tmp_path)
    served = load(tmp_path)
    assert {p.dtype for p in served.latent_attention.parameters()} == {torch.bfloat16}
    cosines = (model.encode(TEXTS, "query") * served.encode(TEXTS, "query")).sum(1)
    assert cosines.min() > 0.999


def test_latents_that_are_not_there_are_an_error_and_not_random(decoder, tmp_path):
    save(pooled_by_latents(decoder), tmp_path)
    (tmp_path / "pooling.safetensors").unlink()
    with pytest.raises(UserError, match="pooling.safetensors: does not exist"):
        load(tmp_path)

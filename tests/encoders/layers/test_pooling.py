import pytest
import torch

from stillroom.encoders.layers.lora import LoraOptions
from stillroom.encoders.layers.pooling import POOLINGS
from stillroom.encoders.tokens.batch import IGNORE_INDEX, LabelledBatch, pad
from support.make_encoder import make_encoder

STATES = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (
            [1, 1, 1, 0],
            {
                "mean": 2,
                "weighted_mean": 14 / 6,
                "last": 3,
                "cls": 1,
                "max": 3,
                "mean_sqrt_len": 6 / 3**0.5,
            },
        ),
        ([0, 1, 1, 1], {"mean": 3, "weighted_mean": 20 / 6, "last": 4, "cls": 2}),
        (
            [0, 1, 0, 1],
            {
                "mean": 3,
                "weighted_mean": 10 / 3,
                "last": 4,
                "cls": 2,
                "max": 4,
                "mean_sqrt_len": 6 / 2**0.5,
            },
        ),
        ([0, 0, 1, 0], {"mean": 3, "weighted_mean": 3, "last": 3, "cls": 3}),
    ],
)
def test_each_pooling_gives_what_is_computed_by_hand(mask, expected):
    for name, value in expected.items():
        pooled = POOLINGS[name](STATES, torch.tensor([mask]))
        torch.testing.assert_close(pooled, torch.tensor([[float(value)]]))


@pytest.mark.parametrize("name", POOLINGS)
def test_states_in_bfloat16_are_pooled_in_float32(name):
    """3,000 similar values: bfloat16 counts in twos from 256 on and would lose most of them."""
    torch.manual_seed(0)
    tokens = 3000
    states = (torch.randn(2, tokens, 8) + 3).bfloat16()
    mask = torch.ones(2, tokens, dtype=torch.long)
    mask[1, :500] = 0
    weights = {
        "mean": mask,
        "latent": mask,
        "weighted_mean": mask.cumsum(1) * mask,
        "last": torch.arange(tokens) == tokens - 1,
        "cls": mask.cumsum(1).eq(1) & mask.eq(1),
        "max": mask,
        "mean_sqrt_len": mask,
    }[name].double().expand(2, tokens)  # fmt: skip
    exact = (states.double() * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    if name == "max":
        exact = states.double().masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    if name == "mean_sqrt_len":
        exact = exact * weights.sum(1, keepdim=True).sqrt()
    pooled = POOLINGS[name](states, mask)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, exact.float(), atol=1e-4, rtol=1e-4)
    in_bfloat16 = torch.zeros(2, 8, dtype=torch.bfloat16)
    for token, weight in zip(states.unbind(1), weights.bfloat16().unbind(1), strict=True):
        in_bfloat16 += token * weight[:, None]
    in_bfloat16 /= weights.bfloat16().sum(1, keepdim=True)
    if name in ("mean", "latent", "weighted_mean"):
        assert abs(in_bfloat16 - exact).max() > 0.1, "the test would notice bfloat16"


def test_an_encoder_that_computes_in_bfloat16_pools_and_predicts_in_float32(decoder):
    lora = LoraOptions(rank=4, alpha=8)
    model = make_encoder(
        decoder, precision="bfloat16", head=True, projection_dims=48, lora=lora
    ).eval()
    states, logits = [], []
    model.backbone.register_forward_hook(lambda _, __, out: states.append(out[0]))
    model.head.register_forward_hook(lambda _, __, out: logits.append(out))
    batch = pad(model.prompter(["many words " * 100, "few words"], "passage"), model.pad_id)
    vectors = model(batch)
    assert (states[0].dtype, vectors.dtype) == (torch.bfloat16, torch.float32)
    counted = batch.mask_bl[..., None]
    exact = (states[0].double() * counted).sum(1) / counted.sum(1)
    exact = torch.nn.functional.normalize(exact @ model.projection.linear.weight.T.double(), dim=-1)
    torch.testing.assert_close(vectors, exact.float(), rtol=1e-4, atol=1e-5)

    targets = torch.where(batch.mask_bl == 1, batch.ids_bl, IGNORE_INDEX)
    losses = model(LabelledBatch(batch.ids_bl, batch.mask_bl, targets, "causal"))
    assert (logits[0].dtype, losses.dtype) == (torch.bfloat16, torch.float32)
    predicted_ids = targets[targets != IGNORE_INDEX]
    expected_nll = (
        -logits[0].double().log_softmax(-1)[torch.arange(len(predicted_ids)), predicted_ids]
    )
    rows = (targets != IGNORE_INDEX).nonzero()[:, 0]
    sums = torch.stack([expected_nll[rows == row].sum() for row in range(2)])
    torch.testing.assert_close(losses, sums.float(), rtol=1e-5, atol=0)

import pytest
import torch

from stillroom.encoders.pooling import POOLINGS

STATES = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1, 0], {"mean": 2, "weighted_mean": 14 / 6, "last": 3, "cls": 1}),
        ([0, 1, 1, 1], {"mean": 3, "weighted_mean": 20 / 6, "last": 4, "cls": 2}),
        ([0, 1, 0, 1], {"mean": 3, "weighted_mean": 10 / 3, "last": 4, "cls": 2}),
        ([0, 0, 1, 0], {"mean": 3, "weighted_mean": 3, "last": 3, "cls": 3}),
    ],
)
def test_each_pooling_gives_what_is_computed_by_hand(mask, expected):
    for name, value in expected.items():
        pooled = POOLINGS[name](STATES, torch.tensor([mask]))
        torch.testing.assert_close(pooled, torch.tensor([[float(value)]]))


def test_a_long_text_in_bfloat16_is_summed_without_loss():
    torch.manual_seed(0)
    states = (torch.randn(1, 3000, 8) + 3).bfloat16()
    mask = torch.ones(1, 3000, dtype=torch.long)
    exact = states.double().mean(1).float()
    torch.testing.assert_close(POOLINGS["mean"](states, mask), exact, atol=1e-4, rtol=1e-4)

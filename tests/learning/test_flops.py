"""Operations, counted by hand on sizes that a hand can count."""

import pytest

from stillroom.learning.flops import PEAK, backward, forward, step
from stillroom.learning.memory import GPUS, Training
from stillroom.learning.shape import Linear, Shape

# Two layers, each of one linear layer 3 → 5; attention is 4 wide.
SMALL = Shape(
    hidden=3, layers=2, vocabulary=10, linears=(Linear("only", 3, 5),), norms=0, outside=0,
    attention=4, mlp=5, gated=False, decoder=True,
)  # fmt: skip
FULL = Training(rank=None)
LORA = Training(rank=2)  # A: 2 layers of 2 (3 + 5) = 32


def test_a_text_s_forward_is_two_operations_a_weight_and_token_and_what_attention_takes():
    # 2 · 7 tokens · 30 weights + 4 · 2 layers · 7² · 4
    assert forward(SMALL, 7, FULL) == 2 * 7 * 30 + 4 * 2 * 49 * 4 == 1988
    assert forward(SMALL, 7, LORA) == 2 * 7 * (30 + 32) + 1568


def test_a_frozen_weight_s_backward_is_half_of_a_trained_one_s():
    assert backward(SMALL, 7, FULL) == 4 * 7 * 30 + 2 * 1568
    assert backward(SMALL, 7, LORA) == 2 * 7 * 30 + 4 * 7 * 32 + 2 * 1568


def test_a_step_is_all_that_it_embeds_there_and_back():
    run = Training(rank=None, embedded=((3, 7), (6, 2)))
    one = forward(SMALL, 7, FULL) + backward(SMALL, 7, FULL)
    other = forward(SMALL, 2, FULL) + backward(SMALL, 2, FULL)
    assert step(SMALL, run) == 3 * one + 6 * other


@pytest.mark.parametrize(("rank", "passes"), [(None, 3), (2, 2)])
def test_predicted_tokens_meet_the_head_too(rank, passes):
    run = Training(rank=rank, predicted=(3, 8, 0.25))
    body = forward(SMALL, 8, run) + backward(SMALL, 8, run)
    assert step(SMALL, run) == 3 * body + 3 * 8 * 0.25 * 2 * passes * 10 * 3


def test_latent_attention_counts_what_every_token_meets():
    run = Training(rank=2, latents=(512, 2, 4))
    more = 2 * 7 * (2 * 3 * 2 * 4 + 12 * 9)
    assert forward(SMALL, 7, run) == forward(SMALL, 7, LORA) + more


def test_every_peak_is_of_a_gpu_whose_memory_is_known():
    assert PEAK.keys() <= GPUS.keys()

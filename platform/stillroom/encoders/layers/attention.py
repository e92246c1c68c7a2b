"""Makes a decoder attend causally or bidirectionally, and checks which one a model really uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stillroom.encoders.contract import Attention
from stillroom.errors import UserError


def detect_attention(backbone: Any) -> Attention:
    """The model's attention, measured: does the last token change the first token's state?

    Raises:
        UserError: when it differs between batches with and without padding.
    """
    training = backbone.training
    backbone.eval()
    unpadded, padded = (_sees_ahead(backbone, padding) for padding in (0, 2))
    backbone.train(training)
    if unpadded != padded:
        raise UserError(
            type(backbone).__name__,
            "attends in one way with padding in the batch and in another without",
            "Use a base of another architecture",
        )
    return "bidirectional" if unpadded else "causal"


def check_attention(backbone: Any, attention: Attention | None) -> None:
    """Raises UserError when the model does not use the requested attention; None requests none."""
    if attention is not None and detect_attention(backbone) != attention:
        raise UserError(
            f"attention: {attention}",
            f"has no effect on {type(backbone).__name__}",
            "Use the attention that this architecture has, or another base",
        )


@contextmanager
def use_attention(backbone: Any, attention: Attention) -> Iterator[None]:
    """Inside this block a decoder uses the given attention. Afterwards its config, which is saved
    with the model, is restored.
    """
    config = backbone.config
    before = getattr(config, "is_causal", True)
    config.is_causal = attention == "causal"
    try:
        yield
    finally:
        config.is_causal = before


def _sees_ahead(backbone: Any, padding: int) -> bool:
    """Whether a text's first state depends on its last token, in a batch with a text of this
    padding.
    """
    size = int(backbone.config.vocab_size)
    ids_bl = (torch.arange(4, 12) % size).repeat(2, 1).to(backbone.device)
    changed_bl = ids_bl.clone()
    changed_bl[0, -1] = (changed_bl[0, -1] + 7) % size
    mask_bl = torch.ones_like(ids_bl)
    mask_bl[1, ids_bl.shape[1] - padding :] = 0
    with torch.inference_mode():
        first, second = (
            backbone(input_ids=ids, attention_mask=mask_bl).last_hidden_state[0, 0]
            for ids in (ids_bl, changed_bl)
        )
    return not torch.equal(first, second)

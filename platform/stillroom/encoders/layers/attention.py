"""Makes a decoder attend causally or bidirectionally, and checks which one a model really uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stillroom.encoders.contract import Attention
from stillroom.encoders.layers.backbone import is_decoder
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


def set_attention(backbone: Any, attention: Attention | None) -> None:
    """Makes the model attend as requested; None requests nothing.

    A model that does so already is left as it is: the mask of `config.is_causal` is another than
    that of an architecture's own option. Its window reaches one token further than Gemma 3's.

    Raises:
        UserError: when the architecture cannot.
    """
    if attention is None or detect_attention(backbone) == attention:
        return
    config = backbone.config
    if is_decoder(config):
        # On the config: newer versions of transformers silently ignore it on the modules.
        config.is_causal = attention == "causal"
        # A window on every layer hides distant tokens, so it is removed. A window on some layers is
        # part of the architecture, as in Gemma 3, whose other layers see all tokens.
        windows = hasattr(config, "sliding_window") and not hasattr(config, "layer_types")
        if windows and attention == "bidirectional":
            config.sliding_window = None
    if detect_attention(backbone) != attention:
        raise UserError(
            f"attention: {attention}",
            f"has no effect on {type(backbone).__name__}",
            "Use the attention that this architecture has, or another base",
        )


@contextmanager
def use_attention(backbone: Any, attention: Attention) -> Iterator[None]:
    """Inside this block a decoder uses the given attention. Afterwards its config, which is saved
    with the model, is restored.

    Raises:
        UserError: to be causal, when the decoder was built bidirectional; see `set_attention`.
    """
    if is_built_bidirectional(backbone):
        if attention == "causal":
            raise UserError(
                type(backbone).__name__,
                "is bidirectional by its own config, and cannot predict tokens causally",
                "Use another base, or leave out phases that generate",
            )
        yield
        return
    config = backbone.config
    before = getattr(config, "is_causal", True)
    config.is_causal = attention == "causal"
    try:
        yield
    finally:
        config.is_causal = before


def is_built_bidirectional(backbone: Any) -> bool:
    """Whether the architecture itself makes all layers bidirectional, as Gemma 3's with
    `use_bidirectional_attention`."""
    flags = (getattr(module, "is_causal", None) for module in backbone.modules())
    first = next((flag for flag in flags if flag is not None), True)
    return not first and not any(flags)


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

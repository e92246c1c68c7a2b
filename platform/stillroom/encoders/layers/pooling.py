"""States and mask → one vector a text. Sums run in float32: bf16 loses digits from some 256 tokens.

Shapes: b texts, l tokens, d dims. The mask is 1 where a token counts.
"""

from collections.abc import Callable

import torch

Tensor = torch.Tensor


def mean(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """The mean of the tokens that count."""
    return _weighted(states_bld, mask_bl.float())


def weighted_mean(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """A mean in which the i-th token that counts weighs i (SGPT, arXiv 2202.08904)."""
    return _weighted(states_bld, mask_bl.float().cumsum(1) * mask_bl)


def last(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """The last token that counts, wherever the padding is."""
    places = torch.arange(mask_bl.shape[1], device=mask_bl.device)
    return _at(states_bld, (places * mask_bl).argmax(1))


def cls(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """The first token that counts."""
    return _at(states_bld, mask_bl.argmax(1))


def _weighted(states_bld: Tensor, weights_bl: Tensor) -> Tensor:
    total_b1 = weights_bl.sum(1, keepdim=True)
    return torch.einsum("bld,bl->bd", states_bld.float(), weights_bl) / total_b1


def _at(states_bld: Tensor, place_b: Tensor) -> Tensor:
    # Its shape, not its length: that would be fixed in an exported graph.
    texts_b = torch.arange(states_bld.shape[0], device=states_bld.device)
    return states_bld[texts_b, place_b].float()


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean,
    "weighted_mean": weighted_mean,
    "last": last,
    "cls": cls,
    "latent": mean,  # of states that latent attention has transformed
}

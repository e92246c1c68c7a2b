"""Pooling: states and mask → one vector per text, in float32, since sums of more than some 256
tokens lose digits in bfloat16.

Shapes: b texts, l tokens, d dims. The mask is 1 where a token counts.
"""

from collections.abc import Callable

import torch

Tensor = torch.Tensor


def mean(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """The mean of the tokens that count."""
    return _weighted(states_bld, mask_bl.float())


def weighted_mean(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """A mean in which the i-th token that counts has weight i (SGPT, arXiv 2202.08904)."""
    return _weighted(states_bld, mask_bl.float().cumsum(1) * mask_bl)


def mean_sqrt_len(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """The sum of the tokens that count, divided by the root of their number."""
    mask_bl = mask_bl.float()
    return _weighted(states_bld, mask_bl) * mask_bl.sum(1, keepdim=True).sqrt()


def maximum(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """The largest value of each dim among the tokens that count."""
    ignored_bl1 = (mask_bl == 0).unsqueeze(-1)
    return states_bld.float().masked_fill(ignored_bl1, float("-inf")).amax(1)


def last(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """The last token that counts, with padding on either side."""
    positions = torch.arange(mask_bl.shape[1], device=mask_bl.device)
    return _at(states_bld, (positions * mask_bl).argmax(1))


def cls(states_bld: Tensor, mask_bl: Tensor) -> Tensor:
    """The first token that counts."""
    return _at(states_bld, mask_bl.argmax(1))


def _weighted(states_bld: Tensor, weights_bl: Tensor) -> Tensor:
    total_b1 = weights_bl.sum(1, keepdim=True)
    return torch.einsum("bld,bl->bd", states_bld.float(), weights_bl) / total_b1


def _at(states_bld: Tensor, position_b: Tensor) -> Tensor:
    # shape[0], not len(): an exported graph would fix the length.
    texts_b = torch.arange(states_bld.shape[0], device=states_bld.device)
    return states_bld[texts_b, position_b].float()


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean,
    "weighted_mean": weighted_mean,
    "last": last,
    "cls": cls,
    "max": maximum,
    "mean_sqrt_len": mean_sqrt_len,
    "latent": mean,  # of states after latent attention
}

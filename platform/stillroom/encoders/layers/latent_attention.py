"""Latent attention (NV-Embed, arXiv 2405.17428): states looked up in learned latents.

Shapes: b texts, l tokens, d dims of a state, n latents, h heads, e dims of a head. Parameters are
named as in NV-Embed's public weights, less their `fn`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.encoders.contract import Latents


class LatentAttention(nn.Module):
    """States → states of the same shape, each token for itself: padding cannot reach a text."""

    def __init__(self, width: int, sizes: Latents):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(sizes.count, width))
        attend = CrossAttention(width, sizes.heads, sizes.head_dims or width)
        self.cross_attend_blocks = nn.ModuleList([attend, FeedForward(width)])

    def forward(self, states_bld: Tensor) -> Tensor:
        attend, feed_forward = self.cross_attend_blocks
        states_bld = states_bld + attend(states_bld, self.latents)
        return states_bld + feed_forward(states_bld)


class CrossAttention(nn.Module):
    """States ask, latents answer."""

    def __init__(self, width: int, heads: int, head_dims: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_dims, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_dims, bias=False)
        self.to_out = nn.Linear(heads * head_dims, width, bias=False)

    def forward(self, states_bld: Tensor, latents_nd: Tensor) -> Tensor:
        queries = self.to_q(self.norm(states_bld)).unflatten(-1, (self.heads, -1))
        answers = self.to_kv(self.norm_context(latents_nd)).unflatten(-1, (2, self.heads, -1))
        keys_hne, values_hne = answers.permute(1, 2, 0, 3)
        # All texts' tokens in one row: the latents are the same for each.
        queries_hte = queries.flatten(0, 1).transpose(0, 1)
        found_hte = F.scaled_dot_product_attention(
            queries_hte[None], keys_hne[None], values_hne[None]
        )[0]
        return self.to_out(found_hte.transpose(0, 1).flatten(1)).view_as(states_bld)


class FeedForward(nn.Module):
    """GEGLU (arXiv 2002.05202), four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.net = nn.Sequential(nn.Linear(width, 8 * width), Geglu(), nn.Linear(4 * width, width))

    def forward(self, states_bld: Tensor) -> Tensor:
        return self.net(self.norm(states_bld))


class Geglu(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        value, gate = values.chunk(2, dim=-1)
        return value * F.gelu(gate)

"""Latent attention (NV-Embed, arXiv 2405.17428): states attend to learned latents before pooling.

Shapes: b texts, l tokens, d dims of a state, n latents, h heads, e dims of a head, t tokens of all
texts. Parameters are named as in NV-Embed's public weights, without their `fn`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.encoders.contract import LatentAttentionSizes


class LatentAttention(nn.Module):
    """States → states of the same shape; each token alone, so that padding has no effect."""

    def __init__(self, hidden_size: int, sizes: LatentAttentionSizes):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(sizes.count, hidden_size))
        attend = CrossAttention(hidden_size, sizes.heads, sizes.head_dims or hidden_size)
        self.cross_attend_blocks = nn.ModuleList([attend, FeedForward(hidden_size)])

    def forward(self, states_bld: Tensor) -> Tensor:
        attend, feed_forward = self.cross_attend_blocks
        states_bld = states_bld + attend(states_bld, self.latents)
        return states_bld + feed_forward(states_bld)


class CrossAttention(nn.Module):
    """Attention from states (queries) to latents (keys and values)."""

    def __init__(self, hidden_size: int, heads: int, head_dims: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden_size)
        self.norm_context = nn.LayerNorm(hidden_size)
        self.to_q = nn.Linear(hidden_size, heads * head_dims, bias=False)
        self.to_kv = nn.Linear(hidden_size, 2 * heads * head_dims, bias=False)
        self.to_out = nn.Linear(heads * head_dims, hidden_size, bias=False)

    def forward(self, states_bld: Tensor, latents_nd: Tensor) -> Tensor:
        queries = self.to_q(self.norm(states_bld)).unflatten(-1, (self.heads, -1))
        keys_and_values = self.to_kv(self.norm_context(latents_nd)).unflatten(
            -1, (2, self.heads, -1)
        )
        keys_hne, values_hne = keys_and_values.permute(1, 2, 0, 3)
        # All texts' tokens in one row, since the latents are the same for all.
        queries_hte = queries.flatten(0, 1).transpose(0, 1)
        attended_hte = F.scaled_dot_product_attention(
            queries_hte[None], keys_hne[None], values_hne[None]
        )[0]
        return self.to_out(attended_hte.transpose(0, 1).flatten(1)).view_as(states_bld)


class FeedForward(nn.Module):
    """A feed-forward layer with GEGLU (arXiv 2002.05202), four times as wide inside."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.net = nn.Sequential(
            nn.Linear(hidden_size, 8 * hidden_size),
            Geglu(),
            nn.Linear(4 * hidden_size, hidden_size),
        )

    def forward(self, states_bld: Tensor) -> Tensor:
        return self.net(self.norm(states_bld))


class Geglu(nn.Module):
    """The first half of the values, gated by GELU of the second."""

    def forward(self, values: Tensor) -> Tensor:
        value, gate = values.chunk(2, dim=-1)
        return value * F.gelu(gate)

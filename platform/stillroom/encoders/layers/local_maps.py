"""Maps into another space that differ from field to field: mixtures of linear maps.

Shapes: b texts, h dims of a pooled state, d dims of a vector, k centres.
"""

import torch
import torch.nn.functional as F

Tensor = torch.Tensor
SHARPNESS = 10.0


class LocalMaps(torch.nn.Module):
    """Maps a state x to Σ s_k W_k x, where s is the softmax of 10 × the cosine of x̂ - mean with
    each centre, and x̂ is x at unit length.

    No other library knows it as a layer. It is for encoders that are never saved.

    Args:
        mean_h: of the states at unit length; float32, as all here.
        centres_kh: unit vectors: directions from the mean.
        weights_kdh: W of each centre.
    """

    mean_h: Tensor
    centres_kh: Tensor
    weights_kdh: Tensor

    def __init__(self, mean_h: Tensor, centres_kh: Tensor, weights_kdh: Tensor):
        super().__init__()
        self.register_buffer("mean_h", mean_h)
        self.register_buffer("centres_kh", centres_kh)
        self.register_buffer("weights_kdh", weights_kdh)

    def forward(self, states_bh: Tensor) -> Tensor:
        """Vectors of states, float32 (b, h) → (b, d)."""
        shares_bk = centre_shares(states_bh, self.mean_h, self.centres_kh)
        vectors_bd = states_bh.new_zeros(len(states_bh), self.weights_kdh.shape[1])
        for shares_b, weight_dh in zip(shares_bk.T, self.weights_kdh, strict=True):
            vectors_bd += shares_b[:, None] * (states_bh @ weight_dh.T)
        return vectors_bd


def centre_shares(states_bh: Tensor, mean_h: Tensor, centres_kh: Tensor) -> Tensor:
    """How much each centre counts for each state, (b, k); all shares of a state are 1 together."""
    directions_bh = F.normalize(F.normalize(states_bh, dim=-1) - mean_h, dim=-1)
    return torch.softmax(SHARPNESS * directions_bh @ centres_kh.T, dim=-1)

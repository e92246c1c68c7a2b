"""Linear maps from a student's states to its teacher's vectors, solved from sums over texts.

The sums have the same size for any number of texts, and those of several shards add up.

Shapes: n texts, h dims of the student's pooled state, d dims of the teacher's vectors.
"""

from dataclasses import dataclass
from typing import Self

import torch

Tensor = torch.Tensor
SMALLEST_VARIANCE = 1e-4  # of a direction that is whitened, as a share of the mean


@dataclass(frozen=True)
class Moments:
    """What every map here is solved from: products of states x and vectors y, summed over texts.

    Attributes:
        xx_hh: Σ x xᵀ, float64.
        xy_hd: Σ x yᵀ, float64.
        yy: Σ |y|².
    """

    xx_hh: Tensor
    xy_hd: Tensor
    yy: float

    @classmethod
    def of(cls, states_nh: Tensor, vectors_nd: Tensor) -> Self:
        """The sums over these texts."""
        x_nh, y_nd = states_nh.double(), vectors_nd.double()
        return cls(x_nh.T @ x_nh, x_nh.T @ y_nd, float(y_nd.square().sum()))

    @classmethod
    def zero(cls, h: int, d: int) -> Self:
        """The sums over no text."""
        return cls(torch.zeros(h, h).double(), torch.zeros(h, d).double(), 0.0)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.xx_hh + other.xx_hh, self.xy_hd + other.xy_hd, self.yy + other.yy)


def ridge_regression(moments: Moments, *, ridge: float, towards_dh: Tensor | None = None) -> Tensor:
    """The linear map that best approximates the vectors, among those near another map.

    Minimises Σ |W x - y|² + λ |W - W₀|², where λ is `ridge` times the mean over the h coordinates
    of Σ x². Directions with little variance in the texts stay as in W₀, so that the map holds for
    other texts.

    Args:
        towards_dh: W₀, float64; None: 0.

    Returns:
        W, float64 (d, h).
    """
    gram_hh = moments.xx_hh.clone()
    penalty = ridge * float(gram_hh.diagonal().mean())
    gram_hh.diagonal().add_(penalty)
    right_hd = moments.xy_hd
    if towards_dh is not None:
        right_hd = right_hd + penalty * towards_dh.T
    return torch.linalg.solve(gram_hh, right_hd).T


def procrustes(moments: Moments, *, whitening: float = 0.0) -> Tensor:
    """The scaled orthogonal map that best approximates the vectors (Schönemann, 1966), of states
    that are whitened in part before.

    Of states x it maps C^-w x, where C is the mean of x xᵀ and w the `whitening`. Its d × h matrix
    is s U Vᵀ C^-w, of the singular value decomposition of Σ y xᵀ C^-w. At w = 0, where d ≥ h,
    cosines between states stay exactly what they were. At w = ½ all directions count the same
    (Su et al., 2021, arXiv 2103.15316); between the two, those in which most texts are alike lose
    some of their weight, and those that tell texts apart gain it. Where d < h, the orthogonal map
    is that of the vectors filled with zeros to h dims, cut to d; it keeps the part of the states
    that the vectors need.

    Args:
        whitening: w, from 0 to ½.

    Returns:
        W, float64 (d, h).
    """
    whiten_hh = _negative_power(moments.xx_hh, whitening)
    u_dk, singular_k, v_kh = torch.linalg.svd(moments.xy_hd.T @ whiten_hh, full_matrices=False)
    map_dh = u_dk @ v_kh @ whiten_hh
    # The least-squares scale for the filled vectors: it leaves directions alone, and matters where
    # lengths count and in mixtures.
    squared = float((whiten_hh @ moments.xx_hh * whiten_hh).sum())
    return float(singular_k.sum()) / squared * map_dh


def _negative_power(gram_hh: Tensor, exponent: float) -> Tensor:
    """(Σ x xᵀ, scaled to a mean eigenvalue of 1) ^ -exponent; directions that hardly any text has
    are not enlarged without bound."""
    if exponent == 0:
        return torch.eye(len(gram_hh), dtype=gram_hh.dtype)
    values_h, directions_hh = torch.linalg.eigh(gram_hh)
    values_h = values_h.clamp(min=0) / values_h.mean() + SMALLEST_VARIANCE
    return (directions_hh * values_h**-exponent) @ directions_hh.T


def principal_components(moments: Moments, dims: int) -> Tensor:
    """The orthogonal projection onto `dims` dims that best keeps the states' scores.

    Returns:
        W, float64 (dims, h), with orthonormal rows.
    """
    _, directions_hh = torch.linalg.eigh(moments.xx_hh)  # ascending
    return directions_hh[:, -dims:].flip(1).T


def relative_error(map_dh: Tensor, moments: Moments) -> float:
    """Σ |W x - y|² / Σ |y|² over the texts of these sums."""
    w_dh = map_dh.double()
    explained = 2 * float((w_dh.T * moments.xy_hd).sum())
    squared = float(((w_dh @ moments.xx_hh) * w_dh).sum())
    return (squared - explained + moments.yy) / moments.yy

"""Solves a map into the teacher's space that differs from field to field, in closed form.

One linear map is a compromise between the fields of the texts that it is solved from. Near each of
some centres, another one holds better, for fields that are not among the texts, too. A student's
own map stays linear, as other libraries read it: it learns the vectors that its base has by these.

Shapes: n texts, h dims of the base's pooled state, d dims of the teacher's vectors, k centres.
"""

import numpy as np
import torch
import torch.nn.functional as F

from stillroom.encoders.layers.local_maps import LocalMaps, centre_shares
from stillroom.learning.kmeans import spherical_kmeans
from stillroom.learning.linear_maps import Moments, procrustes
from stillroom.learning.projection import CHUNK, Rows

Tensor = torch.Tensor
CENTRES = 8
TEXTS_PER_CENTRE = 256  # below it, there are fewer centres


def solve_local_maps(
    states_nh: Tensor, vectors: Rows, *, normalise: bool, whitening: float = 0.0, seed: int = 0
) -> LocalMaps:
    """`procrustes` for each centre, of all texts, each weighted by the centre's share in it.

    The centres are those of k-means over the directions of the states from their mean.

    Args:
        states_nh: of the texts, float32.
        vectors: numbers of texts → float32 rows, compared as the student's shall be.
        normalise: by cosine; lengths then change no text's weight.
        whitening: of `procrustes`.
        seed: of the centres.
    """
    mean_h, centres_kh = _centres(states_nh, seed)
    moments: list[Moments] = []
    for rows in np.array_split(np.arange(len(states_nh)), -(-len(states_nh) // CHUNK)):
        chunk_nh, vectors_nd = states_nh[rows], vectors(rows)
        roots_nk = centre_shares(chunk_nh, mean_h, centres_kh).sqrt()
        if normalise:
            chunk_nh = F.normalize(chunk_nh, dim=-1)
        parts = [
            Moments.of(roots_n1 * chunk_nh, roots_n1 * vectors_nd)
            for roots_n1 in roots_nk.T.unsqueeze(-1)
        ]
        moments = [a + b for a, b in zip(moments, parts, strict=True)] if moments else parts
    weights = [procrustes(of_centre, whitening=whitening).float() for of_centre in moments]
    return LocalMaps(mean_h, centres_kh, torch.stack(weights))


def _centres(states_nh: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The mean of the states at unit length, (h,), and directions from it, (k, h)."""
    unit_nh = F.normalize(states_nh, dim=-1)
    mean_h = unit_nh.mean(dim=0)
    count = max(1, min(CENTRES, len(states_nh) // TEXTS_PER_CENTRE))
    directions_nh = F.normalize(unit_nh - mean_h, dim=-1)
    return mean_h, spherical_kmeans(directions_nh, count, iterations=15, seed=seed)

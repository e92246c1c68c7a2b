"""Maps that differ from field to field, solved from weighted sums."""

import pytest
import torch
import torch.nn.functional as F

from stillroom.encoders.layers.local_maps import SHARPNESS
from stillroom.learning.linear_maps import Moments, procrustes
from stillroom.learning.local_maps import CENTRES, solve_local_maps

FIELDS, OF_FIELD, DIMS = 4, 600, 12


def orthogonal(generator):
    return torch.linalg.qr(torch.randn(DIMS, DIMS, generator=generator))[0]


def fields():
    """States around as many centres, and vectors of a rotation for each: (n, h), (n, d)."""
    generator = torch.Generator().manual_seed(0)
    states, vectors = [], []
    for _ in range(FIELDS):
        around = 2 * F.normalize(torch.randn(DIMS, generator=generator), dim=0)
        of_field = around + 0.3 * torch.randn(OF_FIELD, DIMS, generator=generator)
        states.append(of_field)
        vectors.append(F.normalize(of_field, dim=-1) @ orthogonal(generator).T)
    return torch.cat(states), torch.cat(vectors)


def mean_cosine(mapped, vectors):
    return float((F.normalize(mapped, dim=-1) * vectors).sum(1).mean())


def test_fields_with_maps_of_their_own_are_mapped_far_better_than_by_one_map():
    states, vectors = fields()
    maps = solve_local_maps(states, vectors.__getitem__, normalise=True)
    unit = F.normalize(states, dim=-1)
    one = procrustes(Moments.of(unit, vectors)).float()
    assert 1 - mean_cosine(maps(states), vectors) < 0.2 * (1 - mean_cosine(unit @ one.T, vectors))


def test_few_texts_have_one_map_the_orthogonal_one():
    states, vectors = (part[:300] for part in fields())
    maps = solve_local_maps(states, vectors.__getitem__, normalise=True, whitening=0.2)
    unit = F.normalize(states, dim=-1)
    one = procrustes(Moments.of(unit, vectors), whitening=0.2).float()
    assert len(maps.centres_kh) == 1
    mapped, expected = (F.normalize(part, dim=-1) for part in (maps(states), states @ one.T))
    torch.testing.assert_close(mapped, expected)


@pytest.mark.parametrize("normalise", [True, False])
def test_maps_are_those_of_each_centre_s_weighted_texts_mixed_by_softmax(normalise, monkeypatch):
    states, vectors = fields()
    whole = solve_local_maps(states, vectors.__getitem__, normalise=normalise, whitening=0.1)
    assert len(whole.centres_kh) == CENTRES
    # The slow, obvious way: all texts at once, a centre and then a text at a time.
    unit = F.normalize(states, dim=-1)
    directions = F.normalize(unit - unit.mean(0), dim=-1)
    cosines_nk = directions @ whole.centres_kh.T
    x = unit if normalise else states
    weights = []
    shares_nk = torch.softmax(SHARPNESS * cosines_nk.double(), dim=1)
    for shares_n in shares_nk.T:
        weighted = Moments(
            torch.einsum("n,nh,ng->hg", shares_n, x.double(), x.double()),
            torch.einsum("n,nh,nd->hd", shares_n, x.double(), vectors.double()),
            0.0,
        )
        weights.append(procrustes(weighted, whitening=0.1).float())
    for state, shares, mapped in zip(
        states[::100], shares_nk[::100].float(), whole(states[::100]), strict=True
    ):
        expected = sum(share * (w @ state) for share, w in zip(shares, weights, strict=True))
        torch.testing.assert_close(mapped, expected, rtol=1e-3, atol=1e-4)

"""A student's map into its teacher's space before any training, and which of several maps to take.

Shapes: n texts, h dims of the student's pooled state, d dims of the teacher's vectors, m texts that
are held back.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.micro_batches import micro_batches
from stillroom.encoders.tokens.batch import Tokens, pad
from stillroom.learning.kmeans import spherical_kmeans
from stillroom.learning.linear_maps import Moments, procrustes, relative_error, ridge_regression

Tensor = torch.Tensor
Rows = Callable[[np.ndarray], Tensor]  # numbers of texts → a row each
MapChoice = Literal["auto", "procrustes", "ridge"]

RIDGES = (0.3, 0.03)
RIDGES_TOWARDS = (
    30.0,
    3.0,
    0.3,
)  # an orthogonal map, which a strong penalty leaves nearly as it is
CHUNK = 2048  # texts whose states and vectors are in memory at once
TOPICS = 4
HELD_BACK = 512  # texts of a topic that are compared with each other
NEIGHBOURS = 10


@dataclass(frozen=True)
class MapScore:
    """How well a map held for texts of topics that it was not solved from.

    Attributes:
        symmetric: the share of each text's ten nearest by the teacher's vectors that are among its
            ten nearest by the mapped states.
        asymmetric: the same of the mapped state's ten nearest among the teacher's vectors.
    """

    symmetric: float
    asymmetric: float

    @property
    def mean(self) -> float:
        """By which maps are compared: both ways of searching count the same."""
        return (self.symmetric + self.asymmetric) / 2


@dataclass(frozen=True)
class ProjectionFit:
    """The chosen map.

    Attributes:
        weight_dh: float32.
        name: of the map, as in `scores`.
        texts: n.
        relative_error: Σ |W x - y|² / Σ |y|² over all n texts.
        scores: of every candidate, on held-back topics; empty where there are too few texts to hold
            any back.
    """

    weight_dh: Tensor
    name: str
    texts: int
    relative_error: float
    scores: dict[str, MapScore]


def candidate_maps(
    moments: Moments, choice: MapChoice = "auto", whitening: float = 0.0
) -> Iterator[tuple[str, Tensor]]:
    """(name, W) of each map that may be chosen, the one that keeps most of the base first.

    A ridge towards the orthogonal map is between the two others: it follows the texts where they
    say something, and the base elsewhere.

    Args:
        whitening: of `procrustes`.
    """
    orthogonal_dh = procrustes(moments)
    if choice != "ridge":
        name = f"procrustes, whitened {whitening:g}" if whitening else "procrustes"
        yield name, procrustes(moments, whitening=whitening)
    if choice == "auto":
        for ridge in RIDGES_TOWARDS:
            towards_dh = ridge_regression(moments, ridge=ridge, towards_dh=orthogonal_dh)
            yield f"ridge {ridge:g} towards procrustes", towards_dh
    if choice != "procrustes":
        for ridge in RIDGES:
            yield f"ridge {ridge:g}", ridge_regression(moments, ridge=ridge)


def fit_projection(
    encoder: Encoder,
    tokens: Sequence[Tokens],
    vectors: Rows,
    *,
    batch_tokens: int = 8192,
    seed: int = 0,
) -> ProjectionFit:
    """`solve_map` for the encoder's pooled states. Changes nothing.

    Args:
        tokens: of n texts of both roles, truncated as in training.
        vectors: rows of `tokens` → the teacher's vectors of these texts.
        batch_tokens: the most tokens of one forward, padding counted.
    """

    def states(rows: np.ndarray) -> Tensor:
        return pooled_states(encoder, [tokens[row] for row in rows], batch_tokens)

    normalise = encoder.contract.normalise
    return solve_map(states, vectors, len(tokens), normalise=normalise, seed=seed)


def solve_map(
    states: Rows,
    vectors: Rows,
    n: int,
    *,
    normalise: bool,
    choice: MapChoice = "auto",
    whitening: float = 0.0,
    seed: int = 0,
) -> ProjectionFit:
    """Solves the maps from states to vectors of n texts, and chooses one.

    The texts are divided into topics by their teacher's vectors. Each candidate is solved from all
    topics but one and judged on that one, in turn: a student is asked about texts unlike those it
    learned from, where a map that is only fitted to its texts loses what the base knew. Texts held
    back at random would not show that.

    Memory depends on h and d, not on n.

    Args:
        states, vectors: rows → float32 tensors; the vectors compared as the student's shall be.
        normalise: by cosine; every text then has the same weight. Where lengths count, W x itself
            is the vector.
        whitening: of `procrustes`, as there.
        seed: of the topics.
    """
    centres_td = _topic_centres(vectors, n, seed)
    topics = [_Topic() for _ in centres_td]
    for rows in np.array_split(np.arange(n), -(-n // CHUNK)):
        states_nh, vectors_nd = states(rows), vectors(rows)
        if normalise:
            states_nh = torch.nn.functional.normalize(states_nh, dim=-1)
        nearest = (vectors_nd @ centres_td.T).argmax(dim=1)
        for number, topic in enumerate(topics):
            topic.add(states_nh[nearest == number], vectors_nd[nearest == number])
    moments = sum_moments([topic.moments for topic in topics])
    scores = _scores(topics, choice, whitening, normalise=normalise)
    maps = dict(candidate_maps(moments, choice, whitening))
    # Ties go to the first, which keeps most of the base.
    name = max(scores, key=lambda candidate: scores[candidate].mean) if scores else next(iter(maps))
    return ProjectionFit(maps[name].float(), name, n, relative_error(maps[name], moments), scores)


def pooled_states(encoder: Encoder, tokens: Sequence[Tokens], batch_tokens: int) -> Tensor:
    """States before projection and normalisation, float32 (n, h), on the CPU."""
    training = encoder.training
    encoder.eval()
    states: Tensor | None = None
    with torch.inference_mode():
        for rows in micro_batches([len(text.ids) for text in tokens], batch_tokens):
            batch = pad([tokens[row] for row in rows], encoder.pad_id).to(encoder.device)
            pooled_bh = encoder.pooled(batch).cpu()
            if states is None:
                states = torch.empty(len(tokens), pooled_bh.shape[1])
            states[torch.from_numpy(rows)] = pooled_bh
    encoder.train(training)
    assert states is not None, "there is no text"
    return states


def sum_moments(parts: Sequence[Moments]) -> Moments:
    """The sums over the texts of all parts."""
    first, *others = parts
    for other in others:
        first = first + other
    return first


class _Topic:
    """The sums over a topic's texts, and its first texts themselves."""

    def __init__(self) -> None:
        self.parts: list[Moments] = []
        self.states: list[Tensor] = []
        self.vectors: list[Tensor] = []

    def add(self, states_nh: Tensor, vectors_nd: Tensor) -> None:
        self.parts = [sum_moments([*self.parts, Moments.of(states_nh, vectors_nd)])]
        missing = HELD_BACK - sum(map(len, self.states))
        if missing > 0:
            self.states.append(states_nh[:missing])
            self.vectors.append(vectors_nd[:missing])

    @property
    def moments(self) -> Moments:
        return self.parts[0]


def _topic_centres(vectors: Rows, n: int, seed: int) -> Tensor:
    """Centres of topics among the teacher's vectors of a sample, (topics, d).

    One topic where there are too few texts to hold any back.
    """
    sample = np.unique(np.linspace(0, n - 1, CHUNK).astype(np.int64))
    vectors_nd = vectors(sample)
    topics = TOPICS if len(sample) >= 4 * TOPICS * NEIGHBOURS else 1
    return spherical_kmeans(vectors_nd, topics, iterations=10, seed=seed)


def _scores(
    topics: Sequence[_Topic], choice: MapChoice, whitening: float, *, normalise: bool
) -> dict[str, MapScore]:
    """Each candidate's score on the topics in turn: their mean, by texts."""
    judged = [topic for topic in topics if sum(map(len, topic.states)) > NEIGHBOURS]
    if len(topics) == 1 or not judged:
        return {}
    totals: dict[str, list[tuple[int, MapScore]]] = {}
    for topic in judged:
        others = sum_moments([other.moments for other in topics if other is not topic])
        states_mh, vectors_md = torch.cat(topic.states), torch.cat(topic.vectors)
        for name, map_dh in candidate_maps(others, choice, whitening):
            mapped_md = states_mh @ map_dh.float().T
            if normalise:
                mapped_md = torch.nn.functional.normalize(mapped_md, dim=-1)
            score = neighbour_agreement(mapped_md, vectors_md)
            totals.setdefault(name, []).append((len(states_mh), score))
    return {name: _mean_score(parts) for name, parts in totals.items()}


def _mean_score(parts: Sequence[tuple[int, MapScore]]) -> MapScore:
    texts = sum(count for count, _ in parts)
    return MapScore(
        sum(count * score.symmetric for count, score in parts) / texts,
        sum(count * score.asymmetric for count, score in parts) / texts,
    )


def neighbour_agreement(mapped_md: Tensor, vectors_md: Tensor) -> MapScore:
    """How far nearest neighbours by the student are those by the teacher; see `MapScore`.

    Args:
        mapped_md, vectors_md: compared by inner product.
    """
    size = min(NEIGHBOURS, len(vectors_md) - 1)
    by_teacher = _neighbours(vectors_md, vectors_md, size)
    return MapScore(
        _overlap(_neighbours(mapped_md, mapped_md, size), by_teacher),
        _overlap(_neighbours(mapped_md, vectors_md, size), by_teacher),
    )


def _neighbours(queries_md: Tensor, candidates_md: Tensor, size: int) -> Tensor:
    """The best candidates of each query but its own, (m, size)."""
    scores_mm = queries_md @ candidates_md.T
    scores_mm.fill_diagonal_(-torch.inf)
    return scores_mm.topk(size, dim=1).indices


def _overlap(first_mk: Tensor, second_mk: Tensor) -> float:
    """The mean share of a row's entries that are in the other's row."""
    return float((first_mk[:, :, None] == second_mk[:, None, :]).any(dim=2).float().mean())

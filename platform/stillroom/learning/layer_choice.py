"""Which layers of a base a smaller student keeps: those whose states best fit its teacher.

Skipping a layer changes the input of the next, so each subset needs a forward of its own.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.layers.resize import keep_layers
from stillroom.encoders.tokens.batch import Tokens
from stillroom.errors import UserError
from stillroom.learning.projection import Rows, fit_projection

ALL_SUBSETS = 64  # the most subsets that are all tried

Layers = tuple[int, ...]


@dataclass(frozen=True)
class LayerChoice:
    """The kept layers.

    Attributes:
        tried: the score of each subset, in the order in which they were tried.
    """

    layers: Layers
    tried: dict[Layers, float]


def choose_layers(
    encoder: Encoder,
    tokens: Sequence[Tokens],
    vectors: Rows,
    count: int,
    *,
    batch_tokens: int = 8192,
    seed: int = 0,
) -> LayerChoice:
    """Chooses `count` of the encoder's layers by the fit of their states to the teacher's vectors.

    Up to 64 subsets are all tried: 20 for 3 of 6 layers. Of more, layers are left out one at a
    time, each time the one whose loss costs least: 72 forwards for 3 of 12 layers.

    Args:
        encoder: with all layers; it is not changed.
        tokens, vectors: a sample, as `fit_projection` takes them; about a thousand texts suffice.
        seed: of the fit's topics.

    Raises:
        UserError: when the encoder has fewer layers.
    """
    total = encoder.backbone.config.num_hidden_layers
    if count > total:
        raise UserError(
            "student.layers", f"{count} is more than the base's {total} layers", f"At most {total}"
        )

    def score(layers: Layers) -> float:
        trial = _with_layers(encoder, layers)
        fit = fit_projection(trial, tokens, vectors, batch_tokens=batch_tokens, seed=seed)
        # Without held-back texts, the error on the sample itself.
        return fit.scores[fit.name].mean if fit.scores else -fit.relative_error

    return search_layers(total, count, score)


def search_layers(total: int, count: int, score: Callable[[Layers], float]) -> LayerChoice:
    """The best `count` of `total` layers: of all subsets where they are few, else greedily."""
    tried: dict[Layers, float] = {}

    def best(subsets: Iterator[Layers]) -> Layers:
        scores = {layers: score(layers) for layers in subsets}
        tried.update(scores)
        return max(scores, key=scores.__getitem__)  # of equals, the first

    layers = tuple(range(total))
    if count == total:
        return LayerChoice(layers, tried)
    if math.comb(total, count) <= ALL_SUBSETS:
        return LayerChoice(best(itertools.combinations(layers, count)), tried)
    while len(layers) > count:
        layers = best(itertools.combinations(layers, len(layers) - 1))
    return LayerChoice(layers, tried)


def _with_layers(encoder: Encoder, layers: Layers) -> Encoder:
    backbone = copy.deepcopy(encoder.backbone)
    keep_layers(backbone, layers)
    return Encoder(encoder.contract, encoder.tokenizer, backbone, encoder.projection)

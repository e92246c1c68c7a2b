"""The start of a student's projection into its teacher's space: a ridge regression on a sample.

Shapes: n texts, h dims of the student's pooled state, d dims of the teacher's vectors.
"""

from collections.abc import Sequence

import torch

from stillroom.encoders.encoder import Encoder
from stillroom.encoders.micro_batches import micro_batches
from stillroom.encoders.tokens.batch import Tokens, pad

Tensor = torch.Tensor


def fit_projection(
    encoder: Encoder, tokens: Sequence[Tokens], vectors_nd: Tensor, *, batch_tokens: int = 8192
) -> None:
    """Fits the encoder's projection to a sample of texts, before any training.

    Args:
        tokens: of n texts of both roles, truncated as in training; a few thousand suffice.
        vectors_nd: the teacher's vectors of the same texts, as long as the encoder's shall be.
        batch_tokens: the most tokens of one forward, padding counted.
    """
    assert encoder.projection is not None, "the encoder has no projection to fit"
    linear = encoder.projection.linear
    width = linear.in_features
    states_nh = torch.empty(len(tokens), width, device=encoder.device)
    training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        for rows in micro_batches([len(text.ids) for text in tokens], batch_tokens):
            batch = pad([tokens[row] for row in rows], encoder.pad_id).to(encoder.device)
            states_nh[torch.from_numpy(rows)] = encoder.pooled(batch)
    encoder.train(training)
    if encoder.contract.normalise:
        # Every text then has the same weight. Where lengths count, W x itself must be the vector.
        states_nh = torch.nn.functional.normalize(states_nh, dim=-1)
    linear.weight.data.copy_(ridge_regression(states_nh, vectors_nd.to(encoder.device)))


def ridge_regression(states_nh: Tensor, vectors_nd: Tensor, *, ridge: float = 0.3) -> Tensor:
    """The linear map from a student's states that best approximates its teacher's vectors.

    Minimises Σ |W x - t|² + λ |W|², where x is a state, and λ is `ridge` times the mean over the h
    coordinates of Σ x². It shrinks directions with little variance in the sample, so that the map
    generalises to other texts.

    Args:
        states_nh: pooled states, before any projection.
        vectors_nd: the teacher's vectors of the same texts.

    Returns:
        W, float32, (d, h).
    """
    x_nh = states_nh.double()
    gram_hh = x_nh.T @ x_nh
    gram_hh.diagonal().add_(ridge * gram_hh.diagonal().mean().item())
    return torch.linalg.solve(gram_hh, x_nh.T @ vectors_nd.double()).T.float()

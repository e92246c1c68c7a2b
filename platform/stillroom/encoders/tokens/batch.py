"""Token ids of texts, and batches of them padded to tensors.

Shapes: b texts padded to l tokens. All tensors are int64.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from stillroom.encoders.contract import Attention

IGNORE_INDEX = -100  # the label of a token that nothing predicts, as in torch's cross-entropy


@dataclass(frozen=True)
class Tokens:
    """One text's ids; those before `pool_from` are not pooled."""

    ids: list[int]
    pool_from: int = 0


@dataclass(frozen=True)
class LabelledTokens:
    """One text's ids, and a label for each: the state of `ids[i]` predicts `labels[i]`.

    Attributes:
        labels: token ids, shifted already; IGNORE_INDEX where nothing is predicted.
        attention: causal to generate, bidirectional for MNTP.
    """

    ids: list[int]
    labels: list[int]
    attention: Attention


@dataclass(frozen=True)
class Batch:
    """Texts padded to one length.

    Attributes:
        mask_bl: 1 where there is a token.
        pool_mask_bl: 1 where a token is pooled.
    """

    ids_bl: torch.Tensor
    mask_bl: torch.Tensor
    pool_mask_bl: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device."""
        return Batch(self.ids_bl.to(device), self.mask_bl.to(device), self.pool_mask_bl.to(device))


@dataclass(frozen=True)
class LabelledBatch:
    """Texts with labels, padded to one length; all have the same attention.

    Attributes:
        mask_bl: 1 where there is a token.
        labels_bl: IGNORE_INDEX where nothing is predicted, and at padding.
    """

    ids_bl: torch.Tensor
    mask_bl: torch.Tensor
    labels_bl: torch.Tensor
    attention: Attention

    def to(self, device: torch.device | str) -> "LabelledBatch":
        """The batch on a device."""
        return replace(
            self,
            ids_bl=self.ids_bl.to(device),
            mask_bl=self.mask_bl.to(device),
            labels_bl=self.labels_bl.to(device),
        )


def pad(
    tokens: Sequence[Tokens], pad_id: int, *, side: Literal["left", "right"] = "right"
) -> Batch:
    """Pads texts to the longest of them."""
    lengths = np.array([len(text.ids) for text in tokens])
    longest = int(lengths.max())
    start_b1 = (longest - lengths if side == "left" else np.zeros_like(lengths))[:, None]
    pool_from_b1 = np.array([text.pool_from for text in tokens])[:, None] + start_b1
    column = np.arange(longest)
    # One mask for all texts: a GPU waits while Python handles each.
    mask_bl = (column >= start_b1) & (column < start_b1 + lengths[:, None])
    ids_bl = np.full((len(tokens), longest), pad_id)
    ids_bl[mask_bl] = _concatenated([text.ids for text in tokens])
    pool_mask_bl = mask_bl & (column >= pool_from_b1)
    arrays = (array.astype(np.int64, copy=False) for array in (ids_bl, mask_bl, pool_mask_bl))
    return Batch(*map(torch.from_numpy, arrays))


def pad_labelled(texts: Sequence[LabelledTokens], pad_id: int) -> LabelledBatch:
    """Pads labelled texts, which must have the same attention, to the longest of them."""
    [attention] = {text.attention for text in texts}
    padded = pad([Tokens(text.ids) for text in texts], pad_id)
    labels_bl = torch.full_like(padded.ids_bl, IGNORE_INDEX)
    labels = _concatenated([text.labels for text in texts])
    labels_bl[padded.mask_bl.bool()] = torch.from_numpy(labels)
    return LabelledBatch(padded.ids_bl, padded.mask_bl, labels_bl, attention)


def _concatenated(ids: Sequence[Sequence[int]]) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(ids), np.int64)

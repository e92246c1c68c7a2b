"""What `create_encoder` can change in a base: its contract, and its size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from pydantic import BaseModel

from stillroom.encoders.contract import Attention, Pooling, Precision, Similarity


@dataclass(frozen=True)
class ContractOptions:
    """Fields of the new encoder's contract; None keeps the value of the base's contract.

    Attributes:
        latents: count, heads and head_dims of latent attention, where pooling is latent and the
            base has none.
        append_eos: writes EOS into the tokenizer's template, unless that has an end already.
        prompts: of "query" and "passage".
        prompt: "query" or "passage" → the name of one of the base's prompts.
        similarity: `dot` keeps the length of vectors that the base compares by cosine.
        layer_norm: adds a LayerNorm behind the base's own layers, of weights 1 and biases 0, so
            that vectors are cut after it, as those of nomic-embed-text-v1.5 are.
        dims: the sizes that the base's vectors may be cut to, the first of them the full one.
        precision: "auto" is bfloat16 where the machine computes in it natively, else float32.
    """

    attention: Attention | None = None
    pooling: Pooling | None = None
    latents: Mapping[str, Any] | None = None
    append_eos: bool | None = None
    echo: bool | None = None
    prompts: Mapping[str, str] | None = None
    prompt: Mapping[str, str | None] | None = None
    pool_prompt: bool | None = None
    max_tokens: int | None = None
    similarity: Similarity | None = None
    layer_norm: bool = False
    dims: Sequence[int] | None = None
    precision: Precision | str = "auto"

    @classmethod
    def from_fields(cls, source: BaseModel, **more: Any) -> Self:
        """The options that a contract, or a recipe's section, has as fields of the same names."""
        names = {field.name for field in fields(cls)} & set(type(source).model_fields)
        return cls(**{**source.model_dump(include=names), **more})


@dataclass(frozen=True)
class Resize:
    """How the new encoder's transformer differs in size from its base's.

    Attributes:
        layers: numbers of the base's layers to keep, in order; None: all.
        size: layers, hidden, heads and intermediate of random weights, instead of the base's; see
            `random_backbone`.
        vocabulary_size: keeps at most this many tokens, the most frequent in `texts`; see
            `prune_vocabulary`.
        token_counts: what `count_tokens` gives for those texts, where it is known.
    """

    layers: Sequence[int] | None = None
    size: Mapping[str, int] | None = None
    vocabulary_size: int | None = None
    texts: Sequence[str] = ()
    token_counts: np.ndarray | None = None

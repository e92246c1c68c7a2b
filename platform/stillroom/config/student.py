"""TODO docstring: config/student.py."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stillroom.config.base import Dropout, Prompts, Section
from stillroom.config.phases import Optimisation, PairTraining


class TextLosses(Section):
    """Weights of what can be asked of texts without labels; see `learning.distillation`.

    Attributes:
        vector: cosine distance to the teacher's vector. LEAF's squared L2 distance
            (arXiv 2509.12539) is twice as much, vectors being of unit length.
        similarity: squared error of the batch's cosines among its texts, Jasper's second loss.
        order: hinge on which of two texts is nearer to a third, Jasper's third
            (arXiv 2412.19048), with `order_margin`.
        across: KL divergence from the softmax of the teacher's cosines among the batch's texts,
            where the student's are to the teacher's own vectors: what one index of both asks.
    """

    vector: NonNegativeFloat = 0.0
    similarity: NonNegativeFloat = 0.0
    order: NonNegativeFloat = 0.0
    order_margin: NonNegativeFloat = 0.015
    across: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 0.05  # of the student's softmaxes
    teacher_temperature: PositiveFloat = 0.05

    @model_validator(mode="after")
    def _at_least_one(self) -> "TextLosses":
        if not any(getattr(self, name) for name in self.weights()):
            raise ValueError(f"every loss has weight 0: set one of {', '.join(self.weights())}")
        return self

    @classmethod
    def weights(cls) -> tuple[str, ...]:
        return ("vector", "similarity", "order", "across")


class PairLosses(TextLosses):
    """The same and what needs pairs: each query's candidates are all passages of the batch.

    Attributes:
        scores: KL divergence from the softmax of the teacher's scores.
        margins: MarginMSE (arXiv 2010.02666), of the positive's lead over each other candidate.
        contrastive: InfoNCE, which listens to the pairs and not to the teacher.
        false_negative_margin: a candidate that the teacher scores above the positive + margin is
            no negative in it; null keeps all.
    """

    scores: NonNegativeFloat = 1.0
    margins: NonNegativeFloat = 0.0
    contrastive: NonNegativeFloat = 1.0
    false_negative_margin: float | None = None

    @classmethod
    def weights(cls) -> tuple[str, ...]:
        return (*super().weights(), "scores", "margins", "contrastive")


class OnTexts(Optimisation):
    """Queries and passages of the corpus alike, with or without labels."""

    data: Literal["texts"]
    query_tokens: PositiveInt = 64
    passage_tokens: PositiveInt = 128
    losses: TextLosses = TextLosses(vector=1.0)
    # Drawn from the corpus for each step; `across` ranks their vectors by the teacher beside those
    # of the batch. They cost no forward.
    across_passages: NonNegativeInt = 0
    online: bool = False  # the teacher embeds each batch anew: nothing is stored beforehand
    evaluate_every: PositiveInt | None = None  # steps; the best weights are kept


class OnPairs(PairTraining):
    """Pairs, with hard negatives where they are asked for."""

    data: Literal["pairs"]
    losses: PairLosses = PairLosses()
    hard_negatives: NonNegativeInt = 1
    across_passages: NonNegativeInt = 0
    online: bool = False
    evaluate_every: PositiveInt | None = None


StudentPhase = OnTexts | OnPairs


class Size(Section):
    """A student of random weights: its base gives the tokenizer and the architecture alone."""

    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    intermediate: PositiveInt | None = None  # null: 4 × hidden

    @model_validator(mode="after")
    def _heads_share_evenly(self) -> "Size":
        if self.hidden % self.heads:
            raise ValueError(f"{self.heads} heads cannot share hidden: {self.hidden} evenly")
        return self


class Student(Section):
    """A BERT-like encoder, distilled in one phase or in several."""

    base: str
    trust_remote_code: bool = False  # runs the Python that the base brings with it
    layers: tuple[NonNegativeInt, ...] | None = None  # the base's layers to keep; null: all
    size: Size | None = None  # random weights of this size; null: the base's weights
    vocabulary: PositiveInt | None = None  # the most tokens, the corpus's frequent; null: all
    space: Literal["own", "teacher"] = "own"  # teacher: projected into the teacher's dims
    # Of a vector. null: the base's or, in the teacher's space, the teacher's; there a smaller one
    # must be among its Matryoshka sizes.
    output_dims: PositiveInt | None = None
    dims: dict[PositiveInt, PositiveFloat] | None = None  # Matryoshka: size → weight
    pooling: Literal["mean", "weighted_mean", "last", "cls"] | None = None
    prompts: Prompts | None = None
    max_tokens: PositiveInt | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dropout: Dropout = 0.0  # in training, in place of the base's own
    phases: tuple[Annotated[StudentPhase, Field(discriminator="data")], ...]

    @model_validator(mode="after")
    def _phases_fit(self) -> "Student":
        if not self.phases:
            raise ValueError("has no phases, and so learns nothing: give it one")
        for i, phase in enumerate(self.phases):
            for name in ("vector", "across"):
                if self.space == "own" and getattr(phase.losses, name):
                    raise ValueError(
                        f"phases[{i}].losses.{name} compares vectors, and so needs space: teacher; "
                        "similarity and order compare cosines, in any space"
                    )
            if phase.across_passages and not phase.losses.across:
                raise ValueError(
                    f"phases[{i}].across_passages are ranked by losses.across, which has weight 0"
                )
            if phase.across_passages and phase.online:
                raise ValueError(
                    f"phases[{i}].across_passages would have the teacher embed "
                    f"{phase.across_passages:,} passages at every step: leave out online, or them"
                )
        return self

    @model_validator(mode="after")
    def _made_in_one_way(self) -> "Student":
        if self.layers is not None and self.size is not None:
            raise ValueError("layers are the base's, and size begins anew: use one of them")
        if self.layers is not None and len(set(self.layers)) < max(1, len(self.layers)):
            raise ValueError("layers must be distinct, and one at least")
        return self

"""What is trained, and how."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stillroom.config.base import Name, Section, Share


class Optimisation(Section):
    steps: PositiveInt
    global_batch: PositiveInt  # pairs or texts an update, over all workers
    learning_rate: PositiveFloat  # the peak; linear warm-up, then the schedule's way down to 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.1  # of the steps
    weight_decay: NonNegativeFloat = 0.01
    clip: PositiveFloat = 1.0  # of the gradient's global norm
    mix: dict[Name, PositiveFloat] | None = None  # source → share of the batches; null: by size
    mix_temperature: PositiveFloat = 1.0  # without mix, shares are sizes ** (1 / it)
    one_source_a_batch: bool = True  # other sources' texts are negatives too easy to learn from
    by_length: bool = False  # batches of texts of like length

    @model_validator(mode="after")
    def _one_way_to_mix(self) -> "Optimisation":
        if self.mix is not None and self.mix_temperature != 1:
            raise ValueError("mix says every share: leave out mix_temperature, or mix")
        return self


class PairTraining(Optimisation):
    """What trains on pairs."""

    query_tokens: PositiveInt = 64
    passage_tokens: PositiveInt = 128
    hard_negatives: NonNegativeInt = 0  # a pair, of those mined or given


class Contrastive(PairTraining):
    """InfoNCE with in-batch negatives over all workers, and with hard negatives if asked."""

    objective: Literal["contrastive"]
    temperature: PositiveFloat = 0.03
    negatives: Literal["mined", "given"] = "mined"  # where hard negatives come from
    in_batch: bool = True  # other pairs' passages are negatives
    query_query: bool = False  # other queries, too
    passage_passage: bool = False  # and other passages for the positive
    false_negative_margin: float | None = None  # ignores what scores above positive + margin
    dims: dict[PositiveInt, PositiveFloat] | None = None  # Matryoshka: size → weight
    merge_before: bool = False  # merge the adapter trained so far, and begin a new one
    evaluate_every: PositiveInt | None = None  # steps; the best weights are kept


class Mntp(Optimisation):
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961) on the corpus's passages."""

    objective: Literal["mntp"]
    tokens: PositiveInt = 128  # of a text
    mask: Literal["blank", "mask", "eos"] = "blank"  # "_", the tokenizer's mask token, or EOS
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    merge_before: bool = False


class Simcse(Optimisation):
    """Unsupervised contrastive learning: one text under two dropouts (arXiv 2104.08821)."""

    objective: Literal["simcse"]
    tokens: PositiveInt = 128
    temperature: PositiveFloat = 0.05
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    merge_before: bool = False


class Joint(Contrastive):
    """Contrastive and next-token generation in one step (GritLM, arXiv 2402.09906)."""

    objective: Literal["joint"]  # type: ignore[assignment]
    generation_batch: PositiveInt  # completions an update, over all workers
    generation_tokens: PositiveInt = 256
    generation_weight: PositiveFloat = 1.0
    generation_loss: Literal["token", "sample"] = "token"  # a mean over tokens, or over samples
    generate: Literal["conversations", "pairs"] = "conversations"  # pairs: query → passage


Phase = Contrastive | Mntp | Simcse | Joint


def mines(phase: Phase) -> bool:
    """Whether a phase needs negatives that the phase before it mines."""
    return (
        isinstance(phase, Contrastive) and phase.hard_negatives > 0 and phase.negatives == "mined"
    )

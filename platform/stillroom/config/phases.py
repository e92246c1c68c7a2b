"""A training phase's settings: optimiser, batches, and the teacher's objectives."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stillroom.config.base import Fraction, Name, Section


class TrainingPhase(Section):
    """Steps, batches and optimiser of any phase.

    Attributes:
        global_batch: pairs or texts per update, over all workers.
        learning_rate: the peak, after a linear warm-up; `schedule` leads from there to 0.
        warmup_ratio: fraction of the steps.
        mix: source → share of the batches; null: proportional to the sources' sizes.
        mix_temperature: without `mix`, shares are sizes ** (1 / mix_temperature).
        one_source_per_batch: texts of other sources would be negatives that are too easy.
        group_by_length: batches hold texts of similar length.
        shuffle_block_size: rows of a source that are shuffled together, as by `py1b` of MosaicML
            Streaming; null: all. For corpora whose texts and vectors exceed a node's memory:
            shards of 65,536 neighbouring rows come in random order, and rows in random order within
            a block of shards.
    """

    steps: PositiveInt
    global_batch: PositiveInt
    learning_rate: PositiveFloat
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.1
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    mix: dict[Name, PositiveFloat] | None = None
    mix_temperature: PositiveFloat = 1.0
    one_source_per_batch: bool = True
    group_by_length: bool = False
    shuffle_block_size: Annotated[int, Field(ge=65_536)] | None = None

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Field → size of each batch that the workers divide among them."""
        return {"global_batch": self.global_batch}

    @model_validator(mode="after")
    def _mixes_in_one_way(self) -> "TrainingPhase":
        if self.mix is not None and self.mix_temperature != 1:
            raise ValueError("mix sets every share itself: leave out mix_temperature, or mix")
        return self


class PairPhase(TrainingPhase):
    """A phase that trains on pairs.

    Attributes:
        hard_negatives: per pair.
    """

    query_tokens: PositiveInt = 64
    passage_tokens: PositiveInt = 128
    hard_negatives: NonNegativeInt = 0


class ContrastivePhase(PairPhase):
    """InfoNCE with in-batch negatives over all workers, and with hard negatives if requested.

    Attributes:
        negatives: where hard negatives come from: mined, or given in the sources' files.
        in_batch_negatives: passages of other pairs are negatives.
        query_to_query: other queries are negatives too.
        passage_to_passage: for the positive, other passages are negatives too.
        temperature: null: .03, or 1 for a base whose vectors dot compares (`teacher.similarity`).
        false_negative_margin: ignores candidates that score above the positive + margin; cosines
            differ by some tenths, raw inner products by whole numbers.
        matryoshka: vector size → weight (arXiv 2205.13147).
        merge_adapter_first: merges the adapter trained so far, and starts a new one.
        evaluate_every: steps; the best weights are kept.
    """

    objective: Literal["contrastive"]
    temperature: PositiveFloat | None = None
    negatives: Literal["mined", "given"] = "mined"
    in_batch_negatives: bool = True
    query_to_query: bool = False
    passage_to_passage: bool = False
    false_negative_margin: float | None = None
    matryoshka: dict[PositiveInt, PositiveFloat] | None = None
    merge_adapter_first: bool = False
    evaluate_every: PositiveInt | None = None


class MntpPhase(TrainingPhase):
    """Masked next-token prediction (LLM2Vec, arXiv 2404.05961) on the corpus's passages.

    Attributes:
        max_tokens: of a text.
        mask_token: "_", the tokenizer's mask token, or EOS.
    """

    objective: Literal["mntp"]
    max_tokens: PositiveInt = 128
    mask_token: Literal["blank", "mask", "eos"] = "blank"
    mask_probability: Annotated[float, Field(gt=0, lt=1)] = 0.2
    merge_adapter_first: bool = False


class SimcsePhase(TrainingPhase):
    """Unsupervised contrastive learning: one text under two dropout masks (arXiv 2104.08821).

    Attributes:
        temperature: null: .05, or 1 for a base whose vectors dot compares.
    """

    objective: Literal["simcse"]
    max_tokens: PositiveInt = 128
    temperature: PositiveFloat | None = None
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.3
    merge_adapter_first: bool = False


class JointPhase(ContrastivePhase):
    """Contrastive loss and next-token generation in every step (GritLM, arXiv 2402.09906).

    Attributes:
        generation_batch: completions per update, over all workers.
        generation_loss: a mean over tokens, or over samples.
        generation_data: conversations, or pairs as query → passage.
    """

    objective: Literal["joint"]  # type: ignore[assignment]
    generation_batch: PositiveInt
    generation_tokens: PositiveInt = 256
    generation_weight: PositiveFloat = 1.0
    generation_loss: Literal["token", "sample"] = "token"
    generation_data: Literal["conversations", "pairs"] = "conversations"

    @property
    def batch_sizes(self) -> dict[str, int]:
        return {**super().batch_sizes, "generation_batch": self.generation_batch}


TeacherPhase = ContrastivePhase | MntpPhase | SimcsePhase | JointPhase


def needs_mined_negatives(phase: TeacherPhase) -> bool:
    """Whether the model before this phase has to mine negatives for it."""
    return (
        isinstance(phase, ContrastivePhase)
        and phase.hard_negatives > 0
        and phase.negatives == "mined"
    )

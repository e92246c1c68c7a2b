"""`student`: the small encoder, and the losses that distil the teacher into it."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stillroom.config.base import Dropout, PromptedModel, Section, Similarity
from stillroom.config.phases import PairPhase, TrainingPhase


class TextLosses(Section):
    """Weights of the losses that need no labels; `stillroom.learning.losses` defines them.

    Attributes:
        cosine: cosine distance to the teacher's vector, so of directions only.
        squared_l2: squared distance to the teacher's vector (LEAF, arXiv 2509.12539). For unit
            vectors it is twice `cosine`; for a teacher that dot compares it fits lengths too.
        pairwise_mse: squared error of the scores between the batch's texts: Jasper's similarity
            loss (arXiv 2412.19048).
        similarity_order: hinge loss on which of two texts scores higher with a third: Jasper's
            relative similarity loss (same paper), with `similarity_order_margin`, which is on the
            scale of the student's scores.
        ranking_kl: KL divergence between two rankings of the teacher's vectors of the batch's
            texts: by the teacher's vector of a text, and by the student's. It trains queries of the
            student to find passages of the teacher in one index.
        temperature: of the student's softmaxes; null: .05, or 1 where dot compares its vectors.
        teacher_temperature: of the teacher's softmaxes; null: the same by the teacher's vectors.
    """

    cosine: NonNegativeFloat = 0.0
    squared_l2: NonNegativeFloat = 0.0
    pairwise_mse: NonNegativeFloat = 0.0
    similarity_order: NonNegativeFloat = 0.0
    similarity_order_margin: NonNegativeFloat = 0.015
    ranking_kl: NonNegativeFloat = 0.0
    temperature: PositiveFloat | None = None
    teacher_temperature: PositiveFloat | None = None

    @model_validator(mode="after")
    def _at_least_one(self) -> "TextLosses":
        if not any(getattr(self, name) for name in self.loss_names()):
            raise ValueError(f"every loss has weight 0: set one of {', '.join(self.loss_names())}")
        return self

    @classmethod
    def loss_names(cls) -> tuple[str, ...]:
        """The fields that are weights of losses."""
        return ("cosine", "squared_l2", "pairwise_mse", "similarity_order", "ranking_kl")


class PairLosses(TextLosses):
    """`TextLosses` and losses that need pairs: a query's candidates are all passages of the batch.

    Attributes:
        score_kl: KL divergence between the softmaxes of the teacher's and the student's scores.
        margin_mse: MarginMSE (arXiv 2010.02666), on the margin of the positive over each candidate.
            A student of raw vectors can take on any margins; one of cosines only those of cosines.
        contrastive: InfoNCE on the pairs themselves, without the teacher.
        false_negative_margin: in `contrastive`, ignores a candidate that the teacher scores above
            the positive + margin; null ignores none.
    """

    score_kl: NonNegativeFloat = 1.0
    margin_mse: NonNegativeFloat = 0.0
    contrastive: NonNegativeFloat = 1.0
    false_negative_margin: float | None = None

    @classmethod
    def loss_names(cls) -> tuple[str, ...]:
        """The fields that are weights of losses."""
        return (*super().loss_names(), "score_kl", "margin_mse", "contrastive")


class TextDistillation(TrainingPhase):
    """Distillation on all queries and passages of the corpus, with or without labels.

    Attributes:
        ranking_kl_passages: passages drawn from the corpus in each step, which `ranking_kl` ranks
            in addition to the batch's texts. They need no forward pass.
        online_teacher: the teacher embeds each batch as it comes; no vectors are stored before.
        target: whose vectors are distilled. `base`: those of the student's own base with all its
            layers, mapped into the teacher's space in closed form, field by field: a teacher
            assistant (Mirzadeh et al., 2020, arXiv 1902.03393), which a student can follow far
            more closely, with layers left out or not. The base embeds each batch as it comes.
        evaluate_every: steps; the best weights are kept.
    """

    data: Literal["texts"]
    query_tokens: PositiveInt = 64
    passage_tokens: PositiveInt = 128
    losses: TextLosses = TextLosses(cosine=1.0)
    ranking_kl_passages: NonNegativeInt = 0
    online_teacher: bool = False
    target: Literal["teacher", "base"] = "teacher"
    evaluate_every: PositiveInt | None = None

    @model_validator(mode="after")
    def _base_embeds_batches(self) -> "TextDistillation":
        if self.target == "base" and (self.online_teacher or self.ranking_kl_passages):
            name = "online_teacher" if self.online_teacher else "ranking_kl_passages"
            raise ValueError(
                f"{name} is of the teacher's vectors, and target: base has the base's: leave it out"
            )
        return self


class PairDistillation(PairPhase):
    """Distillation on pairs, with hard negatives if requested; fields as in `TextDistillation`.

    Attributes:
        rehearsal_batch: texts per update, over all workers, that are distilled beside the pairs as
            in the last phase of texts before this one, so that what it taught is not forgotten
            (experience replay: Rolnick et al., 2019, arXiv 1811.11682); 0: none.
        rehearsal_weight: of their loss.
    """

    data: Literal["pairs"]
    losses: PairLosses = PairLosses()
    hard_negatives: NonNegativeInt = 1
    ranking_kl_passages: NonNegativeInt = 0
    online_teacher: bool = False
    evaluate_every: PositiveInt | None = None
    rehearsal_batch: NonNegativeInt = 0
    rehearsal_weight: PositiveFloat = 1.0

    @property
    def batch_sizes(self) -> dict[str, int]:
        rehearsed = {"rehearsal_batch": self.rehearsal_batch} if self.rehearsal_batch else {}
        return {**super().batch_sizes, **rehearsed}


StudentPhase = TextDistillation | PairDistillation


def rehearsed_phase(phases: Sequence[StudentPhase], number: int) -> TextDistillation | None:
    """The phase whose texts phase `number`, from 0, distils beside its pairs, with the batch that
    it then has; None where it distils pairs alone, or there is no phase of texts before."""
    phase = phases[number]
    if not isinstance(phase, PairDistillation) or not phase.rehearsal_batch:
        return None
    texts = [before for before in phases[:number] if isinstance(before, TextDistillation)]
    return texts[-1].model_copy(update={"global_batch": phase.rehearsal_batch}) if texts else None


def distils_base(phase: StudentPhase) -> bool:
    """Whether a phase distils the student's own base in place of the teacher."""
    return isinstance(phase, TextDistillation) and phase.target == "base"


class StudentSize(Section):
    """The size of a student with random weights.

    Such a student takes only the tokenizer and the architecture from its base.
    """

    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    intermediate: PositiveInt | None = None  # null: 4 × hidden

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> "StudentSize":
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of heads ({self.heads}): heads share "
                "it evenly"
            )
        return self


class Start(Section):
    """How the first phase starts, before any step.

    Attributes:
        map: from the states of the base into its teacher's space. `procrustes` is orthogonal: it
            keeps what the base knows of texts of any field. `ridge` is the least-squares map with a
            penalty; it comes nearer to the teacher's vectors of texts like those that it is solved
            from, and loses others. `auto` also tries maps between the two, and takes the one
            whose nearest neighbours hold best for topics that it was not solved from.
        whitening: of the states before `procrustes`, from 0, none, to .5, whole: directions in
            which most texts are alike lose some of their weight. null: .2, or 0 where lengths of
            vectors count (`similarity: dot`).
        texts: of the corpus that it is solved from; null: at most 65,536, or 2,048 where the
            teacher embeds them for this alone (`online_teacher`).
    """

    map: Literal["auto", "procrustes", "ridge"] = "procrustes"
    whitening: Annotated[float, Field(ge=0, le=0.5)] | None = None
    texts: PositiveInt | None = None


class Student(PromptedModel):
    """A BERT-like encoder, distilled in one or more phases.

    Attributes:
        trust_remote_code: runs Python code that comes with the base.
        layers: numbers of the base's layers to keep, or how many: those are chosen whose states fit
            the teacher's vectors best; null: all.
        size: random weights of this size; null: the base's weights.
        vocabulary_size: keeps at most this many tokens, the corpus's most frequent; null: all.
        space: `teacher` projects into the teacher's vector space, so one index can hold both.
        similarity: how its vectors are compared; null: as the teacher's in its space, else
            as its base's.
        layer_norm: standardises the base's vectors before they are cut, as `teacher.layer_norm`.
        output_dims: of a vector. null: the base's or, in the teacher's space, the teacher's; there
            a smaller one must be among the teacher's Matryoshka sizes.
        matryoshka: vector size → weight (arXiv 2205.13147).
        dropout: in training, instead of the base's own.
        start: the projection before the first step.
    """

    base: str
    trust_remote_code: bool = False
    layers: tuple[NonNegativeInt, ...] | PositiveInt | None = None
    size: StudentSize | None = None
    vocabulary_size: PositiveInt | None = None
    space: Literal["own", "teacher"] = "own"
    similarity: Similarity | None = None
    layer_norm: bool = False
    output_dims: PositiveInt | None = None
    matryoshka: dict[PositiveInt, PositiveFloat] | None = None
    pooling: Literal["mean", "weighted_mean", "last", "cls", "max", "mean_sqrt_len"] | None = None
    max_tokens: PositiveInt | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    dropout: Dropout = 0.0
    start: Start = Start()
    phases: tuple[Annotated[StudentPhase, Field(discriminator="data")], ...]

    @model_validator(mode="after")
    def _phases_fit(self) -> "Student":
        if not self.phases:
            raise ValueError("has no phases, so it would learn nothing: add one")
        for i, phase in enumerate(self.phases):
            of_base = distils_base(phase)
            if of_base and self.size is not None:
                raise ValueError(
                    f"phases[{i}].target: base teaches a student that starts from the base's "
                    "weights, and size makes random ones: leave out size, or use target: teacher"
                )
            if of_base and self.space == "own" and self.layers is None:
                raise ValueError(
                    f"phases[{i}].target: base would teach the student what it is: set layers or "
                    "space: teacher, or use target: teacher"
                )
            if of_base and self.space == "own" and self.output_dims is not None:
                raise ValueError(
                    f"phases[{i}].target: base has vectors of the base's size, not of output_dims: "
                    "leave one of them out"
                )
            for name in ("cosine", "squared_l2", "ranking_kl"):
                if self.space == "own" and not of_base and getattr(phase.losses, name):
                    raise ValueError(
                        f"phases[{i}].losses.{name} compares vectors with the teacher's, so it "
                        "needs space: teacher; pairwise_mse and similarity_order compare scores "
                        "and work in any space"
                    )
            _check_rehearsal(self.phases, i)
            if phase.ranking_kl_passages and not phase.losses.ranking_kl:
                raise ValueError(
                    f"phases[{i}].ranking_kl_passages has no effect: losses.ranking_kl has weight 0"
                )
            if phase.ranking_kl_passages and phase.online_teacher:
                raise ValueError(
                    f"phases[{i}].ranking_kl_passages would make the online teacher embed "
                    f"{phase.ranking_kl_passages:,} passages at every step: leave out "
                    "ranking_kl_passages or online_teacher"
                )
        return self

    @model_validator(mode="after")
    def _standardises_its_base_s_vectors(self) -> "Student":
        if self.layer_norm and (self.space == "teacher" or self.output_dims is not None):
            name = "space: teacher" if self.space == "teacher" else "output_dims"
            raise ValueError(
                f"layer_norm is of the base's own vectors, and {name} puts a new linear map in "
                "their place: leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _starts_in_one_way(self) -> "Student":
        if self.layers is not None and self.size is not None:
            raise ValueError(
                "layers keeps the base's weights and size starts from random ones: use one of them"
            )
        if isinstance(self.layers, tuple) and len(set(self.layers)) < max(1, len(self.layers)):
            raise ValueError("layers must name at least one layer, and each only once")
        return self


def _check_rehearsal(phases: Sequence[StudentPhase], number: int) -> None:
    """Raises ValueError unless a phase that rehearses has texts to rehearse, and their vectors."""
    phase, rehearsed = phases[number], rehearsed_phase(phases, number)
    if not isinstance(phase, PairDistillation) or not phase.rehearsal_batch:
        return
    field = f"phases[{number}].rehearsal_batch"
    if rehearsed is None:
        raise ValueError(
            f"{field} repeats the last phase with data: texts, and there is none before: add one, "
            "or leave it out"
        )
    if not distils_base(rehearsed) and rehearsed.online_teacher != phase.online_teacher:
        raise ValueError(
            f"{field} repeats a phase whose online_teacher is {rehearsed.online_teacher}: set it "
            "the same for both"
        )

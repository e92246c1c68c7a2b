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

from stillroom.config.section import Dropout, Name, Prompts, Section, Share
from stillroom.config.teachers import Api, Member


class Lora(Section):
    """Low-rank adapters (Hu et al., 2021) on every linear layer, or on those named."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    dropout: Dropout = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rank_stabilised: bool = False  # rsLoRA (Kalajdzievski, 2023): alpha / sqrt(rank)
    decomposed: bool = False  # DoRA (Liu et al., 2024): magnitude and direction apart


class Latents(Section):
    """Latent attention (NV-Embed, arXiv 2405.17428), for pooling: latent."""

    count: PositiveInt = 512
    heads: PositiveInt = 8
    head_dims: PositiveInt | None = None  # null: the states' own width, as in the paper


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


class Teacher(Section):
    """A model with a base, which may be trained; or several, or an API, which are as they are.

    Attributes:
        combine: members' vectors, each of unit length, in a row or as their mean.
        trust_remote_code: runs the Python that base or members bring with them.
    """

    base: str | None = None
    members: Annotated[tuple[Member, ...], Field(min_length=2)] | None = None
    combine: Literal["concatenate", "average"] = "concatenate"
    api: Api | None = None
    trust_remote_code: bool = False
    attention: Literal["causal", "bidirectional"] | None = None  # null: as the base's own
    pooling: Literal["mean", "weighted_mean", "last", "cls", "latent"] | None = None
    latents: Latents = Latents()
    echo: bool = False  # the text twice, pooled over the second (arXiv 2402.15449)
    append_eos: bool = False
    prompts: Prompts | None = None
    pool_prompt: bool = True
    max_tokens: PositiveInt | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: Lora | None = Lora()  # null: every weight is trained
    phases: tuple[Annotated[Phase, Field(discriminator="objective")], ...] = ()  # none: the base

    @model_validator(mode="after")
    def _one_kind(self) -> "Teacher":
        fields = type(self).model_fields
        said = {name for name, of in fields.items() if getattr(self, name) != of.default}
        kinds = {
            "base": (said - {"combine"}, "one model is not combined"),
            "members": (
                {"combine", "precision", "trust_remote_code"},
                "each member says how it encodes, and none is trained",
            ),
            "api": (set[str](), "it says itself how it encodes, and its weights are not here"),
        }
        named = [kind for kind in kinds if kind in said]
        if len(named) != 1:
            both = f"not {' and '.join(named)}" if named else "there is none"
            raise ValueError(f"name one of {', '.join(kinds)}: {both}")
        takes, why = kinds[named[0]]
        if senseless := sorted(said - takes - {*named}):
            raise ValueError(f"{named[0]} leaves no sense to {', '.join(senseless)}: {why}")
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> "Teacher":
        for i, phase in enumerate(self.phases):
            if isinstance(phase, Mntp) and self.echo:
                raise ValueError(
                    f"phases[{i}] is mntp, and echo shows every masked token in the other copy: "
                    "use one of them"
                )
            if phase.merge_before and (i == 0 or self.lora is None):
                raise ValueError(
                    f"phases[{i}].merge_before has nothing to merge: it needs lora, and a phase "
                    "before it"
                )
        return self


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


def mines(phase: Phase) -> bool:
    """Whether a phase needs negatives that the phase before it mines."""
    return (
        isinstance(phase, Contrastive) and phase.hard_negatives > 0 and phase.negatives == "mined"
    )

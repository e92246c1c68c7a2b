"""The recipe as a whole. It decides the numbers, and its scale only how long they take."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stillroom.config.base import Kind, Name, Section, Share
from stillroom.config.corpus import Corpus
from stillroom.config.phases import Contrastive, Joint, Optimisation, PairTraining, mines
from stillroom.config.scale import Scale, Workers
from stillroom.config.student import Student
from stillroom.config.teacher import Teacher


class Vectors(Section):
    shard: PositiveInt = 1024  # texts a file, and the most that a crash can cost


class Ivf(Section):
    """Approximate search, by FAISS, of large corpora; its recall is measured before it is used."""

    above: PositiveInt = 1_000_000  # passages; fewer are searched exactly
    part: PositiveInt = 1_000_000  # passages of an index
    lists: PositiveInt | None = None  # of an index; null: 4 times the root of its passages
    probes: PositiveInt = 32  # lists read a query, of each index
    min_recall: Share = 0.95  # of what exact search finds; less is refused
    sample: PositiveInt = 256  # queries that this is measured on


Miner = Annotated[str, Field(min_length=1)]


class Negatives(Section):
    """Positive-aware mining: TopK-PercPos of NV-Retriever (arXiv 2407.15831), and its other rules.

    Attributes:
        miner: `teacher` (of a mined phase: the phase before), `base` (the teacher's, untrained),
            `bm25`, or a model as named elsewhere. Several are united: each finds candidates, and
            the first of them that is a model scores them all.
        max_share_of_positive, margin, max_score: what a candidate may score at most: a share of
            its positive's score, so much less than that, or this; null does not hold.
        rescore: a cross-encoder, whose scores between 0 and 1 then decide in place of the miner's.
        searched: also passages of evaluation sets that answer no judged query. They are in the
            corpus only where they answer a query that is trained on.
        ivf: null searches exactly.
    """

    miner: Miner | Annotated[tuple[Miner, ...], Field(min_length=1)] = "teacher"
    max_share_of_positive: PositiveFloat | None = 0.95
    margin: NonNegativeFloat | None = None
    max_score: float | None = None
    skip_first: NonNegativeInt = 0
    sample_from: PositiveInt = 16  # the best that remain
    per_query: PositiveInt = 4
    strategy: Literal["random", "top"] = "random"
    rescore: str | None = None
    searched: bool = False
    ivf: Ivf | None = None

    @property
    def miners(self) -> tuple[str, ...]:
        return (self.miner,) if isinstance(self.miner, str) else self.miner

    @model_validator(mode="after")
    def _enough_to_draw(self) -> "Negatives":
        if self.sample_from < self.per_query:
            raise ValueError("sample_from must be at least per_query")
        if len(set(self.miners)) < len(self.miners):
            raise ValueError("miner names one twice")
        return self


class Report(Section):
    bm25: bool = True
    bases: bool = True  # also measure both models before training


Small = Literal["float16", "int8", "binary", "binary+rescoring"]

ExportFormat = Literal[
    "sentence-transformers", "onnx", "onnx-int8", "onnx-int8-static", "openvino", "openvino-int8"
]


class Playground(Section):
    """What a release carries to be tried on: passages of every evaluation set."""

    passages: PositiveInt = 500  # of a set, at most: both models encode them


class Release(Section):
    """The gate: what must hold before anything is released; and what else the release holds.
    Retention is of nDCG@10.

    Attributes:
        mean_retention: student / teacher.
        set_retention: the same on every set, but for those that `retention` names.
        asymmetric_retention: passages by the teacher and queries by the student / teacher.
        ndcg: the student's on a set.
        vectors: the student's from small vectors / from float32, at full size, on average.
        speedup: the student's texts a second / the teacher's.
        exports: formats that the student is written in as well, each checked on the evaluation
            sets against the student.
        playground: null leaves the passages out.
    """

    mean_retention: NonNegativeFloat | None = None
    set_retention: NonNegativeFloat | None = None
    retention: dict[Name, NonNegativeFloat] = Field(default_factory=dict)
    asymmetric_retention: NonNegativeFloat | None = None
    ndcg: dict[Name, Share] = Field(default_factory=dict)
    vectors: dict[Small, NonNegativeFloat] = Field(default_factory=dict)
    texts_per_second: PositiveFloat | None = None  # the student's, on the report's machine
    speedup: PositiveFloat | None = None
    student_over_base: bool = False
    student_over_bm25: bool = False
    exports: tuple[ExportFormat, ...] = ()
    playground: Playground | None = Playground()


class Recipe(Section):
    name: Name
    root: str = "runs"  # where artifacts live: a folder, or what pyarrow.fs opens
    seed: NonNegativeInt = 17
    corpus: Corpus
    teacher: Teacher
    vectors: Vectors = Vectors()
    negatives: Negatives = Negatives()
    student: Student
    report: Report = Report()
    release: Release = Release()
    scale: Scale = Scale()

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        for field, section, scale in self._trained():
            batches = {"global_batch": section.global_batch}
            if isinstance(section, Joint):
                batches["generation_batch"] = section.generation_batch
            for name, size in batches.items():
                if size % scale.most:
                    raise ValueError(
                        f"{field}.{name} ({size}) must be a multiple of the number of workers "
                        f"({scale.most})"
                    )
            if isinstance(section, PairTraining):
                given = isinstance(section, Contrastive) and section.negatives == "given"
                if section.hard_negatives > self.negatives.per_query and not given:
                    raise ValueError(
                        f"{field}.hard_negatives ({section.hard_negatives}) exceeds "
                        f"negatives.per_query ({self.negatives.per_query})"
                    )
            if isinstance(section, Contrastive) and not (
                section.in_batch or section.hard_negatives
            ):
                raise ValueError(f"{field} has no negatives: set in_batch or hard_negatives")
        if (
            self.teacher.phases
            and mines(self.teacher.phases[0])
            and "teacher" in self.negatives.miners
        ):
            raise ValueError(
                "teacher.phases[0] cannot mine its negatives: the untrained base would; set "
                "hard_negatives: 0 or negatives: given, add a phase before it, or name another "
                "negatives.miner"
            )
        return self

    @model_validator(mode="after")
    def _floors_are_of_what_is_measured(self) -> "Recipe":
        sets = [*self.corpus.evaluation, *(["held-out"] if self.corpus.held_out else [])]
        for field in ("retention", "ndcg"):
            for name in getattr(self.release, field):
                if name not in sets:
                    raise ValueError(
                        f"release.{field} names {name!r}, which is no evaluation set: there is "
                        f"{', '.join(sets)}"
                    )
        if self.release.asymmetric_retention is not None and self.student.space != "teacher":
            raise ValueError(
                "release.asymmetric_retention needs student.space: teacher, for only then can "
                "the student's queries be ranked among the teacher's passages"
            )
        for floor, measured in (("student_over_base", "bases"), ("student_over_bm25", "bm25")):
            if getattr(self.release, floor) and not getattr(self.report, measured):
                raise ValueError(f"release.{floor} needs report.{measured}: true")
        return self

    @model_validator(mode="after")
    def _somebody_writes(self) -> "Recipe":
        if self.corpus.synthetic is not None and self.scale.synthetic.base_url is None:
            raise ValueError(
                "corpus.synthetic needs a language model: set scale.synthetic.base_url, such as "
                "http://localhost:8000/v1"
            )
        return self

    @model_validator(mode="after")
    def _sources_have_what_is_trained_on(self) -> "Recipe":
        sources = self.corpus.trained_on
        for field, section, _ in self._trained():
            kind: Kind = "pairs" if isinstance(section, PairTraining) else "passages"
            if not any(source.has(kind) for source in sources.values()):
                raise ValueError(
                    f"{field} needs {kind}, and no source under corpus.sources has any"
                )
            for name in section.mix or ():
                if name not in sources:
                    raise ValueError(f"{field}.mix names {name!r}, which is no source")
                if not sources[name].has(kind):
                    raise ValueError(f"{field}.mix names {name!r}, a source without {kind}")
            if not isinstance(section, Joint) or section.generate != "conversations":
                continue
            if not any(source.has("conversations") for source in sources.values()):
                raise ValueError(
                    f"{field}.generate is 'conversations', and no source has any: name files under "
                    "corpus.sources.NAME.conversations, or set generate: pairs"
                )
        return self

    def _trained(self) -> list[tuple[str, Optimisation, Workers]]:
        """Every section that trains, with its field and its part of the scale."""
        phases = [
            (f"teacher.phases[{i}]", phase, self.scale.teacher)
            for i, phase in enumerate(self.teacher.phases)
        ]
        return [
            *phases,
            *(
                (f"student.phases[{i}]", phase, self.scale.student)
                for i, phase in enumerate(self.student.phases)
            ),
        ]

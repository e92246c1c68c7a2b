"""The whole recipe. Its sections decide the results; `scale` decides only time and place."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stillroom.config.base import GENERAL, DataKind, Fraction, Name, Section
from stillroom.config.corpus import Corpus
from stillroom.config.evaluation import Evaluation
from stillroom.config.phases import (
    ContrastivePhase,
    JointPhase,
    PairPhase,
    TrainingPhase,
    needs_mined_negatives,
)
from stillroom.config.scale import Scale, TrainingWorkers
from stillroom.config.student import Student, TextDistillation
from stillroom.config.teacher import Teacher
from stillroom.storage.root import default_root


class Vectors(Section):
    """The teacher's vectors of the corpus.

    Attributes:
        shard_size: texts per file; a crash loses at most this many vectors.
    """

    shard_size: PositiveInt = 1024


class Ivf(Section):
    """Approximate search of large corpora with FAISS; parameters are named as there.

    Attributes:
        min_passages: smaller corpora are searched exactly.
        nlist: cells, of about so many; null: 4 × the square root of the passages, or one for 256
            of them if that is more, up to 65,536.
        nprobe: cells searched per query; null: the fewest, in powers of two, that have the recall.
        min_recall: of what exact search returns; the search is refused below it.
        recall_queries: queries that recall is measured on.
    """

    min_passages: PositiveInt = 1_000_000
    nlist: PositiveInt | None = None
    nprobe: PositiveInt | None = None
    min_recall: Fraction = 0.95
    recall_queries: PositiveInt = 256


Miner = Annotated[str, Field(min_length=1)]


class Negatives(Section):
    """Positive-aware mining: TopK-PercPos of NV-Retriever (arXiv 2407.15831) and its other rules.

    Attributes:
        miner: `teacher` (for a mined phase: the model of the phase before), `base` (the teacher's,
            untrained), `bm25`, or the name of a model. Several miners each find candidates; the
            first of them that is a model scores all candidates.
        max_share_of_positive: a candidate may score at most this share of its positive's score;
            null sets no limit, here and in the next two.
        absolute_margin: a candidate must score at least this much less than its positive. This and
            `max_score` have the unit of the scores: cosines are at most 1, and inner products of a
            miner that dot compares may be some tens; the report shows both distributions.
        max_score: a candidate may score at most this.
        skip_first: how many of the best candidates to skip.
        sample_from: draws from this many of the best remaining candidates.
        per_query: negatives of each query.
        cross_encoder: a model whose scores, between 0 and 1, replace the miner's.
        include_evaluation_passages: also searches those passages of evaluation sets that answer no
            judged query. The corpus has them only where they answer a training query.
        ivf: null searches exactly.
    """

    miner: Miner | Annotated[tuple[Miner, ...], Field(min_length=1)] = "teacher"
    max_share_of_positive: PositiveFloat | None = 0.95
    absolute_margin: NonNegativeFloat | None = None
    max_score: float | None = None
    skip_first: NonNegativeInt = 0
    sample_from: PositiveInt = 16
    per_query: PositiveInt = 4
    strategy: Literal["random", "top"] = "random"
    cross_encoder: str | None = None
    include_evaluation_passages: bool = False
    ivf: Ivf | None = None

    @property
    def miners(self) -> tuple[str, ...]:
        """`miner` as a tuple."""
        return (self.miner,) if isinstance(self.miner, str) else self.miner

    @model_validator(mode="after")
    def _has_enough_to_draw(self) -> "Negatives":
        if self.sample_from < self.per_query:
            raise ValueError("sample_from must be at least per_query")
        if len(set(self.miners)) < len(self.miners):
            raise ValueError("miner names a miner twice")
        return self


class Report(Section):
    """Baselines to measure besides teacher and student.

    Attributes:
        base_models: both models before training.
    """

    bm25: bool = True
    base_models: bool = True


SmallPrecision = Literal["float16", "int8", "binary", "binary+rescoring"]

ExportFormat = Literal[
    "sentence-transformers", "onnx", "onnx-int8", "onnx-int8-static", "openvino", "openvino-int8"
]


class Playground(Section):
    """Passages of every evaluation set, stored in the release for its playground.

    Attributes:
        passages: maximum per set; both models encode them.
    """

    passages: PositiveInt = 500


class Elsewhere(Section):
    """Conditions on the sets from other fields than the corpus; see `Evaluation`.

    Attributes:
        of_teacher: the lowest mean retention there; null: any.
        not_below_base: the student's mean nDCG@10 there must not be below that of its own base,
            untouched, by more than chance.
    """

    of_teacher: NonNegativeFloat | None = None
    not_below_base: bool = True


class Release(Section):
    """The gate's conditions, and the contents of the release.

    Retention is the student's nDCG@10 divided by the teacher's.

    Attributes:
        mean_retention: the lowest mean over all sets.
        every_set_retention: the lowest on any set that `retention_by_set` does not name.
        asymmetric_retention: the lowest mean with passages by the teacher and queries by the
            student.
        ndcg_by_set: the student's lowest nDCG@10.
        small_vectors: precision → the lowest fraction of its nDCG@10 that the student keeps with
            such vectors at full size, on average.
        texts_per_second: the student's lowest, on the report's machine.
        speedup: the student's texts per second divided by the teacher's.
        elsewhere: the conditions outside of the corpus; one of them is on by default.
        exports: further formats of the student, each compared with it on the evaluation sets.
        playground: null leaves the passages out.
    """

    mean_retention: NonNegativeFloat | None = None
    every_set_retention: NonNegativeFloat | None = None
    retention_by_set: dict[Name, NonNegativeFloat] = Field(default_factory=dict)
    asymmetric_retention: NonNegativeFloat | None = None
    ndcg_by_set: dict[Name, Fraction] = Field(default_factory=dict)
    small_vectors: dict[SmallPrecision, NonNegativeFloat] = Field(default_factory=dict)
    texts_per_second: PositiveFloat | None = None
    speedup: PositiveFloat | None = None
    student_beats_base: bool = False
    student_beats_bm25: bool = False
    elsewhere: Elsewhere = Elsewhere()
    exports: tuple[ExportFormat, ...] = ()
    playground: Playground | None = Playground()


class Recipe(Section):
    """All settings of a run.

    Attributes:
        root: where artifacts live: a local folder, or a URI that pyarrow.fs opens.
        environment: environment variables that `${oc.env:NAME}` may read in this recipe.
        max_unknown: the share of a source's or a set's letters that the tokenizers of teacher and
            student may not know. Only checked; no artifact depends on it.
    """

    name: Name
    root: str = Field(default_factory=default_root)
    environment: tuple[str, ...] = ()
    seed: NonNegativeInt = 17
    max_unknown: Fraction = 0.05
    corpus: Corpus
    evaluation: Evaluation = Evaluation()
    teacher: Teacher
    vectors: Vectors = Vectors()
    negatives: Negatives = Negatives()
    student: Student
    report: Report = Report()
    release: Release = Release()
    scale: Scale = Scale()

    @model_validator(mode="after")
    def _batches_and_negatives_fit(self) -> "Recipe":
        for field, phase, scale in self._phases():
            _check_batches(field, phase, scale)
            _check_hard_negatives(field, phase, self.negatives)
        first = self.teacher.phases[0] if self.teacher.phases else None
        if first and needs_mined_negatives(first) and "teacher" in self.negatives.miners:
            raise ValueError(
                "teacher.phases[0] cannot mine its own negatives, because its model is not trained "
                "yet: set hard_negatives: 0 or negatives: given, add a phase before it, or name "
                "another negatives.miner"
            )
        return self

    @model_validator(mode="after")
    def _gate_uses_what_is_measured(self) -> "Recipe":
        sets = [*self.corpus.evaluation, *(["held-out"] if self.corpus.held_out else [])]
        for field in ("retention_by_set", "ndcg_by_set"):
            for name in getattr(self.release, field):
                if name not in sets:
                    raise ValueError(
                        f"release.{field} names {name!r}, which is not an evaluation set: "
                        f"the sets are {', '.join(sets)}"
                    )
        if self.release.asymmetric_retention is not None and self.student.space != "teacher":
            raise ValueError(
                "release.asymmetric_retention needs student.space: teacher, because only then can "
                "the student's queries find the teacher's passages"
            )
        if self.release.elsewhere.of_teacher is not None and not self.evaluation.measures_elsewhere:
            raise ValueError(
                "release.elsewhere.of_teacher needs sets to measure on: name evaluation.guards, or "
                "set evaluation.made_guards.sets above 0"
            )
        for condition, measured in (
            ("student_beats_base", "base_models"),
            ("student_beats_bm25", "bm25"),
        ):
            if getattr(self.release, condition) and not getattr(self.report, measured):
                raise ValueError(f"release.{condition} needs report.{measured}: true")
        return self

    @model_validator(mode="after")
    def _synthetic_has_an_endpoint(self) -> "Recipe":
        if self.corpus.synthetic is not None and self.scale.synthetic.base_url is None:
            raise ValueError(
                "corpus.synthetic needs a language model: set scale.synthetic.base_url, such as "
                "http://localhost:8000/v1"
            )
        return self

    @model_validator(mode="after")
    def _sources_have_what_phases_train_on(self) -> "Recipe":
        sources = self.corpus.training_sources
        for field, phase, _ in self._phases():
            kind: DataKind = "pairs" if isinstance(phase, PairPhase) else "passages"
            if not any(source.provides(kind) for source in sources.values()):
                raise ValueError(
                    f"{field} needs {kind}, and no source under corpus.sources has any"
                )
            for name in phase.mix or ():
                if name == GENERAL and self.corpus.texts and isinstance(phase, TextDistillation):
                    continue
                if name not in sources:
                    raise ValueError(f"{field}.mix names {name!r}, which is not a source")
                if not sources[name].provides(kind):
                    raise ValueError(f"{field}.mix names {name!r}, a source without {kind}")
            if not isinstance(phase, JointPhase) or phase.generation_data != "conversations":
                continue
            if not any(source.provides("conversations") for source in sources.values()):
                raise ValueError(
                    f"{field}.generation_data is 'conversations', and no source has any: name "
                    "files under corpus.sources.NAME.conversations, or set generation_data: pairs"
                )
        return self

    def _phases(self) -> list[tuple[str, TrainingPhase, TrainingWorkers]]:
        """Every training phase with its field and the workers that train it."""
        return [
            *(
                (f"teacher.phases[{i}]", phase, self.scale.teacher)
                for i, phase in enumerate(self.teacher.phases)
            ),
            *(
                (f"student.phases[{i}]", phase, self.scale.student)
                for i, phase in enumerate(self.student.phases)
            ),
        ]


def _check_batches(field: str, phase: TrainingPhase, scale: TrainingWorkers) -> None:
    """Raises ValueError unless workers can share every batch evenly."""
    for name, size in phase.batch_sizes.items():
        if size % scale.max_workers:
            raise ValueError(
                f"{field}.{name} ({size}) must be a multiple of the number of workers "
                f"({scale.max_workers})"
            )


def _check_hard_negatives(field: str, phase: TrainingPhase, negatives: Negatives) -> None:
    """Raises ValueError unless a phase on pairs has negatives, and no more than are mined."""
    if not isinstance(phase, PairPhase):
        return
    given = isinstance(phase, ContrastivePhase) and phase.negatives == "given"
    if phase.hard_negatives > negatives.per_query and not given:
        raise ValueError(
            f"{field}.hard_negatives ({phase.hard_negatives}) exceeds negatives.per_query "
            f"({negatives.per_query})"
        )
    if isinstance(phase, ContrastivePhase) and not (
        phase.in_batch_negatives or phase.hard_negatives
    ):
        raise ValueError(f"{field} has no negatives: set in_batch_negatives or hard_negatives")

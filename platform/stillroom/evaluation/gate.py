"""The release gate: whether a report's measurements allow the student to be released."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

METRIC = "ndcg@10"
SPEED = "texts_per_second"


@dataclass(frozen=True)
class GateFloors:
    """The lowest allowed values; documented in the recipe's release section. None: not required."""

    mean_retention: float | None = None
    every_set_retention: float | None = None
    retention_by_set: Mapping[str, float] = field(default_factory=dict)
    asymmetric_retention: float | None = None
    ndcg_by_set: Mapping[str, float] = field(default_factory=dict)
    small_vectors: Mapping[str, float] = field(default_factory=dict)
    texts_per_second: float | None = None
    speedup: float | None = None
    student_beats_base: bool = False
    student_beats_bm25: bool = False
    elsewhere_of_teacher: float | None = None
    elsewhere_not_below_base: bool = False


@dataclass(frozen=True)
class GateResult:
    """Whether the gate passed, and a sentence for each failure."""

    passed: bool
    failures: tuple[str, ...]


def apply_gate(report: Mapping[str, Any], floors: GateFloors) -> GateResult:
    """Compares a report with the floors. A required value that was not measured is a failure."""
    failures = tuple(_failures(report, floors))
    return GateResult(not failures, failures)


def _failures(report: Mapping[str, Any], floors: GateFloors) -> Iterator[str]:
    retention = report["retention"]
    student, teacher = model_with_role(report, "student"), model_with_role(report, "teacher")
    yield from _below("mean retention", retention["mean"], floors.mean_retention)
    set_floors = dict.fromkeys(report["sets"], floors.every_set_retention)
    for name, floor in {**set_floors, **floors.retention_by_set}.items():
        yield from _below(f"retention on {name}", retention.get(name), floor)
    both = model_with_role(report, "asymmetric") or {"retention": {"mean": None}}
    yield from _below(
        "mean asymmetric retention", both["retention"]["mean"], floors.asymmetric_retention
    )
    for name, floor in floors.ndcg_by_set.items():
        measured = student["scores"].get(name, {}).get(METRIC)
        yield from _below(f"the student's nDCG@10 on {name}", measured, floor)
    for precision, floor in floors.small_vectors.items():
        what = f"the share of the student's nDCG@10 that {precision} vectors keep"
        yield from _below(what, _precision_retention(student, precision), floor)
    fast, slow = student.get(SPEED), (teacher or {}).get(SPEED)
    yield from _below("the student's texts per second", fast, floors.texts_per_second)
    yield from _below(
        "the student's speed as a multiple of the teacher's",
        fast / slow if fast and slow else None,
        floors.speedup,
    )
    yield from _elsewhere_failures(report, floors)
    base = model_with_role(report, "base") or model_with_role(report, "student_base")
    for required, rival, other in (
        (floors.student_beats_base, base, "its own base"),
        (floors.student_beats_bm25, model_with_role(report, "bm25"), "BM25"),
    ):
        if not required:
            continue
        if rival is None:
            yield f"the student should beat {other}, which was not measured"
        elif mean_ndcg(student) <= mean_ndcg(rival):
            yield (
                f"the student's mean nDCG@10 of {mean_ndcg(student):.3f} does not beat "
                f"{other}'s {mean_ndcg(rival):.3f}"
            )


def _elsewhere_failures(report: Mapping[str, Any], floors: GateFloors) -> Iterator[str]:
    """Failures on sets from other fields than the corpus."""
    measured = report.get("elsewhere", {}).get("retention", {}).get("mean")
    yield from _below("mean retention elsewhere", measured, floors.elsewhere_of_teacher)
    # Not measured where the recipe has no guards or measures no base; the report says so.
    against_base = report.get("against_base", {}).get("elsewhere")
    if floors.elsewhere_not_below_base and against_base and is_worse(against_base):
        yield (
            "outside of its corpus the student is worse than its own untouched base: mean nDCG@10 "
            f"{against_base['first']:.3f} against {against_base['second']:.3f} "
            f"({against_base['difference']:+.3f}, 95 % interval {against_base['low']:+.3f} to "
            f"{against_base['high']:+.3f}); release.elsewhere.not_below_base=false allows it"
        )


def is_worse(difference: Mapping[str, Any]) -> bool:
    """Whether a `Difference` is below 0 by more than chance."""
    return bool(difference["high"] < 0)


def is_better(difference: Mapping[str, Any]) -> bool:
    """Whether a `Difference` is above 0 by more than chance."""
    return bool(difference["low"] > 0)


def _below(what: str, measured: float | None, floor: float | None) -> Iterator[str]:
    if floor is None:
        return
    if measured is None:
        yield f"{what} should be at least {floor:.3f} and was not measured"
    elif measured < floor:
        yield f"{what} is {measured:.3f}, {floor - measured:.3f} below the floor of {floor:.3f}"


def _precision_retention(student: Mapping[str, Any], precision: str) -> float | None:
    """nDCG@10 of the student's vectors at a precision over float32's, summed over the sets.

    At the full size; None when not measured.
    """
    sums: dict[str, float] = {}
    for entries in student.get("vectors", {}).values():
        for entry in entries:
            if entry["dims"] == student["dims"]:
                name = entry["precision"]
                sums[name] = sums.get(name, 0.0) + entry[METRIC]
    whole = sums.get("float32")
    return sums[precision] / whole if whole and precision in sums else None


def model_with_role(report: Mapping[str, Any], role: str) -> Any:
    """The report's entry with a role; None when there is none."""
    return next((m for m in report["models"].values() if m["role"] == role), None)


def mean_ndcg(model: Mapping[str, Any]) -> float:
    """The mean nDCG@10 over the sets of a report's entry."""
    scores = [scores[METRIC] for scores in model["scores"].values()]
    return sum(scores) / len(scores)

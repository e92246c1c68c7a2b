"""The report's block *elsewhere*: the models on sets from other fields than the corpus.

And what a recipe's student is compared with: the base that it was made from, untouched, which
anybody can have without any training.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from stillroom.data.readers.records import EvaluationSet
from stillroom.evaluation.evaluate import EncodedSets, evaluate_bm25, report_entry, retention
from stillroom.evaluation.intervals import paired_difference
from stillroom.stages.report.measure import MeasuredModel

BASE_NAMES = ("untouched base", "student before training")  # the first that was measured


def elsewhere_block(
    measured: Mapping[str, MeasuredModel],
    guards: Mapping[str, EvaluationSet],
    languages: Mapping[str, str] | None,
    asymmetric: EncodedSets | None,
) -> dict[str, Any]:
    """`sets`, `models` and `retention` as in the report itself, and `asymmetric_retention`.

    Args:
        languages: of each set, for BM25; None leaves it out.
        asymmetric: the student's queries and the teacher's passages, where they share a space.
    """
    entries = {
        name: _without_speed(model.elsewhere)
        for name, model in measured.items()
        if model.elsewhere is not None
    }
    if asymmetric is not None:
        entry = report_entry("asymmetric", entries["student"]["parameters"], asymmetric, guards)
        ratios = retention(entries["teacher"], entry)
        entries["student asks, teacher answers"] = {**_without_speed(entry), "retention": ratios}
    if languages is not None:
        entries["BM25"] = _without_speed(evaluate_bm25(guards, languages))
    return {
        "sets": {name: dataset.counts() for name, dataset in guards.items()},
        "models": entries,
        "retention": retention(entries["teacher"], entries["student"]),
    }


def against_base(
    measured: Mapping[str, MeasuredModel], sets: Iterable[str], guards: Iterable[str]
) -> dict[str, Any] | None:
    """The student less its base in nDCG@10, on the corpus and elsewhere, with 95 % intervals.

    Returns:
        `base` (its name in the report), `corpus` and `elsewhere`, each as `Difference.as_json`, the
        last None without guards; None where no base was measured.
    """
    base = next((name for name in BASE_NAMES if name in measured), None)
    if base is None:
        return None
    student, other = measured["student"].ndcg, measured[base].ndcg

    def difference(names: list[str]) -> dict[str, Any] | None:
        if not names:
            return None
        first, second = ({name: ndcg[name] for name in names} for ndcg in (student, other))
        return paired_difference(first, second).as_json()

    return {"base": base, "corpus": difference([*sets]), "elsewhere": difference([*guards])}


def _without_speed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Speed is measured once, on the corpus's sets."""
    return {key: value for key, value in entry.items() if key != "texts_per_second"}

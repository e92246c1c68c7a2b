"""The report of models that were measured without a recipe: in one process, one after the other."""

from collections.abc import Mapping
from typing import Any

import torch

from stillroom.data.readers.records import EvaluationSet
from stillroom.data.text.detection import detect_language
from stillroom.encoders.contract import BaseContract, index_conflict
from stillroom.evaluation.evaluate import (
    EncodedSets,
    combine_asymmetric,
    evaluate_bm25,
    report_entry,
    retention,
    shared_dims,
)
from stillroom.evaluation.small_vectors import evaluate_precisions
from stillroom.reports.render import render_evaluation, render_report
from stillroom.stages.report.stage import asymmetric_entry, describe_hardware


def report_of(
    measured: Mapping[str, tuple[int, EncodedSets | None]],
    contracts: Mapping[str, BaseContract],
    sets: Mapping[str, EvaluationSet],
) -> dict[str, Any] | None:
    """The content of report.json, with BM25; None without sets.

    Args:
        measured: role → number of weights, and the vectors of the sets.
        contracts: with the measured spaces.
    """
    if not sets:
        return None
    entries: dict[str, dict[str, Any]] = {}
    encoded_by: dict[str, EncodedSets] = {}
    for role, (parameters, encoded) in measured.items():
        assert encoded is not None, "there are sets"
        encoded_by[role] = encoded
        entries[role] = report_entry(role, parameters, encoded, sets)
    ratios: dict[str, float | None] = {**dict.fromkeys(sets), "mean": None}
    if "student" in entries:
        entries["student"]["vectors"] = evaluate_precisions(encoded_by["student"], sets)
    if len(entries) == 2:
        ratios = retention(entries["teacher"], entries["student"])
        student, teacher = contracts["student"], contracts["teacher"]
        if index_conflict(student, teacher) is None:
            both = combine_asymmetric(
                encoded_by["student"], encoded_by["teacher"], shared_dims(student, teacher)
            )
            entries["student asks, teacher answers"] = asymmetric_entry(entries, both, sets)
    languages = {
        name: detect_language(list(dataset.passages.values())) for name, dataset in sets.items()
    }
    return {
        "sets": {name: dataset.counts() for name, dataset in sets.items()},
        "models": {**entries, "BM25": evaluate_bm25(sets, languages)},
        "retention": ratios,
        "tokenizers": {},  # of models from elsewhere, no corpus is known
        "hardware": describe_hardware(torch.cuda.device_count()),
    }


def render(report: Mapping[str, Any], name: str) -> str:
    """The report's page: of a pair, or of one model."""
    if not {"teacher", "student"} <= report["models"].keys():
        return render_evaluation(report, name)
    extras = {"name": name, "hardware": report["hardware"], "losses": {}, "negatives": None}
    return render_report(report, extras)

"""The corpus stage: sources → clean pairs, passages, conversations and evaluation sets."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.cluster.parallel_map import this_node_runs_tasks
from stillroom.cluster.progress import Progress
from stillroom.config.corpus import Corpus as Section
from stillroom.config.evaluation import Evaluation
from stillroom.config.scale import Scale
from stillroom.data.readers.beir import read_beir, write_beir
from stillroom.data.readers.records import SkippedRows
from stillroom.errors import UserError
from stillroom.reports.data_card import data_card
from stillroom.stages.corpus import sources
from stillroom.stages.corpus.artifact import GUARDS_FOLDER
from stillroom.stages.corpus.cleaning import clean
from stillroom.stages.corpus.general import write_general_texts
from stillroom.stages.corpus.guards import find_guards
from stillroom.stages.corpus.languages import LANGUAGES_FILE, Languages, find_languages
from stillroom.stages.corpus.passage_rows import assign_passage_rows
from stillroom.stages.corpus.shards import (
    DROP_REASONS,
    ChunkSizes,
    CleaningWorkspace,
    Shards,
    Verdict,
    read_shards,
)
from stillroom.stages.corpus.writer import write_conversations, write_sources, write_texts
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.storage.atomic import atomic_write_json

SIZES = ChunkSizes()
Counts = dict[str, int]  # "read", reasons to drop, "kept"; "read" is the sum of the others


def corpus(
    *,
    section: Section,
    seed: int,
    evaluation: Evaluation | None = None,
    synthetic: Artifact | None = None,
    scale: Scale,
    out: Draft,
) -> dict[str, Any]:
    """Makes a corpus.

    Writes the tables pairs/, passages/, conversations/ and general-*/ (if there are any), a file
    per column; sources.json, languages.json, evaluation/SET/, guards/SET/, counts.json,
    contamination.json, left_out.json and card.md.

    Args:
        evaluation: what is measured besides the corpus's own sets.
        synthetic: generated pairs, which become one more source.

    Returns:
        The content of counts.json.

    Raises:
        UserError: when a file is wrong, or no pair of a source is left.
    """
    section = sources.with_synthetic(section, synthetic)
    names = list(section.sources)
    evaluation_sets = {name: read_beir(Path(path)) for name, path in section.evaluation.items()}
    guards = find_guards(evaluation, section, evaluation_sets)
    parts = [
        (number, part)
        for number, source in enumerate(section.sources.values())
        for part in sources.split_source(source)
    ]
    is_small = sum(part.size_bytes for _, part in parts) <= SIZES.serial_bytes
    folder = out.path / "work"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    folder.mkdir()
    try:
        workspace = CleaningWorkspace(
            folder, SIZES, parallel=not is_small and this_node_runs_tasks()
        )
        shards, skipped = read_shards(workspace, parts)
        rows = sum(shard.rows for of_kind in shards.values() for shard in of_kind)
        Progress(2 * rows).add(rows)  # reading is half of the work
        contamination, index = clean(workspace, shards, section, seed, evaluation_sets, guards)
        passage_rows = assign_passage_rows(workspace, shards)
        counts = {name: _count(workspace, shards, number) for number, name in enumerate(names)}
        _require_kept_rows(counts)
        all_sets = {**evaluation_sets, **guards.sets}
        languages = find_languages(section.language, names, workspace, shards, all_sets)
        passages = write_texts(workspace, shards, passage_rows, len(names), out.path)
        write_conversations(workspace, shards["conversations"], out.path)
    finally:
        shutil.rmtree(folder)
    for name, evaluation_set in evaluation_sets.items():
        write_beir(evaluation_set, out.path / "evaluation" / name)
    for name, guard in guards.sets.items():
        write_beir(guard, out.path / GUARDS_FOLDER / name)
    write_sources(section, counts, passages, out.path)
    skipped_rows = {name: skipped[number] for number, name in enumerate(names)}
    summary = _summary(counts, sum(passages), skipped_rows, languages)
    if section.texts is not None:
        summary["general"] = write_general_texts(section.texts, index, guards, out.path)
    if guards.sets or guards.left_out:
        summary["guards"] = guards.as_json()
    atomic_write_json(out.path / LANGUAGES_FILE, languages)
    atomic_write_json(out.path / "counts.json", summary)
    atomic_write_json(out.path / "contamination.json", contamination.as_json())
    bad_rows = {name: rows.bad_rows for name, rows in skipped_rows.items()}
    atomic_write_json(out.path / "left_out.json", bad_rows)
    text = data_card(section, summary, evaluation_sets)
    (out.path / "card.md").write_text(text, encoding="utf-8")
    return summary


def _count(workspace: CleaningWorkspace, shards: Shards, source: int) -> dict[str, Counts]:
    """Counts of each kind of rows in a source, by verdict."""
    counts = {}
    for kind, reasons in DROP_REASONS.items():
        verdicts = workspace.verdicts(kind)
        rows = np.zeros(len(Verdict), dtype=np.int64)  # by verdict
        for shard in shards["pairs" if kind == "negatives" else kind]:
            if shard.source == source:
                span = shard.negative_span if kind == "negatives" else shard.span
                rows += np.bincount(verdicts[span], minlength=len(Verdict))
        dropped = {reason.name.lower(): int(rows[reason]) for reason in reasons}
        counts[kind] = {"read": int(rows.sum()), **dropped, "kept": int(rows[Verdict.KEPT])}
    return counts


def _require_kept_rows(counts: Mapping[str, Mapping[str, Counts]]) -> None:
    for name, of_kinds in counts.items():
        for kind in ("pairs", "conversations"):
            rows = of_kinds[kind]
            if rows["read"] and not rows["kept"]:
                became = ", ".join(f"{count:,} {reason}" for reason, count in rows.items() if count)
                raise UserError(
                    f"corpus.sources.{name}",
                    f"none of its {kind} is left ({became})",
                    "Give others, or none",
                )


def _summary(
    counts: Mapping[str, Mapping[str, Counts]],
    passages: int,
    skipped: Mapping[str, SkippedRows],
    languages: Languages,
) -> dict[str, Any]:
    """The content of counts.json."""
    return {
        "pairs": sum(of_kinds["pairs"]["kept"] for of_kinds in counts.values()),
        "passages": passages,
        "conversations": sum(of_kinds["conversations"]["kept"] for of_kinds in counts.values()),
        "sources": counts,
        "left_out": {name: dict(rows.counts) for name, rows in skipped.items()},
        "languages": languages,
    }

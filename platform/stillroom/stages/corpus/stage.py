"""The corpus stage: sources → clean pairs, passages, conversations and evaluation sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.cluster.progress import Progress
from stillroom.config.corpus import Corpus as Section
from stillroom.config.evaluation import Evaluation
from stillroom.config.scale import Scale
from stillroom.data.readers.beir import read_beir, write_beir
from stillroom.data.readers.records import SkippedRows
from stillroom.reports.data_card import data_card
from stillroom.stages.corpus.artifact import GUARDS_FOLDER
from stillroom.stages.corpus.cleaning import clean
from stillroom.stages.corpus.counts import Counts, count_rows, counts_by_source
from stillroom.stages.corpus.general import write_general_texts
from stillroom.stages.corpus.guards import find_guards
from stillroom.stages.corpus.languages import LANGUAGES_FILE, Languages, find_languages
from stillroom.stages.corpus.passage_rows import assign_passage_rows
from stillroom.stages.corpus.reading import read_sources, split_sources
from stillroom.stages.corpus.shards import KINDS, ChunkSizes
from stillroom.stages.corpus.sources import with_synthetic
from stillroom.stages.corpus.workspace import WorkFiles
from stillroom.stages.corpus.writer import write_conversations, write_sources, write_texts
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.storage.atomic import atomic_write_json
from stillroom.storage.disk_space import require_free_space
from stillroom.storage.shared_folder import SharedFolder

SIZES = ChunkSizes()


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
    section = with_synthetic(section, synthetic)
    names = list(section.sources)
    evaluation_sets = {name: read_beir(Path(path)) for name, path in section.evaluation.items()}
    guards = find_guards(evaluation, section, evaluation_sets)
    parts = split_sources(section)
    is_small = sum(part.size for part in parts) <= SIZES.serial_bytes
    # Only one process uses the files of a small corpus, which need not go to an object store.
    folder = SharedFolder(
        str(out.path / "work") if is_small else out.store.resolve(out.work_folder)
    )
    try:
        workspace, skipped = read_sources(WorkFiles(folder, SIZES), parts, parallel=not is_small)
        rows = sum(workspace.rows(kind) for kind in KINDS)
        Progress(2 * rows).add(rows)  # reading is half of the work
        contamination, index = clean(workspace, section, seed, evaluation_sets, guards)
        assign_passage_rows(workspace)
        shard_counts = count_rows(workspace)
        counts = counts_by_source(shard_counts, names)
        all_sets = {**evaluation_sets, **guards.sets}
        languages = find_languages(section.language, names, workspace, shard_counts, all_sets)
        require_free_space(out.path, sum(count.kept_bytes for count in shard_counts))
        passages = write_texts(workspace, len(names), out.path)
        write_conversations(workspace, out.path)
    finally:
        folder.delete()
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

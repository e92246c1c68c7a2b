"""Checks of a recipe's sources and evaluation sets: every file is read once."""

from collections.abc import Iterator
from pathlib import Path

from stillroom.config.corpus import DocstringSource
from stillroom.config.phases import ContrastivePhase
from stillroom.config.recipe import Recipe
from stillroom.data.readers.beir import read_beir, read_beir_sets
from stillroom.data.readers.locations import (
    DATA_EXTENSIONS,
    DOCUMENT_EXTENSIONS,
    find_files,
)
from stillroom.data.readers.records import SkippedRows
from stillroom.errors import UserError
from stillroom.preflight.findings import Finding
from stillroom.stages.corpus import sources


def check_data(recipe: Recipe) -> Iterator[Finding]:
    """Reads all data, and counts it.

    Raises:
        UserError: at the first invalid row, and when no pair has the negatives that a phase needs.
    """
    for name, folder in recipe.corpus.evaluation.items():
        judged = read_beir(Path(folder))
        counts = judged.counts()
        detail = f"{counts['queries']:,} judged queries, {counts['passages']:,} passages"
        if left_out := counts.get("left_out"):
            detail += f", {left_out:,} queries whose own text, by its id, is left out of rankings"
        if missing := counts.get("missing"):
            detail += f", {missing:,} judged passages that do not exist and count as not found"
        yield Finding(f"corpus.evaluation.{name}", True, detail)
    if recipe.evaluation.guards is not None:
        for name, judged in read_beir_sets(Path(recipe.evaluation.guards)).items():
            counts = judged.counts()
            detail = f"{counts['queries']:,} judged queries, {counts['passages']:,} passages"
            yield Finding(f"evaluation.guards.{name}", True, detail)
    for location in recipe.corpus.texts.files if recipe.corpus.texts else ():
        files = find_files(location, (*DOCUMENT_EXTENSIONS, *DATA_EXTENSIONS))
        yield Finding("corpus.texts.files", True, f"{location}: {len(files):,} files")
    with_negatives = dict.fromkeys(recipe.corpus.sources, 0)
    if recipe.corpus.synthetic is not None:
        with_negatives["synthetic"] = 1  # not written yet; nearly all of its pairs have negatives
    for name, source in recipe.corpus.sources.items():
        if isinstance(source, DocstringSource):
            continue
        for part in sources.split_source(source):
            count, notes = _count(part)
            with_negatives[name] += notes.get("with negatives", 0)
            where = part.file or ", ".join(source.locations())
            noted = "".join(f", {n:,} {what}" for what, n in notes.items())
            yield Finding(f"corpus.sources.{name}", True, f"{where}: {count:,} {part.kind}{noted}")
    for field, phase in phases_with_given_negatives(recipe).items():
        if not any(with_negatives[name] for name in phase.mix or with_negatives):
            raise UserError(
                f"{field}.negatives: given",
                "no pair of its sources comes with negatives",
                "Give pairs with negatives, or set hard_negatives: 0 or negatives: mined",
            )


def _count(part: sources.SourcePart) -> tuple[int, dict[str, int]]:
    """How many rows a part has, and counts to note about them."""
    skipped = SkippedRows()
    notes: dict[str, int] = {}
    if part.kind == "pairs":
        count = with_negatives = 0
        for pair in sources.iter_pairs(part, skipped):
            count, with_negatives = count + 1, with_negatives + bool(pair.negatives)
        notes["with negatives"] = with_negatives
    else:
        passages = part.kind == "passages"
        read = sources.iter_passages if passages else sources.iter_conversations
        count = sum(1 for _ in read(part, skipped))
    notes.update({f"left out: {why}": n for why, n in skipped.counts.items()})
    return count, notes


def phases_with_given_negatives(recipe: Recipe) -> dict[str, ContrastivePhase]:
    """Field → teacher's phase, of those whose hard negatives come with the pairs."""
    return {
        f"teacher.phases[{i}]": phase
        for i, phase in enumerate(recipe.teacher.phases)
        if isinstance(phase, ContrastivePhase)
        and phase.hard_negatives
        and phase.negatives == "given"
    }

"""The languages of a corpus's sources and evaluation sets, which BM25 needs."""

import json
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from stillroom.config.base import DataKind
from stillroom.config.languages import AUTO, LANGUAGES
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.readers.records import EvaluationSet
from stillroom.data.text.detection import SAMPLE_TEXTS, detect_language
from stillroom.stages.corpus.counts import ShardCounts
from stillroom.stages.corpus.shards import Shard
from stillroom.stages.corpus.verdicts import Verdict
from stillroom.stages.corpus.workspace import CleaningWorkspace, GroupTask
from stillroom.storage.artifacts import Artifact

LANGUAGES_FILE = "languages.json"
Languages = dict[str, dict[str, str]]  # "sources" or "evaluation" → name → key of LANGUAGES
log = logging.getLogger(__name__)


def find_languages(
    language: str,
    sources: Sequence[str],
    workspace: CleaningWorkspace,
    counts: Sequence[ShardCounts],
    evaluation_sets: Mapping[str, EvaluationSet],
) -> Languages:
    """The language of each source and each evaluation set, by their passages; logs them.

    Args:
        language: of all of them, or `auto` to detect each.
        sources: their names.
        counts: of all shards.
    """
    samples: dict[str, dict[str, Sequence[str]]] = {
        "sources": dict(
            zip(sources, _sample_passages(workspace, counts, len(sources)), strict=True)
        ),
        "evaluation": {
            name: list(part.passages.values()) for name, part in evaluation_sets.items()
        },
    }
    languages = {
        kind: {
            name: detect_language(texts) if language == AUTO else language
            for name, texts in texts_by_name.items()
        }
        for kind, texts_by_name in samples.items()
    }
    how = "detected" if language == AUTO else "as corpus.language says"
    for kind, language_by_name in languages.items():
        named = (f"{name} {LANGUAGES[code]}" for name, code in language_by_name.items())
        if language_by_name:
            log.info("corpus: languages of %s, %s: %s", kind, how, ", ".join(named))
    return languages


def read_languages(artifact: Artifact) -> Languages:
    """The languages that a corpus artifact was made with."""
    languages: Languages = json.loads((artifact.path / LANGUAGES_FILE).read_text(encoding="utf-8"))
    return languages


def _sample_passages(
    workspace: CleaningWorkspace, counts: Sequence[ShardCounts], sources: int
) -> list[list[str]]:
    """Evenly spaced ones of each source's kept passages, those of pairs first."""
    ranks: dict[Shard, np.ndarray] = {}  # of the sampled ones among a shard's kept rows
    for source in range(sources):
        of_source = [
            count
            for count in counts
            if count.shard.source == source and count.shard.kind != "conversations"
        ]
        ends = np.cumsum([count.kept for count in of_source])
        sample = evenly_spaced(int(ends[-1]) if len(ends) else 0, SAMPLE_TEXTS)
        for count, end in zip(of_source, ends.tolist(), strict=True):
            start = end - count.kept
            in_shard = sample[(sample >= start) & (sample < end)] - start
            if len(in_shard):
                ranks[count.shard] = in_shard
    texts: list[list[str]] = [[] for _ in range(sources)]
    kinds: tuple[DataKind, ...] = ("pairs", "passages")
    for kind in kinds:
        of_groups = [
            {shard.name: ranks[shard] for shard in group.shards if shard in ranks}
            for group in workspace.groups[kind]
        ]
        for of_group in workspace.map_groups(kind, _take_passages, of_groups):
            for source, passages in of_group:
                texts[source] += passages
    return texts


def _take_passages(
    task: GroupTask, ranks_of: Mapping[str, np.ndarray]
) -> list[tuple[int, list[str]]]:
    taken = []
    for shard, verdicts, _ in task.shards():
        if shard.name in ranks_of:
            rows = np.flatnonzero(verdicts == Verdict.KEPT)[ranks_of[shard.name]]
            passages = task.files.table(shard, "passage")["passage"].take(rows).to_pylist()
            taken.append((shard.source, passages))
    return taken

"""The languages of a corpus's sources and evaluation sets, which BM25 needs."""

import json
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq

from stillroom.config.languages import AUTO, LANGUAGES
from stillroom.data.cleaning.sampling import evenly_spaced
from stillroom.data.readers.records import EvaluationSet
from stillroom.data.text.detection import SAMPLE_TEXTS, detect_language
from stillroom.stages.corpus.shards import CleaningWorkspace, Shards, Verdict
from stillroom.storage.artifacts import Artifact

LANGUAGES_FILE = "languages.json"
Languages = dict[str, dict[str, str]]  # "sources" or "evaluation" → name → key of LANGUAGES
log = logging.getLogger(__name__)


def find_languages(
    language: str,
    sources: Sequence[str],
    workspace: CleaningWorkspace,
    shards: Shards,
    evaluation_sets: Mapping[str, EvaluationSet],
) -> Languages:
    """The language of each source and each evaluation set, by their passages; logs them.

    Args:
        language: of all of them, or `auto` to detect each.
        sources: their names.
    """
    samples: dict[str, dict[str, Sequence[str]]] = {
        "sources": {
            name: _sampled_passages(workspace, shards, number)
            for number, name in enumerate(sources)
        },
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


def _sampled_passages(workspace: CleaningWorkspace, shards: Shards, source: int) -> list[str]:
    """Evenly spaced ones of a source's kept passages, those of pairs first."""
    of_source = [
        shard for kind in ("pairs", "passages") for shard in shards[kind] if shard.source == source
    ]
    kept = [
        np.flatnonzero(workspace.verdicts(shard.kind)[shard.span] == Verdict.KEPT)
        for shard in of_source
    ]
    sample = evenly_spaced(sum(map(len, kept)), SAMPLE_TEXTS)
    texts: list[str] = []
    start = 0
    for shard, rows in zip(of_source, kept, strict=True):
        here = rows[sample[(sample >= start) & (sample < start + len(rows))] - start]
        start += len(rows)
        if len(here):
            passages = pq.read_table(shard.path, columns=["passage"])["passage"]
            texts += passages.take(here).to_pylist()
    return texts

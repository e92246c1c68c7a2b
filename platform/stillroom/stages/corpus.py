"""Sources → clean pairs, passages, conversations and evaluation sets."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.config import Corpus as Section
from stillroom.config import Scale
from stillroom.encoders.contract import Prompts
from stillroom.errors import UserError
from stillroom.stages import sources
from stillroom.stages.sources import Source
from stillroom.text.decontaminate import Judged, decontaminate
from stillroom.text.dedupe import dedupe_pairs, text_key
from stillroom.text.formats import (
    Conversation,
    EvaluationSet,
    Pair,
    read_beir,
    write_beir,
)
from stillroom.text.split import split

HELD_OUT = "held-out"
Counts = dict[str, int]  # "read", reasons to drop, "kept": the others add up to what was read

# --- made -----------------------------------------------------------------------------------


def corpus(
    *, section: Section, seed: int, synthetic: Artifact | None = None, scale: Scale, out: Draft
) -> dict[str, Any]:
    """Writes pairs.parquet, passages.parquet, conversations.parquet where there are any,
    sources.json, evaluation/SET/ and counts.json.

    Returns:
        How many of each there are, and what became of all that each source had.

    Raises:
        UserError: when a file is wrong, or nothing is left of a source's pairs.
    """
    section = sources.with_synthetic(section, synthetic)
    evaluation = {name: read_beir(Path(folder)) for name, folder in section.evaluation.items()}
    pairs, of_pairs = dedupe_pairs(
        {name: sources.pairs(of) for name, of in section.sources.items()}
    )
    if section.held_out is not None:
        asked = section.held_out.source or next(iter(section.sources))
        parts = split(
            pairs[asked],
            seed=seed,
            held_out_queries=section.held_out.queries,
            held_out_passages=section.held_out.passages,
        )
        of_pairs[asked]["held_out"] = len(pairs[asked]) - len(parts.train)
        prompts = section.sources[asked].prompts
        told = {} if prompts is None else prompts.model_dump()
        pairs[asked] = parts.train
        evaluation[HELD_OUT] = dataclasses.replace(parts.evaluation, prompts=told)
    # Near-copies of what was held out are gone from its own source, but not from the others.
    judged = Judged.of(evaluation, whole={HELD_OUT})
    for name, own in pairs.items():
        pairs[name] = _to_train_on(own, judged, section.max_pairs, seed, of_pairs[name])
    passages = _Passages()
    _write_pairs(list(pairs.values()), passages, out.path)
    conversations: dict[str, Conversation] = {}
    counts: dict[str, dict[str, Counts]] = {}
    for number, (name, source) in enumerate(section.sources.items()):
        counts[name] = {
            "pairs": of_pairs[name],
            "passages": _add_passages(source, number, judged, passages),
            "conversations": _add_conversations(source, judged, conversations),
        }
        for kind in ("pairs", "conversations"):
            _require_some(counts[name][kind], f"corpus.sources.{name}", kind)
    pq.write_table(passages.table(), out.path / "passages.parquet")
    if conversations:
        _write_conversations(conversations.values(), out.path)
    for name, kept in evaluation.items():
        write_beir(kept, out.path / "evaluation" / name)
    _write_sources(section, counts, passages, out.path)
    summary = {
        "pairs": sum(len(own) for own in pairs.values()),
        "passages": len(passages.texts),
        "conversations": len(conversations),
        "sources": counts,
    }
    atomic_json(out.path / "counts.json", summary)
    return summary


def _to_train_on(
    pairs: Sequence[Pair], judged: Judged, most: int | None, seed: int, counts: Counts
) -> list[Pair]:
    """What of a source's pairs gives no answer away, and `most` of those; counts why not."""
    clean, hits = decontaminate(pairs, judged)
    of_sets = Counter(hit.set for hit in hits)
    counts["held_out"] = counts.get("held_out", 0) + of_sets.pop(HELD_OUT, 0)
    counts["contaminated"] = of_sets.total()
    counts["beyond_max_pairs"] = max(0, len(clean) - (most or len(clean)))
    if counts["beyond_max_pairs"]:
        chosen = np.random.default_rng(seed).permutation(len(clean))[:most]
        clean = [clean[i] for i in sorted(chosen)]
    counts["kept"] = len(clean)
    return clean


def _require_some(counts: Counts, where: str, kind: str) -> None:
    if counts["read"] and not counts["kept"]:
        became = ", ".join(f"{n:,} {why}" for why, n in counts.items() if n)
        raise UserError(where, f"none of its {kind} is left ({became})", "Give others, or none")


@dataclass
class _Passages:
    """Equal texts are one row, and that is of the source which brings it first."""

    texts: list[str] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # text key → row

    def row(self, text: str, source: int) -> int:
        """The text's row, which is a new one where the text is new."""
        row = self.rows.setdefault(text_key(text), len(self.texts))
        if row == len(self.texts):
            self.texts.append(text)
            self.source.append(source)
        return row

    def table(self) -> pa.Table:
        schema = pa.schema({"text": pa.string(), "source": pa.int16()})
        return pa.table({"text": self.texts, "source": self.source}, schema=schema)


def _write_pairs(of_sources: list[list[Pair]], passages: _Passages, folder: Path) -> None:
    numbered = [(number, pair) for number, own in enumerate(of_sources) for pair in own]
    # Positives before anything else: their rows are then of their pairs' own sources.
    positive = [passages.row(pair.passage, number) for number, pair in numbered]
    negatives = []
    for own, (number, pair) in zip(positive, numbered, strict=True):
        rows = dict.fromkeys(passages.row(text, number) for text in pair.negatives)
        negatives.append([row for row in rows if row != own])
    table = {
        "query": [pair.query for _, pair in numbered],
        "positive": positive,
        "negatives": negatives,
        "source": [number for number, _ in numbered],
    }
    types = {"query": pa.string(), "positive": pa.int64(), "negatives": pa.list_(pa.int64())}
    schema = pa.schema({**types, "source": pa.int16()})
    pq.write_table(pa.table(table, schema=schema), folder / "pairs.parquet")


def _add_passages(source: Source, number: int, judged: Judged, passages: _Passages) -> Counts:
    """Texts without a query. What is tested is not even to be a negative."""
    counts = Counter(read=0, tested=0, repeated=0, kept=0)
    for text in sources.passages(source):
        rows = len(passages.texts)
        if judged.holds(text):
            became = "tested"
        else:
            became = "kept" if passages.row(text, number) == rows else "repeated"
        counts.update(("read", became))
    return dict(counts)


def _add_conversations(
    source: Source, judged: Judged, conversations: dict[str, Conversation]
) -> Counts:
    """Conversations that nobody had before, and that give no answer away."""
    counts = Counter(read=0, tested=0, repeated=0, kept=0)
    for one in sources.conversations(source):
        key = text_key(f"{one.prompt}\n{one.completion}")
        if decontaminate([Pair(one.question, one.completion)], judged)[1]:
            became = "tested"
        else:
            became = "repeated" if key in conversations else "kept"
            conversations.setdefault(key, one)
        counts.update(("read", became))
    return dict(counts)


def _write_conversations(conversations: Iterable[Conversation], folder: Path) -> None:
    rows = [{"prompt": one.prompt, "completion": one.completion} for one in conversations]
    pq.write_table(pa.Table.from_pylist(rows), folder / "conversations.parquet")


def _write_sources(
    section: Section, counts: dict[str, dict[str, Counts]], passages: _Passages, folder: Path
) -> None:
    of_source = Counter(passages.source)
    listed = [
        {
            "name": name,
            "prompts": None if source.prompts is None else source.prompts.model_dump(),
            "symmetric": source.symmetric,
            "counts": {
                "pairs": counts[name]["pairs"]["kept"],
                "passages": of_source[number],  # those of its pairs among them
                "conversations": counts[name]["conversations"]["kept"],
            },
        }
        for number, (name, source) in enumerate(section.sources.items())
    ]
    atomic_json(folder / "sources.json", listed)


# --- read -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorpusFiles:
    """What the other stages read of a corpus.

    Attributes:
        positive: passage row of each pair, int64, (pairs,).
        negatives: passage rows that came with each pair.
        source: each pair's place in `sources`, int16, (pairs,).
        passage_source: the same of each passage; that of a pair's positive is the pair's own.
        prompts: what each source puts before its texts; None for the model's own.
        symmetric: whether each source's queries and passages are of one kind.
        conversations: prompts and completions, of all sources together.
    """

    queries: list[str]
    positive: np.ndarray
    negatives: list[list[int]]
    source: np.ndarray
    passages: list[str]
    passage_source: np.ndarray
    sources: list[str]
    prompts: list[Prompts | None]
    symmetric: list[bool]
    conversations: list[tuple[str, str]]

    @staticmethod
    def read(artifact: Artifact) -> "CorpusFiles":
        pairs = pq.read_table(artifact.path / "pairs.parquet")
        passages = pq.read_table(artifact.path / "passages.parquet")
        sources = json.loads((artifact.path / "sources.json").read_text(encoding="utf-8"))
        file = artifact.path / "conversations.parquet"
        conversations = pq.read_table(file).to_pydict() if file.exists() else {}
        return CorpusFiles(
            queries=pairs["query"].to_pylist(),
            positive=pairs["positive"].to_numpy(),
            negatives=pairs["negatives"].to_pylist(),
            source=pairs["source"].to_numpy(),
            passages=passages["text"].to_pylist(),
            passage_source=passages["source"].to_numpy(),
            sources=[source["name"] for source in sources],
            prompts=[
                None if source["prompts"] is None else Prompts(**source["prompts"])
                for source in sources
            ],
            symmetric=[source["symmetric"] for source in sources],
            conversations=list(zip(*conversations.values(), strict=True)),
        )


def evaluation_sets(artifact: Artifact) -> dict[str, EvaluationSet]:
    folders = sorted((artifact.path / "evaluation").iterdir())
    return {folder.name: read_beir(folder) for folder in folders}

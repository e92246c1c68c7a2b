"""Sources → clean pairs, passages, conversations and evaluation sets."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.cluster.gauges import Progress
from stillroom.cluster.parallel_map import has_cores
from stillroom.config.corpus import Corpus as Section
from stillroom.config.scale import Scale
from stillroom.data.cleaning.contamination import Contamination
from stillroom.data.cleaning.decontaminate import Judged
from stillroom.data.cleaning.sampling import held_out_set
from stillroom.data.readers.beir import read_beir, write_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.errors import UserError
from stillroom.reports.data_card import card
from stillroom.stages.corpus import cleaning, sources
from stillroom.stages.corpus.cleaning import HELD_OUT
from stillroom.stages.corpus.passage_rows import Numbered, number
from stillroom.stages.corpus.shards import REASONS, Shard, Sizes, Verdict, Work, flat, owners, read
from stillroom.storage.artifacts import Artifact, Draft, atomic_json

SIZES = Sizes()

Counts = dict[str, int]  # "read", reasons to drop, "kept": the others add up to what was read

Shards = dict[str, list[Shard]]

TEXT = {"compression": "zstd", "use_dictionary": False}  # texts are not repeated: they are clean


def corpus(
    *, section: Section, seed: int, synthetic: Artifact | None = None, scale: Scale, out: Draft
) -> dict[str, Any]:
    """Writes pairs.parquet, passages.parquet, conversations.parquet where there are any,
    sources.json, evaluation/SET/, counts.json, contamination.json, left_out.json and card.md.

    Returns:
        How many of each there are, and what became of all that each source had.

    Raises:
        UserError: when a file is wrong, or nothing is left of a source's pairs.
    """
    section = sources.with_synthetic(section, synthetic)
    evaluation = {name: read_beir(Path(folder)) for name, folder in section.evaluation.items()}
    parts = [
        (place, part)
        for place, source in enumerate(section.sources.values())
        for part in sources.parts(source)
    ]
    small = sum(part.bytes for _, part in parts) <= SIZES.small
    folder = out.path / "work"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir()
    try:
        work = Work(folder, SIZES, spread=not small and has_cores())
        shards, left_out = read(work, parts)
        rows = sum(shard.rows for of_kind in shards.values() for shard in of_kind)
        Progress(2 * rows).add(rows)  # read, and yet to be cleaned
        contamination = _clean(work, shards, section, seed, evaluation)
        numbered = number(work, shards)
        counts = {
            name: {kind: _counts(work, shards, kind, place) for kind in REASONS}
            for place, name in enumerate(section.sources)
        }
        for name, of_kinds in counts.items():
            for kind in ("pairs", "conversations"):
                _require_some(of_kinds[kind], f"corpus.sources.{name}", kind)
        of_sources = _write_texts(work, shards, numbered, len(section.sources), out.path)
        _write_conversations(work, shards["conversations"], out.path)
    finally:
        shutil.rmtree(folder)
    for name, kept in evaluation.items():
        write_beir(kept, out.path / "evaluation" / name)
    _write_sources(section, counts, of_sources, out.path)
    summary = {
        "pairs": sum(of_kinds["pairs"]["kept"] for of_kinds in counts.values()),
        "passages": sum(of_sources),
        "conversations": sum(of_kinds["conversations"]["kept"] for of_kinds in counts.values()),
        "sources": counts,
        "left_out": {n: dict(left_out[place].counts) for place, n in enumerate(section.sources)},
    }
    atomic_json(out.path / "counts.json", summary)
    atomic_json(out.path / "contamination.json", contamination.as_json())
    wrong = {name: left_out[place].wrong for place, name in enumerate(section.sources)}
    atomic_json(out.path / "left_out.json", wrong)
    (out.path / "card.md").write_text(card(section, summary, evaluation), encoding="utf-8")
    return summary


def _clean(
    work: Work, shards: Shards, section: Section, seed: int, evaluation: dict[str, EvaluationSet]
) -> Contamination:
    """Everything's verdict; adds the held-out set to the evaluation sets."""
    names = list(section.sources)
    pairs, near = shards["pairs"], section.near_duplicates
    asked = -1  # the source that a test set is split off
    if section.held_out is not None:
        asked = names.index(section.held_out.source or names[0])
    cleaning.dedupe(work, pairs, beginnings_of=asked)
    had = sum(shard.rows for shard in pairs)
    if near is not None:
        cleaning.drop_near_copies(work, pairs, near.similarity, pairs=had)
    if section.held_out is not None:
        own = [shard for shard in pairs if shard.source == asked]
        tested = cleaning.hold_out(work, own, section.held_out.passages, seed)
        if isinstance(tested, int):
            raise UserError(
                "corpus.held_out.passages",
                f"{section.held_out.passages} are asked for, and the source has {tested} distinct "
                "passages, which leaves none to train on",
                "Hold out fewer, or give more pairs",
            )
        prompts = section.sources[names[asked]].prompts
        evaluation[HELD_OUT] = dataclasses.replace(
            held_out_set(tested, queries=section.held_out.queries),
            prompts={} if prompts is None else prompts.model_dump(),
        )
    # Near-copies of what was held out are gone from its own source, but not from the others.
    rule = section.decontaminate
    judged = Judged.of(evaluation, whole={HELD_OUT}, ngram=rule.ngram, share=rule.share)
    every = [*pairs, *shards["passages"], *shards["conversations"]]
    contamination = Contamination(evaluation, rule.action, rule.listed)
    for shard, looked_at, hits in cleaning.drop_tested(work, every, judged, action=rule.action):
        contamination.add(names[shard.source], looked_at, hits)
    cleaning.drop_repeated_conversations(work)
    for place, name in enumerate(names):
        most = section.max_pairs
        most = most.get(name) if isinstance(most, dict) else most
        if most is not None:
            cleaning.sample(work, [s for s in pairs if s.source == place], most, seed)
    if near is not None:
        cleaning.drop_near_copies(work, shards["passages"], near.similarity, pairs=had)
    return contamination


def _counts(work: Work, shards: Shards, kind: str, source: int) -> Counts:
    verdicts = work.verdicts(kind)
    counts = np.zeros(len(Verdict), dtype=np.int64)
    for shard in shards["pairs" if kind == "negatives" else kind]:
        if shard.source == source:
            span = shard.negative_span if kind == "negatives" else shard.span
            counts += np.bincount(verdicts[span], minlength=len(Verdict))
    dropped = {verdict.name.lower(): int(counts[verdict]) for verdict in REASONS[kind]}
    return {"read": int(counts.sum()), **dropped, "kept": int(counts[Verdict.KEPT])}


def _require_some(counts: Counts, where: str, kind: str) -> None:
    if counts["read"] and not counts["kept"]:
        became = ", ".join(f"{n:,} {why}" for why, n in counts.items() if n)
        raise UserError(where, f"none of its {kind} is left ({became})", "Give others, or none")


def _write_texts(
    work: Work, shards: Shards, numbered: Numbered, count: int, folder: Path
) -> list[int]:
    """pairs.parquet and passages.parquet; returns how many passages are of each source."""
    of_sources = [0] * count
    passages = pa.schema({"text": pa.string(), "source": pa.int16()})
    negatives = pa.list_(pa.int64())
    pairs = pa.schema(
        {"query": pa.string(), "positive": pa.int64(), "negatives": negatives, "source": pa.int16()}
    )
    with pq.ParquetWriter(folder / "passages.parquet", passages, **TEXT) as of_passages:

        def add(texts: pa.Array, source: int) -> None:
            of_sources[source] += len(texts)
            columns = {"text": texts, "source": _repeat(source, len(texts))}
            of_passages.write_table(pa.table(columns, schema=passages))

        # Positives before anything else: their rows are then of their pairs' own sources.
        with pq.ParquetWriter(folder / "pairs.parquet", pairs, **TEXT) as of_pairs:
            first = 0
            for shard, table in _kept(work, shards["pairs"]):
                columns = {
                    "query": table["query"],
                    "positive": pa.array(np.arange(first, first + len(table))),
                    "negatives": _rows_of_negatives(work, numbered, shard),
                    "source": _repeat(shard.source, len(table)),
                }
                of_pairs.write_table(pa.table(columns, schema=pairs))
                add(table["passage"], shard.source)
                first += len(table)
        for shard in shards["pairs"]:
            if shard.negatives:
                places, _, new = numbered.of(shard.negative_span)
                table = pq.read_table(shard.path, columns=["negatives"])
                add(flat(table).take(places[new == 1]), shard.source)
        for shard in shards["passages"]:
            places, _, new = numbered.of(shard.span, passages=True)
            add(pq.read_table(shard.path)["passage"].take(places[new == 1]), shard.source)
    return of_sources


def _kept(work: Work, shards: list[Shard]) -> Iterator[tuple[Shard, pa.Table]]:
    for shard in shards:
        kept = work.verdicts(shard.kind)[shard.span] == 0
        yield shard, pq.read_table(shard.path).filter(pa.array(kept))


def _rows_of_negatives(work: Work, numbered: Numbered, shard: Shard) -> pa.Array:
    """The passage rows of each kept pair's negatives."""
    kept = work.verdicts("pairs")[shard.span] == 0
    places, rows, _ = numbered.of(shard.negative_span)
    if not shard.negatives:
        return pa.array([[]] * int(kept.sum()), pa.list_(pa.int64()))
    of_pairs = owners(pq.read_table(shard.path, columns=["negatives"]))[places]
    counts = np.bincount(of_pairs, minlength=shard.rows)[kept]
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(rows))


def _repeat(source: int, count: int) -> pa.Array:
    return pa.array(np.full(count, source, dtype=np.int16))


def _write_conversations(work: Work, shards: list[Shard], folder: Path) -> None:
    schema = pa.schema({"prompt": pa.string(), "completion": pa.string()})
    if shards:
        with pq.ParquetWriter(folder / "conversations.parquet", schema, **TEXT) as file:
            for _, table in _kept(work, shards):
                file.write_table(table.select(schema.names))


def _write_sources(
    section: Section,
    counts: dict[str, dict[str, Counts]],
    of_sources: list[int],
    folder: Path,
) -> None:
    listed = [
        {
            "name": name,
            "prompts": None if source.prompts is None else source.prompts.model_dump(),
            "symmetric": source.symmetric,
            "counts": {
                "pairs": counts[name]["pairs"]["kept"],
                "passages": of_sources[place],  # those of its pairs among them
                "conversations": counts[name]["conversations"]["kept"],
            },
        }
        for place, (name, source) in enumerate(section.sources.items())
    ]
    atomic_json(folder / "sources.json", listed)

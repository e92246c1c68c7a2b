"""Hard negatives: what miners find, less what their rules refuse."""

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.atomic import written
from stillroom.config.recipe import Negatives as Section
from stillroom.config.scale import Scale, Searchers
from stillroom.encoders.locate import model_of
from stillroom.encoders.vectors import StoredVectors
from stillroom.errors import UserError
from stillroom.mining.search import Found, merge
from stillroom.mining.select import BARRED, Rule, Selected, Texts, select
from stillroom.stages.corpus import CorpusFiles, evaluation_sets
from stillroom.stages.miners import Dense, Lexical, Miner, Pool, Reader, Scorer
from stillroom.stages.progress import Progress
from stillroom.stages.room import require
from stillroom.text.dedupe import near_key, text_key
from stillroom.text.formats import EvaluationSet

log = logging.getLogger(__name__)

BINS = 40  # of a histogram
BLOCKS = "blocks"  # in a draft: what is mined already


def negatives(
    *,
    section: Section,
    seed: int,
    corpus: Artifact,
    scale: Scale,
    out: Draft,
    **vectors: Artifact,
) -> dict[str, Any]:
    """Writes, for each pair, negatives.npy, int64 passage rows (pairs, per_query), -1 for none;
    scores.npy, what these score, float32, nan for none; positive_scores.npy (pairs,); and
    counts.json.

    Negatives that came with a pair go first; mined ones fill what is left. What a killed run left
    of its blocks of queries is kept.

    Args:
        vectors: of the miners, by the roles that `plan` gives them.

    Returns:
        How many were kept, how many candidates were rejected for what reason, and how scores
        are distributed.

    Raises:
        UserError: when approximate search is below its floor, or nothing but passages of the
            evaluation sets is found.
    """
    files = CorpusFiles.read(corpus)
    folders: dict[str, os.PathLike[str] | None] = {}
    for place, name in enumerate(section.miners):
        role = "vectors" if name == "teacher" else f"vectors_{place}"
        folders[name] = None if name == "bm25" else vectors[role]
    rescore = None if section.rescore is None else model_of(section.rescore, out.store)
    texts = texts_of(
        files.queries,
        files.passages,
        files.positive,
        files.negatives,
        evaluation_sets(corpus).values(),
        searched=section.searched,
    )
    for folder in filter(None, folders.values()):
        texts.barred_p[[*StoredVectors(Path(folder) / "passages").skipped]] = True
    blocks = out.path / BLOCKS
    blocks.mkdir(exist_ok=True)
    mined = mine(
        queries=files.queries,
        passages=files.passages,
        texts=texts,
        miners=folders,
        section=section,
        rescore=rescore,
        seed=seed,
        scale=scale.negatives,
        blocks=blocks,
    )
    for folder in filter(None, folders.values()):
        none = [*StoredVectors(Path(folder) / "queries").skipped]
        mined.negatives[none], mined.scores[none] = -1, np.nan
    np.save(out.path / "negatives.npy", mined.negatives)
    np.save(out.path / "scores.npy", mined.scores)
    np.save(out.path / "positive_scores.npy", mined.positive_scores)
    summary = {**mined.summary(), "examples": _examples(files, mined.negatives)}
    atomic_json(out.path / "counts.json", summary)
    shutil.rmtree(blocks)
    return summary


@dataclass(frozen=True)
class Mined:
    """Negatives of every query, int64 (q, per_query), -1 for none; their scores, float32, nan
    for none; the positives' scores (q,); reason → candidates that it dropped; and what of exact
    search the miners that only approximate it find."""

    negatives: np.ndarray
    scores: np.ndarray
    positive_scores: np.ndarray
    rejected: dict[str, int]
    recall: dict[str, float]

    def summary(self) -> dict[str, Any]:
        scored = self.scores[~np.isnan(self.scores)]
        return {
            "kept": int((self.negatives >= 0).sum()),
            "queries_without": int((self.negatives < 0).all(1).sum()),
            "rejected": self.rejected,
            "recall": self.recall,
            "scores": histograms({"positives": self.positive_scores, "negatives": scored}),
        }


def mine(
    *,
    queries: Sequence[str],
    passages: Sequence[str],
    texts: Texts,
    miners: Mapping[str, os.PathLike[str] | None],
    section: Section,
    rescore: os.PathLike[str] | None,
    seed: int,
    scale: Searchers,
    blocks: Path | None = None,
) -> Mined:
    """Negatives of all queries, in blocks that fit into the scale's memory.

    Args:
        miners: name → folder with queries/ and passages/ of its vectors; None for BM25's.
        rescore: a cross-encoder that scores all candidates anew.
        blocks: a folder for finished ones, which a killed run goes on behind.
    """
    require("negatives", scale, 1)
    rule = rule_of(section)
    depth = min(len(passages), rule.depth + texts.most_known)
    among = len(miners) + (rescore is not None)
    dense: dict[str, Dense] = {}
    lexical: list[Lexical] = []
    for name, folder in miners.items():
        pool = Pool(scale, reserves=not dense and not lexical, among=among)
        if folder is None:
            lexical.append(Lexical(queries, passages, pool))
        else:
            dense[name] = Dense(folder, depth, pool, section.ivf)
    recalls = {name: one.recall(depth) for name, one in dense.items()}
    asked: list[Miner] = [*dense.values(), *lexical]
    judge: Scorer = asked[0]
    if rescore is not None:
        judge = Reader(rescore, queries, passages, Pool(scale, reserves=False, among=among))
    parts = [] if blocks is None else _finished(blocks)
    start = sum(len(part.negatives) for part, _ in parts)
    if start:
        log.info("negatives: %d of %d queries are there already", start, len(queries))
    progress = Progress(len(queries))
    progress.add(start, fresh=False)
    for first, found in _candidates(asked, judge, range(start, len(queries)), depth):
        own = texts.positive_q[first : first + len(found[0])]
        positive = judge.scores(first, own[:, None])[:, 0]
        part = select(
            *found, positive_score_q=positive, texts=texts, rule=rule, seed=seed, first=first
        )
        parts.append((_with_scores(part, judge, first), positive))
        if blocks is not None:
            _keep(blocks, first, *parts[-1])
        log.info("negatives: %d of %d queries", first + len(own), len(queries))
        progress.add(len(own))
    rejected = Counter[str]()
    for part, _ in parts:
        rejected.update(part.rejected)
    mined = Mined(
        negatives=np.concatenate([part.negatives for part, _ in parts]),
        scores=np.concatenate([part.scores for part, _ in parts]),
        positive_scores=np.concatenate([positive for _, positive in parts]),
        rejected=dict(rejected),
        recall={name: found for name, found in recalls.items() if found is not None},
    )
    if rejected[BARRED] and not (mined.negatives >= 0).any():
        raise UserError(
            "negatives",
            "what is mined are passages of the evaluation sets alone",
            "Add other passages to the corpus, or set negatives.searched=true to use those that "
            "answer no judged query",
        )
    return mined


def _keep(blocks: Path, first: int, part: Selected, positive: np.ndarray) -> None:
    with written(blocks / f"{first:012d}.npz", "wb") as file:
        np.savez(
            file,
            negatives=part.negatives,
            scores=part.scores,
            positive=positive,
            rejected=np.array(json.dumps(part.rejected)),
        )


def _finished(blocks: Path) -> list[tuple[Selected, np.ndarray]]:
    """The blocks from the first query on, without a gap; of which sizes does not matter."""
    parts: list[tuple[Selected, np.ndarray]] = []
    first = 0
    while (file := blocks / f"{first:012d}.npz").exists():
        with np.load(file) as kept:
            rejected = json.loads(str(kept["rejected"]))
            part = Selected(kept["negatives"], kept["scores"], rejected)
            parts.append((part, kept["positive"]))
        first += len(part.negatives)
    return parts


def _candidates(
    miners: Sequence[Miner], judge: Scorer, queries: range, depth: int
) -> Iterator[tuple[int, Found]]:
    """(first query, candidates as the judge scores and orders them) of each block."""
    block = min(miner.block for miner in miners)
    firsts = queries[::block]

    def ask(first: int) -> list[Any]:
        last = min(first + block, queries.stop)
        return [miner.ask(first, last, depth) for miner in miners]

    waiting = ask(queries.start) if queries else []
    for first in firsts:
        answers = waiting
        # The next block is searched while this one is selected from.
        waiting = ask(first + block) if first + block < queries.stop else []
        found = []
        for miner, answer in zip(miners, answers, strict=True):
            scores, rows = answer()
            found.append((scores if miner is judge else judge.scores(first, rows), rows))
        yield first, merge(found, depth * len(found))


def _with_scores(part: Selected, judge: Scorer, first: int) -> Selected:
    """With what those score that came with the queries."""
    unscored = np.isnan(part.scores) & (part.negatives >= 0)
    if not unscored.any():
        return part
    scored = judge.scores(first, np.where(unscored, part.negatives, -1))
    return Selected(part.negatives, np.where(unscored, scored, part.scores), part.rejected)


def rule_of(section: Section) -> Rule:
    return Rule(
        max_share_of_positive=section.max_share_of_positive,
        margin=section.margin,
        max_score=section.max_score,
        skip_first=section.skip_first,
        sample_from=section.sample_from,
        per_query=section.per_query,
        strategy=section.strategy,
    )


def texts_of(
    queries: Sequence[str],
    passages: Sequence[str],
    positive: np.ndarray,
    given: Sequence[Sequence[int]],
    evaluation: Any,
    *,
    searched: bool,
) -> Texts:
    """What copies what, what answers what, and what is never to be a negative."""
    near_p = _hashes(passages, near_key)
    near_q = _hashes(queries, near_key)
    groups, group_p = np.unique(near_p, return_inverse=True)
    # A query's own text may be a passage, where both are of one kind.
    place = np.minimum(np.searchsorted(groups, near_q), len(groups) - 1)
    itself = np.flatnonzero(groups[place] == near_q)
    some_row = np.empty(len(groups), dtype=np.int64)
    some_row[group_p] = np.arange(len(passages))
    tested = [text for of in evaluation for text in _tested(of, searched)]
    counts = [len(rows) for rows in given]
    return Texts(
        group_p=group_p.astype(np.int64),
        barred_p=np.isin(near_p, _hashes(tested, near_key)),
        positive_q=np.asarray(positive, dtype=np.int64),
        asked_q=np.unique(_hashes(queries, text_key), return_inverse=True)[1].astype(np.int64),
        given=(
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
            np.array([row for rows in given for row in rows], dtype=np.int64),
        ),
        also_known=(itself, some_row[place[itself]]),
    )


def _tested(of: EvaluationSet, searched: bool) -> Iterator[str]:
    """Passages that are not to be negatives: all of a set, or what answers its queries."""
    if not searched:
        yield from of.passages.values()
        return
    for grades in of.qrels.values():
        yield from (of.passages[own_id] for own_id, grade in grades.items() if grade > 0)


def _hashes(texts: Sequence[str], key: Any) -> np.ndarray:
    """A uint64 of each text's key: two of a million texts collide once in 40 million corpora."""
    digests = (
        blake2b(key(text).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts
    )
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def histograms(of: dict[str, np.ndarray]) -> dict[str, Any]:
    """name → counts, in bins of equal width whose edges they share."""
    finite = {name: values[np.isfinite(values)] for name, values in of.items()}
    every = np.concatenate(list(finite.values()))
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in finite.items()}
    return {"edges": edges.tolist(), **counts}


def _examples(files: CorpusFiles, rows: np.ndarray, count: int = 5) -> list[dict[str, Any]]:
    """A few pairs with what was mined for them, for people to look at."""
    pairs = np.flatnonzero((rows >= 0).any(1))
    return [
        {
            "query": files.queries[i],
            "positive": files.passages[files.positive[i]],
            "negatives": [files.passages[row] for row in rows[i] if row >= 0],
        }
        for i in pairs[:: max(1, len(pairs) // count)][:count]
    ]

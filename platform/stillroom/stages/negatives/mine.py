"""TODO docstring: stages/negatives/mine.py."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.cluster.capacity import require
from stillroom.cluster.gauges import Progress
from stillroom.config.recipe import Negatives as Section
from stillroom.config.scale import Searchers
from stillroom.errors import UserError
from stillroom.mining.exact import Found, merge
from stillroom.mining.mined import Mined
from stillroom.mining.select import BARRED, Rule, Selected, Texts, select
from stillroom.stages.negatives.miners import Dense, Lexical, Miner, Pool, Reader, Scorer
from stillroom.storage.atomic import written

log = logging.getLogger(__name__)


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

"""Mines hard negatives: searches block by block, selects by the rule, keeps finished blocks.

Shapes: q queries of a block, k candidates, n negatives per query.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.cluster.capacity import require_capacity
from stillroom.cluster.progress import Progress
from stillroom.config.recipe import Negatives as Section
from stillroom.config.scale import SearchActors
from stillroom.errors import UserError
from stillroom.mining.exact import TopK, merge_top_k
from stillroom.mining.known_texts import KnownTexts
from stillroom.mining.mined import MinedNegatives
from stillroom.mining.select import EVALUATION, SelectedNegatives, SelectionRule, select_negatives
from stillroom.stages.negatives.miners import (
    Bm25Miner,
    CrossEncoderScorer,
    DenseMiner,
    Miner,
    Scorer,
    SearchTexts,
    SharedActors,
)
from stillroom.storage.atomic import atomic_write

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MiningTexts:
    """Input of mining: queries, the passages to search, and known relations between them.

    Attributes:
        query_languages, passage_languages: of each text; only BM25 reads them.
    """

    queries: Sequence[str]
    query_languages: Sequence[str]
    passages: Sequence[str]
    passage_languages: Sequence[str]
    known: KnownTexts


@dataclass(frozen=True)
class MinedBlock:
    """The negatives of neighbouring queries, and the scores of their positives."""

    selected: SelectedNegatives
    positive_scores: np.ndarray  # float32, (q,)

    def __len__(self) -> int:
        return len(self.positive_scores)


def mine(
    texts: MiningTexts,
    miners: Mapping[str, os.PathLike[str] | None],
    section: Section,
    *,
    cross_encoder: os.PathLike[str] | None,
    seed: int,
    scale: SearchActors,
    blocks_folder: Path | None = None,
) -> MinedNegatives:
    """Mines negatives for all queries, in blocks that fit into the scale's memory.

    Args:
        miners: name → folder with queries/ and passages/ of its vectors; None for BM25.
        cross_encoder: scores all candidates; None: the first miner does, dense ones first.
        blocks_folder: keeps finished blocks, and holds those of a killed run.

    Raises:
        UserError: when approximate search is below its recall floor, or when all candidates are
            passages of the evaluation sets.
    """
    require_capacity("negatives", scale, 1)
    rule = selection_rule(section)
    depth = min(len(texts.passages), rule.search_depth + texts.known.most_answers)
    started, recalls = _start_miners(texts, miners, section, scale, depth, cross_encoder)
    scorer: Scorer = started[0]
    if cross_encoder is not None:
        actors = SharedActors(scale, reserves_cpus=False, share_count=len(miners) + 1)
        scorer = CrossEncoderScorer(cross_encoder, texts.queries, texts.passages, actors)
    blocks = [] if blocks_folder is None else _finished_blocks(blocks_folder)
    start = sum(map(len, blocks))
    if start:
        log.info("negatives: %d of %d queries exist already", start, len(texts.queries))
    progress = Progress(len(texts.queries))
    progress.add(start, counted=False)
    for first, candidates in _candidates(started, scorer, range(start, len(texts.queries)), depth):
        block = _select(candidates, texts.known, scorer, rule, seed, first)
        if blocks_folder is not None:
            _write_block(blocks_folder, first, block)
        blocks.append(block)
        log.info("negatives: %d of %d queries", first + len(block), len(texts.queries))
        progress.add(len(block))
    return _joined(blocks, recalls)


def selection_rule(section: Section) -> SelectionRule:
    """The recipe's numbers as a rule."""
    return SelectionRule(
        max_share_of_positive=section.max_share_of_positive,
        absolute_margin=section.absolute_margin,
        max_score=section.max_score,
        skip_first=section.skip_first,
        sample_from=section.sample_from,
        per_query=section.per_query,
        strategy=section.strategy,
    )


def _start_miners(
    texts: MiningTexts,
    miners: Mapping[str, os.PathLike[str] | None],
    section: Section,
    scale: SearchActors,
    depth: int,
    cross_encoder: os.PathLike[str] | None,
) -> tuple[list[Miner], dict[str, float]]:
    """The miners, dense ones first; and the recall of those that search approximately."""
    share_count = len(miners) + (cross_encoder is not None)
    dense: dict[str, DenseMiner] = {}
    lexical: list[Bm25Miner] = []
    for name, folder in miners.items():
        is_first = not dense and not lexical
        actors = SharedActors(scale, reserves_cpus=is_first, share_count=share_count)
        if folder is None:
            queries = SearchTexts(texts.queries, texts.query_languages)
            passages = SearchTexts(texts.passages, texts.passage_languages)
            lexical.append(Bm25Miner(queries, passages, actors))
        else:
            dense[name] = DenseMiner(folder, depth, actors, section.ivf)
    recalls = {name: miner.recall(depth) for name, miner in dense.items()}
    return (
        [*dense.values(), *lexical],
        {name: recall for name, recall in recalls.items() if recall is not None},
    )


def _candidates(
    miners: Sequence[Miner], scorer: Scorer, queries: range, depth: int
) -> Iterator[tuple[int, TopK]]:
    """(first query, candidates as the scorer scores and orders them) of each block."""
    block_size = min(miner.block_size for miner in miners)

    def start(first: int) -> list[Any]:
        last = min(first + block_size, queries.stop)
        return [miner.start_search(first, last, depth) for miner in miners]

    pending = start(queries.start) if queries else []
    for first in queries[::block_size]:
        searches = pending
        # The next block is searched while negatives are selected from this one.
        pending = start(first + block_size) if first + block_size < queries.stop else []
        results = []
        for miner, wait in zip(miners, searches, strict=True):
            scores, rows = wait()
            results.append((scores if miner is scorer else scorer.scores(first, rows), rows))
        yield first, merge_top_k(results, depth * len(results))


def _select(
    candidates: TopK, known: KnownTexts, scorer: Scorer, rule: SelectionRule, seed: int, first: int
) -> MinedBlock:
    """The negatives of the block whose first query is `first`."""
    scores, rows = candidates
    positive_rows = known.positive_q[first : first + len(rows)]
    positive_scores = scorer.scores(first, positive_rows[:, None])[:, 0]
    selected = select_negatives(
        scores,
        rows,
        positive_score_q=positive_scores,
        texts=known,
        rule=rule,
        seed=seed,
        first=first,
    )
    # Negatives that came with the queries have no score yet.
    unscored_qn = np.isnan(selected.scores) & (selected.negatives >= 0)
    if unscored_qn.any():
        provided = scorer.scores(first, np.where(unscored_qn, selected.negatives, -1))
        selected = replace(selected, scores=np.where(unscored_qn, provided, selected.scores))
    return MinedBlock(selected, positive_scores)


def _joined(blocks: Sequence[MinedBlock], recalls: dict[str, float]) -> MinedNegatives:
    rejected = Counter[str]()
    for block in blocks:
        rejected.update(block.selected.rejected)
    mined = MinedNegatives(
        negatives=np.concatenate([block.selected.negatives for block in blocks]),
        scores=np.concatenate([block.selected.scores for block in blocks]),
        positive_scores=np.concatenate([block.positive_scores for block in blocks]),
        rejected=dict(rejected),
        recall=recalls,
    )
    if rejected[EVALUATION] and not (mined.negatives >= 0).any():
        raise UserError(
            "negatives",
            "every candidate is a passage of the evaluation sets",
            "Add other passages to the corpus, or set negatives.include_evaluation_passages=true "
            "to use those that answer no judged query",
        )
    return mined


def _block_file(folder: Path, first: int) -> Path:
    return folder / f"{first:012d}.npz"


def _write_block(folder: Path, first: int, block: MinedBlock) -> None:
    with atomic_write(_block_file(folder, first), "wb") as file:
        np.savez(
            file,
            negatives=block.selected.negatives,
            scores=block.selected.scores,
            positive=block.positive_scores,
            rejected=np.array(json.dumps(block.selected.rejected)),
        )


def _finished_blocks(folder: Path) -> list[MinedBlock]:
    """The blocks from the first query on, without a gap. They may differ in size."""
    blocks: list[MinedBlock] = []
    first = 0
    while (file := _block_file(folder, first)).exists():
        with np.load(file) as arrays:
            rejected = json.loads(str(arrays["rejected"]))
            selected = SelectedNegatives(arrays["negatives"], arrays["scores"], rejected)
            blocks.append(MinedBlock(selected, arrays["positive"]))
        first += len(blocks[-1])
    return blocks

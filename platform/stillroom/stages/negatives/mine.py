"""Mines hard negatives: searches block by block, selects by the rule, keeps finished blocks.

Shapes: q queries of a block, k candidates, n negatives per query.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from stillroom.mining.select import EVALUATION, SelectionRule, select_negatives
from stillroom.stages.negatives.blocks import BLOCKS_FOLDER, BlockFolder, MinedBlock
from stillroom.stages.negatives.miners import (
    Bm25Miner,
    CrossEncoderScorer,
    DenseMiner,
    Miner,
    Scorer,
    SharedActors,
)
from stillroom.stages.negatives.texts import OpenMiningTexts

log = logging.getLogger(__name__)


def mine(
    open_texts: OpenMiningTexts,
    known: KnownTexts,
    miners: Mapping[str, os.PathLike[str] | None],
    section: Section,
    *,
    cross_encoder: os.PathLike[str] | None,
    seed: int,
    scale: SearchActors,
    folder: Path,
    skipped_queries: Sequence[int] = (),
) -> MinedNegatives:
    """Mines negatives for all queries, in blocks that fit into the scale's memory.

    Args:
        open_texts: called here and in the actors that read texts.
        miners: name → folder with queries/ and passages/ of its vectors; None for BM25.
        cross_encoder: scores all candidates; None: the first miner does, dense ones first.
        folder: gets negatives.npy, scores.npy and positive_scores.npy, by query. Until then it
            keeps finished blocks, and may hold those of a killed run.
        skipped_queries: get no negatives.

    Raises:
        UserError: when approximate search is below its recall floor, or when all candidates are
            passages of the evaluation sets.
    """
    require_capacity("negatives", scale, 1)
    texts, rule = open_texts(), selection_rule(section)
    queries = len(texts.queries)
    depth = min(len(texts.passages), rule.search_depth + known.answers.most)
    started, recalls = _start_miners(open_texts, miners, section, scale, depth, cross_encoder)
    scorer: Scorer = started[0]
    if cross_encoder is not None:
        actors = SharedActors(scale, reserves_cpus=False, share_count=len(miners) + 1)
        scorer = CrossEncoderScorer(cross_encoder, open_texts, actors)
    blocks = BlockFolder(folder / BLOCKS_FOLDER)
    start = blocks.finished()
    if start:
        log.info("negatives: %d of %d queries exist already", start, queries)
    progress = Progress(queries)
    progress.add(start, counted=False)
    for first, candidates in _candidates(started, scorer, range(start, queries), depth):
        block = _select(candidates, known, scorer, rule, seed, first)
        blocks.write(first, block.without(np.isin(first + np.arange(len(block)), skipped_queries)))
        log.info("negatives: %d of %d queries", first + len(block), queries)
        progress.add(len(block))
    mined = blocks.join(folder, section.per_query, recalls)
    if mined.rejected[EVALUATION] and not mined.kept:
        raise UserError(
            "negatives",
            "every candidate is a passage of the evaluation sets",
            "Add other passages to the corpus, or set negatives.include_evaluation_passages=true "
            "to use those that answer no judged query",
        )
    return mined


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
    open_texts: OpenMiningTexts,
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
            lexical.append(Bm25Miner(open_texts, actors))
        else:
            dense[name] = DenseMiner(folder, depth, actors, section.ivf)
    recalls = {name: miner.choose_probes(depth) for name, miner in dense.items()}
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

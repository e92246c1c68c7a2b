"""The passes that clean a corpus, in order. Wherever texts are repeated, the first one stays.

Each pass is of tasks on groups of shards or on ranges of hashes, as `workspace.py` has them: in any
order, on any number of nodes.
"""

import dataclasses

from stillroom.config.corpus import Corpus, HeldOut
from stillroom.data.cleaning.contamination_index import ContaminationIndex
from stillroom.data.cleaning.contamination_report import ContaminationReport
from stillroom.data.cleaning.sampling import held_out_set
from stillroom.data.readers.records import EvaluationSet
from stillroom.stages.corpus.contamination import HELD_OUT_SET, drop_contaminated
from stillroom.stages.corpus.duplicates import drop_duplicates, drop_repeated_conversations
from stillroom.stages.corpus.guards import Guards
from stillroom.stages.corpus.near_duplicates import (
    drop_near_copies_of_pairs,
    drop_near_copies_of_passages,
)
from stillroom.stages.corpus.sampling import hold_out, sample_pairs
from stillroom.stages.corpus.workspace import CleaningWorkspace


def clean(
    workspace: CleaningWorkspace,
    section: Corpus,
    seed: int,
    evaluation_sets: dict[str, EvaluationSet],
    guards: Guards,
) -> tuple[ContaminationReport, ContaminationIndex]:
    """Sets the verdict of every row, and adds the held-out set to the evaluation sets.

    Returns:
        What matched evaluation sets and guards, and the index of both.

    Raises:
        UserError: when the held-out set would leave nothing to train on.
    """
    names = list(section.sources)
    near = section.near_duplicates
    held_out = section.held_out
    held_out_source = -1 if held_out is None else names.index(held_out.source or names[0])
    drop_duplicates(workspace, beginnings_of=held_out_source)
    if near is not None:
        bands = drop_near_copies_of_pairs(workspace, near.min_jaccard)
    if held_out is not None:
        evaluation_sets[HELD_OUT_SET] = _held_out_set(
            workspace, section, held_out, held_out_source, seed
        )
    # Also removes near-copies of held-out texts from the other sources.
    report, index = _decontaminate(workspace, section, evaluation_sets, guards)
    guards.leave_out_overlapping()
    drop_repeated_conversations(workspace)
    limit = section.max_pairs
    limits = limit if isinstance(limit, dict) else dict.fromkeys(names, limit)
    sample_pairs(
        workspace,
        {names.index(name): most for name, most in limits.items() if most is not None},
        seed,
    )
    if near is not None:
        drop_near_copies_of_passages(workspace, near.min_jaccard, bands)
    return report, index


def _held_out_set(
    workspace: CleaningWorkspace,
    section: Corpus,
    held_out: HeldOut,
    source: int,
    seed: int,
) -> EvaluationSet:
    pairs = hold_out(workspace, source, held_out.passages, seed)
    prompts = list(section.sources.values())[source].prompts
    return dataclasses.replace(
        held_out_set(pairs, queries=held_out.queries),
        prompts={} if prompts is None else prompts.model_dump(),
    )


def _decontaminate(
    workspace: CleaningWorkspace,
    section: Corpus,
    evaluation_sets: dict[str, EvaluationSet],
    guards: Guards,
) -> tuple[ContaminationReport, ContaminationIndex]:
    rule = section.decontaminate
    sets = {**evaluation_sets, **guards.sets}
    index = ContaminationIndex.build(
        sets, whole={HELD_OUT_SET, *guards.sets}, ngram=rule.ngram, share=rule.min_overlap
    )
    report = ContaminationReport(sets, rule.action, rule.max_listed)
    names = list(section.sources)
    for shard, checked, hits in drop_contaminated(
        workspace, index, action=rule.action, guards=guards.sets
    ):
        if shard.kind == "pairs":
            report.add(names[shard.source], checked, hits)
        for hit in hits:
            if hit.set in guards.sets:
                guards.add_match(hit.set, hit.role, hit.id)
    return report, index

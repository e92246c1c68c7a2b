"""Pairs that a language model writes, from tasks and from passages.

A round at a time: as many examples as the budget surely pays for are asked for, and what they
really took is counted before the next. So the budget alone decides where it ends, not the order in
which answers come, and a run that was killed is repeated from the answers that are kept.
"""

import json
import math
import re
from collections import Counter
from dataclasses import asdict, astuple
from typing import Any

import numpy as np

from stillroom.config.corpus import Corpus
from stillroom.config.scale import Scale
from stillroom.config.synthetic import Synthetic as Section
from stillroom.data.synthetic.prompts import KINDS, Example
from stillroom.errors import UserError
from stillroom.openai_client.client import Answers, Usage, token_estimate
from stillroom.stages.synthetic.asker import Asker, Tally
from stillroom.stages.synthetic.from_passages import (
    draw_pool,
    from_passages,
    of_passage,
    retriever_of,
    shown,
)
from stillroom.stages.synthetic.from_tasks import brainstorm, brainstorms, example, from_tasks
from stillroom.storage.artifacts import Draft, atomic_json


def synthetic(*, section: Corpus, seed: int, scale: Scale, out: Draft) -> dict[str, Any]:
    """Writes pairs.jsonl and counts.json. Answers are kept under the root, for every run.

    Returns:
        What was made and rejected for what reason, what it took, and where the budget ended it.

    Raises:
        UserError: when the endpoint fails, or nothing was made.
    """
    own = section.synthetic
    assert own is not None, "the plan makes no such step"
    asker = Asker(own.budget, scale.synthetic, Answers(out.store.work / ".answers.sqlite"))
    tally = Tally()
    examples = list(from_tasks(own, seed, asker, tally)) if own.tasks else []
    if own.passages:
        pool = draw_pool(section, seed)
        find = retriever_of(own.passages, pool, out.store, scale.vectors)
        examples += from_passages(own, seed, pool, find, asker, tally)
    kept = [one for one in examples if tally.is_new(one)]
    if not kept:
        raise UserError(
            "corpus.synthetic",
            f"nothing was made: {asker.stopped or tally.rejected or 'no task was thought up'}",
            "Raise the budget, or take a model that answers as it is asked",
        )
    with (out.path / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for one in kept:
            file.write(json.dumps(_row(one, own), ensure_ascii=False) + "\n")
    summary = {
        "pairs": len(kept),
        "without_negative": sum(not one.negatives for one in kept),
        "made": dict(Counter(one.kind for one in kept)),
        "rejected": {what: dict(reasons) for what, reasons in tally.rejected.items()},
        "passages": tally.passages,
        "budget_reached": asker.stopped,
        "calls": asker.calls,
        "tokens": asdict(asker.spent),
        "cost": asker.spent.cost(own.budget.price_in, own.budget.price_out),
    }
    atomic_json(out.path / "counts.json", summary)
    return summary


def _row(one: Example, own: Section) -> dict[str, Any]:
    told = {"{task}": one.task, "{query}": one.query}
    return {
        "query": re.sub(r"\{task\}|\{query\}", lambda place: told[place[0]], own.query),
        "positive": one.positive,
        "negatives": list(one.negatives),
        "task": one.task,
        "kind": one.kind,
    }


def estimate(section: Corpus, seed: int) -> list[dict[str, Any]]:
    """What the section's requests take if every answer is as long as it may be, and all of them
    are of use: calls, tokens_in, tokens_out and cost of each part. Asks nobody.

    Raises:
        UserError: when the sources have no passages to write queries for.
    """
    own = section.synthetic
    assert own is not None
    parts: list[tuple[str, int, Usage]] = []  # of all calls together
    for name, count in own.tasks.examples.items() if own.tasks else ():
        if KINDS[name].brainstorm is not None:
            calls = brainstorms(own, count)
            told = token_estimate(brainstorm(own, KINDS[name], seed, 0).body)
            parts.append((f"brainstorms of {name}", calls, _times(calls, told, own.answer_tokens)))
        stand_in = ["x" * 120]  # a task is some sentence
        told = token_estimate(example(own, name, stand_in, seed, 0).body)
        parts.append((name, count, _times(count, told, own.answer_tokens)))
    if own.passages:
        pool = draw_pool(section, seed)
        seeds = pool[: own.passages.count]
        mean = math.ceil(np.mean([token_estimate(shown(one, own.passages)) for one in pool]))
        each = of_passage(own, mean, likelihood=own.passages.likelihood != "off")
        for what, (calls, usage) in zip(("queries", "grades", "likelihoods"), each, strict=False):
            parts.append((what, calls * len(seeds), _times(len(seeds), *astuple(usage))))
    return [
        {
            "part": what,
            "calls": calls,
            **asdict(usage),
            "cost": usage.cost(own.budget.price_in, own.budget.price_out),
        }
        for what, calls, usage in parts
    ]


def _times(calls: int, tokens_in: int, tokens_out: int) -> Usage:
    return Usage(calls * tokens_in, calls * tokens_out)

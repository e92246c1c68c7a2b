"""The synthetic stage: pairs that a language model writes, from tasks and from passages.

Requests are sent in rounds, each as large as the budget certainly covers; the actual usage is
counted before the next round. So the budget alone decides where generation ends, not the order of
the answers, and a killed run is repeated from the cached answers.
"""

import json
import re
from collections import Counter
from dataclasses import asdict
from typing import Any

from stillroom.config.corpus import Corpus
from stillroom.config.scale import Scale
from stillroom.config.synthetic import Synthetic
from stillroom.data.synthetic.prompts import Example
from stillroom.errors import UserError
from stillroom.openai_client.response_cache import ResponseCache
from stillroom.stages.synthetic.budgeted_client import BudgetedClient
from stillroom.stages.synthetic.from_passages import PassageExampleGenerator, draw_pool
from stillroom.stages.synthetic.from_tasks import generate_from_tasks
from stillroom.stages.synthetic.rejections import RejectionCounts
from stillroom.stages.synthetic.retriever import make_retriever
from stillroom.storage.artifacts import Draft
from stillroom.storage.atomic import atomic_write_json


def synthetic(*, section: Corpus, seed: int, scale: Scale, out: Draft) -> dict[str, Any]:
    """Generates pairs; writes pairs.jsonl and counts.json.

    Answers are cached in the store's local folder, for all runs.

    Returns:
        The content of counts.json: counts of made and rejected examples, usage, and where the
        budget ended generation.

    Raises:
        UserError: when the endpoint fails, or nothing was made.
    """
    settings = section.synthetic
    assert settings is not None, "the plan makes no such step"
    cache = ResponseCache(out.store.local_folder / ".answers.sqlite")
    client = BudgetedClient(settings.budget, scale.synthetic, cache)
    rejections = RejectionCounts()
    examples: list[Example] = []
    passage_counts: dict[str, Any] = {}
    if settings.tasks:
        examples += generate_from_tasks(settings, seed, client, rejections)
    if settings.passages:
        pool = draw_pool(section, seed)
        retrieve = make_retriever(
            settings.passages, pool, section.language, out.store, scale.vectors
        )
        generator = PassageExampleGenerator(settings, seed, pool, retrieve, client, rejections)
        from_passages, passage_counts = generator.generate()
        examples += from_passages
    examples = [example for example in examples if rejections.is_new(example)]
    if not examples:
        reason = client.budget_reached or rejections.counts or "no task was invented"
        raise UserError(
            "corpus.synthetic",
            f"nothing was made: {reason}",
            "Raise the budget, or use a model that follows its instructions",
        )
    with (out.path / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(json.dumps(_row(example, settings), ensure_ascii=False) + "\n")
    summary = {
        "pairs": len(examples),
        "without_negative": sum(not example.negatives for example in examples),
        "made": dict(Counter(example.kind for example in examples)),
        "languages": dict(Counter(filter(None, (example.language for example in examples)))),
        "rejected": {what: dict(reasons) for what, reasons in rejections.counts.items()},
        "passages": passage_counts,
        "budget_reached": client.budget_reached,
        "calls": client.calls,
        "tokens": asdict(client.spent),
        "cost": client.spent.cost(settings.budget.price_in, settings.budget.price_out),
    }
    atomic_write_json(out.path / "counts.json", summary)
    return summary


def _row(example: Example, settings: Synthetic) -> dict[str, Any]:
    """A line of pairs.jsonl."""
    values = {"{task}": example.task, "{query}": example.query}
    # In one pass: a task may hold the text {query}.
    query = re.sub(r"\{task\}|\{query\}", lambda m: values[m[0]], settings.query_template)
    return {
        "query": query,
        "positive": example.positive,
        "negatives": list(example.negatives),
        "task": example.task,
        "kind": example.kind,
        "language": example.language,
    }

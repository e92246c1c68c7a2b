"""Estimates the usage of the requests of `corpus.synthetic`, without sending any."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from stillroom.config.corpus import Corpus
from stillroom.data.synthetic.prompts import TASK_TEMPLATES
from stillroom.openai_client.requests import Usage, estimate_text_tokens
from stillroom.stages.synthetic.from_passages import draw_pool, usage_per_passage, visible_part
from stillroom.stages.synthetic.from_tasks import (
    brainstorm_calls,
    brainstorm_request,
    example_request,
)

TYPICAL_TASK_CHARACTERS = 120


def estimate_usage(section: Corpus, seed: int) -> list[dict[str, Any]]:
    """The maximum usage of each part of the requests: calls, tokens_in, tokens_out and cost.

    Assumes that every answer is as long as allowed and that none is rejected.

    Raises:
        UserError: when the sources have no passages to write queries for.
    """
    settings = section.synthetic
    assert settings is not None
    parts: list[tuple[str, int, Usage]] = []  # (part, calls, usage of all of them)
    for name, count in settings.tasks.examples.items() if settings.tasks else ():
        template = TASK_TEMPLATES[name]
        if template.brainstorm is not None:
            calls = brainstorm_calls(settings, count)
            tokens = estimate_text_tokens(brainstorm_request(settings, template, seed, 0).body)
            usage = Usage(tokens, settings.max_answer_tokens) * calls
            parts.append((f"brainstorms of {name}", calls, usage))
        tasks = ["x" * TYPICAL_TASK_CHARACTERS]
        tokens = estimate_text_tokens(example_request(settings, name, tasks, seed, 0).body)
        parts.append((name, count, Usage(tokens, settings.max_answer_tokens) * count))
    options = settings.passages
    if options:
        pool = draw_pool(section, seed)
        passages = min(len(pool), options.count)
        passage_tokens = [estimate_text_tokens(visible_part(text, options)) for text in pool]
        steps = usage_per_passage(
            settings,
            math.ceil(np.mean(passage_tokens)),
            with_likelihood=options.likelihood != "off",
        )
        for step, (calls, usage) in zip(("queries", "grades", "likelihoods"), steps, strict=False):
            parts.append((step, calls * passages, usage * passages))
    budget = settings.budget
    return [
        {
            "part": name,
            "calls": calls,
            **asdict(usage),
            "cost": usage.cost(budget.price_in, budget.price_out),
        }
        for name, calls, usage in parts
    ]

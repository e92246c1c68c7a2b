"""Examples of tasks that a language model thinks up, as requests (E5-mistral, arXiv 2401.00368)."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

from stillroom.config.synthetic import Synthetic as Section
from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic import prompts as text
from stillroom.data.synthetic.answers import parse_example, parse_tasks
from stillroom.data.synthetic.prompts import KINDS, Example
from stillroom.openai_client.client import Request
from stillroom.stages.synthetic.asker import Asker, Tally, chat


def from_tasks(own: Section, seed: int, asker: Asker, tally: Tally) -> Iterator[Example]:
    """Examples, a kind after the other, as many of those asked for as are of use."""
    assert own.tasks is not None
    for name, count in own.tasks.examples.items():
        kind = KINDS[name]
        tasks = [kind.task]
        if kind.brainstorm is not None:
            answers = asker.in_rounds(
                brainstorms(own, count),
                partial(brainstorm, own, kind, seed),
                own.answer_tokens,
                f"brainstorms of {name}",
            )
            found = [tally.parsed(f"{name} tasks", answer, parse_tasks) for answer in answers]
            distinct = {text_key(task): task for tasks in found for task in tasks or ()}
            tasks = list(distinct.values())
        if not tasks:
            continue
        request = partial(example, own, name, tasks, seed)
        answers = asker.in_rounds(count, request, own.answer_tokens, name)
        for number, answer in enumerate(answers):
            parts = tally.parsed(name, answer, partial(parse_example, kind=kind))
            if parts is not None:
                query, positive, negative = parts
                yield Example(name, _task(own, tasks, number), query, positive, (negative,))


def brainstorms(own: Section, examples: int) -> int:
    """How many calls think up the tasks of so many examples."""
    assert own.tasks is not None
    return math.ceil(examples / (own.tasks.examples_a_task * text.TASKS_A_CALL))


def brainstorm(own: Section, kind: text.Kind, seed: int, number: int) -> Request:
    return chat(own, text.brainstorm_prompt(kind), own.answer_tokens, (seed, number))


def _task(own: Section, tasks: Sequence[str], number: int) -> str:
    assert own.tasks is not None
    return tasks[number // own.tasks.examples_a_task % len(tasks)]


def example(own: Section, name: str, tasks: Sequence[str], seed: int, number: int) -> Request:
    assert own.tasks is not None
    kind = KINDS[name]
    of_kind = (seed, list(KINDS).index(name), number)
    drawn = text.Controls.drawn(kind, own.tasks.languages, of_kind)
    prompt = text.example_prompt(kind, _task(own, tasks, number), drawn)
    return chat(own, prompt, own.answer_tokens, (seed, number))

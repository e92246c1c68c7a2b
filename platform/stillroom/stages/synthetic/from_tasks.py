"""Examples of tasks that a language model invents (E5-mistral, arXiv 2401.00368)."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

from stillroom.config.synthetic import Synthetic
from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic.answers import parse_example, parse_tasks, require_language
from stillroom.data.synthetic.prompts import (
    TASK_TEMPLATES,
    TASKS_PER_BRAINSTORM,
    Example,
    ExampleControls,
    TaskTemplate,
    brainstorm_prompt,
    example_prompt,
)
from stillroom.openai_client.requests import Request
from stillroom.stages.synthetic.budgeted_client import BudgetedClient
from stillroom.stages.synthetic.llm_requests import chat_request
from stillroom.stages.synthetic.rejections import RejectionCounts


def generate_from_tasks(
    settings: Synthetic, seed: int, client: BudgetedClient, rejections: RejectionCounts
) -> Iterator[Example]:
    """Examples, one kind of task after the other; rejected ones are not replaced."""
    assert settings.tasks is not None
    for name, count in settings.tasks.examples.items():
        template = TASK_TEMPLATES[name]
        tasks = [template.task]
        if template.brainstorm is not None:
            completions = client.within_budget(
                brainstorm_calls(settings, count),
                partial(brainstorm_request, settings, template, seed),
                settings.max_answer_tokens,
                f"brainstorms of {name}",
            )
            lists = [
                rejections.parse(f"{name} tasks", completion, parse_tasks)
                for completion in completions
            ]
            distinct = {text_key(task): task for tasks in lists for task in tasks or ()}
            tasks = list(distinct.values())
        if not tasks:
            continue
        request = partial(example_request, settings, name, tasks, seed)
        completions = client.within_budget(count, request, settings.max_answer_tokens, name)
        for number, completion in enumerate(completions):
            languages = _controls(settings, name, seed, number).languages
            texts = rejections.parse(
                name, completion, partial(_parse_in, languages=languages, template=template)
            )
            if texts is not None:
                query, positive, negative = texts
                task = _task_of(settings, tasks, number)
                yield Example(name, task, query, positive, (negative,), languages[0])


def brainstorm_calls(settings: Synthetic, examples: int) -> int:
    """Number of brainstorms that give enough tasks for the examples."""
    assert settings.tasks is not None
    return math.ceil(examples / (settings.tasks.examples_per_task * TASKS_PER_BRAINSTORM))


def brainstorm_request(
    settings: Synthetic, template: TaskTemplate, seed: int, number: int
) -> Request:
    """The request for the `number`-th list of tasks of a kind."""
    prompt = brainstorm_prompt(template)
    return chat_request(settings, prompt, settings.max_answer_tokens, (seed, number))


def example_request(
    settings: Synthetic, name: str, tasks: Sequence[str], seed: int, number: int
) -> Request:
    """The request for the `number`-th example of a kind of task."""
    controls = _controls(settings, name, seed, number)
    prompt = example_prompt(TASK_TEMPLATES[name], _task_of(settings, tasks, number), controls)
    return chat_request(settings, prompt, settings.max_answer_tokens, (seed, number))


def _controls(settings: Synthetic, name: str, seed: int, number: int) -> ExampleControls:
    """The properties that the `number`-th example of a kind of task is to have."""
    controls_seed = (seed, list(TASK_TEMPLATES).index(name), number)
    return ExampleControls.draw(TASK_TEMPLATES[name], settings.task_languages, controls_seed)


def _parse_in(
    answer: str, languages: tuple[str, str], template: TaskTemplate
) -> tuple[str, str, str]:
    """As `parse_example`; rejects also texts that are not in their languages."""
    query, positive, negative = parse_example(answer, template)
    require_language([query], languages[0])
    require_language([positive, negative], languages[1])
    return query, positive, negative


def _task_of(settings: Synthetic, tasks: Sequence[str], number: int) -> str:
    """The task of the `number`-th example."""
    assert settings.tasks is not None
    return tasks[number // settings.tasks.examples_per_task % len(tasks)]

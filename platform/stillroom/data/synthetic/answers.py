"""Parses and checks a language model's answers to the prompts of `prompts`."""

import json
import re
from collections.abc import Sequence
from typing import Any

from stillroom.config.languages import LANGUAGES
from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic.prompts import (
    EXAMPLE_FIELDS,
    MAX_GRADE,
    RejectedAnswer,
    TaskTemplate,
)
from stillroom.data.text.detection import is_in_language


def parse_tasks(answer: str) -> list[str]:
    """The tasks of a brainstorm, without repeated ones.

    Raises:
        RejectedAnswer: when the answer is not a list of texts.
    """
    tasks = _parse_json(answer)
    if not isinstance(tasks, list):
        raise RejectedAnswer("no JSON list")
    if not tasks or not all(isinstance(task, str) and task.strip() for task in tasks):
        raise RejectedAnswer("a list, but not of texts")
    # Reversed twice: of equal tasks the first stays.
    return list({text_key(task): task.strip() for task in reversed(tasks)}.values())[::-1]


def parse_example(answer: str, template: TaskTemplate) -> tuple[str, str, str]:
    """Query, positive and hard negative.

    Raises:
        RejectedAnswer: when the answer is not three such texts, or they are not a valid example.
    """
    texts = _parse_texts(answer, EXAMPLE_FIELDS)
    keys = [text_key(text) for text in texts]
    if len(set(keys)) < len(keys):
        raise RejectedAnswer("two of its texts are the same")
    descriptions = (template.query, template.positive, template.negative)
    if set(keys) & {text_key(description) for description in descriptions}:
        raise RejectedAnswer("repeats the request")
    query, positive, negative = texts
    return query, positive, negative


def require_language(texts: Sequence[str], language: str) -> None:
    """Raises RejectedAnswer for texts one of which, or which together, are not in a language, a key
    of LANGUAGES.
    """
    # Short texts tell more together, and a long one must not hide another.
    if not all(is_in_language(text, language) for text in ("\n".join(texts), *texts)):
        raise RejectedAnswer(f"not in {LANGUAGES[language]}")


def parse_query(answer: str) -> tuple[str, str]:
    """Task and query.

    Raises:
        RejectedAnswer: when the answer is not two such texts.
    """
    task, query = _parse_texts(answer, ("task", "query"))
    return task, query


def parse_grade(answer: str) -> int:
    """A grade from 0 to MAX_GRADE.

    Raises:
        RejectedAnswer: when the answer is anything but such a digit.
    """
    digit = answer.strip().rstrip(".")
    if not re.fullmatch(f"[0-{MAX_GRADE}]", digit):
        raise RejectedAnswer("no grade")
    return int(digit)


def _parse_json(answer: str) -> Any:
    """An answer that is JSON, perhaps in a fenced block."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)\n\s*```", answer, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        raise RejectedAnswer("no JSON") from None


def _parse_texts(answer: str, fields: Sequence[str]) -> list[str]:
    """The texts of an object that has exactly these fields."""
    content = _parse_json(answer)
    if not isinstance(content, dict):
        raise RejectedAnswer("no JSON object")
    if set(content) != set(fields):
        raise RejectedAnswer("other fields than requested")
    if not all(isinstance(content[field], str) for field in fields):
        raise RejectedAnswer("a field that is no text")
    texts = [content[field].strip() for field in fields]
    if not all(texts):
        raise RejectedAnswer("an empty field")
    if any(re.search("[\ud800-\udfff]", text) for text in texts):
        raise RejectedAnswer("half a surrogate pair")  # no UTF-8 file can hold it
    return texts

"""TODO docstring: data/synthetic/answers.py."""

import json
import re
from collections.abc import Sequence
from typing import Any

from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic.prompts import BEST_GRADE, FIELDS, Kind, Rejected


def parse_tasks(answer: str) -> list[str]:
    """The tasks of a brainstorm, each once.

    Raises:
        Rejected: when the answer is no list of texts.
    """
    found = _json(answer)
    if not isinstance(found, list):
        raise Rejected("no JSON list")
    if not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise Rejected("a list, but not of texts")
    # The later of equal ones goes.
    return list({text_key(one): one.strip() for one in reversed(found)}.values())[::-1]


def parse_example(answer: str, kind: Kind) -> tuple[str, str, str]:
    """Query, positive and hard negative.

    Raises:
        Rejected: when the answer is not those three texts, or they cannot be an example.
    """
    texts = _texts(answer, FIELDS)
    keys = [text_key(text) for text in texts]
    if len(set(keys)) < len(keys):
        raise Rejected("two of its texts are the same")
    if set(keys) & {text_key(told) for told in (kind.query, kind.positive, kind.negative)}:
        raise Rejected("repeats what it was asked for")
    query, positive, negative = texts
    return query, positive, negative


def parse_query(answer: str) -> tuple[str, str]:
    """Task and query.

    Raises:
        Rejected: when the answer is not those two texts.
    """
    task, query = _texts(answer, ("task", "query"))
    return task, query


def parse_grade(answer: str) -> int:
    """0 to 3.

    Raises:
        Rejected: when the answer is anything but such a digit.
    """
    digit = answer.strip().rstrip(".")
    if not re.fullmatch(f"[0-{BEST_GRADE}]", digit):
        raise Rejected("no grade")
    return int(digit)


def _json(answer: str) -> Any:
    """An answer that is JSON, perhaps in a fenced block."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)\n\s*```", answer, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        raise Rejected("no JSON") from None


def _texts(answer: str, fields: Sequence[str]) -> list[str]:
    """The texts of an object that has these fields and no other."""
    found = _json(answer)
    if not isinstance(found, dict):
        raise Rejected("no JSON object")
    if set(found) != set(fields):
        raise Rejected("other fields than asked for")
    if not all(isinstance(found[field], str) for field in fields):
        raise Rejected("a field that is no text")
    texts = [found[field].strip() for field in fields]
    if not all(texts):
        raise Rejected("an empty field")
    if any(re.search("[\ud800-\udfff]", text) for text in texts):
        raise Rejected("half a surrogate pair")  # which no UTF-8 file can hold
    return texts

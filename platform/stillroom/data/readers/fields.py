"""Typed access to the fields of a row. Every error names the row and the field."""

import json
import math
from collections.abc import Mapping
from typing import Any

from stillroom.errors import UserError

Fields = Mapping[str, Any]
ID_FIELDS = ("_id", "id", "docid", "pid", "qid", "query_id")


def text_field(row: Fields, field: str, where: str) -> str:
    """A field that must hold text.

    Raises:
        UserError: when it is absent, not a string, blank or broken Unicode.
    """
    if field not in row:
        raise UserError(where, f"has no {field!r}; it has {field_names(row)}", f"Add {field!r}")
    return check_text(row[field], repr(field), where)


def check_text(value: Any, name: str, where: str) -> str:
    """A value that must be text; errors call it `name`.

    Raises:
        UserError: when it is not a string, blank or broken Unicode.
    """
    if value is None:
        raise UserError(where, f"{name} is null", "Fill it, or remove the row")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(where, f"{name} is of type {kind}, not text", _as_text(value))
    if not value.strip():
        raise UserError(where, f"{name} is empty", "Fill it, or remove the row")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        problem = f"{name} has half of a surrogate pair, which is not a character"
        raise UserError(where, problem, "Write the character itself, or remove the row")
    return value


def _as_text(value: Any) -> str:
    if isinstance(value, list | Mapping):  # perhaps a file of columns: {"query": ["one", "two"]}
        return "Write a row with one text for each"
    return "Put it in quotes"


def titled_text_field(row: Fields, field: str, where: str) -> str:
    """The title, if there is one, and then the text.

    A blank text, or null, is allowed beside a title; in rows with an id also without one.
    """
    title = row.get("title")
    title = "" if _is_blank(title) else check_text(title, "'title'", where)
    if field in row and _is_blank(row[field]) and (title or find_id_field(row)):
        return title.strip()
    return f"{title} {text_field(row, field, where)}".strip()


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def find_id_field(row: Fields) -> str | None:
    """The name of the field that holds the id; None without one."""
    return next((name for name in ID_FIELDS if name in row), None)


def id_field(row: Fields, field: str, where: str) -> str:
    """An id: text without spaces around it, or a whole number."""
    if isinstance(row.get(field), int) and not isinstance(row[field], bool):
        return str(row[field])
    return text_field(row, field, where).strip()


def number_field(row: Fields, field: str, where: str) -> float:
    """A field that must hold a finite number, true or false, or the text of one."""
    value = row[field]
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return float(value.strip().lower() == "true")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = "null" if value is None else f"{value!r}, which is not a number"
        problem = f"{field!r} is {shown}"
        raise UserError(where, problem, "Give a number")
    return number


def is_number(text: str) -> bool:
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def text_list_field(row: Fields, field: str, where: str) -> tuple[str, ...]:
    """A field that must hold a list of texts."""
    texts = list_field(row, field, where, example='["one", "two"]')
    return tuple(
        check_text(text, f"item {number} of {field!r}", where)
        for number, text in enumerate(texts, start=1)
    )


def object_list_field(row: Fields, field: str, where: str) -> list[Fields]:
    """A field that must hold a list of objects; an absent or empty one is an empty list."""
    example = '[{"title": "…", "text": "…"}]'
    items = list_field(row, field, where, example) if row.get(field) else []
    if not all(isinstance(item, Mapping) for item in items):
        raise UserError(where, f"{field!r} has items that are not objects", f"Write {example}")
    return items


def list_field(row: Fields, field: str, where: str, example: str) -> list[Any]:
    """A field that must hold a list; in a table's cell it is JSON.

    Args:
        example: an example value for the error message.
    """
    value = row[field]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(
                where, f"{field!r} is not a JSON list: {error}", f"Write {example}"
            ) from error
    if not isinstance(value, list):
        problem = f"{field!r} is null" if value is None else f"{field!r} is not a list"
        raise UserError(where, problem, f"Write {example}")
    return value


def field_names(row: Fields) -> str:
    """The names of a row's fields, for error messages."""
    return ", ".join(map(str, row)) or "nothing"

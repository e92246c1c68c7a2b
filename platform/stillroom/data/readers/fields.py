"""Typed access to the fields of a row. Every error names the row and the field."""

import json
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
    value = row.get(field)
    if value is None:
        raise UserError(where, f"has no {field!r}; it has {field_names(row)}", f"Add {field!r}")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(where, f"{field!r} is of type {kind}, not text", "Put it in quotes")
    if not value.strip():
        raise UserError(where, f"{field!r} is empty", "Fill it, or remove the row")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        problem = f"{field!r} has half of a surrogate pair, which is not a character"
        raise UserError(where, problem, "Write the character itself, or remove the row")
    return value


def titled_text_field(row: Fields, field: str, where: str) -> str:
    """The title, if there is one, and then the text; in rows with an id either may be empty."""
    title = row.get("title") or ""
    if not isinstance(title, str):
        raise UserError(where, "'title' is not text", "Put it in quotes")
    if find_id_field(row) and row.get(field) == "":
        return title.strip()
    return f"{title} {text_field(row, field, where)}".strip()


def find_id_field(row: Fields) -> str | None:
    """The name of the field that holds the id; None without one."""
    return next((name for name in ID_FIELDS if name in row), None)


def number_field(row: Fields, field: str, where: str) -> float:
    """A field that must hold a number, or the text of one."""
    try:
        return float(row[field])
    except (TypeError, ValueError):
        problem = f"{field!r} is {row[field]!r}, which is not a number"
        raise UserError(where, problem, "Give a number") from None


def text_list_field(row: Fields, field: str, where: str) -> tuple[str, ...]:
    """A field that must hold a list of texts."""
    texts = list_field(row, field, where, example='["one", "two"]')
    return tuple(text_field({field: text}, field, where) for text in texts)


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
        raise UserError(where, f"{field!r} is not a list", f"Write {example}")
    return value


def field_names(row: Fields) -> str:
    """The names of a row's fields, for error messages."""
    return ", ".join(map(str, row)) or "nothing"

"""What a row's columns are, by their names: the query, its positives and negatives, and scores."""

import functools
import json
import re
from dataclasses import dataclass
from typing import Literal

from stillroom.data.readers.fields import (
    Fields,
    field_names,
    list_field,
    number_field,
    text_field,
    text_list_field,
)
from stillroom.errors import UserError

QUERY_FIELDS = ("query", "anchor", "question", "sentence1")
# Of the one positive; a column called positive comes before these.
PASSAGE_FIELDS = ("passage", "document", "answer", "sentence2")

WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # negative_1, negative.1 and negativeText
# A column is a score if its name ends in one of these words: score, gold_label, isRelevant …
SCORE_WORDS = {
    *("score", "scores", "label", "labels", "similarity", "similarities", "sim", "cosine"),
    *("relevance", "relevances", "relevancy", "relevant", "rel", "grade", "grades", "margin"),
    *("rating", "ratings", "judgement", "judgements", "judgment", "judgments", "duplicate"),
}
YES_OR_NO_WORDS = {
    *("positive", "negative", "match", "correct", "similar", "answer", "paraphrase", "selected"),
}
POSITIVE_WORDS = {"pos", "positive", "positives"}
NEGATIVE_WORDS = {
    *("neg", "negs", "negative", "negatives"),
    *("hardneg", "hardnegs", "hardnegative", "hardnegatives"),
}
# A negative's name is of these alone, or says before it where it is from: bm25_negatives.
TEXT_WORDS = {
    *("passage", "passages", "document", "documents", "doc", "docs", "text", "texts"),
    *("sentence", "sentences", "answer", "answers"),
}
NO_ORIGINS = {"num", "number", "n", "count", "has", "is", "no", "true", "false", "query", "anchor"}
# Beside negatives these hold what sentence-transformers' distillation losses expect: margins of
# the positive over its negatives, or the scores of all of them.
DISTILLATION_FIELDS = ("label", "labels", "score", "scores", "margin")

Kind = Literal["score", "positive score", "negative score", "positive", "negative", "other"]


@functools.lru_cache(maxsize=4096)
def column_kind(name: str) -> Kind:
    """What a column of this name holds."""
    words = [word.lower() for word in WORDS.findall(name)] or [""]
    if words[0] == "is" and words[-1] in YES_OR_NO_WORDS | SCORE_WORDS:
        return "score"
    positive = not POSITIVE_WORDS.isdisjoint(words)
    negative = not NEGATIVE_WORDS.isdisjoint(words)
    is_score = words[-1] in SCORE_WORDS  # pos_score, or score_pos
    if is_score or (words[0] in SCORE_WORDS and (positive or negative)):
        return "positive score" if positive else "negative score" if negative else "score"
    if positive == negative:
        return "other"
    if positive:
        return "positive" if POSITIVE_WORDS.issuperset(words) else "other"
    is_text = (NEGATIVE_WORDS | TEXT_WORDS | {"hard"}).issuperset(words)
    has_origin = words[-1] in NEGATIVE_WORDS and NO_ORIGINS.isdisjoint(words)
    return "negative" if is_text or has_origin else "other"


def columns_of_kind(row: Fields, kind: Kind) -> list[str]:
    """The names of a row's columns of a kind, in order."""
    return [name for name in row if column_kind(name) == kind]


@dataclass(frozen=True)
class RowScore:
    """The value of a row's score column.

    Attributes:
        field: the column's name.
        values: one number, or those of a list.
    """

    field: str
    values: tuple[float, ...]
    is_list: bool


def find_score(row: Fields, where: str, field: str | None = None) -> RowScore | None:
    """The score of a row; None if it has no column of that kind.

    Args:
        field: the name of the column; None finds it by its name.

    Raises:
        UserError: when it is not a number, or there are several.
    """
    if field is not None and field not in row:
        raise UserError(where, f"has no {field!r}; it has {field_names(row)}", "Set score_field")
    names = columns_of_kind(row, "score") if field is None else [field]
    if not names:
        return None
    if len(names) > 1:
        problem = f"has several scores: {', '.join(map(repr, names))}"
        raise UserError(where, problem, "Set score_field on the source to the one that counts")
    name, value = names[0], row[names[0]]
    is_list = isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))
    if not is_list:
        return RowScore(name, (number_field(row, name, where),), is_list=False)
    return RowScore(name, number_list(row, name, where), is_list=True)


def number_list(row: Fields, field: str, where: str) -> tuple[float, ...]:
    """A field that must hold a list of numbers."""
    values = list_field(row, field, where, "[0.9, 0.7]")
    return tuple(number_field({field: value}, field, where) for value in values)


def read_negatives(row: Fields, where: str) -> tuple[str, ...]:
    """The texts of all columns of negatives."""
    names = columns_of_kind(row, "negative")
    return tuple(text for name in names for text in column_texts(row, name, where))


def column_texts(row: Fields, name: str, where: str) -> tuple[str, ...]:
    """The texts of a column that holds one, or a list of them; none if it is empty or null.

    In a table's cell a list is JSON.
    """
    value = row[name]
    if value is None or value == "" or value == []:
        return ()
    is_plural = column_kind(name) in ("positive", "negative") and name.endswith(("s", "S"))
    in_list = isinstance(value, str) and (_is_json_list(value) or (is_plural and len(name) > 3))
    if in_list or isinstance(value, list):
        return text_list_field(row, name, where)
    return (text_field(row, name, where),)


def _is_json_list(value: str) -> bool:
    if not value.startswith("["):
        return False
    try:
        texts = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)

"""Rows → pairs, in the layouts that training data sets have.

A layout is recognised by the names of its fields, or named by a source's `format`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stillroom.data.readers.fields import (
    Fields,
    field_names,
    list_field,
    number_field,
    object_list_field,
    text_field,
    text_list_field,
    titled_text_field,
)
from stillroom.data.readers.records import Pair
from stillroom.errors import UserError

SCORE_FIELDS = ("score", "label", "similarity_score")

# Column names in data sets of sentence-transformers; the columns are used by position.
PAIR_FIELDS = (
    ("anchor", "positive"),
    ("sentence1", "sentence2"),
    ("question", "answer"),
    ("query", "answer"),
)


@dataclass(frozen=True)
class LabelledPair:
    """A pair and further information of its row.

    Attributes:
        score: how well the passage answers the query, on the data set's own scale.
        graded: whether only the score decides if the passage answers the query at all.
        instruction: the task that the row names.
    """

    pair: Pair
    score: float | None = None
    graded: bool = False
    instruction: str = ""


@dataclass(frozen=True)
class Layout:
    """A layout of pairs.

    Attributes:
        name: the source's `format`.
        fields: the fields that it has, for error messages.
        matches: whether a row is in this layout.
        parse: the pairs of a row; its second argument is where the row is.
    """

    name: str
    fields: str
    matches: Callable[[Fields], bool]
    parse: Callable[[Fields, str], Iterator[LabelledPair]]


def detect_layout(row: Fields, where: str) -> Layout:
    """The layout whose fields the row has.

    Raises:
        UserError: when it is in no known layout.
    """
    for layout in LAYOUTS.values():
        if layout.matches(row):
            return layout
    known = "; ".join(f"{layout.fields} ({name})" for name, layout in LAYOUTS.items())
    problem = f"is not a pair in a known layout; it has {field_names(row)}"
    raise UserError(where, problem, f"Use the fields {known}, or set the source's format")


def _parse_plain(row: Fields, where: str) -> Iterator[LabelledPair]:
    """One `query` with one `positive` (or `passage`), and perhaps negatives."""
    positive_field = "positive" if "positive" in row else "passage"
    query, positive = text_field(row, "query", where), text_field(row, positive_field, where)
    yield LabelledPair(Pair(query, positive, _plain_negatives(row, where)))


def _plain_negatives(row: Fields, where: str) -> tuple[str, ...]:
    if "negatives" in row:
        empty = row["negatives"] in (None, "")
        return () if empty else text_list_field(row, "negatives", where)
    if isinstance(row.get("negative"), list):
        return text_list_field(row, "negative", where)
    return (text_field(row, "negative", where),) if row.get("negative") else ()


def _parse_sentence_transformers(row: Fields, where: str) -> Iterator[LabelledPair]:
    """(anchor, positive, negatives …) or (text, text, score): by name, else by position."""
    texts = [name for name in row if name not in SCORE_FIELDS]
    for anchor, positive in PAIR_FIELDS:
        if anchor in row and positive in row:  # other columns are then not texts to train on
            texts = [anchor, positive, *(name for name in texts if name.startswith("negative"))]
            break
    if len(texts) < 2:
        problem = f"has fewer than two texts; it has {field_names(row)}"
        raise UserError(where, problem, "Give anchor and positive")
    first, second, *others = texts
    score_field = next((name for name in SCORE_FIELDS if name in row), None)
    score = None if score_field is None else number_field(row, score_field, where)
    negatives: list[str] = []
    for name in others:
        if row[name] not in (None, ""):
            if isinstance(row[name], list):
                negatives += text_list_field(row, name, where)
            else:
                negatives.append(text_field(row, name, where))
    pair = Pair(text_field(row, first, where), text_field(row, second, where), tuple(negatives))
    yield LabelledPair(pair, score, graded=score is not None)


def _parse_flag_embedding(row: Fields, where: str) -> Iterator[LabelledPair]:
    """`query`, `pos` and `neg`, and perhaps `pos_scores` and a task's `prompt`."""
    query = text_field(row, "query", where)
    positives = text_list_field(row, "pos", where)
    negatives = text_list_field(row, "neg", where) if row.get("neg") else ()
    scores: list[float | None] = [None] * len(positives)
    if row.get("pos_scores"):
        values = list_field(row, "pos_scores", where, "[0.9, 0.7]")
        scores = [number_field({"pos_scores": value}, "pos_scores", where) for value in values]
    if len(scores) != len(positives):
        problem = f"has {len(positives)} texts in 'pos' and {len(scores)} in 'pos_scores'"
        raise UserError(where, problem, "Give one score a text")
    instruction = row.get("prompt") or ""
    for positive, score in zip(_require_any(positives, "pos", where), scores, strict=True):
        yield LabelledPair(Pair(query, positive, negatives), score, instruction=instruction)


def _parse_gritlm(row: Fields, where: str) -> Iterator[LabelledPair]:
    """`query` is [instruction, text], and so is every item of `pos` and `neg`."""
    instruction, query = _instruction_and_text(row["query"], "query", where)
    positives, negatives = (
        tuple(_instruction_and_text(item, field, where)[1] for item in _items(row.get(field) or []))
        for field in ("pos", "neg")
    )
    for positive in _require_any(positives, "pos", where):
        yield LabelledPair(Pair(query, positive, negatives), instruction=instruction)


def _items(value: Any) -> list[Any]:
    """A list of [instruction, text]; MEDI has a single one where GritLM has a list."""
    if not isinstance(value, list) or (len(value) == 2 and isinstance(value[1], str)):
        return [value]
    return value


def _instruction_and_text(value: Any, field: str, where: str) -> tuple[str, str]:
    if isinstance(value, list) and len(value) == 1:
        value = ["", *value]
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        problem = f"{field!r} is not a pair of instruction and text"
        raise UserError(where, problem, 'Write ["instruction", "text"]')
    return value[0].strip(), text_field({field: value[1]}, field, where)


def _parse_tevatron(row: Fields, where: str) -> Iterator[LabelledPair]:
    """`query` with `positive_passages` and `negative_passages`, which have title and text."""
    if "positive_passages" not in row:
        problem = "names its passages by id, without their texts"
        raise UserError(where, problem, "Give positive_passages with title and text")
    query = text_field(row, "query" if "query" in row else "query_text", where)
    positives, negatives = (
        tuple(
            _passage_text(passage, field, where) for passage in object_list_field(row, field, where)
        )
        for field in ("positive_passages", "negative_passages")
    )
    for positive in _require_any(positives, "positive_passages", where):
        yield LabelledPair(Pair(query, positive, negatives))


def _passage_text(passage: Fields, field: str, where: str) -> str:
    text = titled_text_field(passage, "text", where)
    if not text:
        raise UserError(where, f"{field!r} has an empty passage", "Fill it, or remove it")
    return text


def _require_any(positives: tuple[str, ...], field: str, where: str) -> tuple[str, ...]:
    if not positives:
        raise UserError(where, f"{field!r} is empty", "Fill it, or remove the row")
    return positives


# In the order in which they are tried.
LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "tevatron",
            "query, positive_passages, negative_passages",
            lambda row: "positive_passages" in row or "positive_document_ids" in row,
            _parse_tevatron,
        ),
        Layout(
            "gritlm",
            "query: [instruction, text], pos, neg",
            lambda row: "pos" in row and isinstance(row.get("query"), list),
            _parse_gritlm,
        ),
        Layout(
            "flag-embedding",
            "query, pos, neg",
            lambda row: "query" in row and "pos" in row,
            _parse_flag_embedding,
        ),
        Layout(
            "llm2vec",
            "query, positive, negative",
            lambda row: "query" in row and ("positive" in row or "passage" in row),
            _parse_plain,
        ),
        Layout(
            "sentence-transformers",
            "anchor, positive, negative",
            lambda row: any(set(pair) <= row.keys() for pair in PAIR_FIELDS),
            _parse_sentence_transformers,
        ),
    )
}

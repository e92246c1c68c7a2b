"""Rows → pairs, in the layouts that training data sets have.

A layout is recognised by the names of its fields, or named by a source's `format`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from stillroom.data.readers.columns import (
    DISTILLATION_FIELDS,
    PASSAGE_FIELDS,
    QUERY_FIELDS,
    RowScore,
    column_kind,
    column_texts,
    columns_of_kind,
    find_score,
    number_list,
    read_negatives,
)
from stillroom.data.readers.fields import (
    Fields,
    check_text,
    field_names,
    is_number,
    object_list_field,
    text_field,
    text_list_field,
    titled_text_field,
)
from stillroom.data.readers.records import Pair
from stillroom.data.text.words import count_words
from stillroom.errors import UserError, quote

HEADER_WORDS = 5  # a column's name with more words is a text: the file has no header


@dataclass(frozen=True)
class LabelledPair:
    """A pair and further information of its row.

    Attributes:
        score: how well the passage answers the query, on the data set's own scale.
        score_field: the column that the score is from.
        graded: whether only the score decides if the passage answers the query at all.
        instruction: the task that the row names.
    """

    pair: Pair
    score: float | None = None
    score_field: str = ""
    graded: bool = False
    instruction: str = ""


@dataclass(frozen=True)
class Layout:
    """A layout of pairs.

    Attributes:
        name: the source's `format`.
        fields: the fields that it has, for error messages.
        matches: whether a row is in this layout.
        parse: the pairs of a row, with where it is and its score.
    """

    name: str
    fields: str
    matches: Callable[[Fields], bool]
    parse: Callable[[Fields, str, RowScore | None], Iterator[LabelledPair]]


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


def parse_row(
    row: Fields, where: str, layout: Layout, score_field: str | None
) -> list[LabelledPair]:
    """The pairs of a row.

    Args:
        score_field: the column of the score; None finds it by its name.

    Raises:
        UserError: when the row is not of the layout.
    """
    return list(layout.parse(row, where, find_score(row, where, score_field)))


def has_pair_fields(row: Fields) -> bool:
    """Whether the row has a query, or a positive, by the names of its columns."""
    return any(name in QUERY_FIELDS or column_kind(name) == "positive" for name in row)


def _matches_columns(row: Fields) -> bool:
    has_positive = any(name in PASSAGE_FIELDS or column_kind(name) == "positive" for name in row)
    return has_positive and any(name in row for name in QUERY_FIELDS)


def _parse_columns(row: Fields, where: str, score: RowScore | None) -> Iterator[LabelledPair]:
    """A query with its positives (or one passage) and negatives, by the names of the columns."""
    queries = [name for name in QUERY_FIELDS if name in row]
    positives = columns_of_kind(row, "positive")
    passages = [name for name in PASSAGE_FIELDS if name in row]
    for what, names in (("queries", queries), ("passages", [] if positives else passages)):
        if len(names) > 1:
            problem = f"has several {what}: {', '.join(map(repr, names))}"
            raise UserError(where, problem, "Remove or rename all but one")
    if not queries or not (positives or passages):
        missing = "positive" if queries else "query"
        raise UserError(where, f"has no {missing!r}; it has {field_names(row)}", f"Add {missing!r}")
    query = text_field(row, queries[0], where)
    negatives = read_negatives(row, where)
    if score is not None and score.is_list and not negatives:
        yield from _labelled_texts(row, where, query, (positives or passages)[0], score)
        return
    texts = [text for name in positives for text in column_texts(row, name, where)]
    if not texts:  # also where all are empty: the error then names the first
        texts = [text_field(row, (positives or passages)[0], where)]
    for text in texts:
        pair = LabelledPair(Pair(query, text, negatives))
        yield _with_score(row, where, pair, score)


def _with_score(
    row: Fields, where: str, labelled: LabelledPair, score: RowScore | None
) -> LabelledPair:
    """With the score of the row.

    It decides whether the pair is one; unless it belongs to distillation, where the row has
    negatives and the score is the positive's margin over them, or a list of margins or scores.
    Without it a `pos_score` counts, of a text that is a positive whatever its score is.
    """
    if score is None:
        names = columns_of_kind(row, "positive score")
        own = find_score(row, where, names[0]) if names else None
        return labelled if own is None else _scored(labelled, own, where, graded=False)
    negatives = len(labelled.pair.negatives)
    if not negatives or score.field.lower() not in DISTILLATION_FIELDS:
        return _scored(labelled, score, where, graded=True)
    if score.is_list and len(score.values) == negatives + 1:
        own = RowScore(score.field, score.values[:1], is_list=False)
        return _scored(labelled, own, where, graded=False)
    if score.is_list and len(score.values) != negatives:
        problem = f"{score.field!r} has {len(score.values)} scores"
        fix = f"Give one for the positive and one for each of the {negatives} negatives"
        raise UserError(where, problem, fix)
    margin = RowScore(score.field, (min(score.values),), is_list=False)
    # Not above 0 the positive is no better than its negative; or it is no margin but a label.
    return _scored(labelled, margin, where, graded=margin.values[0] <= 0)


def _scored(labelled: LabelledPair, score: RowScore, where: str, *, graded: bool) -> LabelledPair:
    if len(score.values) != 1:
        problem = f"{score.field!r} has {len(score.values)} scores"
        raise UserError(where, problem, "Give one number for a text")
    return dataclasses.replace(
        labelled, score=score.values[0], score_field=score.field, graded=graded
    )


def _labelled_texts(
    row: Fields, where: str, query: str, field: str, score: RowScore
) -> Iterator[LabelledPair]:
    """A list of texts with a list of scores, as sentence-transformers' `labeled-list`.

    Whole numbers are labels, as in qrels: those above 0 are positives, the others negatives.
    """
    texts = text_list_field(row, field, where)
    if len(texts) != len(score.values):
        problem = f"has {len(texts)} texts in {field!r} and {len(score.values)} in {score.field!r}"
        raise UserError(where, problem, "Give one score a text")
    scored = list(zip(texts, score.values, strict=True))
    is_labels = all(value == int(value) for value in score.values)
    negatives = tuple(text for text, value in scored if value <= 0) if is_labels else ()
    positives = [(text, value) for text, value in scored if value > 0 or not is_labels]
    if not positives:
        raise UserError(where, f"{score.field!r} has no label above 0", "Remove the row")
    for text, value in positives:
        pair = Pair(query, text, negatives)
        yield LabelledPair(pair, value, score.field, graded=not is_labels)


def _parse_sentence_transformers(
    row: Fields, where: str, score: RowScore | None
) -> Iterator[LabelledPair]:
    """(anchor, positive, negatives …) or (text, text, score): by name, else by position."""
    if _matches_columns(row):
        yield from _parse_columns(row, where, score)
        return
    score_field = "" if score is None else score.field
    kinds = {name: column_kind(name) for name in row}
    names = [n for n in row if n != score_field and not kinds[n].endswith("score")]
    if len(names) < 2:
        problem = f"has fewer than two texts; it has {field_names(row)}"
        raise UserError(where, problem, "Give anchor and positive")
    for name in names:
        _require_text_column(row, name, where)
    first, second, *others = names
    negatives = tuple(text for name in others for text in column_texts(row, name, where))
    pair = Pair(text_field(row, first, where), text_field(row, second, where), negatives)
    yield _with_score(row, where, LabelledPair(pair), score)


def _require_text_column(row: Fields, name: str, where: str) -> None:
    """Refuses what a column's position would make a text, and is none."""
    if count_words(name) > HEADER_WORDS:
        problem = f"has the column {quote(name, 80)}, which is a text"
        raise UserError(where, problem, "Give the file a header with the names of its columns")
    value = row[name]
    if isinstance(value, str) and is_number(value):
        problem = f"has the number {value} in {name!r}, where its position means a text"
        fix = "Name the columns anchor, positive, negative and score, or set score_field"
        raise UserError(where, problem, fix)


def _parse_flag_embedding(
    row: Fields, where: str, score: RowScore | None
) -> Iterator[LabelledPair]:
    """`query`, `pos` and `neg`, and perhaps `pos_scores` and a task's `prompt`."""
    query = text_field(row, "query", where)
    positives = text_list_field(row, "pos", where)
    negatives = read_negatives(row, where)
    scores: tuple[float | None, ...] = (None,) * len(positives)
    if row.get("pos_scores"):
        scores = number_list(row, "pos_scores", where)
    if len(scores) != len(positives):
        problem = f"has {len(positives)} texts in 'pos' and {len(scores)} in 'pos_scores'"
        raise UserError(where, problem, "Give one score a text")
    instruction = row.get("prompt") or ""
    for text, own in zip(_require_any(positives, "pos", where), scores, strict=True):
        pair = Pair(query, text, negatives)
        field = "" if own is None else "pos_scores"
        labelled = LabelledPair(pair, own, field, instruction=instruction)
        yield labelled if score is None else _scored(labelled, score, where, graded=True)


def _parse_gritlm(row: Fields, where: str, score: RowScore | None) -> Iterator[LabelledPair]:
    """`query` is [instruction, text], and so is every item of `pos` and `neg`."""
    instruction, query = _instruction_and_text(row["query"], "query", where)
    positives, negatives = (
        tuple(_instruction_and_text(item, field, where)[1] for item in _items(row.get(field) or []))
        for field in ("pos", "neg")
    )
    for positive in _require_any(positives, "pos", where):
        pair = Pair(query, positive, negatives)
        labelled = LabelledPair(pair, instruction=instruction)
        yield labelled if score is None else _scored(labelled, score, where, graded=True)


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
    return value[0].strip(), check_text(value[1], repr(field), where)


def _parse_tevatron(row: Fields, where: str, score: RowScore | None) -> Iterator[LabelledPair]:
    """`query` with `positive_passages` and `negative_passages`, which have title and text."""
    if "positive_passages" not in row:
        problem = "names its passages by id, without their texts"
        raise UserError(where, problem, "Give positive_passages with title and text")
    query = text_field(row, "query" if "query" in row else "query_text", where)
    negatives = tuple(
        _passage_text(passage, "negative_passages", where)
        for passage in object_list_field(row, "negative_passages", where)
    )
    passages = object_list_field(row, "positive_passages", where)
    if not passages:
        raise UserError(where, "'positive_passages' is empty", "Fill it, or remove the row")
    for passage in passages:
        text = _passage_text(passage, "positive_passages", where)
        labelled = LabelledPair(Pair(query, text, negatives))
        if own := find_score(passage, where):
            labelled = _scored(labelled, own, where, graded=False)
        yield labelled if score is None else _scored(labelled, score, where, graded=True)


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
            _parse_columns,
        ),
        Layout(
            "sentence-transformers",
            "anchor, positive, negative",
            _matches_columns,
            _parse_sentence_transformers,
        ),
    )
}

"""Files → pairs, passages and conversations, one row in memory at a time.

Every error names the file and the line.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from stillroom.data.readers.conversations import parse_conversation
from stillroom.data.readers.fields import Fields, titled_text_field
from stillroom.data.readers.layouts import LAYOUTS, PAIR_FIELDS, LabelledPair, detect_layout
from stillroom.data.readers.locations import DOCUMENT_EXTENSIONS, file_format
from stillroom.data.readers.records import (
    Conversation,
    OnBadRow,
    Pair,
    SkippedRows,
    raise_bad_row,
)
from stillroom.data.readers.rows import Row, no_rows_error, read_lines, read_rows
from stillroom.data.text.words import count_words
from stillroom.errors import UserError

Record = TypeVar("Record")

# Columns of MS MARCO's files, which have no header.
TRIPLE_COLUMNS = ("query", "positive", "negative")

PASSAGE_COLUMNS = ("pid", "text")

# A first line with one of these is a header.
HEADER_NAMES = {name for pair in PAIR_FIELDS for name in pair} | {
    *("query", "positive", "passage", "text", "contents", "pos", "positive_passages", "prompt"),
}


def detect_file_kind(file: str) -> tuple[str, str]:
    """The layout of a file and the kind of its rows, from its name and its first row.

    Rows are `pairs`, `passages`, `conversations`, `judgements` or `documents`.

    Raises:
        UserError: when the first row is in no known layout.
    """
    if file_format(file).extension in DOCUMENT_EXTENSIONS:
        return "text", "documents"
    if _headerless_columns(file, TRIPLE_COLUMNS):
        return "msmarco", "pairs"
    if _headerless_columns(file, PASSAGE_COLUMNS):
        return "msmarco", "passages"
    where, row = next(read_rows(file, on_bad_row=SkippedRows(skip_bad_rows=True).on_bad_row))
    if {"query-id", "corpus-id"} <= row.keys():
        return "beir", "judgements"
    if "messages" in row or "completion" in row or isinstance(row.get("text"), list):
        return "turns" if "completion" not in row else "completion", "conversations"
    has_query = bool({"query", "anchor", "positive"} & row.keys())
    if not has_query and {"text", "contents", "passage"} & row.keys():
        return "beir" if "_id" in row else "text", "passages"
    return detect_layout(row, where).name, "pairs"


def read_pairs(
    file: Path | str,
    *,
    layout: str | None = None,
    min_score: float | None = None,
    instruction: str | None = None,
    skipped: SkippedRows | None = None,
) -> Iterator[Pair]:
    """Pairs of a file in a layout of `layouts.LAYOUTS`, or of text triples without a header.

    A query with several positives gives as many pairs.

    Args:
        layout: name of the layout; None detects it from the first row.
        min_score: skips pairs with lower scores.
        instruction: skips pairs whose row names another task.
        skipped: counts skipped rows, and decides whether bad rows are skipped.

    Raises:
        UserError: at the first bad row unless they are skipped, or when there is no row.
    """
    skipped = skipped or SkippedRows()
    for where, labelled in read_labelled_pairs(file, layout=layout, on_bad_row=skipped.on_bad_row):
        if labelled.graded and min_score is None:
            raise UserError(
                where,
                "has a score, and no minimum score of training pairs is set",
                "Set min_score on the source",
            )
        if min_score is not None and labelled.score is not None and labelled.score < min_score:
            skipped.count("below_min_score")
        elif instruction is not None and labelled.instruction != instruction:
            skipped.count("other_instruction")
        else:
            yield labelled.pair


def read_labelled_pairs(
    file: Path | str, *, layout: str | None = None, on_bad_row: OnBadRow = raise_bad_row
) -> Iterator[tuple[str, LabelledPair]]:
    """(where, pair with its score and instruction) of every pair; see `read_pairs`."""
    file = str(file)
    known = None if layout is None else LAYOUTS[layout]

    def parse(row: Fields, where: str) -> list[tuple[str, LabelledPair]]:
        nonlocal known
        known = known or detect_layout(row, where)
        return [(where, labelled) for labelled in known.parse(row, where)]

    columns = _headerless_columns(file, TRIPLE_COLUMNS) if layout is None else None
    rows = read_rows(file, columns=columns, on_bad_row=on_bad_row)
    for pairs in _parse_rows(rows, file, parse, on_bad_row):
        yield from pairs


def read_passages(file: Path | str, *, skipped: SkippedRows | None = None) -> Iterator[str]:
    """Passages of a file; empty ones of a collection are skipped.

    The file has rows with `text` (or `passage`, `contents`) and perhaps `title`; or is a .tsv of
    ids and texts without a header; or a .txt with a passage a line.

    Args:
        skipped: counts skipped rows, and decides whether bad rows are skipped.

    Raises:
        UserError: at the first bad row unless they are skipped, or when there is no row.
    """
    file, skipped = str(file), skipped or SkippedRows()
    on_bad_row = skipped.on_bad_row
    if file_format(file).extension == ".txt":
        rows: Iterator[Row] = (
            (where, {"text": line}) for where, line in read_lines(file, on_bad_row) if line.strip()
        )
    else:
        columns = _headerless_columns(file, PASSAGE_COLUMNS)
        rows = read_rows(file, columns=columns, on_bad_row=on_bad_row)
    for text in _parse_rows(rows, file, _parse_passage, on_bad_row):
        if text:
            yield text
        else:
            skipped.count("empty")


def read_conversations(
    file: Path | str, *, skipped: SkippedRows | None = None
) -> Iterator[Conversation]:
    """Conversations of a file, in the forms of `conversations.parse_conversation`.

    Args:
        skipped: counts skipped rows, and decides whether bad rows are skipped.

    Raises:
        UserError: at the first bad row unless they are skipped, or when there is no row.
    """
    file, on_bad_row = str(file), (skipped or SkippedRows()).on_bad_row
    rows = read_rows(file, on_bad_row=on_bad_row)
    yield from _parse_rows(rows, file, parse_conversation, on_bad_row)


def _parse_passage(row: Fields, where: str) -> str:
    field = next((name for name in ("text", "contents") if name in row), "passage")
    return titled_text_field(row, field, where)


def _parse_rows(
    rows: Iterator[Row], file: str, parse: Callable[[Fields, str], Record], on_bad_row: OnBadRow
) -> Iterator[Record]:
    """The parsed rows, without the bad ones.

    Raises:
        UserError: when no row is left.
    """
    first_error: UserError | None = None
    any_row = False
    for where, row in rows:
        try:
            record = parse(row, where)
        except UserError as error:
            on_bad_row(error)
            first_error = first_error or error
            continue
        any_row = True
        yield record
    if not any_row:
        raise no_rows_error(file, first_error)


def _headerless_columns(file: str, columns: tuple[str, ...]) -> tuple[str, ...] | None:
    """The columns, if the file is a .tsv with this number of columns and no header."""
    if file_format(file).extension != ".tsv":
        return None
    _, first_line = next(read_lines(file), ("", ""))
    cells = first_line.split("\t")
    is_header = HEADER_NAMES & set(cells) or all(count_words(cell) < 3 for cell in cells)
    return None if is_header or len(cells) != len(columns) else columns

"""Files → pairs, passages and conversations, one row in memory at a time.

Every error names the file and the line.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from stillroom.data.readers.columns import PASSAGE_FIELDS, QUERY_FIELDS, RowScore, find_score
from stillroom.data.readers.conversations import parse_conversation
from stillroom.data.readers.fields import Fields, is_number, titled_text_field
from stillroom.data.readers.layouts import (
    LAYOUTS,
    LabelledPair,
    detect_layout,
    has_pair_fields,
    parse_row,
)
from stillroom.data.readers.locations import DOCUMENT_EXTENSIONS, file_format
from stillroom.data.readers.records import (
    Conversation,
    OnBadRow,
    Pair,
    SkippedRows,
    raise_bad_row,
)
from stillroom.data.readers.rows import no_rows_error, read_lines, read_rows
from stillroom.data.readers.tables import Row
from stillroom.data.text.words import count_words
from stillroom.errors import UserError

Record = TypeVar("Record")

# Columns of MS MARCO's files, which have no header.
TRIPLE_COLUMNS = ("query", "positive", "negative")

PASSAGE_COLUMNS = ("pid", "text")

# A first line with one of these is a header.
HEADER_NAMES = {
    *(*QUERY_FIELDS, *PASSAGE_FIELDS),
    *("positive", "text", "contents", "pos", "positive_passages", "prompt"),
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
    if not has_pair_fields(row) and {"text", "contents", "passage"} & row.keys():
        return "beir" if "_id" in row else "text", "passages"
    return detect_layout(row, where).name, "pairs"


def read_pairs(
    file: Path | str,
    *,
    layout: str | None = None,
    min_score: float | None = None,
    score_field: str | None = None,
    instruction: str | None = None,
    skipped: SkippedRows | None = None,
) -> Iterator[Pair]:
    """Pairs of a file in a layout of `layouts.LAYOUTS`, or of text triples without a header.

    A query with several positives gives as many pairs.

    Args:
        layout: name of the layout; None detects it from the first row.
        min_score: skips pairs with lower scores.
        score_field: the column of the score; None finds it by its name.
        instruction: skips pairs whose row names another task.
        skipped: counts skipped rows, and decides whether bad rows are skipped.

    Raises:
        UserError: at the first bad row unless they are skipped, or when there is no row.
    """
    skipped = skipped or SkippedRows()
    rows = read_labelled_pairs(
        file, layout=layout, score_field=score_field, on_bad_row=skipped.on_bad_row
    )
    for where, labelled in rows:
        _require_usable_score(labelled, where, min_score)
        if min_score is not None and (labelled.score or 0.0) < min_score:
            skipped.count("below_min_score")
        elif instruction is not None and labelled.instruction != instruction:
            skipped.count("other_instruction")
        else:
            yield labelled.pair


def _require_usable_score(labelled: LabelledPair, where: str, min_score: float | None) -> None:
    """Raises an error for a score that is not used, and for a missing one that should be."""
    if labelled.graded and min_score is None:
        raise _missing_min_score(labelled.score_field, where)
    if labelled.score is None and min_score is not None:
        problem = "has no score, and a minimum score is set"
        fix = "Set score_field to its column, or give files without scores a source of their own"
        raise UserError(where, problem, fix)


def _missing_min_score(field: str, where: str) -> UserError:
    problem = f"has a score in {field!r}, and no minimum score is set"
    return UserError(where, problem, "Set min_score on the source, or --min-score")


def read_labelled_pairs(
    file: Path | str,
    *,
    layout: str | None = None,
    score_field: str | None = None,
    on_bad_row: OnBadRow = raise_bad_row,
) -> Iterator[tuple[str, LabelledPair]]:
    """(where, pair with its score and instruction) of every pair; see `read_pairs`."""
    file = str(file)
    known = None if layout is None else LAYOUTS[layout]

    def parse(row: Fields, where: str) -> list[tuple[str, LabelledPair]]:
        nonlocal known
        known = known or detect_layout(row, where)
        return [(where, labelled) for labelled in parse_row(row, where, known, score_field)]

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
    file: Path | str,
    *,
    min_score: float | None = None,
    score_field: str | None = None,
    skipped: SkippedRows | None = None,
) -> Iterator[Conversation]:
    """Conversations of a file, in the forms of `conversations.parse_conversation`.

    Args:
        min_score: skips conversations with lower scores.
        score_field: the column of the score; None finds it by its name.
        skipped: counts skipped rows, and decides whether bad rows are skipped.

    Raises:
        UserError: at the first bad row unless they are skipped, when there is no row, or when
            rows have a score and no minimum is set.
    """
    file, skipped = str(file), skipped or SkippedRows()

    def parse(row: Fields, where: str) -> tuple[str, Conversation, RowScore | None]:
        field = score_field if score_field in row else None
        return where, parse_conversation(row, where), find_score(row, where, field)

    rows = read_rows(file, on_bad_row=skipped.on_bad_row)
    for where, conversation, score in _parse_rows(rows, file, parse, skipped.on_bad_row):
        if score is not None and min_score is None:
            raise _missing_min_score(score.field, where)
        if score is not None and min_score is not None and min(score.values, default=0) < min_score:
            skipped.count("below_min_score")
        else:
            yield conversation


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
    """The columns, if the file is a .tsv with this number of columns and no header.

    Raises:
        UserError: when a number is where a text should be.
    """
    if file_format(file).extension != ".tsv":
        return None
    where, first_line = next(read_lines(file), ("", ""))
    cells = first_line.split("\t")
    is_header = HEADER_NAMES & {cell.strip('"') for cell in cells} or all(
        count_words(cell) < 3 for cell in cells
    )
    if is_header or len(cells) != len(columns):
        return None
    for cell, name in zip(cells[1:], columns[1:], strict=True):
        if is_number(cell):
            problem = f"has no header, and the number {cell} in the place of its {name}"
            raise UserError(where, problem, "Give it a header, such as: query, positive, score")
    return columns

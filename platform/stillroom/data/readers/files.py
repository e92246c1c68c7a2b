"""Files → records. Every error names the file and the line; nothing is held but a row."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from stillroom.data.readers.beir import read_beir, write_beir
from stillroom.data.readers.layouts import (
    LAYOUTS,
    NAMED,
    Fields,
    Labelled,
    conversation_of,
    layout_of,
    passage_of,
)
from stillroom.data.readers.locations import DOCUMENTS, form_of
from stillroom.data.readers.records import Conversation, EvaluationSet, LeftOut, Pair, Refuse, fail
from stillroom.data.readers.rows import Row, read_lines, read_rows
from stillroom.errors import UserError

__all__ = [
    "Conversation",
    "EvaluationSet",
    "LeftOut",
    "Pair",
    "kind_of",
    "read_beir",
    "read_conversations",
    "read_labelled",
    "read_pairs",
    "read_passages",
    "write_beir",
]

Record = TypeVar("Record")

# Columns of MS MARCO's files, which have no header.
TRIPLE = ("query", "positive", "negative")

PASSAGE = ("pid", "text")

# A first line with one of these is a header.
HEADERS = {"query", "positive", "passage", "text", "contents", "pos", "positive_passages", "prompt"}

HEADERS |= {name for pair in NAMED for name in pair}


def kind_of(file: str) -> tuple[str, str]:
    """The layout of a file, and what its rows are: pairs, passages, conversations, judgements or
    documents; as its name and its first row tell.

    Raises:
        UserError: when they tell nothing.
    """
    if form_of(file).kind in DOCUMENTS:
        return "text", "documents"
    if _columns(file, TRIPLE):
        return "msmarco", "pairs"
    if _columns(file, PASSAGE):
        return "msmarco", "passages"
    where, row = next(read_rows(file, refuse=LeftOut(skip=True).refuse))
    if {"query-id", "corpus-id"} <= row.keys():
        return "beir", "judgements"
    if "messages" in row or "completion" in row or isinstance(row.get("text"), list):
        return "turns" if "completion" not in row else "completion", "conversations"
    if (
        not {"query", "anchor", "positive"} & row.keys()
        and {"text", "contents", "passage"} & row.keys()
    ):
        return "beir" if "_id" in row else "text", "passages"
    return layout_of(row, where).name, "pairs"


def read_pairs(
    file: Path | str,
    *,
    layout: str | None = None,
    min_score: float | None = None,
    instruction: str | None = None,
    left_out: LeftOut | None = None,
) -> Iterator[Pair]:
    """Pairs of a file in a layout of `layouts.LAYOUTS`, or of text triples without a header.

    A query with several positives makes as many pairs.

    Args:
        layout: its name; None: as the first row's fields tell.
        min_score: pairs that score less are left out.
        instruction: pairs whose row has another are left out.
        left_out: counts what is left out; whether a wrong row is, its `skip` says.

    Raises:
        UserError: at the first row that is none, or when there is no row.
    """
    rest = left_out or LeftOut()
    for where, found in read_labelled(file, layout=layout, refuse=rest.refuse):
        if found.graded and min_score is None:
            raise UserError(
                where,
                "has a score, and nothing says which scores are of pairs to train on",
                "Set min_score on the source",
            )
        if min_score is not None and found.score is not None and found.score < min_score:
            rest.drop("below_min_score")
        elif instruction is not None and found.instruction != instruction:
            rest.drop("other_instruction")
        else:
            yield found.pair


def read_labelled(
    file: Path | str, *, layout: str | None = None, refuse: Refuse = fail
) -> Iterator[tuple[str, Labelled]]:
    """(where, pair as its layout has it) of every pair."""
    file = str(file)
    known = None if layout is None else LAYOUTS[layout]

    def pairs_of(row: Fields, where: str) -> list[tuple[str, Labelled]]:
        nonlocal known
        known = known or layout_of(row, where)
        return [(where, found) for found in known.pairs(row, where)]

    columns = _columns(file, TRIPLE) if layout is None else None
    for found in _records(read_rows(file, columns=columns, refuse=refuse), file, pairs_of, refuse):
        yield from found


def read_passages(file: Path | str, *, left_out: LeftOut | None = None) -> Iterator[str]:
    """Passages of a file with `text` (or `passage`, `contents`) and perhaps `title`; of a .tsv of
    ids and texts without a header; or the lines of a .txt.

    A collection's empty texts are left out.

    Raises:
        UserError: at the first row that is none, or when there is no row.
    """
    file, rest = str(file), left_out or LeftOut()
    refuse = rest.refuse
    if form_of(file).kind == ".txt":
        rows: Iterator[Row] = (
            (where, {"text": line}) for where, line in read_lines(file, refuse) if line.strip()
        )
    else:
        rows = read_rows(file, columns=_columns(file, PASSAGE), refuse=refuse)
    for text in _records(rows, file, passage_of, refuse):
        if text:
            yield text
        else:
            rest.drop("empty")


def read_conversations(
    file: Path | str, *, left_out: LeftOut | None = None
) -> Iterator[Conversation]:
    """Conversations of a file; `layouts.conversation_of` says in which forms.

    Raises:
        UserError: at the first row that is none, or when there is no row.
    """
    file, refuse = str(file), (left_out or LeftOut()).refuse
    yield from _records(read_rows(file, refuse=refuse), file, conversation_of, refuse)


def _records(
    rows: Iterator[Row], file: str, record: Callable[[Fields, str], Record], refuse: Refuse
) -> Iterator[Record]:
    """What the rows are, without those that are nothing.

    Raises:
        UserError: when there is no row, or every one of them was refused: it is the file then, or
            what it is taken for, that is wrong.
    """
    first: UserError | None = None
    none = True
    for where, row in rows:
        try:
            found = record(row, where)
        except UserError as fault:
            refuse(fault)
            first = first or fault
            continue
        none = False
        yield found
    if none and first is not None:
        raise UserError(
            file, f"has no right row; the first, {first.where}, {first.problem}", first.fix
        )
    if none:
        raise UserError(file, "is empty", "Give at least one row")


def _columns(file: str, columns: tuple[str, ...]) -> tuple[str, ...] | None:
    """The columns, where a .tsv has as many and its first line is text, not their names."""
    if form_of(file).kind != ".tsv":
        return None
    _, first = next(read_lines(file), ("", ""))
    cells = first.split("\t")
    named = HEADERS & set(cells) or all(len(cell.split()) < 3 for cell in cells)
    return None if named or len(cells) != len(columns) else columns

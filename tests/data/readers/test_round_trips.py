"""Rows with odd values, written in every layout and format, are read back or refused by name."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.readers.beir import read_beir, write_beir
from stillroom.data.readers.files import read_pairs
from stillroom.data.readers.records import EvaluationSet, Pair, SkippedRows
from support.row_files import FILE_NAMES, write_rows

ODD = st.text(
    st.sampled_from("ab \t\r\n\",'[]{}\\:;\ufeff\x00\u2028\x85é\U0001f600|#0"), max_size=8
)
TEXTS = ODD.map(lambda text: f"x{text}y").filter(str.strip)
PAIRS = st.lists(
    st.builds(Pair, TEXTS, TEXTS, st.tuples(TEXTS, TEXTS)), min_size=1, max_size=4
)  # fmt: skip


def documents(*texts: str) -> list[dict[str, str]]:
    return [{"docid": str(i), "title": "", "text": text} for i, text in enumerate(texts)]


# Layout → a pair's row in it, and whether it fits in tables, whose lists are JSON.
ROWS: dict[str, tuple[Callable[[Pair], dict[str, Any]], bool]] = {
    "plain": (
        lambda p: {"query": p.query, "passage": p.passage, "negatives": [*p.negatives]}, True,
    ),
    "triplets": (
        lambda p: dict(zip(("anchor", "positive", "negative_1", "negative_2"),
                           (p.query, p.passage, *p.negatives), strict=True)), True,
    ),
    "named": (
        lambda p: dict(zip(("question", "answer", "neg_1", "hard_negative"),
                           (p.query, p.passage, *p.negatives), strict=True)), True,
    ),
    "flag-embedding": (
        lambda p: {"query": p.query, "pos": [p.passage], "neg": [*p.negatives]}, True,
    ),
    "gritlm": (
        lambda p: {"query": ["do", p.query], "pos": [["", p.passage]],
                   "neg": [["", text] for text in p.negatives]}, False,
    ),
    "tevatron": (
        lambda p: {"query": p.query, "positive_passages": documents(p.passage.strip()),
                   "negative_passages": documents(*map(str.strip, p.negatives))}, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", ROWS)
@settings(max_examples=12, deadline=None)
@given(pairs=PAIRS)
def test_odd_texts_come_back_from_every_layout_and_format(tmp_path_factory, layout, pairs):
    as_row, fits_tables = ROWS[layout]
    folder = tmp_path_factory.mktemp("rows")
    for name in FILE_NAMES:
        if fits_tables or not name.endswith((".csv", ".tsv")):
            file = write_rows(folder / name, [as_row(pair) for pair in pairs])
            assert list(read_pairs(file)) == pairs, name


VALUES = st.one_of(
    TEXTS, st.none(), st.just(""), st.just("  "), st.integers(), st.floats(), st.booleans(),
    st.just("\ud83d"), st.lists(st.one_of(TEXTS, st.none(), st.integers()), max_size=2),
    st.dictionaries(TEXTS, TEXTS, max_size=1),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"query": VALUES, "positive": VALUES, "n": st.integers()},
            optional={"negatives": VALUES, "negative": VALUES, "label": VALUES},
        ),
        max_size=4,
    )
)
def test_every_row_is_a_pair_as_it_was_written_or_is_counted(tmp_path_factory, rows):
    rows = [{"query": "q", "positive": "p"}, *rows]  # a file of only bad rows is an error
    rows = [{"label": 1, **row} for row in rows]
    file = tmp_path_factory.mktemp("rows") / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipped = SkippedRows(skip_bad_rows=True)
    pairs = list(read_pairs(file, min_score=0.5, skipped=skipped))
    for pair in pairs:
        [*positives] = (row["positive"] for row in rows if row["query"] == pair.query)
        assert any(pair.passage in (text if isinstance(text, list) else [text])
                   for text in positives)  # fmt: skip
    further = sum(
        max(0, len(row["positive"]) - 1) for row in rows if isinstance(row["positive"], list)
    )
    assert len(rows) <= len(pairs) + skipped.counts.total() <= len(rows) + further


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(TEXTS.map(str.strip), TEXTS.map(str.strip), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_an_evaluation_set_with_odd_ids_and_texts_comes_back(tmp_path_factory, texts, grade):
    ids = list(texts)
    written = EvaluationSet(
        texts, texts, {id: {ids[0]: grade, **({id: 0} if id != ids[0] else {})} for id in ids},
        missing={ids[0]: {"not there": grade}},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("set")
    write_beir(written, folder)
    assert read_beir(folder) == written

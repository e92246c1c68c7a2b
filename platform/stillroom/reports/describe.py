"""`stillroom data describe`: the content of a file or folder of data, as plain data, tables and a
page.

Memory is bounded: only samples and hashes of texts are kept.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stillroom.config.languages import LANGUAGES
from stillroom.data.readers.documents import CountTokens, split_paragraphs
from stillroom.data.readers.files import (
    detect_file_kind,
    read_conversations,
    read_labelled_pairs,
    read_passages,
)
from stillroom.data.readers.layouts import LabelledPair
from stillroom.data.readers.locations import DATA_EXTENSIONS, DOCUMENT_EXTENSIONS, find_files
from stillroom.data.readers.records import SkippedRows
from stillroom.data.readers.rows import read_lines, read_rows
from stillroom.data.text.words import count_words
from stillroom.errors import UserError, beginning
from stillroom.reports.page import render_page
from stillroom.reports.text_statistics import PERCENTILES, TextStatistics, reservoir_slot

EXAMPLES = 5
EXAMPLE_CHARACTERS = 500
MAX_INSTRUCTIONS = 1000  # that are counted separately
SHOWN_INSTRUCTIONS = 20


class Row(NamedTuple):
    """What a row is, its texts by field, and what else a pair has."""

    kind: str
    texts: dict[str, list[str]]
    labelled: LabelledPair | None = None


class _Collector:
    """Counts, statistics and examples of the rows read so far."""

    def __init__(self, length: CountTokens):
        self.length = length
        self.random = random.Random(0)
        self.fields: dict[str, TextStatistics] = {}
        self.rows: Counter[str] = Counter()
        self.instructions: Counter[str] = Counter()
        self.examples: list[dict[str, str]] = []
        self.scores: dict[str, dict[str, Any]] = {}

    def add(self, row: Row) -> None:
        kind, texts, labelled = row
        slot = reservoir_slot(self.random, self.rows.total(), EXAMPLES)
        self.rows[kind] += 1
        if slot is not None and texts:
            example = {
                name: beginning(first[0], EXAMPLE_CHARACTERS)
                for name, first in texts.items()
                if first
            }
            self.examples[slot : slot + 1] = [example]
        for name, field_texts in texts.items():
            statistics = self.fields.setdefault(name, TextStatistics(self.random))
            for text in field_texts:
                statistics.add(text, self.length)
        if labelled is None:
            return
        if labelled.score is not None:
            self._add_score(labelled.score_field, labelled.score, labelled.graded)
        instruction = labelled.instruction
        known = instruction in self.instructions or len(self.instructions) < MAX_INSTRUCTIONS
        if instruction and known:
            self.instructions[instruction] += 1

    def _add_score(self, field: str, value: float, decides: bool) -> None:
        first = {"pairs": 0, "lowest": value, "highest": value, "min_score_required": False}
        scores = self.scores.setdefault(field, first)
        scores["pairs"] += 1
        scores["lowest"] = min(scores["lowest"], value)
        scores["highest"] = max(scores["highest"], value)
        scores["min_score_required"] |= decides


def describe(
    location: str,
    *,
    model: str | None = None,
    count: CountTokens | None = None,
    inputs: Mapping[str, str] | None = None,
    unknown_share: Callable[[Sequence[str]], float] | None = None,
) -> dict[str, Any]:
    """Describes the data at a location, in any format; invalid rows are counted and listed.

    Args:
        model: name of the model whose tokens `count` counts; without either, lengths are in words.
        inputs: what that model reads of a query and of a passage.
        unknown_share: the share of texts' letters that its tokenizer does not know.

    Returns:
        `files` (each with its layout and what its rows are), `rows` (kind → number), `left_out`,
        `fields` (numbers of texts, distinct and repeated ones, lengths, histogram, language,
        scripts, and words and characters by script), `negatives_per_pair`, `scores` (column →
        number of pairs, lowest, highest, and whether training needs a `min_score`), `instructions`,
        `inputs` and `examples`. Lengths, language and scripts are of a random sample of each field.

    Raises:
        UserError: when nothing can be read.
    """
    collector = _Collector(count or count_words)
    skipped = SkippedRows(skip_bad_rows=True)
    files: list[dict[str, Any]] = []
    unreadable: list[UserError] = []
    extensions = tuple(dict.fromkeys((*DATA_EXTENSIONS, *DOCUMENT_EXTENSIONS)))
    for file in find_files(location, extensions):
        before = collector.rows.total()
        layout, kind = "unknown", "nothing"
        try:
            layout, kind = detect_file_kind(file)
            for row in _read(file, kind, skipped):
                collector.add(row)
        except UserError as error:  # of the file, not of a row: other files may be readable
            unreadable.append(error)
            skipped.on_bad_row(error)
        rows = collector.rows.total() - before
        files.append({"file": file, "layout": layout, "kind": kind, "rows": rows})
    if unreadable and not collector.rows:
        raise unreadable[0]
    fields, pairs = collector.fields, collector.rows["pairs"]
    negatives = fields["negative"].count if "negative" in fields else 0
    return {
        "location": location,
        "unit": "words" if count is None else f"tokens of {model}",
        "files": files,
        "rows": dict(collector.rows),
        "left_out": {"counts": dict(skipped.counts), "wrong": skipped.bad_rows},
        "fields": {
            name: texts.summary()
            | ({} if unknown_share is None else {"unknown": unknown_share(texts.beginnings)})
            for name, texts in fields.items()
            if texts.count
        },
        "negatives_per_pair": round(negatives / pairs, 2) if pairs else None,
        "scores": collector.scores,
        "instructions": dict(collector.instructions.most_common(SHOWN_INSTRUCTIONS)),
        "inputs": dict(inputs or {}),
        "examples": collector.examples,
    }


def _read(file: str, kind: str, skipped: SkippedRows) -> Iterator[Row]:
    if kind == "pairs":
        for _, labelled in read_labelled_pairs(file, on_bad_row=skipped.on_bad_row):
            pair = labelled.pair
            texts = {"query": [pair.query], "positive": [pair.passage]}
            texts["negative"] = list(pair.negatives)
            yield Row("pairs", texts, labelled)
    elif kind == "conversations":
        for conversation in read_conversations(file, min_score=-math.inf, skipped=skipped):
            texts = {"prompt": [conversation.prompt], "completion": [conversation.completion]}
            yield Row("conversations", texts)
    elif kind == "passages":
        queries = file.rpartition("/")[2].startswith("queries.")  # as BEIR and MS MARCO name them
        row_kind, name = ("queries", "query") if queries else ("passages", "passage")
        for text in read_passages(file, skipped=skipped):
            yield Row(row_kind, {name: [text]})
    elif kind == "documents":
        lines = (line for _, line in read_lines(file, skipped.on_bad_row))
        for text in split_paragraphs(lines):
            yield Row("paragraphs", {"paragraph": [text]})
    else:
        for _ in read_rows(file, on_bad_row=skipped.on_bad_row):
            yield Row("judgements", {})


def description_tables(description: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, rows of text with the header first) of everything but the examples."""
    files = Counter((file["layout"], file["kind"]) for file in description["files"])
    rows = Counter[tuple[str, str]]()
    for file in description["files"]:
        rows[file["layout"], file["kind"]] += file["rows"]
    yield (
        "files",
        [
            ["layout", "of", "files", "rows"],
            *([*key, f"{n:,}", f"{rows[key]:,}"] for key, n in files.items()),
        ],
    )
    has_unknown = any("unknown" in texts for texts in description["fields"].values())
    header = ["field", "texts", "distinct", "repeated", "mean", *(f"p{p}" for p in PERCENTILES)]
    yield (
        f"texts, lengths in {description['unit']}",
        [
            [*header, "longest"],
            *(_field_row(*item) for item in description["fields"].items()),
        ],
    )
    yield (
        "languages, scripts and mean lengths",
        [
            [
                *("field", "language", *(["unknown letters"] if has_unknown else [])),
                *("script", "texts", "words", "characters"),
            ],
            *(row for item in description["fields"].items() for row in _script_rows(*item)),
        ],
    )
    if description["scores"]:
        scores = [
            [
                field,
                f"{values['pairs']:,}",
                f"{values['lowest']:g}",
                f"{values['highest']:g}",
                "must be set" if values["min_score_required"] else "may be set",
            ]
            for field, values in description["scores"].items()
        ]
        yield "scores", [["column", "pairs", "lowest", "highest", "min_score"], *scores]
    left_out = description["left_out"]
    if left_out["counts"]:
        counts = left_out["counts"].items()
        yield "left out", [["why", "rows"], *([why, f"{n:,}"] for why, n in counts)]
    if left_out["wrong"]:
        invalid = [[row["where"], row["problem"]] for row in left_out["wrong"]]
        yield "invalid rows", [["where", "problem"], *invalid]
    if description["inputs"]:
        rows_of_inputs = [[role, text] for role, text in description["inputs"].items()]
        yield "what the model reads", [["role", "prompt and tokens"], *rows_of_inputs]
    if description["instructions"]:
        instructions = [[text, f"{n:,}"] for text, n in description["instructions"].items()]
        yield "instructions", [["instruction", "pairs"], *instructions]


def _field_row(name: str, texts: Mapping[str, Any]) -> list[str]:
    about = "" if texts["exact"] else "≈ "
    return [
        name,
        f"{texts['texts']:,}",
        f"{about}{texts['distinct']:,}",
        f"{about}{texts['repeated']:,}",
        *(f"{length:,}" for length in texts["lengths"].values()),
    ]


def _script_rows(name: str, texts: Mapping[str, Any]) -> Iterator[list[str]]:
    unknown = texts.get("unknown")
    for script, share in texts["scripts"].items():
        lengths = texts["by_script"][script]
        yield [
            name,
            LANGUAGES[texts["language"]],
            *([] if unknown is None else [f"{unknown:.1%}"]),
            script,
            f"{share:.0%}" if share >= 0.01 else f"{share:.2%}",
            f"{lengths['words']:,}",
            f"{lengths['characters']:,}",
        ]


def render_description(description: Mapping[str, Any]) -> str:
    """The page of a description."""
    return render_page(
        "describe.html", description=description, tables=list(description_tables(description))
    )

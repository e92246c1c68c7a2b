"""What data is like before anything is trained on it: as plain data, as tables, as a page.

Memory is bounded: of texts only samples and hashes are kept.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.readers.documents import Count, paragraphs
from stillroom.data.readers.files import kind_of, read_conversations, read_labelled, read_passages
from stillroom.data.readers.locations import DATA, DOCUMENTS, find_files
from stillroom.data.readers.records import LeftOut
from stillroom.data.readers.rows import read_lines, read_rows
from stillroom.errors import UserError
from stillroom.reports.render import PAGE

SAMPLE = 4096  # texts of a field whose lengths and scripts are taken

HASHES = 1 << 17  # of a field; above as many distinct texts their number is estimated

EXAMPLES = 5

SHOWN = 500  # letters of an example

INSTRUCTIONS = 1000  # that are told apart

BINS = 24

PERCENTILES = (5, 50, 95, 99)

Seen = tuple[str, dict[str, list[str]], str]  # what a row is, its texts by field, its instruction


class Distinct:
    """How many different texts there are: exact up to `limit`, then estimated.

    Keeps the hashes that end in so many zero bits that they are at most `limit`: distinct
    sampling (Gibbons, 2001), with a standard error of about 1 / sqrt(limit / 2).
    """

    def __init__(self, limit: int = HASHES):
        self.limit = limit
        self.mask = 0
        self.kept: set[int] = set()

    def add(self, text: str) -> None:
        key = int(text_key(text)[:16], 16)
        if key & self.mask:
            return
        self.kept.add(key)
        while len(self.kept) > self.limit:
            self.mask = self.mask << 1 | 1
            self.kept = {key for key in self.kept if not key & self.mask}

    @property
    def exact(self) -> bool:
        return self.mask == 0

    def __len__(self) -> int:
        return len(self.kept) * (self.mask + 1)


@dataclass
class Texts:
    """What is kept of a field's texts."""

    random: random.Random
    count: int = 0
    distinct: Distinct = field(default_factory=Distinct)
    lengths: list[int] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)

    def add(self, text: str, length: Count) -> None:
        self.distinct.add(text)
        place = _place(self.random, self.count, SAMPLE)
        self.count += 1
        if place is not None:
            self.lengths[place : place + 1] = [length(text)]
            self.scripts[place : place + 1] = [script_of(text)]

    def summary(self) -> dict[str, Any]:
        lengths = np.array(self.lengths)
        distinct = min(self.count, len(self.distinct))
        longest = int(np.percentile(lengths, 99)) + 1
        counts, edges = np.histogram(np.minimum(lengths, longest), min(BINS, longest), (0, longest))
        shares = Counter(self.scripts).most_common()
        return {
            "texts": self.count,
            "distinct": distinct,
            "repeated": self.count - distinct,
            "exact": self.distinct.exact,
            "lengths": {
                "mean": round(float(lengths.mean()), 1),
                **{f"p{p}": int(np.percentile(lengths, p)) for p in PERCENTILES},
                "longest": int(lengths.max()),
            },
            "histogram": [
                [round(float(low), 1), round(float(high), 1), int(count)]
                for low, high, count in zip(edges, edges[1:], counts, strict=False)
            ],
            "scripts": {name: round(count / len(self.scripts), 4) for name, count in shares},
        }


def describe(place: str, *, model: str | None = None, count: Count | None = None) -> dict[str, Any]:
    """What there is at a place, whatever its format; wrong rows are counted and listed.

    Args:
        model: whose tokens `count` counts; without either, lengths are in words.

    Returns:
        `files` (each with its layout and what its rows are), `rows` by what they are,
        `left_out`, `fields` (texts, distinct and repeated ones, lengths, histogram, scripts),
        `negatives_per_pair`, `instructions` and `examples`. Lengths and scripts are of a random
        sample of SAMPLE texts a field.

    Raises:
        UserError: when there is nothing to read.
    """
    length = count or (lambda text: len(text.split()))
    chance = random.Random(0)
    fields: dict[str, Texts] = {}
    rows: Counter[str] = Counter()
    instructions: Counter[str] = Counter()
    examples: list[dict[str, str]] = []
    left_out = LeftOut(skip=True)
    files: list[dict[str, Any]] = []
    unread: list[UserError] = []
    for file in find_files(place, tuple(dict.fromkeys((*DATA, *DOCUMENTS)))):
        before = rows.total()
        layout, kind = "unknown", "nothing"
        try:
            layout, kind = kind_of(file)
            for what, texts, instruction in _read(file, kind, left_out):
                at = _place(chance, rows.total(), EXAMPLES)
                rows[what] += 1
                if at is not None and texts:
                    shown = {name: own[0][:SHOWN] for name, own in texts.items() if own}
                    examples[at : at + 1] = [shown]
                for name, own in texts.items():
                    kept = fields.setdefault(name, Texts(chance))
                    for text in own:
                        kept.add(text, length)
                if instruction and (
                    instruction in instructions or len(instructions) < INSTRUCTIONS
                ):
                    instructions[instruction] += 1
        except UserError as fault:  # of the file, not of a row: others may still be read
            unread.append(fault)
            left_out.refuse(fault)
        files.append({"file": file, "layout": layout, "kind": kind, "rows": rows.total() - before})
    if unread and not rows:
        raise unread[0]
    negatives = fields["negative"].count if "negative" in fields else 0
    return {
        "place": place,
        "unit": "words" if count is None else f"tokens of {model}",
        "files": files,
        "rows": dict(rows),
        "left_out": {"counts": dict(left_out.counts), "wrong": left_out.wrong},
        "fields": {name: texts.summary() for name, texts in fields.items() if texts.count},
        "negatives_per_pair": round(negatives / rows["pairs"], 2) if rows["pairs"] else None,
        "instructions": dict(instructions.most_common(20)),
        "examples": examples,
    }


def _read(file: str, kind: str, left_out: LeftOut) -> Iterator[Seen]:
    if kind == "pairs":
        for _, found in read_labelled(file, refuse=left_out.refuse):
            pair = found.pair
            texts = {"query": [pair.query], "positive": [pair.passage]}
            texts["negative"] = list(pair.negatives)
            yield "pairs", texts, found.instruction
    elif kind == "conversations":
        for one in read_conversations(file, left_out=left_out):
            yield "conversations", {"prompt": [one.prompt], "completion": [one.completion]}, ""
    elif kind == "passages":
        queries = file.rpartition("/")[2].startswith("queries.")  # as BEIR and MS MARCO call them
        what, name = ("queries", "query") if queries else ("passages", "passage")
        for text in read_passages(file, left_out=left_out):
            yield what, {name: [text]}, ""
    elif kind == "documents":
        lines = (line for _, line in read_lines(file, left_out.refuse))
        for text in paragraphs(lines):
            yield "paragraphs", {"paragraph": [text]}, ""
    else:
        for _ in read_rows(file, refuse=left_out.refuse):
            yield "judgements", {}, ""


def _place(chance: random.Random, seen: int, size: int) -> int | None:
    """Where in a random sample of `size` the next goes, when `seen` came before it; or nowhere."""
    place = seen if seen < size else chance.randrange(seen + 1)
    return place if place < size else None


def script_of(text: str) -> str:
    """The script of most of a text's first letters, by their Unicode names; none: `no letters`."""
    found = Counter(filter(None, map(_script, text[:SHOWN])))
    return found.most_common(1)[0][0] if found else "no letters"


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str | None:
    if not letter.isalpha():
        return None
    name = unicodedata.name(letter, "unnamed").split()[0].split("-")[0]
    return {"FULLWIDTH": "LATIN", "HALFWIDTH": "KATAKANA"}.get(name, name).title()


def tables(found: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, rows of text, the header first) of everything but the examples."""
    layouts = Counter((one["layout"], one["kind"]) for one in found["files"])
    of = Counter[tuple[str, str]]()
    for one in found["files"]:
        of[one["layout"], one["kind"]] += one["rows"]
    yield (
        "files",
        [
            ["layout", "of", "files", "rows"],
            *([*key, f"{n:,}", f"{of[key]:,}"] for key, n in layouts.items()),
        ],
    )
    header = ["field", "texts", "distinct", "repeated", "mean", *(f"p{p}" for p in PERCENTILES)]
    yield (
        f"texts, lengths in {found['unit']}",
        [[*header, "longest", "scripts"], *(_row(*item) for item in found["fields"].items())],
    )
    if found["left_out"]["counts"]:
        counts = found["left_out"]["counts"].items()
        yield "left out", [["why", "rows"], *([why, f"{n:,}"] for why, n in counts)]
    if found["left_out"]["wrong"]:
        wrong = [[one["where"], one["problem"]] for one in found["left_out"]["wrong"]]
        yield "wrong rows", [["where", "problem"], *wrong]
    if found["instructions"]:
        told = [[text, f"{n:,}"] for text, n in found["instructions"].items()]
        yield "instructions", [["instruction", "pairs"], *told]


def _row(name: str, texts: Mapping[str, Any]) -> list[str]:
    about = "" if texts["exact"] else "≈ "
    scripts = list(texts["scripts"].items())[:3]
    return [
        name,
        f"{texts['texts']:,}",
        f"{about}{texts['distinct']:,}",
        f"{about}{texts['repeated']:,}",
        *(f"{length:,}" for length in texts["lengths"].values()),
        ", ".join(f"{script} {share:.0%}" for script, share in scripts),
    ]


def page(found: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else."""
    return PAGE.get_template("describe.html").render(found=found, tables=list(tables(found)))

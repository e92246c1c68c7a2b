"""A file of pairs → numbers for a first recipe, and a recipe's YAML with these numbers in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.config.languages import LANGUAGES, UNKNOWN
from stillroom.data.readers.documents import CountTokens
from stillroom.errors import UserError
from stillroom.reports.describe import describe

# Fewer cannot be split into training pairs and a meaningful test set.
MIN_PAIRS = 40

TOKENS_PER_WORD = 1.5  # of English text, rounded up; other languages need more

# Tokens of a query's prompt, start and end, which count as part of the query.
PROMPT_TOKENS = 16

EPOCHS = 3  # of the teacher; the student sees each pair twice as often
ENGLISH = ("en", UNKNOWN)  # UNKNOWN: no letters
ENTRY = re.compile(r"(?P<indent> *)(?P<dash>- )?(?P<key>[\w-]+): *(?P<value>.*)")  # a line of YAML
PLAIN = re.compile(r"[A-Za-z/][\w./-]*")  # a string that needs no quotes


@dataclass(frozen=True)
class PairFacts:
    """Facts about a file of pairs that a recipe has to fit.

    Attributes:
        location: of the file, as the user wrote it.
        pairs: how many there are.
        passages: how many distinct positives there are.
        negatives_per_pair: in the file, on average.
        query_tokens: 95 % of the queries are not longer.
        passage_tokens: 95 % of the positives are not longer.
        measured: whether tokens were counted; otherwise they are estimated from words.
        language: of the positives, a key of LANGUAGES.
        skipped_rows: invalid rows.
        scores: in words, those that decide whether a row is a pair.
    """

    location: str
    pairs: int
    passages: int
    negatives_per_pair: float
    query_tokens: int
    passage_tokens: int
    measured: bool
    language: str
    skipped_rows: int
    scores: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The facts for `init --json`, with `notes` in words."""
        unit = "tokens" if self.measured else "tokens (estimated from words)"
        notes = [
            f"{self.pairs:,} pairs with {self.passages:,} distinct passages and "
            f"{self.negatives_per_pair:g} negatives per pair",
            f"95 % of queries have at most {self.query_tokens:,} {unit}, of passages "
            f"{self.passage_tokens:,}",
        ]
        if self.skipped_rows:
            notes.append(
                f"invalid rows, which would stop the run: {self.skipped_rows:,}. `stillroom data "
                f"describe {self.location}` lists them; correct them, or set on_error: skip"
            )
        if self.scores:
            notes.append(
                f"the rows have scores: {', '.join(self.scores)}. Without "
                "corpus.sources.help.min_score the run stops: set it"
            )
        if self.language not in ENGLISH:
            notes.append(
                f"language of the passages: {LANGUAGES[self.language]}. Both base models know "
                "mainly English: set teacher.base and student.base to multilingual models"
            )
        return {
            "location": self.location,
            "pairs": self.pairs,
            "distinct_passages": self.passages,
            "negatives_per_pair": self.negatives_per_pair,
            "query_tokens_p95": self.query_tokens,
            "passage_tokens_p95": self.passage_tokens,
            "language": self.language,
            "notes": notes,
        }


def describe_pairs(location: str, count: CountTokens | None) -> PairFacts:
    """Reads a file of pairs and measures it.

    Args:
        location: a path, glob, URI or hub:NAME.
        count: counts a text's tokens; None estimates them from words.

    Raises:
        UserError: when there are no pairs, or too few.
    """
    description = describe(location, model="the student" if count else None, count=count)
    fields, pairs = description["fields"], description["rows"].get("pairs", 0)
    if not pairs:
        kinds = (
            ", ".join(f"{n:,} {kind}" for kind, n in description["rows"].items()) or "no valid rows"
        )
        raise UserError(
            f"--pairs {location}",
            f"holds {kinds} and no pairs",
            'Give JSONL lines such as {"query": "…", "positive": "…"}',
        )
    passages = fields["positive"]["distinct"]
    if passages < MIN_PAIRS:
        raise UserError(
            f"--pairs {location}",
            f"holds {pairs:,} pairs with {passages:,} distinct passages, too few for training and "
            "a test set",
            f"Give pairs with at least {MIN_PAIRS} distinct passages",
        )
    per_unit = 1.0 if count else TOKENS_PER_WORD
    return PairFacts(
        location=location,
        pairs=pairs,
        passages=passages,
        negatives_per_pair=description["negatives_per_pair"] or 0.0,
        query_tokens=round(per_unit * fields["query"]["lengths"]["p95"]),
        passage_tokens=round(per_unit * fields["positive"]["lengths"]["p95"]),
        measured=count is not None,
        language=fields["positive"]["language"],
        skipped_rows=description["left_out"]["counts"].get("wrong", 0),
        scores=tuple(
            f"{field} from {values['lowest']:g} to {values['highest']:g}"
            for field, values in description["scores"].items()
            if values["min_score_required"]
        ),
    )


def fitted_values(facts: PairFacts) -> dict[str, Any]:
    """Path in the template → value.

    A path is the keys from the top, with numbers for items of a list. The batch is a power of two,
    about a sixteenth of the training pairs, so that an epoch has some updates and a batch enough
    negatives. Steps are EPOCHS passes over the pairs.
    """
    held_out = min(2000, facts.passages // 5)
    training_pairs = round(facts.pairs * (1 - held_out / facts.passages))
    batch = 2 ** min(7, max(3, (training_pairs // 16).bit_length() - 1))
    steps = min(500, max(30, -(-EPOCHS * training_pairs // batch)))
    # Tokenizers differ: a tenth more than the student's count.
    query_tokens = _round_up(1.1 * facts.query_tokens + PROMPT_TOKENS, low=32, high=256)
    passage_tokens = _round_up(1.1 * facts.passage_tokens + 4, low=32, high=512)
    lengths = {"query_tokens": query_tokens, "passage_tokens": passage_tokens}
    max_tokens = max(lengths.values())
    phases = {
        "teacher.phases.0": {"global_batch": batch, "steps": steps, **lengths},
        "student.phases.0": {"global_batch": batch, "steps": 2 * steps, **lengths},
    }
    return {
        "corpus.sources.help.pairs": [facts.location],
        "corpus.held_out.queries": min(200, held_out),
        "corpus.held_out.passages": held_out,
        "teacher.max_tokens": max_tokens,
        "teacher.phases.0.hard_negatives": min(1, int(facts.negatives_per_pair)),
        "student.max_tokens": max_tokens,
        **{f"{phase}.{key}": value for phase, v in phases.items() for key, value in v.items()},
    }


def _round_up(tokens: float, *, low: int, high: int) -> int:
    """The next multiple of 16, within bounds."""
    return min(high, max(low, -(-int(tokens) // 16) * 16))


def fill_template(template: str, facts: PairFacts) -> str:
    """The template with the values that fit, and with a header that names their origin."""
    head = (
        f"# Fitted by `stillroom init --pairs` to {facts.location}: {facts.pairs:,} pairs with\n"
        f"# {facts.passages:,} distinct passages and {facts.negatives_per_pair:g} negatives each.\n"
    )
    body = template[template.index("corpus:") :]
    return head + set_values(body, fitted_values(facts))


def set_values(text: str, values: Mapping[str, Any]) -> str:
    """YAML with other values at some paths; comments, order and the rest stay as they are.

    Args:
        text: YAML in block style, with one of the keys to change per line, followed by its value.
        values: path (keys and list positions, joined by dots) → number, string or list of strings.

    Raises:
        KeyError: for a path that the text does not have.
    """
    missing = set(values)
    stack: list[tuple[int, str]] = []  # indent and key of the mappings around a line
    counts: dict[str, int] = {}  # list's path → items so far
    lines = []
    for line in text.splitlines():
        entry = ENTRY.match(line)
        if entry is not None:
            indent = len(entry["indent"])
            stack = [parent for parent in stack if parent[0] < indent]
            if entry["dash"]:
                path = ".".join(key for _, key in stack)
                counts[path] = counts.get(path, -1) + 1
                stack.append((indent, str(counts[path])))
                indent += len(entry["dash"])
            stack.append((indent, entry["key"]))
            path = ".".join(key for _, key in stack)
            if path in values:
                missing.discard(path)
                lines.append(_with_value(line, entry.start("value"), values[path]))
                continue
        lines.append(line)
    if missing:
        raise KeyError(min(missing))
    return "\n".join(lines) + "\n"


def _with_value(line: str, start: int, value: Any) -> str:
    """The line with another value, its comment in the same column where there is room."""
    changed = line[:start] + _as_yaml(value)
    comment = re.search(r"(?<= )#.*$", line[start:])
    if comment is None:
        return changed
    return f"{changed.ljust(start + comment.start() - 2)}  {comment[0]}"


def _as_yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)

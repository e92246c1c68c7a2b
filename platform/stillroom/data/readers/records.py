"""Results of readers: pairs, conversations, evaluation sets, and skipped rows."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from stillroom.errors import UserError

# Called with the error of a row. It raises the error, or returns and the row is skipped.
OnBadRow = Callable[[UserError], None]


@dataclass(frozen=True)
class Pair:
    """A query, a passage that answers it, and passages that do not."""

    query: str
    passage: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """A prompt and the completion that a model learns to write.

    Attributes:
        prompt: everything before the completion, verbatim.
        question: the user's last turn alone; the whole prompt if it has no turns.
    """

    prompt: str
    completion: str
    question: str


@dataclass(frozen=True)
class EvaluationSet:
    """Queries to search a collection of passages with, and which passages are relevant.

    Attributes:
        passages, queries: id → text.
        qrels: query id → passage id → grade; relevant above 0.
        prompts: the task's prefix of a `query` or a `passage`, for instruction-tuned
            teachers; without an entry a model's own prompt is used.
        missing: judged passages that `passages` lacks, as `qrels`: no ranking can find them.
    """

    passages: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    prompts: dict[str, str] = field(default_factory=dict)
    missing: dict[str, dict[str, int]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Numbers of judged `queries` and of `passages`, and where there are any:

        - `left_out`: queries whose ranking leaves out a passage, see `is_own_passage`;
        - `missing`: judged passages that do not exist.
        """
        left_out = sum(self.is_own_passage(query, query) for query in self.qrels)
        missing = sum(map(len, self.missing.values()))
        return {
            "queries": len(self.qrels),
            "passages": len(self.passages),
            **({"left_out": left_out} if left_out else {}),
            **({"missing": missing} if missing else {}),
        }

    def is_own_passage(self, query_id: str, passage_id: str) -> bool:
        """Whether the passage is the query itself, by its id, and not judged as an answer.

        BEIR and mteb leave such passages out (`ignore_identical_ids`), for sets whose queries are
        texts of the collection: ArguAna, Quora.
        """
        is_same = query_id == passage_id and passage_id in self.passages
        return is_same and self.qrels.get(query_id, {}).get(passage_id, 0) <= 0

    def judged_queries(self) -> list[str]:
        """Texts of the queries that have qrels, in the order of `queries`."""
        return [text for query_id, text in self.queries.items() if query_id in self.qrels]


MAX_LISTED_ROWS = 100  # further bad rows are only counted


@dataclass
class SkippedRows:
    """Counts of the rows that a reader skipped, by reason. Plain data, for worker processes.

    Attributes:
        counts: reason → rows: `wrong`, `empty`, `below_min_score`, `other_instruction`, and
            of qrels `repeated` and `no_positive`.
        bad_rows: the first bad rows as {"where", "problem"}, at most MAX_LISTED_ROWS.
        skip_bad_rows: whether a bad row is skipped; else it is an error.
    """

    counts: Counter[str] = field(default_factory=Counter)
    bad_rows: list[dict[str, str]] = field(default_factory=list)
    skip_bad_rows: bool = False

    def count(self, reason: str) -> None:
        """Counts a skipped row."""
        self.counts[reason] += 1

    def on_bad_row(self, error: UserError) -> None:
        """Counts and lists a bad row, or raises `error`; an `OnBadRow`."""
        if not self.skip_bad_rows:
            raise error
        self.count("wrong")
        if len(self.bad_rows) < MAX_LISTED_ROWS:
            self.bad_rows.append({"where": error.where, "problem": error.problem})

    def add(self, other: "SkippedRows") -> None:
        """Adds the rows that another reader skipped."""
        self.counts.update(other.counts)
        self.bad_rows += other.bad_rows[: MAX_LISTED_ROWS - len(self.bad_rows)]


def raise_bad_row(error: UserError) -> NoReturn:
    """Raises the error: the `OnBadRow` of callers that accept no bad row."""
    raise error

"""What is read: pairs, conversations, evaluation sets; and what was left out."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from stillroom.errors import UserError

Refuse = Callable[[UserError], None]  # is told of a wrong row: raises, or takes note of it


@dataclass(frozen=True)
class Pair:
    """A query, a passage that answers it, and passages that do not."""

    query: str
    passage: str
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """What a model is to write, and after what.

    Attributes:
        prompt: all that comes before the completion, letter for letter.
        question: the user's last turn by itself; the prompt where it is not made of turns.
    """

    prompt: str
    completion: str
    question: str


@dataclass(frozen=True)
class EvaluationSet:
    """Passages and queries by id; qrels: query id → passage id → grade, relevant above 0.

    `prompts` are what the set's task puts before a `query` or a `passage`, for teachers that are
    told their task; where it says nothing, a model's own holds.
    """

    passages: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    prompts: dict[str, str] = field(default_factory=dict)

    def judged_queries(self) -> list[str]:
        """Texts of the queries that the qrels judge, in the set's order."""
        return [text for own_id, text in self.queries.items() if own_id in self.qrels]


LISTED = 100  # wrong rows that are kept by name; more are only counted


@dataclass
class LeftOut:
    """What a reader left out, and why: plain data, which worker processes send and `add` sums.

    Attributes:
        counts: reason → rows: `wrong`, `empty`, `below_min_score`, `other_instruction`.
        wrong: the first wrong rows as {"where", "problem"}, at most LISTED.
        skip: whether a wrong row is left out; else it is an error.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[dict[str, str]] = field(default_factory=list)
    skip: bool = False

    def drop(self, reason: str) -> None:
        self.counts[reason] += 1

    def refuse(self, fault: UserError) -> None:
        """Takes a wrong row down, or raises."""
        if not self.skip:
            raise fault
        self.drop("wrong")
        if len(self.wrong) < LISTED:
            self.wrong.append({"where": fault.where, "problem": fault.problem})

    def add(self, other: "LeftOut") -> None:
        self.counts.update(other.counts)
        self.wrong += other.wrong[: LISTED - len(self.wrong)]


def fail(fault: UserError) -> NoReturn:
    """The `Refuse` of whoever wants no wrong row."""
    raise fault

"""Counts of generated answers and examples that cannot be used."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.synthetic.prompts import Example, RejectedAnswer
from stillroom.openai_client.completion import Completion

Parsed = TypeVar("Parsed")


@dataclass
class RejectionCounts:
    """Counts of rejected answers and examples, by request and by reason.

    Attributes:
        counts: request → reason → answers.
        queries: keys of the queries so far, to reject repeated ones.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    queries: set[str] = field(default_factory=set)

    def add(self, asked_for: str, reason: str) -> None:
        """Counts a rejection."""
        self.counts.setdefault(asked_for, Counter())[reason] += 1

    def parse(
        self, asked_for: str, completion: Completion, parse: Callable[[str], Parsed]
    ) -> Parsed | None:
        """Parses an answer; counts it and returns None if it is rejected."""
        try:
            if completion.refused is not None:
                raise RejectedAnswer(f"the endpoint answered {completion.refused}")
            if completion.truncated:
                raise RejectedAnswer("cut at the limit of tokens")
            return parse(completion.text)
        except RejectedAnswer as error:
            self.add(asked_for, str(error))
            return None

    def is_new(self, example: Example) -> bool:
        """Whether no earlier example has the same query; counts a repeated one."""
        key = text_key(example.query)
        if key in self.queries:
            self.add(example.kind, "a query that was there before")
            return False
        self.queries.add(key)
        return True

"""Training data that a language model writes: what it is asked, and what its answers are worth.

Two manners. From tasks (E5-mistral, arXiv 2401.00368): it thinks up tasks of a kind, then writes
an example of each. From passages (FRet of Gecko, arXiv 2403.20327): it writes a task and a query
for a passage, then ranks what a retriever finds for that query, and the best becomes the positive.

Nothing here asks anybody: prompts go out and answers come in as plain text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TASKS_A_CALL = 20  # that one brainstorm asks for

BEST_GRADE = 3


class Rejected(ValueError):
    """An answer that is of no use; its text is the reason, one of few, to be counted by."""


@dataclass(frozen=True)
class Kind:
    """What the two sides of a task are.

    Attributes:
        brainstorm: what tasks are thought up; None where there is but one, `task`.
        query, positive, negative: what each field of an example is to hold.
        query_words, passage_words: lengths to choose among.
        two_languages: the query is in one language and the passages in another.
    """

    query: str
    positive: str
    negative: str
    query_words: tuple[str, ...]
    passage_words: tuple[str, ...]
    brainstorm: str | None = None
    task: str = ""
    two_languages: bool = False


FEW = ("fewer than 5", "5 to 10", "10 to 20")

MANY = ("40 to 80", "100 to 150", "200 to 300")

KINDS = {
    "short-long": Kind(
        brainstorm="someone types a short query and wants a longer text that answers it",
        query="what someone with this task would type",
        positive="a text that fully answers the query",
        negative="a text on the same subject, in many of the same words, that looks like an "
        "answer but does not give one",
        query_words=FEW,
        passage_words=MANY,
    ),
    "long-short": Kind(
        brainstorm="a longer text (a message, a report, a review, a record) is to be matched "
        "with its short label, topic or title",
        query="the longer text",
        positive="its label",
        negative="another label of the same scheme, which a careless reader might choose",
        query_words=MANY,
        passage_words=("1 to 3", "fewer than 8"),
    ),
    "short-short": Kind(
        brainstorm="two short texts (names, headlines, questions, phrases) belong together for "
        "a reason that is easy to state",
        query="one short text",
        positive="a short text that belongs to it",
        negative="a short text that resembles the first and does not belong to it",
        query_words=FEW,
        passage_words=FEW,
    ),
    "long-long": Kind(
        brainstorm="a document is to be matched with another document of a page or so: what "
        "supports it, continues it, replies to it or treats the same case",
        query="a document",
        positive="the other document that it is to be matched with",
        negative="a document of the same subject and style that fails the task",
        query_words=MANY,
        passage_words=MANY,
    ),
    "similarity": Kind(
        task="Find texts that say the same",
        query="a statement",
        positive="the same statement in other words and another sentence structure",
        negative="a statement that keeps most of the first one's words and says something else",
        query_words=("5 to 10", "10 to 20", "20 to 40"),
        passage_words=("5 to 10", "10 to 20", "20 to 40"),
    ),
    "translation": Kind(
        task="Find the translation of a text",
        query="a text",
        positive="its translation",
        negative="a fluent translation in which one fact of the text came out wrong",
        query_words=("5 to 10", "10 to 20", "40 to 80"),
        passage_words=("as many",),
        two_languages=True,
    ),
}

CLARITY = ("plain and unambiguous", "somewhat vague", "understood only by who knows the subject")

READERS = ("a child", "a pupil of a secondary school", "a student", "an expert of the field")

FIELDS = ("query", "positive", "hard_negative")


@dataclass(frozen=True)
class Controls:
    """What was drawn for an example."""

    query_words: str
    passage_words: str
    clarity: str
    reader: str
    languages: tuple[str, str]  # of the query, of the passages

    @staticmethod
    def drawn(kind: Kind, languages: Sequence[str], seed: Sequence[int]) -> "Controls":
        """The same for the same seed."""
        rng = np.random.default_rng(seed)

        def one(choices: Sequence[str]) -> str:
            return choices[int(rng.integers(len(choices)))]

        first = one(languages)
        others = [language for language in languages if language != first]
        return Controls(
            one(kind.query_words),
            one(kind.passage_words),
            one(CLARITY),
            one(READERS),
            (first, one(others) if kind.two_languages else first),
        )


@dataclass(frozen=True)
class Example:
    """What a language model made for one query."""

    kind: str
    task: str
    query: str
    positive: str
    negatives: tuple[str, ...]


def brainstorm_prompt(kind: Kind) -> str:
    return f"""\
Name {TASKS_A_CALL} tasks for a search engine over texts in which {kind.brainstorm}.

Each is one sentence that begins with a verb and says what is given and what is sought. Make them
differ: in the field they come from, in the people who have them, and in how special they are.

Answer with a JSON list of {TASKS_A_CALL} strings and nothing else."""


def example_prompt(kind: Kind, task: str, drawn: Controls) -> str:
    of_query, of_passages = drawn.languages
    return f"""\
You write examples that a search engine is trained on. This is the task: {task}

Make up one example, a JSON object of three strings:
"query": {kind.query}; {drawn.query_words} words, in {of_query}
"positive": {kind.positive}; {drawn.passage_words} words, in {of_passages}
"hard_negative": {kind.negative}; about as long as the positive, in {of_passages}

The query is {drawn.clarity}. All of it is written for {drawn.reader}. The positive does not just
repeat the query's words, each text stands on its own, and none speaks of this task or of the
other texts.

Answer with the JSON object and nothing else."""


def query_prompt(passage: str) -> str:
    return f"""\
This is a text from a collection:
<text>
{passage}
</text>

Think of someone who does not know this text and for whom it would be just what they look for.
Write a JSON object of two strings:
"task": in one sentence that begins with a verb, what kind of text they look for and to what end
(an answer to a question, evidence for or against a claim, an explanation, a similar text, …)
"query": what they would type; it does not mention the text, and uses words of their own

Answer with the JSON object and nothing else."""


def grade_prompt(task: str, query: str, passage: str) -> str:
    return f"""\
Task: {task}
Query: {query}

<text>
{passage}
</text>

How well does the text serve the query, given the task?
3: it is just what was asked for
2: it answers in part, or among much else
1: it is on the subject and answers nothing
0: it has nothing to do with it

Answer with the digit and nothing else."""


def likelihood_prompt(task: str, passage: str) -> str:
    """What a query follows in the text whose likelihood is looked at."""
    return f"<text>\n{passage}\n</text>\n\nTask: {task}\nA query that this text answers:"

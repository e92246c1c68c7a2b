"""Training data that a language model writes: what it is asked, and what its answers are worth.

Two manners. From tasks (E5-mistral, arXiv 2401.00368): it thinks up tasks of a kind, then writes
an example of each. From passages (FRet of Gecko, arXiv 2403.20327): it writes a task and a query
for a passage, then ranks what a retriever finds for that query, and the best becomes the positive.

Nothing here asks anybody: prompts go out and answers come in as plain text.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stillroom.text.dedupe import text_key

TASKS_A_CALL = 20  # that one brainstorm asks for
BEST_GRADE = 3


class Rejected(ValueError):
    """An answer that is of no use; its text is the reason, one of few, to be counted by."""


# --- from tasks -----------------------------------------------------------------------------


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


def parse_tasks(answer: str) -> list[str]:
    """The tasks of a brainstorm, each once.

    Raises:
        Rejected: when the answer is no list of texts.
    """
    found = _json(answer)
    if not isinstance(found, list):
        raise Rejected("no JSON list")
    if not found or not all(isinstance(one, str) and one.strip() for one in found):
        raise Rejected("a list, but not of texts")
    # The later of equal ones goes.
    return list({text_key(one): one.strip() for one in reversed(found)}.values())[::-1]


def parse_example(answer: str, kind: Kind) -> tuple[str, str, str]:
    """Query, positive and hard negative.

    Raises:
        Rejected: when the answer is not those three texts, or they cannot be an example.
    """
    texts = _texts(answer, FIELDS)
    keys = [text_key(text) for text in texts]
    if len(set(keys)) < len(keys):
        raise Rejected("two of its texts are the same")
    if set(keys) & {text_key(told) for told in (kind.query, kind.positive, kind.negative)}:
        raise Rejected("repeats what it was asked for")
    query, positive, negative = texts
    return query, positive, negative


# --- from passages --------------------------------------------------------------------------


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


def parse_query(answer: str) -> tuple[str, str]:
    """Task and query.

    Raises:
        Rejected: when the answer is not those two texts.
    """
    task, query = _texts(answer, ("task", "query"))
    return task, query


def parse_grade(answer: str) -> int:
    """0 to 3.

    Raises:
        Rejected: when the answer is anything but such a digit.
    """
    digit = answer.strip().rstrip(".")
    if not re.fullmatch(f"[0-{BEST_GRADE}]", digit):
        raise Rejected("no grade")
    return int(digit)


def query_likelihood(
    echoed: str, tokens: Sequence[str], logprobs: Sequence[float | None], prompt: str, query: str
) -> float:
    """Mean log-likelihood of the query's tokens after the prompt.

    Args:
        echoed: prompt, query, and what the model wrote after them.
        tokens, logprobs: its tokens, whose texts need not be `echoed`'s own: of a character in
            several tokens, each shows something.

    Raises:
        Rejected: when prompt and query were not echoed.
    """
    before, found, written = echoed.partition(prompt + query)
    if not found or before.strip():
        raise Rejected("the prompt was not echoed")
    # From the end, where the texts of a passage's tokens cannot shift anything. A token across
    # the border counts: it holds the query's beginning.
    told: list[float] = []
    beyond, left = len(written), len(query)
    for token, logprob in zip(reversed(tokens), reversed(logprobs), strict=False):
        if left <= 0:
            return float(np.mean(told))
        if beyond > 0:
            beyond -= len(token)
        elif logprob is None:
            break
        else:
            told.append(logprob)
            left -= len(token)
    raise Rejected("no likelihood of the query")


def fuse(scorings: Sequence[Sequence[float]], k: int = 60) -> list[int]:
    """Reciprocal rank fusion (Cormack et al., 2009): places by the sum of 1 / (k + rank).

    Equal scores share a rank, or the few grades there are would outvote what tells their bearers
    apart. Of equal sums the lower place comes first.

    Args:
        scorings: each a score for every place.
    """
    sums = np.zeros(len(scorings[0]))
    for scores in scorings:
        given = np.asarray(scores, dtype=np.float64)
        rank = 1 + (given[None, :] > given[:, None]).sum(1)  # 1 + how many are better
        sums += 1 / (k + rank)
    # Rounded, so that the order of the additions settles no tie.
    return [int(place) for place in np.argsort(-sums.round(12), kind="stable")]


def choose(
    passages: Sequence[str],
    grades: Sequence[int | None],
    likelihoods: Sequence[float] | None,
    *,
    least_grade: int,
    sampled: np.random.Generator | None = None,
) -> tuple[int, int | None]:
    """Which passage becomes the positive of a query, and which its hard negative.

    Both are ranked by grade and, where it is known, by the query's likelihood, and the rankings
    fused. A passage without a grade takes no part.

    Args:
        passages: in the retriever's order, which settles ties.
        least_grade: of a positive.
        sampled: draws the negative from the lower half of what could be one; None takes the
            last.

    Returns:
        Places. The negative's grade is below the positive's and its text another; None where
        there is no such passage.

    Raises:
        Rejected: when no passage is good enough.
    """
    judged = [place for place, grade in enumerate(grades) if grade is not None]
    if not judged:
        raise Rejected("no passage was graded")
    scorings = [[float(grades[place] or 0) for place in judged]]
    if likelihoods is not None:
        scorings.append([likelihoods[place] for place in judged])
    order = [judged[at] for at in fuse(scorings)]
    best = order[0]
    of_best = grades[best] or 0
    if of_best < least_grade:
        raise Rejected("no passage answers the query")
    own = text_key(passages[best])
    lower = [p for p in order[1:] if (grades[p] or 0) < of_best and text_key(passages[p]) != own]
    if not lower:
        return best, None
    if sampled is None:
        return best, lower[-1]
    return best, lower[int(sampled.integers(len(lower) // 2, len(lower)))]


# --- inside ---------------------------------------------------------------------------------


def _json(answer: str) -> Any:
    """An answer that is JSON, perhaps in a fenced block."""
    fenced = re.search(r"```(?:json)?\s*\n(.*?)\n\s*```", answer, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        raise Rejected("no JSON") from None


def _texts(answer: str, fields: Sequence[str]) -> list[str]:
    """The texts of an object that has these fields and no other."""
    found = _json(answer)
    if not isinstance(found, dict):
        raise Rejected("no JSON object")
    if set(found) != set(fields):
        raise Rejected("other fields than asked for")
    if not all(isinstance(found[field], str) for field in fields):
        raise Rejected("a field that is no text")
    texts = [found[field].strip() for field in fields]
    if not all(texts):
        raise Rejected("an empty field")
    if any(re.search("[\ud800-\udfff]", text) for text in texts):
        raise Rejected("half a surrogate pair")  # which no UTF-8 file can hold
    return texts

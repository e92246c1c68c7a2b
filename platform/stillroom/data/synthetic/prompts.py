"""Prompts for a language model that writes training data.

There are two methods. From tasks (E5-mistral, arXiv 2401.00368): the model invents tasks of a kind,
then writes examples of each. From passages (FRet of Gecko, arXiv 2403.20327): it writes a task and
a query for a passage and grades a retriever's results for that query; the best becomes the
positive.

Prompts are plain text; `stages.synthetic` sends them. Cached answers are found by the prompt, so
every change of a prompt's words costs money.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.config.languages import LANGUAGES

TASKS_PER_BRAINSTORM = 20
MAX_GRADE = 3


class RejectedAnswer(ValueError):
    """An answer that cannot be used. Its text is one of a few reasons, which are counted."""


@dataclass(frozen=True)
class TaskTemplate:
    """A kind of task, with descriptions of its queries and passages.

    Attributes:
        query, positive, negative: descriptions of the fields of an example.
        query_words, passage_words: lengths to choose from.
        brainstorm: describes the tasks to invent; None if there is only one, `task`.
        task: the only task of this kind.
        two_languages: whether query and passages are in different languages.
    """

    query: str
    positive: str
    negative: str
    query_words: tuple[str, ...]
    passage_words: tuple[str, ...]
    brainstorm: str | None = None
    task: str = ""
    two_languages: bool = False


SHORT_LENGTHS = ("fewer than 5", "5 to 10", "10 to 20")
LONG_LENGTHS = ("40 to 80", "100 to 150", "200 to 300")

TASK_TEMPLATES = {
    "short-long": TaskTemplate(
        brainstorm="someone types a short query and wants a longer text that answers it",
        query="what someone with this task would type",
        positive="a text that fully answers the query",
        negative="a text on the same subject, in many of the same words, that looks like an "
        "answer but does not give one",
        query_words=SHORT_LENGTHS,
        passage_words=LONG_LENGTHS,
    ),
    "long-short": TaskTemplate(
        brainstorm="a longer text (a message, a report, a review, a record) is to be matched "
        "with its short label, topic or title",
        query="the longer text",
        positive="its label",
        negative="another label of the same scheme, which a careless reader might choose",
        query_words=LONG_LENGTHS,
        passage_words=("1 to 3", "fewer than 8"),
    ),
    "short-short": TaskTemplate(
        brainstorm="two short texts (names, headlines, questions, phrases) belong together for "
        "a reason that is easy to state",
        query="one short text",
        positive="a short text that belongs to it",
        negative="a short text that resembles the first and does not belong to it",
        query_words=SHORT_LENGTHS,
        passage_words=SHORT_LENGTHS,
    ),
    "long-long": TaskTemplate(
        brainstorm="a document is to be matched with another document of a page or so: what "
        "supports it, continues it, replies to it or treats the same case",
        query="a document",
        positive="the other document that it is to be matched with",
        negative="a document of the same subject and style that fails the task",
        query_words=LONG_LENGTHS,
        passage_words=LONG_LENGTHS,
    ),
    "similarity": TaskTemplate(
        task="Find texts that say the same",
        query="a statement",
        positive="the same statement in other words and another sentence structure",
        negative="a statement that keeps most of the first one's words and says something else",
        query_words=("5 to 10", "10 to 20", "20 to 40"),
        passage_words=("5 to 10", "10 to 20", "20 to 40"),
    ),
    "translation": TaskTemplate(
        task="Find the translation of a text",
        query="a text",
        positive="its translation",
        negative="a fluent translation in which one fact of the text came out wrong",
        query_words=("5 to 10", "10 to 20", "40 to 80"),
        passage_words=("as many",),
        two_languages=True,
    ),
}

CLARITY_LEVELS = (
    "plain and unambiguous",
    "somewhat vague",
    "understood only by who knows the subject",
)

AUDIENCES = ("a child", "a pupil of a secondary school", "a student", "an expert of the field")
EXAMPLE_FIELDS = ("query", "positive", "hard_negative")


@dataclass(frozen=True)
class ExampleControls:
    """Random properties of an example, for variety.

    Attributes:
        query_words, passage_words: lengths.
        clarity: of the query.
        audience: for whom the texts are written.
        languages: of the query, of the passages; keys of LANGUAGES.
    """

    query_words: str
    passage_words: str
    clarity: str
    audience: str
    languages: tuple[str, str]

    @staticmethod
    def draw(
        template: TaskTemplate, shares: Mapping[str, float], seed: Sequence[int]
    ) -> "ExampleControls":
        """Draws controls; equal seeds give equal controls.

        Args:
            shares: language → how often it is drawn, relative to the others.
        """
        rng = np.random.default_rng(seed)

        def choose(choices: Sequence[str]) -> str:
            return choices[int(rng.integers(len(choices)))]

        # Cached answers are found by the prompt, so the order of the draws must stay.
        language = draw_language(shares, rng)
        others = {other: share for other, share in shares.items() if other != language}
        return ExampleControls(
            query_words=choose(template.query_words),
            passage_words=choose(template.passage_words),
            clarity=choose(CLARITY_LEVELS),
            audience=choose(AUDIENCES),
            languages=(
                language,
                draw_language(others, rng) if template.two_languages else language,
            ),
        )


def draw_language(shares: Mapping[str, float], rng: np.random.Generator) -> str:
    """A language, drawn by the shares; a single one takes nothing from the generator."""
    if len(shares) == 1:
        return next(iter(shares))
    weights = np.array(list(shares.values()))
    return list(shares)[int(rng.choice(len(weights), p=weights / weights.sum()))]


@dataclass(frozen=True)
class Example:
    """A generated query with its positive and hard negatives.

    Attributes:
        kind: name of a task template, or `passages`.
        task: the instruction, in one sentence.
        language: of the query, as it was asked for; None where none was.
    """

    kind: str
    task: str
    query: str
    positive: str
    negatives: tuple[str, ...]
    language: str | None = None


def brainstorm_prompt(template: TaskTemplate) -> str:
    """Asks for TASKS_PER_BRAINSTORM tasks of a kind."""
    return f"""\
Name {TASKS_PER_BRAINSTORM} tasks for a search engine over texts in which {template.brainstorm}.

Each is one sentence that begins with a verb and says what is given and what is sought. Make them
differ: in the field they come from, in the people who have them, and in how special they are.

Answer with a JSON list of {TASKS_PER_BRAINSTORM} strings and nothing else."""


def example_prompt(template: TaskTemplate, task: str, controls: ExampleControls) -> str:
    """Asks for a query, its positive and a hard negative."""
    query_lang, passage_lang = (LANGUAGES[language] for language in controls.languages)
    clarity, audience = controls.clarity, controls.audience
    return f"""\
You write examples that a search engine is trained on. This is the task: {task}

Make up one example, a JSON object of three strings:
"query": {template.query}; {controls.query_words} words, in {query_lang}
"positive": {template.positive}; {controls.passage_words} words, in {passage_lang}
"hard_negative": {template.negative}; about as long as the positive, in {passage_lang}

The query is {clarity}. All of it is written for {audience}. The positive does not just
repeat the query's words, each text stands on its own, and none speaks of this task or of the
other texts.

Answer with the JSON object and nothing else."""


def query_prompt(passage: str, language: str | None = None) -> str:
    """Asks for a task and a query that a passage answers.

    Args:
        language: of the query, a key of LANGUAGES; None does not speak of it.
    """
    in_language = "" if language is None else f", in {LANGUAGES[language]}"
    return f"""\
This is a text from a collection:
<text>
{passage}
</text>

Think of someone who does not know this text and for whom it would be just what they look for.
Write a JSON object of two strings:
"task": in one sentence that begins with a verb, what kind of text they look for and to what end
(an answer to a question, evidence for or against a claim, an explanation, a similar text, …)
"query": what they would type{in_language}; it does not mention the text, and uses words of their \
own

Answer with the JSON object and nothing else."""


def grade_prompt(task: str, query: str, passage: str) -> str:
    """Asks how well a passage serves a query, from 0 to MAX_GRADE."""
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
    """The text that a query must follow for its likelihood to be measured."""
    return f"<text>\n{passage}\n</text>\n\nTask: {task}\nA query that this text answers:"

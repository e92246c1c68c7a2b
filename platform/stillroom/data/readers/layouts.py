"""Rows → pairs, passages and conversations, in the layouts that people have.

A layout is recognised by the names of its fields, or named by a source's `format`.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.data.readers.records import Conversation, Pair
from stillroom.errors import UserError

Fields = Mapping[str, Any]

SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}

SCORES = ("score", "label", "similarity_score")

# What hubs call the two columns of sentence-transformers, which go by position.
NAMED = (
    ("anchor", "positive"),
    ("sentence1", "sentence2"),
    ("question", "answer"),
    ("query", "answer"),
)


@dataclass(frozen=True)
class Labelled:
    """A pair as its layout has it.

    Attributes:
        score: how well the passage answers, on the data set's own scale.
        graded: whether only the score tells if the passage answers at all.
        instruction: what the row says its task is.
    """

    pair: Pair
    score: float | None = None
    graded: bool = False
    instruction: str = ""


@dataclass(frozen=True)
class Layout:
    """`seen` tells from a row whether it is of this layout; `pairs` reads one."""

    name: str
    expected: str
    seen: Callable[[Fields], bool]
    pairs: Callable[[Fields, str], Iterator[Labelled]]


def layout_of(row: Fields, where: str) -> Layout:
    """The layout whose fields the row has.

    Raises:
        UserError: when it is none that we know.
    """
    for layout in LAYOUTS.values():
        if layout.seen(row):
            return layout
    known = "; ".join(f"{layout.expected} ({name})" for name, layout in LAYOUTS.items())
    problem = f"is no pair in a layout that we know; it has {_names(row)}"
    raise UserError(where, problem, f"Use the fields {known}, or set the source's format")


def _plain(row: Fields, where: str) -> Iterator[Labelled]:
    field = "positive" if "positive" in row else "passage"
    pair = Pair(text_of(row, "query", where), text_of(row, field, where), _negatives(row, where))
    yield Labelled(pair)


def _sentence_transformers(row: Fields, where: str) -> Iterator[Labelled]:
    """(anchor, positive, negatives …) or (text, text, score): by name, else by position."""
    texts = [name for name in row if name not in SCORES]
    for anchor, positive in NAMED:
        if anchor in row and positive in row:  # then other columns are no texts to train on
            texts = [anchor, positive, *(name for name in texts if name.startswith("negative"))]
            break
    if len(texts) < 2:
        problem = f"has fewer than two texts; it has {_names(row)}"
        raise UserError(where, problem, "Give anchor and positive")
    first, second, *more = texts
    graded = next((name for name in SCORES if name in row), None)
    score = None if graded is None else number_of(row, graded, where)
    negatives: list[str] = []
    for name in more:
        if row[name] not in (None, ""):
            many = isinstance(row[name], list)
            negatives += texts_of(row, name, where) if many else [text_of(row, name, where)]
    pair = Pair(text_of(row, first, where), text_of(row, second, where), tuple(negatives))
    yield Labelled(pair, score, graded=score is not None)


def _flag_embedding(row: Fields, where: str) -> Iterator[Labelled]:
    query = text_of(row, "query", where)
    positives = texts_of(row, "pos", where)
    negatives = texts_of(row, "neg", where) if row.get("neg") else ()
    scores: list[float | None] = [None] * len(positives)
    if row.get("pos_scores"):
        given = list_of(row, "pos_scores", where, "[0.9, 0.7]")
        scores = [number_of({"pos_scores": one}, "pos_scores", where) for one in given]
    if len(scores) != len(positives):
        problem = f"has {len(positives)} texts in 'pos' and {len(scores)} in 'pos_scores'"
        raise UserError(where, problem, "Give one score a text")
    instruction = row.get("prompt") or ""
    for positive, score in zip(_some(positives, "pos", where), scores, strict=True):
        yield Labelled(Pair(query, positive, negatives), score, instruction=instruction)


def _instructed(row: Fields, where: str) -> Iterator[Labelled]:
    """`query` is [instruction, text], and so is everything in `pos` and `neg`."""
    instruction, query = _with_instruction(row["query"], "query", where)
    positives, negatives = (
        tuple(_with_instruction(one, field, where)[1] for one in _listed(row.get(field) or []))
        for field in ("pos", "neg")
    )
    for positive in _some(positives, "pos", where):
        yield Labelled(Pair(query, positive, negatives), instruction=instruction)


def _listed(value: Any) -> list[Any]:
    """MEDI has one [instruction, text] where GritLM has a list of such."""
    if not isinstance(value, list) or (len(value) == 2 and isinstance(value[1], str)):
        return [value]
    return value


def _with_instruction(value: Any, field: str, where: str) -> tuple[str, str]:
    if isinstance(value, list) and len(value) == 1:
        value = ["", *value]
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        problem = f"{field!r} is no pair of instruction and text"
        raise UserError(where, problem, 'Write ["instruction", "text"]')
    return value[0].strip(), text_of({field: value[1]}, field, where)


def _tevatron(row: Fields, where: str) -> Iterator[Labelled]:
    if "positive_passages" not in row:
        problem = "names its passages by id, and their texts are not here"
        raise UserError(where, problem, "Give positive_passages with title and text")
    query = text_of(row, "query" if "query" in row else "query_text", where)
    positives, negatives = (
        tuple(_full(passage, field, where) for passage in objects_of(row, field, where))
        for field in ("positive_passages", "negative_passages")
    )
    for positive in _some(positives, "positive_passages", where):
        yield Labelled(Pair(query, positive, negatives))


def _full(passage: Fields, field: str, where: str) -> str:
    text = titled_text(passage, "text", where)
    if not text:
        raise UserError(where, f"{field!r} holds an empty passage", "Fill it, or remove it")
    return text


def _some(positives: tuple[str, ...], field: str, where: str) -> tuple[str, ...]:
    if not positives:
        raise UserError(where, f"{field!r} is empty", "Fill it, or remove the row")
    return positives


def _has(*fields: str) -> Callable[[Fields], bool]:
    return lambda row: set(fields) <= row.keys()


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "tevatron",
            "query, positive_passages, negative_passages",
            lambda row: "positive_passages" in row or "positive_document_ids" in row,
            _tevatron,
        ),
        Layout(
            "gritlm",
            "query: [instruction, text], pos, neg",
            lambda row: "pos" in row and isinstance(row.get("query"), list),
            _instructed,
        ),
        Layout("flag-embedding", "query, pos, neg", _has("query", "pos"), _flag_embedding),
        Layout(
            "llm2vec",
            "query, positive, negative",
            lambda row: "query" in row and ("positive" in row or "passage" in row),
            _plain,
        ),
        Layout(
            "sentence-transformers",
            "anchor, positive, negative",
            lambda row: any(set(pair) <= row.keys() for pair in NAMED),
            _sentence_transformers,
        ),
    )
}


def passage_of(row: Fields, where: str) -> str:
    """Title and text together; empty only where a collection's row is."""
    field = next((name for name in ("text", "contents") if name in row), "passage")
    return titled_text(row, field, where)


def conversation_of(row: Fields, where: str) -> Conversation:
    """A conversation in one of three forms; in a CSV, lists are JSON.

    `prompt` and `completion`: two texts, taken as they are. `text`: a list of turns, the user's
    and the assistant's by turns, as GritLM has it. `messages`: a list of `role` and `content`, as
    OpenAI has it. Of turns, the assistant's last is the completion, and those before it become the
    prompt: each under its speaker and followed by an empty line, then the assistant's name.

        User:
        How do I sort a list?

        Assistant:

    Raises:
        UserError: when it is none.
    """
    there = [field for field in ("completion", "messages", "text") if row.get(field)]
    if there[:1] == ["messages"]:
        return _of_turns(_messages(row, where), "messages", where)
    if there[:1] == ["text"]:
        speakers = itertools.cycle(("user", "assistant"))
        turns = list(zip(speakers, texts_of(row, "text", where), strict=False))
        return _of_turns(turns, "text", where)
    prompt, completion = (text_of(row, field, where) for field in ("prompt", "completion"))
    return Conversation(prompt, completion, question=prompt)


def _messages(row: Fields, where: str) -> list[tuple[str, str]]:
    """(speaker, text) of each message."""
    turns = []
    for message in list_of(row, "messages", where, '[{"role": "user", "content": "text"}, …]'):
        role = message.get("role") if isinstance(message, dict) else message
        if not isinstance(role, str) or role not in SPEAKERS:
            raise UserError(
                where,
                f"'messages' has the role {role!r}",
                f"Use {', '.join(SPEAKERS)}, or remove the row",
            )
        turns.append((role, text_of(message, "content", where)))
    return turns


def _of_turns(turns: list[tuple[str, str]], field: str, where: str) -> Conversation:
    while turns and turns[-1][0] != "assistant":  # nobody answered
        turns = turns[:-1]
    if len(turns) < 2:
        raise UserError(
            where,
            f"{field!r} has no assistant's turn that follows another",
            "Give what is asked and what is answered, or remove the row",
        )
    *before, (_, completion) = turns
    shown = [f"{SPEAKERS[speaker]}:\n{text}\n\n" for speaker, text in before]
    asked = [text for speaker, text in before if speaker == "user"]
    prompt = "".join(shown) + f"{SPEAKERS['assistant']}:\n"
    return Conversation(prompt, completion, question=asked[-1] if asked else prompt)


def text_of(row: Fields, field: str, where: str) -> str:
    value = row.get(field)
    if value is None:
        raise UserError(where, f"has no {field!r}; it has {_names(row)}", f"Add {field!r}")
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(where, f"{field!r} is of type {kind}, not text", "Put it in quotes")
    if not value.strip():
        raise UserError(where, f"{field!r} is empty", "Fill it, or remove the row")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        problem = f"{field!r} holds half of a surrogate pair, which is no letter"
        raise UserError(where, problem, "Write the letter itself, or remove the row")
    return value


def titled_text(row: Fields, field: str, where: str) -> str:
    """Title and text together; in a collection either may be empty, as real ones have it."""
    title = row.get("title") or ""
    if not isinstance(title, str):
        raise UserError(where, "'title' is not text", "Put it in quotes")
    if id_field(row) and row.get(field) == "":
        return title.strip()
    return f"{title} {text_of(row, field, where)}".strip()


def id_field(row: Fields) -> str | None:
    names = ("_id", "id", "docid", "pid", "qid", "query_id")
    return next((name for name in names if name in row), None)


def number_of(row: Fields, field: str, where: str) -> float:
    try:
        return float(row[field])
    except (TypeError, ValueError):
        problem = f"{field!r} is {row[field]!r}, which is no number"
        raise UserError(where, problem, "Give a number") from None


def texts_of(row: Fields, field: str, where: str) -> tuple[str, ...]:
    value = list_of(row, field, where, '["one", "two"]')
    return tuple(text_of({field: text}, field, where) for text in value)


def objects_of(row: Fields, field: str, where: str) -> list[Fields]:
    example = '[{"title": "…", "text": "…"}]'
    found = list_of(row, field, where, example) if row.get(field) else []
    if not all(isinstance(one, Mapping) for one in found):
        raise UserError(where, f"{field!r} holds what is no object", f"Write {example}")
    return found


def list_of(row: Fields, field: str, where: str, example: str) -> list[Any]:
    value = row[field]
    if isinstance(value, str):  # a cell of a table
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as fault:
            raise UserError(
                where, f"{field!r} is no JSON list: {fault}", f"Write {example}"
            ) from fault
    if not isinstance(value, list):
        raise UserError(where, f"{field!r} is no list", f"Write {example}")
    return value


def _negatives(row: Fields, where: str) -> tuple[str, ...]:
    if "negatives" in row:
        return texts_of(row, "negatives", where) if row["negatives"] not in (None, "") else ()
    if isinstance(row.get("negative"), list):
        return texts_of(row, "negative", where)
    return (text_of(row, "negative", where),) if row.get("negative") else ()


def _names(row: Fields) -> str:
    return ", ".join(map(str, row)) or "nothing"

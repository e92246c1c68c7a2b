"""Evaluation sets of a machine's own texts, without labels: a document's title finds its body.

They are from other fields than most corpora, and show what training has lost there. Their texts are
easy to find; what counts is the difference of two models.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from stillroom.config.corpus import MachineSource
from stillroom.data.cleaning.text_keys import beginning_key, normalise
from stillroom.data.general.pieces import is_prose
from stillroom.data.readers.machine_texts import Document, documents
from stillroom.data.readers.records import EvaluationSet
from stillroom.data.text.words import count_words, words_and_spaces

# The fields that sets are made of, the most different from usual corpora first.
ORDER: tuple[MachineSource, ...] = ("dictionaries", "manuals", "packages", "docstrings")
TITLE_WORDS = {"dictionaries": (1, 6)}  # of a query; of other sources:
USUAL_TITLE_WORDS = (3, 20)
MIN_BODY_WORDS = 12
MIN_QUERIES = 30  # a source with fewer documents makes no set


@dataclass(frozen=True)
class MadeGuard:
    """A set, the source of its documents, and their units."""

    dataset: EvaluationSet
    source: MachineSource
    units: frozenset[str]


def make_guards(
    *,
    sets: int,
    queries: int,
    passages: int,
    words: int,
    used_packages: Collection[str] | None = (),
) -> dict[str, MadeGuard]:
    """Name → set, of the first sources that have enough documents.

    Args:
        sets: how many at most.
        queries, passages: of each set, at most.
        words: where passages are cut.
        used_packages: Python packages whose docstrings the corpus trains on; None: all.
    """
    guards: dict[str, MadeGuard] = {}
    for source in ORDER:
        if len(guards) == sets:
            break
        if source == "docstrings" and used_packages is None:
            continue
        found = documents(source, without_packages=used_packages or ())
        chosen = list(itertools.islice(_usable(found, words), passages))
        if len(chosen) >= MIN_QUERIES:
            guards[f"made-of-{source}"] = _as_set(source, chosen, queries)
    return guards


def _usable(found: Iterator[Document], words: int) -> Iterator[tuple[Document, str, str]]:
    """Documents with a query and a passage, all of which differ, one of each unit."""
    titles: set[str] = set()
    bodies: set[str] = set()
    units: set[str] = set()  # one document of each: those of a file resemble each other
    for document in found:
        if document.unit in units:
            continue
        fewest, most = TITLE_WORDS.get(document.source, USUAL_TITLE_WORDS)
        title = document.title
        body = " ".join(document.paragraphs).replace(title, " ")
        passage = "".join(words_and_spaces(body)[:words]).rstrip()
        title_key, body_key = normalise(title), beginning_key(passage)
        if (
            fewest <= count_words(title) <= most
            and count_words(passage) >= MIN_BODY_WORDS
            and is_prose(title)
            and is_prose(passage)
            and title_key not in titles
            and body_key not in bodies
        ):
            titles.add(title_key)
            bodies.add(body_key)
            units.add(document.unit)
            yield document, title, passage


def _as_set(
    source: MachineSource, chosen: list[tuple[Document, str, str]], queries: int
) -> MadeGuard:
    ids = [f"p{number:05d}" for number in range(len(chosen))]
    asked = list(zip(ids, chosen, strict=True))[:queries]
    return MadeGuard(
        EvaluationSet(
            passages={id: passage for id, (_, _, passage) in zip(ids, chosen, strict=True)},
            queries={f"q{id[1:]}": title for id, (_, title, _) in asked},
            qrels={f"q{id[1:]}": {id: 1} for id, _ in asked},
        ),
        source,
        frozenset(document.unit for document, _, _ in chosen),
    )

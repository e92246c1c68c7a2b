"""When two texts are the same, and when they are nearly so."""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping

from stillroom.text.formats import Pair

NEAR = 120  # texts that share so many first characters count as copies of one another


def normalise(text: str) -> str:
    """What is left when spelling of characters, case and white space do not matter."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> str:
    """Equal for texts that are the same when normalised."""
    return hashlib.sha256(normalise(text).encode("utf-8", "surrogatepass")).hexdigest()


def near_key(text: str) -> str:
    """Equal for texts that begin alike: boilerplate, forks and versions of one another."""
    return normalise(text)[:NEAR]


def dedupe_pairs(
    sources: Mapping[str, Iterable[Pair]],
) -> tuple[dict[str, list[Pair]], dict[str, dict[str, int]]]:
    """The pairs whose query and passage no pair before has, in its source or another, in order.

    A query with two passages would make a right answer count as a negative, so the first wins.

    Returns:
        The pairs of each source, and how many were read and dropped for what reason.
    """
    queries: set[str] = set()
    passages: set[str] = set()
    kept: dict[str, list[Pair]] = {}
    counts: dict[str, dict[str, int]] = {}
    for name, pairs in sources.items():
        kept[name] = []
        counts[name] = dict.fromkeys(
            ("read", "repeated_passages", "repeated_queries", "query_is_passage"), 0
        )
        for pair in pairs:
            counts[name]["read"] += 1
            query, passage = text_key(pair.query), text_key(pair.passage)
            if query == passage:
                counts[name]["query_is_passage"] += 1
            elif passage in passages:
                counts[name]["repeated_passages"] += 1
            elif query in queries:
                counts[name]["repeated_queries"] += 1
            else:
                queries.add(query)
                passages.add(passage)
                kept[name].append(pair)
    return kept, counts

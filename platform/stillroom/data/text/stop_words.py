"""Stop words by language, from bm25s: Lucene's for English, NLTK's and others' for the rest."""

import os
from functools import cache
from typing import Any

from stillroom.data.text.words import fold

# Of languages written with spaces. Others are cut into bigrams, and a list of words knows none.
LISTS = {
    "da": "DANISH",
    "de": "GERMAN",
    "en": "EN",
    "es": "SPANISH",
    "fr": "FRENCH",
    "it": "ITALIAN",
    "nl": "DUTCH",
    "no": "NORWEGIAN",
    "pt": "PORTUGUESE",
    "ru": "RUSSIAN",
    "sv": "SWEDISH",
    "tr": "TURKISH",
}


@cache
def stop_words(language: str) -> frozenset[str]:
    """The folded stop words of a language; none where there is no list."""
    if language not in LISTS:
        return frozenset()
    words = getattr(import_bm25s().stopwords, f"STOPWORDS_{LISTS[language]}")
    return frozenset(map(fold, words))


def import_bm25s() -> Any:
    """Imports bm25s with JAX on the CPU.

    Where JAX is installed, bm25s uses it on import: on a GPU that would take most of its memory,
    and fail in a process that sees no GPU.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bm25s
    import bm25s.stopwords

    return bm25s

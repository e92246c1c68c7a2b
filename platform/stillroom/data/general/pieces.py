"""Documents → texts of all lengths, from a query to a passage."""

import math
import random
import re
from collections.abc import Iterator

from stillroom.data.readers.machine_texts import Document
from stillroom.data.text.words import count_words, spaced_words

MIN_WORDS, MAX_WORDS = 4, 220  # of a text that is cut out of a body
MIN_TITLE_WORDS = 2
MIN_LETTERS = 0.75  # of a text's characters: code and tables have fewer
MAX_WORD_CHARACTERS = 40  # a longer one is data
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")


def pieces(document: Document) -> Iterator[str]:
    """The document's title, and its body in texts whose lengths are drawn evenly by logarithm.

    Short and long texts are equally frequent then, and nearly no sentence is cut.
    """
    rng = random.Random(f"{document.source}\0{document.unit}\0{document.title}")
    if count_words(document.title) >= MIN_TITLE_WORDS and is_prose(document.title):
        yield document.title
    words: list[str] = []
    target = _target(rng)
    for paragraph in document.paragraphs:
        for sentence in _SENTENCE.split(paragraph):
            words += spaced_words(sentence)
            if len(words) >= target:
                text = " ".join(words[:MAX_WORDS])
                if is_prose(text):
                    yield text
                words, target = [], _target(rng)
    text = " ".join(words[:MAX_WORDS])
    if len(words) >= MIN_WORDS and is_prose(text):
        yield text


def is_prose(text: str) -> bool:
    """Whether a text is mostly letters, and neither code nor data in one long word."""
    if ">>>" in text or "```" in text:
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    longest = max(map(len, text.split()), default=0)
    return letters >= MIN_LETTERS * len(text) and longest <= MAX_WORD_CHARACTERS


def _target(rng: random.Random) -> int:
    """The length of the next text, in words."""
    return round(math.exp(rng.uniform(math.log(MIN_WORDS), math.log(MAX_WORDS))))

"""Documents → texts of all lengths, from a query to a passage."""

import math
import random
import re
from collections.abc import Iterator

import regex

from stillroom.data.readers.machine_texts import Document
from stillroom.data.text.words import count_words, spaced_words, words_and_spaces

MIN_WORDS, MAX_WORDS = 4, 220  # of a text that is cut out of a body
MIN_TITLE_WORDS = 2
MIN_LETTERS = 0.75  # of a text's characters: code and tables have fewer
MAX_WORD_CHARACTERS = 40  # a longer one is data
_MARKS = regex.compile(r"\p{L}(\p{M}+)")  # vowel signs of Indic scripts and Thai, accents
# Where a sentence ends: in Chinese and Japanese without a space behind it.
_SENTENCE = re.compile(r"(?<=[.!?।॥؟۔။។])\s+|(?<=[。！？｡])(?![。！？｡」』”’）])\s*")


def pieces(document: Document) -> Iterator[str]:
    """The document's title, and its body in texts whose lengths are drawn evenly by logarithm.

    Short and long texts are equally frequent then, and nearly no sentence is cut. A title of one
    word, such as a dictionary's, is no text: it opens the body, whose subject it is.
    """
    rng = random.Random(f"{document.source}\0{document.unit}\0{document.title}")
    if count_words(document.title) >= MIN_TITLE_WORDS and is_prose(document.title):
        yield document.title
        words: list[str] = []
    else:
        words = [f"{document.title}: "] if document.title and is_prose(document.title) else []
    target = _target(rng)
    for paragraph in document.paragraphs:
        for sentence in _SENTENCE.split(paragraph):
            words += words_and_spaces(sentence)
            if len(words) >= target:
                text = "".join(words[:MAX_WORDS]).rstrip()
                if is_prose(text):
                    yield text
                words, target = [], _target(rng)
    text = "".join(words[:MAX_WORDS]).rstrip()
    if len(words) >= MIN_WORDS and is_prose(text):
        yield text


def is_prose(text: str) -> bool:
    """Whether a text is mostly letters, and neither code nor data in one long word."""
    if ">>>" in text or "```" in text:
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    if not text.isascii():
        letters += sum(map(len, _MARKS.findall(text)))
    longest = max(map(len, spaced_words(text)), default=0)
    return letters >= MIN_LETTERS * len(text) and longest <= MAX_WORD_CHARACTERS


def _target(rng: random.Random) -> int:
    """The length of the next text, in words."""
    return round(math.exp(rng.uniform(math.log(MIN_WORDS), math.log(MAX_WORDS))))

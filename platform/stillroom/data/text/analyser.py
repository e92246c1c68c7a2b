"""Texts as the terms that lexical search compares."""

import re
import unicodedata
from functools import cache
from itertools import pairwise

import regex
import Stemmer

from stillroom.config.languages import LANGUAGES
from stillroom.data.text.stop_words import stop_words
from stillroom.data.text.words import UNSPACED, fold, plain_letters

# Two characters or more: single letters are articles, elided ones and variables.
_ASCII_WORDS = re.compile(r"[a-z0-9_]{2,}")
_WORDS = regex.compile(rf"(?V1)(?!\p{{M}})[\w--[{UNSPACED}\p{{Hangul}}]]{{2,}}")
_RUNS = regex.compile(rf"[{UNSPACED}\p{{Hangul}}][{UNSPACED}\p{{Hangul}}\p{{M}}]*")
_CHARACTERS = regex.compile(r".\p{M}*", regex.DOTALL)
# NFKC would make them letters of the word before them.
_TRADEMARKS = str.maketrans("℠™", "  ")
_OTHER_DIGIT = regex.compile(r"(?V1)[\p{Nd}--[0-9]]")
_TURKIC = str.maketrans("Iİ", "ıi")


class Analyser:
    """Cuts texts of one language into terms.

    Case, Unicode spelling and the script of digits are folded; words lose their endings (Snowball)
    and stop words are left out, where the language has a stemmer and a list. Han, kana, Hangul and
    the scripts of South-East Asia become overlapping bigrams of characters, in every language, as
    in Lucene's CJKAnalyzer; a character that stands alone is a term by itself.

    Args:
        language: a key of LANGUAGES. `mul` and `und` have neither stemmer nor stop words.
    """

    def __init__(self, language: str):
        self.language = language
        self._terms = _TermOfWord(language)

    def terms(self, text: str) -> list[str]:
        """The terms of a text: words in order, then bigrams in order."""
        if self.language in ("tr", "az"):
            text = unicodedata.normalize("NFC", text).translate(_TURKIC)
        if text.isascii():
            return self._of_words(_ASCII_WORDS.findall(text.lower()))
        text = plain_letters(fold(text.translate(_TRADEMARKS)))
        # A digit of a newer Unicode than Python's stays as it is.
        text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), text)
        return self._of_words(_WORDS.findall(text)) + _bigrams(text)

    def _of_words(self, words: list[str]) -> list[str]:
        return [term for word in words if (term := self._terms[word])]


def _bigrams(text: str) -> list[str]:
    terms: list[str] = []
    for run in _RUNS.findall(text):
        characters = _CHARACTERS.findall(run)
        terms += map("".join, pairwise(characters)) if len(characters) > 1 else characters
    return terms


@cache
def stemmer_name(language: str) -> str | None:
    """The Snowball algorithm of a language; None where there is none."""
    name = LANGUAGES[language].lower()
    return name if name in Stemmer.algorithms() else None


class _TermOfWord(dict[str, str]):
    """Word → its term, computed on first use; "" for a stop word."""

    def __init__(self, language: str):
        name = stemmer_name(language)
        self.stem = str if name is None else Stemmer.Stemmer(name).stemWord
        self.stop_words = stop_words(language)

    def __missing__(self, word: str) -> str:
        term = self[word] = "" if word in self.stop_words else self.stem(word)
        return term

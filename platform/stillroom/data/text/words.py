"""Where words end, in any script; whatever counts, compares or searches words reads it here.

Spaces and punctuation separate words. Within a script that is written without spaces every
character is a word, with the marks on it: that needs no dictionary, so a word is the same in a
query and in a passage whatever stands around it, and new names are words like any others.
Borders are those of Unicode's UAX 29, which `regex` knows; but punctuation ends a word also where
UAX 29 lets it stand inside one (`os.path`, `l'amour`, `3.14`), for its parts are searched for too.

What precedes every comparison is `fold`: texts in NFC and in NFD have the same words.
"""

import unicodedata

import regex

# Written without spaces between words: Chinese, Japanese, and (`Line_Break=SA`, "complex context")
# Thai, Lao, Khmer, Burmese and their neighbours. The last two are marks of length and repetition.
UNSPACED = (
    r"\p{Han}\p{Ideographic}\p{Hiragana}\p{Katakana}\p{Line_Break=SA}\u30fc\u3031-\u3035\uff70"
)

_HAS_UNSPACED = regex.compile(rf"[{UNSPACED}]")
# A character of these scripts with the marks and the punctuation after it; or what stands between
# white space.
_SPACED_WORDS = regex.compile(rf"(?!\p{{M}})[{UNSPACED}]\p{{M}}*[^\s\w]*|[^\s{UNSPACED}]+")
# What writers leave out as they like: invisible characters, and the vowel marks and stretched lines
# of Arabic and Hebrew.
_OPTIONAL = regex.compile(
    r"[\p{Cf}\p{Default_Ignorable_Code_Point}"
    r"\u0610-\u061a\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06ed"
    r"\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]+"
)
_TURKISH_I = "i\u0307"  # a folded İ
# After these a sentence goes on without a space.
_WIDE_STOP = "。！？｡"


def fold(text: str) -> str:
    """The text without differences of Unicode spelling and case: Unicode's toNFKC_Casefold, but
    with invisible characters left in.
    """
    # For ASCII both branches give the same, and lower() is much faster.
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def plain_letters(text: str) -> str:
    """The text without what its writer may have left out as well: joiners, soft hyphens, marks of
    direction, variation selectors, the vowel marks of Arabic and Hebrew.
    """
    if text.isascii():
        return text
    return _OPTIONAL.sub("", text).replace(_TURKISH_I, "i")


def spaced_words(text: str) -> list[str]:
    """What stands between spaces, with its punctuation; characters of scripts without spaces
    apart, each with its marks and the punctuation that follows it.
    """
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return text.split()
    words: list[str] = _SPACED_WORDS.findall(text)
    return words


def words_and_spaces(text: str) -> list[str]:
    """`spaced_words`, each with the space behind it, if there is one: joined they are the text with
    single spaces. The end of a text counts as a space, but for the end of a Chinese or Japanese
    sentence.
    """
    if text.isascii() or not _HAS_UNSPACED.search(text):
        return [f"{word} " for word in text.split()]
    return [
        f"{word[0]} " if _ends_with_space(text, word.end()) else word[0]
        for word in _SPACED_WORDS.finditer(text)
    ]


def _ends_with_space(text: str, end: int) -> bool:
    return text[end].isspace() if end < len(text) else text[end - 1] not in _WIDE_STOP


def count_words(text: str) -> int:
    """How many `spaced_words` a text has, however it is encoded."""
    return len(spaced_words(unicodedata.normalize("NFC", text)))

"""The language of a collection of texts, and whether a text is in the language asked for."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from stillroom.config.languages import LANGUAGES, MULTIPLE, UNKNOWN
from stillroom.data.cleaning.sampling import evenly_spaced

SAMPLE_TEXTS = 200
SAMPLE_CHARACTERS = 400  # of each text
MIN_SHARE = 0.7  # of the sampled letters; with less there are several languages

# The detector's codes of varieties, and the language whose stemmer and stop words they share.
VARIETIES = {
    "ary": "ar",
    "arz": "ar",
    "grc": "el",
    "hbo": "he",
    "nn": "no",
    "uzs": "uz",
    "wuu": "zh",
    "yue": "zh",
}

# Of a text's letters, as UTF-8: less does not say its language, or only whether it is English.
MIN_BYTES, RELIABLE_BYTES = 32, 80

# Languages between which the detector errs, also on texts of RELIABLE_BYTES.
RELATED = (
    {"da", "no", "sv"},
    {"an", "ca", "es", "ext", "gl", "pt"},
    {"cs", "sk"},
    {"bs", "hr", "sl", "sr"},
    {"be", "ru", "uk"},
    {"bg", "mk", "ru"},
    {"id", "jv", "ms"},
    {"af", "nl"},
    {"de", "lb"},
    {"xh", "zu"},
    {"hi", "mr", "ne"},
    {"fa", "ps", "ur"},
    {"az", "tr"},
)


def is_in_language(text: str, language: str) -> bool:
    """Whether a text may be in a language, as far as its length allows to tell.

    A short text is compared with English alone, in which language models answer by default; what
    is shorter still passes.

    Args:
        language: a key of LANGUAGES, but neither `mul` nor `und`.
    """
    size = len("".join(filter(str.isalpha, text)).encode("utf-8", "replace"))
    if size < MIN_BYTES:
        return True
    spelt = unicodedata.normalize("NFKC", text)
    ranked = [VARIETIES.get(code, code) for code, _ in _detector().rank(spelt)]
    if size < RELIABLE_BYTES:
        return next((code for code in ranked if code in (language, "en")), language) == language
    same = {language}.union(*(group for group in RELATED if language in group))
    return ranked[0] in same or language not in ranked


def detect_language(texts: Sequence[str]) -> str:
    """The language of most texts: a key of LANGUAGES.

    A sample is detected text by text, since a collection may mix languages, and each text counts
    as many times as it has letters.

    Returns:
        `mul` where no language has MIN_SHARE of the letters; `und` where there are no letters.
    """
    letters = Counter[str]()
    for row in evenly_spaced(len(texts), SAMPLE_TEXTS):
        text = unicodedata.normalize("NFKC", texts[row][:SAMPLE_CHARACTERS])
        if count := sum(map(str.isalpha, text)):
            code = _detector().classify(text)[0]
            letters[VARIETIES.get(code, code)] += count
    if not letters:
        return UNKNOWN
    language, count = letters.most_common(1)[0]
    if count < MIN_SHARE * letters.total():
        return MULTIPLE
    return language if language in LANGUAGES else UNKNOWN


@cache
def _detector() -> Any:
    # Imported here: its model takes half a second to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)

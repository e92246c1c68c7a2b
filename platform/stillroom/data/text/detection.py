"""The language of a collection of texts."""

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


def detect_language(texts: Sequence[str]) -> str:
    """The language of most texts: a key of LANGUAGES.

    A sample is detected text by text, since a collection may mix languages, and each text counts
    as many times as it has letters.

    Returns:
        `mul` where no language has MIN_SHARE of the letters; `und` where there are no letters.
    """
    letters = Counter[str]()
    for row in evenly_spaced(len(texts), SAMPLE_TEXTS):
        text = texts[row][:SAMPLE_CHARACTERS]
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

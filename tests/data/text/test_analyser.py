"""Terms of lexical search, by language."""

import pytest
import regex
from hypothesis import example, given, settings

from stillroom.config.languages import LANGUAGES
from stillroom.data.text.analyser import Analyser, stemmer_name
from stillroom.data.text.words import UNSPACED
from support.scripts import TEXTS, composed_and_decomposed


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("en", "The cats aren't sleeping: os.path, C", ["cat", "aren", "sleep", "os", "path"]),
        ("de", "Die Häuser an der Straße", ["haus", "strass"]),
        ("fr", "L'amour des maisons", ["amour", "maison"]),
        ("ru", "В домах и о доме", ["дом", "дом"]),
        ("tr", "IŞIK İstanbul ışık", ["ışık", "istanbul", "ışık"]),
        ("hi", "हिन्दी की किताबें", ["हिन्द", "क", "किताब"]),
        ("zh", "使用Linux内核", ["linux", "使用", "内核"]),
        ("zh", "水, 火山", ["水", "火山"]),
        ("ja", "水が沸く", ["水が", "が沸", "沸く"]),
        ("ja", "ﾊﾞｯｸｱｯﾌﾟ", ["バッ", "ック", "クア", "アッ", "ップ"]),
        ("ko", "한국어 문장", ["한국", "국어", "문장"]),
        ("th", "ที่นี่", ["ที่นี่"]),
        ("mul", "The cats 水が", ["the", "cats", "水が"]),
        ("en", "it´s Java™ x²", ["java", "x2"]),
        ("ar", "مُحَمَّد محمد", ["محمد", "محمد"]),
        ("ar", "سنة ١٩٨٤", ["سنة", "1984"]),
        ("th", "พ.ศ. ๒๕๔๒", ["2542", "พ", "ศ"]),
        ("hi", "१२३", ["123"]),
        ("fa", "می\u200cخواهم میخواهم", ["میخواهم", "میخواهم"]),
    ],
)
def test_terms_are_stems_without_stop_words_and_bigrams(language, text, terms):
    assert Analyser(language).terms(text) == terms


def test_the_languages_with_a_stemmer_are_those_of_snowball():
    stemmed = {language for language in LANGUAGES if stemmer_name(language)}
    assert {"ar", "de", "en", "es", "fi", "fr", "hi", "it", "nl", "pl", "pt", "ru", "sv"} <= stemmed
    assert stemmed.isdisjoint({"ja", "ko", "th", "zh", "mul", "und"})
    assert len(stemmed) >= 30


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="i\u0307I\u0307")
@example(text="\u0301a\u0301")
def test_composed_and_decomposed_texts_have_the_same_terms_in_every_language(text):
    composed, decomposed = composed_and_decomposed(text)
    for language in ("en", "de", "tr", "el", "ar", "ko", "th", "mul"):
        terms = Analyser(language).terms(composed)
        assert terms == Analyser(language).terms(decomposed) and "" not in terms


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_no_word_reaches_over_a_border_of_uax_29(text):
    """The reverse does not hold: punctuation within a word ends it too."""
    in_bigrams = regex.compile(rf"[{UNSPACED}\p{{Hangul}}]")
    for word in Analyser("mul").terms(text):
        if not in_bigrams.search(word):
            assert list(filter(None, regex.split(r"(?V1)(?w)\b", word))) == [word]

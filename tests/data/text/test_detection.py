"""The language of a collection."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.config.languages import AUTO, LANGUAGES, check_language
from stillroom.data.text import detection
from stillroom.data.text.detection import RELATED, VARIETIES, detect_language, is_in_language
from stillroom.errors import UserError
from support.scripts import TEXTS, composed_and_decomposed

SENTENCES = {
    "en": "The water in the river is clear and cold all through the year",
    "de": "Das Wasser im Fluss ist das ganze Jahr über klar und kalt",
    "fr": "L'eau de la rivière reste claire et froide toute l'année",
    "ru": "Вода в реке весь год остаётся чистой и холодной",
    "ja": "川の水は一年を通して澄んでいて冷たい",
    "zh": "河里的水一年四季都很清澈冰凉",
    "ko": "강물은 일 년 내내 맑고 차갑다",
    "th": "น้ำในแม่น้ำใสและเย็นตลอดทั้งปี",
    "ar": "ماء النهر صاف وبارد طوال العام",
    "hi": "नदी का पानी पूरे साल साफ और ठंडा रहता है",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_the_language_of_most_letters_is_found(language):
    texts = [f"{SENTENCES[language]} {number}." for number in range(20)]
    assert detect_language(texts) == language
    assert detect_language([*texts, "A line of English.", "1984", ""]) == language


def test_how_letters_are_spelt_in_unicode_changes_no_language():
    for language, text in SENTENCES.items():
        wide = "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)
        for spelt in (wide, *composed_and_decomposed(text)):
            assert detect_language([spelt] * 5) == language
            assert is_in_language(spelt * 3, language)


def test_a_mixed_collection_has_several_languages_and_numbers_have_none():
    assert detect_language([SENTENCES["de"], SENTENCES["fr"]] * 10) == "mul"
    assert detect_language(["1984", "++ 3.5 €", ""]) == detect_language([]) == "und"
    assert detect_language(["\ud800\ud800 \u200f"]) == "und"


@pytest.mark.parametrize("language", SENTENCES)
def test_a_text_is_in_its_own_language_and_in_no_other(language):
    text = f"{SENTENCES[language]}. " * 3
    accepted = {code for code in SENTENCES if is_in_language(text, code)}
    assert accepted == {language}


def test_a_short_text_is_told_from_english_only_and_a_word_passes():
    assert not is_in_language("How clear is the water of this river in summer?", "de")
    assert is_in_language("Wie klar ist das Wasser dieses Flusses im Sommer?", "de")
    assert is_in_language("Wie klar ist das Wasser dieses Flusses im Sommer?", "fr")
    assert is_in_language("GPU", "ja") and is_in_language("\ud800 ++ 1984", "ja")


@settings(deadline=None)
@given(TEXTS, st.sampled_from(sorted(SENTENCES)))
def test_any_text_has_a_language_and_is_or_is_not_in_one(text, language):
    assert detect_language([text]) in LANGUAGES
    assert is_in_language(text, language) in (True, False)


def test_languages_that_the_detector_confuses_are_not_told_apart():
    danish = "Dette program viser billeder og film fra kameraet på skærmen i stuen og køkkenet. "
    assert is_in_language(danish * 2, "no") and not is_in_language(danish * 2, "de")
    labels = {VARIETIES.get(label, label) for label in detection._detector().labels}
    assert set().union(*RELATED) <= labels


def test_only_a_sample_of_a_large_collection_is_read(monkeypatch):
    class Texts(list):
        read = 0

        def __getitem__(self, row):
            Texts.read += 1
            return SENTENCES["de"]

    assert detect_language(Texts([""] * 100_000)) == "de"
    assert Texts.read <= detection.SAMPLE_TEXTS


def test_every_variety_of_the_detector_is_a_language():
    labels = set(detection._detector().labels)
    assert set(detection.VARIETIES) <= labels
    assert set(detection.VARIETIES.values()) <= set(LANGUAGES)
    assert len(labels & set(LANGUAGES)) >= 85


@pytest.mark.parametrize(
    ("given", "fix"),
    [("german", "Use de"), ("zh-CN", "Use zh"), ("pt_BR", "Use pt"), ("xx", "auto")],
)
def test_an_unknown_language_is_refused_with_the_code_that_was_meant(given, fix):
    with pytest.raises(UserError, match=f"--language: '{given}' is no known language. .*{fix}"):
        check_language(given, "--language")
    assert check_language("de", "x") == "de" and check_language(AUTO, "x") == AUTO

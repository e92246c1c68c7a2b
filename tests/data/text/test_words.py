"""Where words end, in every script."""

import pytest
from hypothesis import example, given, settings

from stillroom.data.cleaning.contamination_index import ContaminationIndex
from stillroom.data.cleaning.minhash import minhash_signatures
from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.cleaning.word_hashes import hash_words, split_words
from stillroom.data.readers.records import EvaluationSet
from stillroom.data.text.analyser import Analyser
from stillroom.data.text.words import count_words, fold, spaced_words, words_and_spaces
from support.scripts import TEXTS, composed_and_decomposed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("well-known, isn't  it?\n", ["well-known,", "isn't", "it?"]),
        ("水が沸く。", ["水", "が", "沸", "く。"]),
        ("Linux内核 5.4", ["Linux", "内", "核", "5.4"]),
        ("ที่นี่ ok", ["ที่", "นี่", "ok"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("हिन्दी की", ["हिन्दी", "की"]),
        ("سلام، دنیا", ["سلام،", "دنیا"]),
        ("", []),
    ],
)
def test_spaces_separate_words_and_characters_do_where_a_script_has_no_spaces(text, words):
    assert spaced_words(text) == words
    assert count_words(text) == len(words)


def test_english_words_are_what_stands_between_white_space():
    text = "The  “data-base”\tisn't naïve;\n x = f(y)  # 100 % é"
    assert spaced_words(text) == text.split()


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="ΐ")
@example(text="\u0345")
@example(text="ﬁ\u0323\u0307")
def test_composed_and_decomposed_texts_have_the_same_words_keys_and_near_copies(text):
    composed, decomposed = composed_and_decomposed(text)
    assert fold(composed) == fold(decomposed) == fold(fold(text))
    assert spaced_words(fold(composed)) == spaced_words(fold(decomposed))
    assert count_words(composed) == count_words(decomposed)
    assert split_words(composed) == split_words(decomposed)
    assert text_key(composed) == text_key(decomposed)
    first, second = minhash_signatures([composed, decomposed])
    assert first.tolist() == second.tolist()
    hashed = hash_words([composed, decomposed])
    assert hashed.keys[0] == hashed.keys[1]


@settings(max_examples=75, deadline=None)
@given(text=TEXTS, other=TEXTS)
def test_composed_and_decomposed_texts_have_the_same_verdict_of_decontamination(text, other):
    tested = EvaluationSet({"p": f"{other} {text}"}, {"q": text}, {"q": {"p": 1}})
    verdicts = [
        [match.tolist() for match in vars(index.best_matches([written, other])).values()]
        for index in (ContaminationIndex.build({"set": tested}),)
        for written in composed_and_decomposed(text)
    ]
    assert verdicts[0] == verdicts[1]


@pytest.mark.parametrize(
    ("first", "second"),
    [("مُحَمَّدٌ", "محمد"), ("محـــمد", "محمد"), ("שָׁלוֹם", "שלום"), ("İSTANBUL", "istanbul")],
)
def test_marks_that_writers_leave_out_change_no_word(first, second):
    assert split_words(first) == split_words(second)
    for language in ("mul", "ar", "he", "fa"):
        assert Analyser(language).terms(first) == Analyser(language).terms(second)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_words_and_spaces_are_the_text_with_single_spaces(text):
    words = words_and_spaces(text)
    assert [word.rstrip(" ") for word in words] == spaced_words(text)
    assert "".join(words).split() == text.split()


def test_invisible_characters_change_no_word():
    plain, marked = "❤ data über می", "❤\ufe0f da\u00adta \u200füb\u200der\u202c م\u200cی"
    assert split_words(plain) == split_words(marked)

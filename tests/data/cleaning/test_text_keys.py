"""Which texts count as the same."""

import numpy as np

from stillroom.data.cleaning.text_keys import (
    beginning_key,
    equals_previous,
    hash_texts,
    normalise,
    text_key,
)


def test_text_keys_ignore_spelling_case_and_white_space():
    assert normalise(" Ａ  B\n") == normalise("a b") == "a b"
    assert text_key("a  B\n") == text_key("A b") and text_key("a") != text_key("b")
    assert beginning_key("x" * 200 + "y") == beginning_key("X" * 200 + "z")
    same = hash_texts(map(normalise, ["a  B\n", "A b", "c", "\ud800"]))
    assert same[0] == same[1] and len(set(same.tolist())) == 3


def test_equals_previous_marks_all_but_the_first():
    assert equals_previous(np.array([1, 1, 2, 3, 3, 3])).astype(int).tolist() == [0, 1, 0, 0, 1, 1]
    assert equals_previous(np.array([])).tolist() == []

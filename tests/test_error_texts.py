"""Texts of users in messages, in any script."""

import regex
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import beginning, one_line, quote
from support.scripts import TEXTS

FAMILY = "👩‍👩‍👧‍👦"


def test_what_a_reader_sees_as_one_character_is_not_cut():
    assert beginning("ab" + FAMILY, 4) == "ab"
    assert beginning("ab" + FAMILY, 2 + len(FAMILY)) == "ab" + FAMILY
    assert beginning("e\u0301e\u0301", 3) == "e\u0301"
    assert beginning("ก\u0e34\u0e48ก\u0e34\u0e48", 4) == "ก\u0e34\u0e48"
    assert beginning("🇩🇪🇫🇷", 3) == "🇩🇪"
    assert beginning("\r\n", 1) == "\r"  # alone longer than the limit


@given(TEXTS, st.integers(1, 40))
def test_a_beginning_is_short_enough_and_ends_between_characters_in_any_script(text, limit):
    start = beginning(text, limit)
    assert text.startswith(start) and len(start) <= limit
    ends = {cluster.end() for cluster in regex.finditer(r"\X", text)}
    first = min(ends, default=0)
    assert start == text or len(start) in ends or (first > limit and len(start) == limit)
    longer = [end for end in ends if len(start) < end <= limit]
    assert not longer


@given(TEXTS)
def test_a_quoted_text_is_short_says_that_it_was_cut_and_controls_no_terminal(text):
    shown = quote(text, 10)
    assert shown.isprintable()
    assert ("…" in shown) == (len(text) > 10 or "…" in text)


def test_one_line_of_an_error_ends_between_characters():
    assert one_line("no\n\tsuch  " + FAMILY, 10) == "no such "

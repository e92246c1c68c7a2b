"""Limits that are checked before a body is parsed."""

import json

import pytest

from stillroom.serving.config import RequestLimits
from stillroom.serving.errors import ErrorKind, ServingError
from stillroom.serving.http.limits import OTHER_PARTS, check_parts

LIMITS = RequestLimits(texts=10, tokens=100)
MOST = 10 + 100 + OTHER_PARTS


def is_refused(body):
    try:
        check_parts(LIMITS, body)
    except ServingError as error:
        assert error.kind is ErrorKind.TOO_LARGE
        return True
    return False


@pytest.mark.parametrize("value", [[], {}, [[]], 1, "", "a, b", '"', "\\", '\\",', "é,\n", None])
def test_values_are_counted_and_commas_in_texts_are_not(value):
    for count, refused in ((MOST, False), (MOST + 2, True)):
        assert is_refused(json.dumps({"input": [value] * count}).encode()) is refused


def test_a_text_of_commas_quotes_and_backslashes_is_one_value():
    text = ',"\\' * 1_000_000
    for escaped in (True, False):
        body = json.dumps({"model": "m", "input": text}, ensure_ascii=escaped).encode()
        assert not is_refused(body)


@pytest.mark.parametrize("body", [b'["' + b"," * 5000, b'["a\\', b"," * 9])
def test_what_is_no_json_is_left_to_the_parser(body):
    assert not is_refused(body)

import base64
import json

import numpy as np
import pytest

from stillroom.serving.errors import ServingError
from stillroom.serving.http.errors import error_response
from stillroom.serving.http.openai import embeddings_body, parse
from stillroom.serving.messages import EncodeResult


def body(**fields) -> bytes:
    return json.dumps({"model": "m", "input": "a text"} | fields).encode()


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
def test_every_form_of_input_becomes_one_entry_per_vector(value, inputs):
    request = parse(body(input=value)).to_request()
    assert (request.token_ids or request.texts) == inputs
    assert len(request) == len(inputs)


@pytest.mark.parametrize(
    ("fields", "param", "code", "message"),
    [
        ({"input": ""}, "input", "invalid_value", "empty"),
        ({"input": []}, "input", "invalid_value", "empty"),
        ({"input": ["a", ""]}, "input", "invalid_value", "input 1 is empty"),
        ({"input": [[1], []]}, "input", "invalid_value", "input 1 is empty"),
        ({"input": 3}, "input", "invalid_type", "a text, a list of texts"),
        ({"input": ["a", 1]}, "input", "invalid_type", "a text, a list of texts"),
        ({"input": [True]}, "input", "invalid_type", "a text, a list of texts"),
        ({"input": [-1]}, "input", "invalid_type", "a text, a list of texts"),
        ({"input": None}, "input", "invalid_type", "a text, a list of texts"),
        ({"model": 3}, "model", "invalid_value", "model"),
        ({"encoding_format": "hex"}, "encoding_format", "invalid_value", "'float' or 'base64'"),
        ({"dimensions": 0}, "dimensions", "invalid_value", "greater than 0"),
        ({"dimensions": "64"}, "dimensions", "invalid_value", "integer"),
        ({"input_type": "passage"}, "input_type", "invalid_value", "'query', 'document', "),
        ({"dimension": 8}, "dimension", "unknown_parameter", "Did you mean 'dimensions'"),
        ({"zzz": 8}, "zzz", "unknown_parameter", "Allowed: input, model"),
    ],
)
def test_an_invalid_field_is_refused_by_name(fields, param, code, message):
    with pytest.raises(ServingError) as raised:
        parse(body(**fields))
    answer = error_response("openai", raised.value)
    error = json.loads(answer.body)["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"input": "a"}', "missing_required_parameter"),
        (b"[]", "invalid_value"),
        (b'{"model": "m", "input": "\xff"}', "invalid_json"),
    ],
)
def test_a_body_that_is_not_a_request_is_refused(raw, code):
    with pytest.raises(ServingError) as raised:
        parse(raw)
    answer = error_response("openai", raised.value)
    assert (answer.status_code, json.loads(answer.body)["error"]["code"]) == (400, code)


def test_base64_is_little_endian_float32_and_floats_lose_nothing():
    vectors = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    result = EncodeResult(vectors, 7, model="m")
    plain = json.loads(embeddings_body(result, "float"))
    packed = json.loads(embeddings_body(result, "base64"))
    assert [d["index"] for d in plain["data"]] == [0, 1, 2]
    assert plain["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    for row, a, b in zip(vectors, plain["data"], packed["data"], strict=True):
        np.testing.assert_array_equal(np.float32(a["embedding"]), row)
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(b["embedding"]), "<f4"), row)

"""The client against servers on real sockets: scripted ones, and the one of transformers."""

import contextlib
import functools
import itertools
import socket

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cli.serve import Serve

from stillroom.data.synthetic.selection import query_likelihood
from stillroom.errors import UserError
from stillroom.openai_client.client import OpenAIClient, RateLimiter, retry_after_s
from stillroom.openai_client.completion import Completion
from stillroom.openai_client.requests import Request, estimate_text_tokens
from support.openai_endpoint import Endpoint, Reply, chat

Client = functools.partial(OpenAIClient, parse=Completion.parse)


REQUEST = Request.create("chat/completions", {"model": "m", "messages": []})


RETRY_NOW = Reply(429, {"Retry-After": "0"})


def in_turn(*replies):
    remaining = list(replies)

    def answer(route, body):
        reply = remaining.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return answer


@pytest.mark.parametrize(
    "replies",
    [
        [RETRY_NOW],
        [RETRY_NOW, Reply(503, {"Retry-After": "0"}), RETRY_NOW],
        [Reply(500), Reply(408)],
        [Reply(200, text="<html>a proxy's page"), Reply(200, text='{"choices": []}')],
        [{"choices": [{"message": None}]}, [1]],
    ],
)
def test_transient_failures_are_retried(replies):
    # Where the server sets the pause, one of the client's own would never end.
    server_sets_pause = any("Retry-After" in getattr(reply, "headers", ()) for reply in replies)
    with Endpoint(in_turn(*replies, chat("yes"))) as server:
        client = Client(
            server.url,
            api_key="secret",
            attempts=4,
            first_pause_s=1e9 if server_sets_pause else 0.0,
        )
        content = client.send(REQUEST)
    assert Completion.parse(content, REQUEST).text == "yes"
    assert server.request_counts() == {("chat/completions", REQUEST.body): len(replies) + 1}
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_retried(status):
    with Endpoint(in_turn(Reply(status))) as server:
        content = Client(server.url).send(REQUEST)
    assert Completion.parse(content, REQUEST).refused == status
    assert len(server.calls) == 1 and "Authorization" not in server.headers[0]


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_a_wrong_key_or_address_fails_at_once(status):
    with Endpoint(in_turn(Reply(status, text="who are you?"))) as server:
        with pytest.raises(UserError, match=f"{status}: who are you"):
            Client(server.url).send(REQUEST)
        assert len(server.calls) == 1


def test_a_failing_or_unreachable_endpoint_ends_in_an_error():
    with Endpoint(in_turn(*[Reply(502, text="bad gateway")] * 3)) as server:
        with pytest.raises(UserError, match="failed 3 times, at last with: 502 bad gateway"):
            Client(server.url, attempts=3, first_pause_s=0).send(REQUEST)
        assert len(server.calls) == 3
        url = server.url
    with pytest.raises(UserError, match="ConnectError"):
        Client(url, attempts=2, first_pause_s=0).send(REQUEST)
    with pytest.raises(UserError, match="is not a URL"):
        Client("localhost:8000/v1").send(REQUEST)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("86400", 600.0),
        ("nan", None),
        ("soon", None),
        ("Fri, 02 Jan 1970 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_may_be_seconds_or_a_date(header, expected):
    assert retry_after_s(header, now=86400.0) == expected


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=60),
    st.sampled_from([(None, None), (30, None), (None, 200), (20, 300)]),
)
def test_no_minute_exceeds_the_rate_limit_except_by_its_last_request(requests, limits):
    rate_limiter, now, sent = RateLimiter(*limits), 0.0, []
    for pause, tokens in requests:
        now += pause
        sent.append((now + rate_limiter.reserve(tokens, now), tokens))
    for start, _ in sent:
        minute = [tokens for time, tokens in sent if start <= time < start + 60 - 1e-6]
        assert limits[0] is None or len(minute) <= limits[0]
        assert limits[1] is None or sum(minute[:-1]) <= limits[1] + 1e-6
    if limits == (None, None):
        assert [time for time, _ in sent] == list(
            itertools.accumulate(pause for pause, _ in requests)
        )


@pytest.fixture(scope="module")
def model(decoder, tmp_path_factory):
    """The tiny decoder with a chat template, which chat models have."""
    folder = tmp_path_factory.mktemp("llm")
    AutoModelForCausalLM.from_pretrained(decoder).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def transformers_serving(model):
    """Runs the server of `transformers serve`; yields its URL, which answers a moment later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(force_model=str(model), port=port, device="cpu", non_blocking=True)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        serve.kill_server()


def test_responses_of_transformers_serve_are_parsed_and_lack_logprobs(model):
    body = {"model": str(model), "max_tokens": 4, "seed": 7, "temperature": 1.0}
    request = Request.create(
        "chat/completions", {**body, "messages": [{"role": "user", "content": "a"}]}
    )
    echo = Request.create("completions", {**body, "prompt": "a b", "echo": True, "logprobs": 1})
    with transformers_serving(model) as url:
        client = Client(url, attempts=100, first_pause_s=0.05)
        answer = Completion.parse(client.send(request), request)
        echoed = Completion.parse(client.send(echo), echo)
    assert answer.usage.tokens_out <= 4 and answer.usage.tokens_in > 0
    assert answer.usage.tokens_in <= estimate_text_tokens(request.body)
    assert answer.truncated == (answer.usage.tokens_out == 4) and answer.refused is None
    assert echoed.tokens is None  # status 200, but without the logprobs that the request asks for


def test_query_likelihood_equals_the_model_s_own(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).eval()

    def token_logprobs(ids):
        with torch.inference_mode():
            logprobs = network(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return [None, *(logprobs[i - 1, ids[i]].item() for i in range(1, len(ids)))]

    def answer(route, body):
        """The answer of a server that echoes: every token of the prompt, then a generated one."""
        assert (route, body["echo"], body["max_tokens"]) == ("completions", True, 1)
        ids = tokenizer(body["prompt"])["input_ids"]
        with torch.inference_mode():
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
        ids = ids[1:]  # servers do not show the BOS
        texts = [tokenizer.decode([i]) for i in ids]
        chosen = {
            "tokens": texts,
            "token_logprobs": token_logprobs([tokenizer.bos_token_id, *ids])[1:],
        }
        text = tokenizer.decode(ids)
        return {"choices": [{"text": text, "finish_reason": "length", "logprobs": chosen}]}

    prompt, query = "Die Straße — naïve 日本:\nQuery:", " where is the Straße"
    body = {"model": "m", "prompt": prompt + query, "echo": True, "logprobs": 1, "max_tokens": 1}
    request = Request.create("completions", body)
    with Endpoint(answer) as server:
        completion = Completion.parse(Client(server.url).send(request), request)
    likelihood = query_likelihood(
        completion.text, completion.tokens, completion.logprobs, prompt, query
    )
    ids = tokenizer(prompt + query)["input_ids"]
    # The slow way: the fewest last tokens whose text contains the query.
    count = next(n for n in range(1, len(ids)) if len(tokenizer.decode(ids[-n:])) >= len(query))
    expected = sum(token_logprobs(ids)[-count:]) / count
    assert likelihood == pytest.approx(expected, rel=1e-5)

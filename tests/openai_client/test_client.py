"""The client against servers on real sockets: scripted ones, and transformers' own."""

import contextlib
import functools
import itertools
import socket
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cli.serve import Serve

from stillroom.data.synthetic.selection import query_likelihood
from stillroom.errors import UserError
from stillroom.openai_client.answer import Answer
from stillroom.openai_client.client import (
    Answers,
    Pace,
    Request,
    Usage,
    affordable,
    pause_s,
    token_estimate,
)
from stillroom.openai_client.client import Client as AnyClient
from support.openai_endpoint import Endpoint, Reply, chat

Client = functools.partial(AnyClient, read=Answer.read)
ASKED = Request.of("chat/completions", {"model": "m", "messages": []})
NOW = Reply(429, {"Retry-After": "0"})


def in_turn(*replies):
    left = list(replies)

    def answer(route, body):
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return answer


@pytest.mark.parametrize(
    "replies",
    [
        [NOW],
        [NOW, Reply(503, {"Retry-After": "0"}), NOW],
        [Reply(500), Reply(408)],
        [Reply(200, text="<html>a proxy's page"), Reply(200, text='{"choices": []}')],
        [{"choices": [{"message": None}]}, [1]],
    ],
)
def test_what_may_pass_is_asked_again(replies):
    # Where the server says how long, a pause of our own would never end.
    told = any("Retry-After" in getattr(reply, "headers", ()) for reply in replies)
    with Endpoint(in_turn(*replies, chat("yes"))) as server:
        client = Client(server.url, key="secret", attempts=4, first_pause_s=1e9 if told else 0.0)
        content = client.ask(ASKED)
    assert Answer.read(content, ASKED).text == "yes"
    assert server.times() == {("chat/completions", ASKED.body): len(replies) + 1}
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_is_not_asked_again(status):
    with Endpoint(in_turn(Reply(status))) as server:
        content = Client(server.url).ask(ASKED)
    assert Answer.read(content, ASKED).refused == status
    assert len(server.calls) == 1 and "Authorization" not in server.headers[0]


@pytest.mark.parametrize("status", [401, 403, 404, 307])
def test_a_wrong_key_or_address_ends_it_at_once(status):
    with Endpoint(in_turn(Reply(status, text="who are you?"))) as server:
        with pytest.raises(UserError, match=f"{status}: who are you"):
            Client(server.url).ask(ASKED)
        assert len(server.calls) == 1


def test_an_endpoint_that_keeps_failing_or_is_not_there_is_given_up():
    with Endpoint(in_turn(*[Reply(502, text="bad gateway")] * 3)) as server:
        with pytest.raises(UserError, match="failed 3 times, at last with: 502 bad gateway"):
            Client(server.url, attempts=3, first_pause_s=0).ask(ASKED)
        assert len(server.calls) == 3
        url = server.url
    with pytest.raises(UserError, match="ConnectError"):
        Client(url, attempts=2, first_pause_s=0).ask(ASKED)
    with pytest.raises(UserError, match="is no address"):
        Client("localhost:8000/v1").ask(ASKED)


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
def test_how_long_to_wait_is_read_as_seconds_or_as_a_date(header, expected):
    assert pause_s(header, now=86400.0) == expected


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=60),
    st.sampled_from([(None, None), (30, None), (None, 200), (20, 300)]),
)
def test_no_minute_holds_more_than_the_pace_allows_and_its_last_request(asked, limits):
    pace, now, sent = Pace(*limits), 0.0, []
    for pause, tokens in asked:
        now += pause
        sent.append((now + pace.wait_s(tokens, now), tokens))
    for start, _ in sent:
        minute = [tokens for at, tokens in sent if start <= at < start + 60 - 1e-6]
        assert limits[0] is None or len(minute) <= limits[0]
        assert limits[1] is None or sum(minute[:-1]) <= limits[1] + 1e-6
    if limits == (None, None):
        assert [at for at, _ in sent] == list(itertools.accumulate(pause for pause, _ in asked))


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, float("inf")),
        ({"tokens": 1000}, 6),  # 1,000 − 150 spent, at 130 each
        ({"tokens": 100}, 0),
        ({"cost": 0.001, "price_in": 1.0, "price_out": 2.0}, 5),  # 1,000 − 200, at 160
        ({"cost": 0.001, "tokens": 400, "price_in": 1.0, "price_out": 2.0}, 1),
        ({"cost": 0.001, "price_in": 0.0, "price_out": 0.0}, float("inf")),
    ],
)
def test_what_a_budget_still_pays_for(budget, expected):
    told = {"tokens": None, "cost": None, "price_in": 0.0, "price_out": 0.0, **budget}
    assert affordable(Usage(100, 50), Usage(100, 30), **told) == expected


def test_answers_are_kept_by_model_and_question_whoever_else_writes(tmp_path):
    body = {"model": "m", "messages": [], "temperature": 1.0}
    same = Request.of("chat/completions", dict(reversed(body.items())))
    others = [
        Request.of("completions", body),
        Request.of("chat/completions", body, sample=1),
        Request.of("chat/completions", {**body, "temperature": 0.0}),
    ]
    request = Request.of("chat/completions", body)
    assert request.key == same.key
    assert len({request.key, *(other.key for other in others)}) == 4
    file = tmp_path / "new" / "answers.sqlite"
    start = threading.Barrier(4)

    def write(number):
        answers = Answers(file)
        start.wait()
        for i in range(20):
            answers.keep(f"{i}", f"{i} of {number}")
            answers.keep(f"{number} {i}", "own")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = Answers(file)
    first = [kept.get(f"{i}") for i in range(20)]
    assert all(text.startswith(f"{i} of ") for i, text in enumerate(first))
    assert all(kept.get(f"{number} {i}") == "own" for number in range(4) for i in range(20))
    kept.keep("0", "later")
    assert kept.get("0") == first[0] and kept.get("none") is None


# --- real models ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(decoder, tmp_path_factory):
    """The tiny decoder with a chat template, as a model that answers has."""
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
    """What `transformers serve` runs; yields its URL, which answers a moment later."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = Serve(force_model=str(model), port=port, device="cpu", non_blocking=True)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        serve.kill_server()


def test_transformers_own_server_is_asked_and_its_silence_on_likelihoods_seen(model):
    body = {"model": str(model), "max_tokens": 4, "seed": 7, "temperature": 1.0}
    asked = Request.of("chat/completions", {**body, "messages": [{"role": "user", "content": "a"}]})
    echo = Request.of("completions", {**body, "prompt": "a b", "echo": True, "logprobs": 1})
    with transformers_serving(model) as url:
        client = Client(url, attempts=100, first_pause_s=0.05)
        answer = Answer.read(client.ask(asked), asked)
        echoed = Answer.read(client.ask(echo), echo)
    assert answer.usage.tokens_out <= 4 and answer.usage.tokens_in > 0
    assert answer.usage.tokens_in <= token_estimate(asked.body)
    assert answer.cut == (answer.usage.tokens_out == 4) and answer.refused is None
    assert echoed.tokens is None  # 200, and nothing of what was asked for


def test_a_query_s_likelihood_is_the_model_s_own(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).eval()

    def told(ids):
        with torch.inference_mode():
            logprobs = network(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return [None, *(logprobs[i - 1, ids[i]].item() for i in range(1, len(ids)))]

    def answer(route, body):
        """As a server that echoes: every token of the prompt, then one of its own."""
        assert (route, body["echo"], body["max_tokens"]) == ("completions", True, 1)
        ids = tokenizer(body["prompt"])["input_ids"]
        with torch.inference_mode():
            ids.append(int(network(torch.tensor([ids])).logits[0, -1].argmax()))
        ids = ids[1:]  # servers do not show the BOS
        texts = [tokenizer.decode([i]) for i in ids]
        chosen = {"tokens": texts, "token_logprobs": told([tokenizer.bos_token_id, *ids])[1:]}
        text = tokenizer.decode(ids)
        return {"choices": [{"text": text, "finish_reason": "length", "logprobs": chosen}]}

    prompt, query = "Die Straße — naïve 日本:\nQuery:", " where is the Straße"
    body = {"model": "m", "prompt": prompt + query, "echo": True, "logprobs": 1, "max_tokens": 1}
    request = Request.of("completions", body)
    with Endpoint(answer) as server:
        got = Answer.read(Client(server.url).ask(request), request)
    found = query_likelihood(got.text, got.tokens, got.logprobs, prompt, query)
    ids = tokenizer(prompt + query)["input_ids"]
    # The slow way: the fewest last tokens whose text holds the query.
    count = next(n for n in range(1, len(ids)) if len(tokenizer.decode(ids[-n:])) >= len(query))
    expected = sum(told(ids)[-count:]) / count
    assert found == pytest.approx(expected, rel=1e-5)

from collections import defaultdict

import pytest

from stillroom.encoders.contract import Contract, Prompts
from stillroom.errors import UserError
from stillroom.serving.errors import ErrorKind
from stillroom.serving.messages import EncoderLoad
from stillroom.serving.routing.policies import (
    Policy,
    Refuse,
    Send,
    auto_policy,
    check_policy,
    choose_encoder,
    common_dims,
    find_fallbacks,
)
from stillroom.serving.routing.rules import RequestFeatures, parse_policy


def contract(space="s1", dims=(32,), similarity="cosine", normalise=True) -> Contract:
    return Contract(
        base="tiny",
        architecture="encoder",
        attention="bidirectional",
        pooling="mean",
        prompts=Prompts(),
        pool_prompt=False,
        max_tokens=32,
        dims=dims,
        similarity=similarity,
        normalise=normalise,
        precision="float32",
        space=space,
    )


RAW = contract(similarity="dot", normalise=False)


def named(release, **contracts):
    return {f"{release}/{target}": contract for target, contract in contracts.items()}


SAME_SPACE = named("a", teacher=contract(), student=contract())
TWO_SPACES = named("a", teacher=contract("s1"), student=contract("s2"))
SHARED_PREFIX = named("a", teacher=contract(dims=(64, 32, 16)), student=contract(dims=(32, 16, 8)))
TWO_RELEASES = SAME_SPACE | named("b", teacher=contract(), student=contract())
QUERY, PASSAGE = RequestFeatures("query"), RequestFeatures("passage")
IDLE = EncoderLoad()
ALL_OF_A = frozenset({"a/teacher", "a/student"})  # scaled to zero


def rule(value, release="a"):
    return parse_policy("policy", value, release)


def decide(value, request=QUERY, contracts=TWO_RELEASES, max_wait_s=60.0, **loads):
    """The encoder, or the kind of refusal. Loads by a shorthand: a_teacher=EncoderLoad(…)."""
    loads = {name.replace("_", "/"): load for name, load in loads.items()}
    parsed = rule(value)
    check_policy("policy", parsed, contracts)
    policy = Policy(parsed, max_wait_s, ALL_OF_A, find_fallbacks(parsed, contracts))
    decision = choose_encoder(policy, request, defaultdict(lambda: IDLE, loads), contracts)
    return decision.model if isinstance(decision, Send) else decision.kind


LOST = EncoderLoad(ready=0, lost=True)
FULL, FULLER = EncoderLoad(ongoing=40, wait_s=1), EncoderLoad(ongoing=40, wait_s=2)
SPILL = {"spill": {"limit": 40}}
CANARY = {"canary": {"share": 0.25, "to": "b/student", "rest": "student"}}
LENGTH = {"by_length": {"characters": 100}}
NESTED = {"asymmetric": {"passage": SPILL, "query": CANARY}}


@pytest.mark.parametrize(
    ("policy", "request_", "loads", "answer"),
    [
        ("teacher", QUERY, {}, "a/teacher"),
        ("student", PASSAGE, {}, "a/student"),
        ("b/student", PASSAGE, {}, "b/student"),
        ("asymmetric", PASSAGE, {}, "a/teacher"),
        ("asymmetric", QUERY, {}, "a/student"),
        ({"asymmetric": {"query": "b/student"}}, QUERY, {}, "b/student"),
        (SPILL, QUERY, {"a_teacher": EncoderLoad(ongoing=39)}, "a/teacher"),
        (SPILL, QUERY, {"a_teacher": FULL}, "a/student"),
        (SPILL, QUERY, {"a_teacher": FULL, "a_student": FULLER}, "a/teacher"),
        (SPILL, QUERY, {"a_teacher": FULLER, "a_student": FULL}, "a/student"),
        (CANARY, RequestFeatures("query", hash_fraction=0.24), {}, "b/student"),
        (CANARY, RequestFeatures("query", hash_fraction=0.25), {}, "a/student"),
        (LENGTH, RequestFeatures("query", max_characters=100), {}, "a/student"),
        (LENGTH, RequestFeatures("query", max_characters=101), {}, "a/teacher"),
        (NESTED, PASSAGE, {"a_teacher": FULL}, "a/student"),
        (NESTED, PASSAGE, {}, "a/teacher"),
        (NESTED, RequestFeatures("query", hash_fraction=0.1), {}, "b/student"),
        # no replica runs: the encoder of the same space answers, if it runs
        ("teacher", QUERY, {"a_teacher": EncoderLoad(ready=0)}, "a/student"),
        (SPILL, QUERY, {"a_teacher": EncoderLoad(ready=0)}, "a/student"),
        (
            "teacher",
            QUERY,
            {"a_teacher": EncoderLoad(ready=0), "a_student": EncoderLoad(ready=0)},
            ErrorKind.UNAVAILABLE,
        ),
        # its replicas died: the same, but if neither can answer, requests wait for new replicas
        ("b/teacher", QUERY, {"b_teacher": LOST}, "b/student"),
        ("b/teacher", QUERY, {"b_teacher": LOST, "b_student": LOST}, "b/teacher"),
        (
            "b/teacher",
            QUERY,
            {"b_teacher": EncoderLoad(ready=0)},
            "b/teacher",
        ),  # no replicas known yet
        # requests that would wait too long are refused
        ("teacher", QUERY, {"a_teacher": EncoderLoad(wait_s=60)}, "a/teacher"),
        ("teacher", QUERY, {"a_teacher": EncoderLoad(wait_s=61)}, ErrorKind.OVERLOADED),
        (SPILL, QUERY, {"a_teacher": EncoderLoad(ongoing=40, wait_s=61)}, "a/student"),
    ],
)
def test_a_policy_sends_a_request_to_its_encoder(policy, request_, loads, answer):
    assert decide(policy, request_, **loads) == answer


def test_without_a_shared_space_an_encoder_at_zero_replicas_is_started_and_the_client_retries():
    policy = Policy(rule("teacher"), 60, ALL_OF_A, find_fallbacks(rule("teacher"), TWO_SPACES))
    refusal = choose_encoder(
        policy, QUERY, {"a/teacher": EncoderLoad(ready=0), "a/student": IDLE}, TWO_SPACES
    )
    assert isinstance(refusal, Refuse)
    assert (refusal.kind, refusal.wake) == (ErrorKind.UNAVAILABLE, "a/teacher")
    assert refusal.retry_after_s > 0


def test_a_request_waits_for_an_encoder_that_is_never_scaled_to_zero():
    down = {"a/teacher": EncoderLoad(ready=0), "a/student": IDLE}
    decision = choose_encoder(Policy(rule("teacher"), 60), QUERY, down, SAME_SPACE)
    assert isinstance(decision, Send) and decision.model == "a/teacher"


def test_a_fallback_answers_only_in_a_size_that_it_has_and_the_requested_encoder_is_started():
    policy = Policy(rule("teacher"), 60, ALL_OF_A, find_fallbacks(rule("teacher"), SHARED_PREFIX))
    load = {"a/teacher": EncoderLoad(ready=0), "a/student": IDLE}
    small, full = (
        choose_encoder(policy, RequestFeatures("query", size), load, SHARED_PREFIX)
        for size in (32, 64)
    )
    assert isinstance(small, Send) and isinstance(full, Refuse)
    assert (small.model, small.dims, small.wake) == ("a/student", 32, "a/teacher")


def test_retry_after_is_the_wait_beyond_the_target_in_whole_seconds():
    refusal = choose_encoder(
        Policy(rule("teacher"), 2.0), QUERY, {"a/teacher": EncoderLoad(wait_s=4.5)}, SAME_SPACE
    )
    assert isinstance(refusal, Refuse)
    assert (refusal.kind, refusal.retry_after_s) == (ErrorKind.OVERLOADED, 3)


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [("teacher", (64, 32, 16)), ("student", (32, 16, 8)), ("asymmetric", (32, 16))],
)
def test_a_name_of_several_encoders_offers_only_their_common_sizes(policy, sizes):
    assert common_dims(rule(policy), SHARED_PREFIX) == sizes


def test_queries_and_documents_of_an_asymmetric_name_get_vectors_of_one_size():
    load = dict.fromkeys(SHARED_PREFIX, IDLE)
    decisions = [
        choose_encoder(Policy(rule("asymmetric")), r, load, SHARED_PREFIX) for r in (QUERY, PASSAGE)
    ]
    assert [d.dims for d in decisions] == [32, 32]


def test_a_refused_size_is_answered_with_the_sizes_that_are_offered():
    load = dict.fromkeys(SHARED_PREFIX, IDLE)
    decision = choose_encoder(
        Policy(rule("asymmetric")), RequestFeatures("query", dimensions=64), load, SHARED_PREFIX
    )
    assert isinstance(decision, Refuse)
    assert (decision.kind, decision.param) == (ErrorKind.INVALID, "dimensions")
    assert "32, 16" in decision.message


@pytest.mark.parametrize(
    ("teacher", "student", "policy"),
    [
        (contract(), contract(), "asymmetric"),
        (contract("s1"), contract("s2"), "student"),
        (contract(dims=(64, 32)), contract(dims=(32,)), "asymmetric"),
        (contract(dims=(64,)), contract(dims=(32,)), "student"),
        (contract(similarity="dot"), contract(), "student"),
        (contract(similarity="dot"), contract(similarity="dot", normalise=False), "student"),
        (RAW, RAW, "asymmetric"),
        (None, contract(), "student"),
        (contract(), None, "teacher"),
    ],
)
@pytest.mark.promise("routing")
def test_auto_is_asymmetric_only_where_one_index_can_hold_both(teacher, student, policy):
    assert auto_policy(teacher, student) == policy


@pytest.mark.parametrize(
    ("policy", "contracts", "problem"),
    [
        ("asymmetric", TWO_SPACES, "spaces differ"),
        ("spill", TWO_SPACES, "spaces differ"),
        (LENGTH, TWO_SPACES, "spaces differ"),
        (NESTED, SAME_SPACE | named("b", student=contract("s3")), "spaces differ"),
        (
            "asymmetric",
            named("a", teacher=contract(dims=(64,)), student=contract()),
            "no vector size",
        ),
        (
            "asymmetric",
            named("a", teacher=contract(), student=RAW),
            "one is searched by cosine, the other by dot",
        ),
        (
            "asymmetric",
            named("a", teacher=contract(similarity="dot"), student=RAW),
            "normalises",
        ),
        ("asymmetric", named("a", student=contract()), "needs a/teacher"),
        (CANARY, SAME_SPACE, "needs b/student"),
        (  # any two of them share a size, all three do not
            {"canary": {"share": 0.5, "to": "b/student", "rest": "asymmetric"}},
            named("a", teacher=contract(dims=(64, 32)), student=contract(dims=(64, 16)))
            | named("b", student=contract(dims=(32, 16))),
            "no vector size in common",
        ),
    ],
)
@pytest.mark.promise("routing")
def test_a_policy_that_would_mix_spaces_is_refused_at_deployment(policy, contracts, problem):
    with pytest.raises(UserError, match=problem):
        check_policy("args", rule(policy), contracts)


@pytest.mark.parametrize("policy", ["student", "teacher"])
def test_a_single_encoder_may_always_be_served(policy):
    check_policy("args", rule(policy), TWO_SPACES)

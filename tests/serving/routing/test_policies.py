from collections import defaultdict

import pytest

from stillroom.encoders.contract import Contract, Prompts
from stillroom.errors import UserError
from stillroom.serving.messages import Load
from stillroom.serving.routing.policies import (
    Facts,
    Policy,
    Refuse,
    Send,
    auto_policy,
    check_policy,
    choose,
    parse_policy,
    policy_dims,
    stand_ins,
)


def contract(space="s1", dims=(32,), normalise=True) -> Contract:
    return Contract(
        base="tiny",
        architecture="encoder",
        attention="bidirectional",
        pooling="mean",
        append_eos=False,
        prompts=Prompts(),
        pool_prompt=False,
        max_tokens=32,
        dims=dims,
        normalise=normalise,
        precision="float32",
        space=space,
    )


def named(release, **contracts):
    return {f"{release}/{target}": contract for target, contract in contracts.items()}


SAME = named("a", teacher=contract(), student=contract())
OTHER = named("a", teacher=contract("s1"), student=contract("s2"))
PREFIX = named("a", teacher=contract(dims=(64, 32, 16)), student=contract(dims=(32, 16, 8)))
TWO = SAME | named("b", teacher=contract(), student=contract())
QUERY, PASSAGE = Facts("query"), Facts("passage")
IDLE = Load()
ASLEEP = frozenset({"a/teacher", "a/student"})


def rule(value, release="a"):
    return parse_policy("policy", value, release)


def chosen(value, request=QUERY, contracts=TWO, patience_s=60.0, **load):
    """Who is picked; `load` by a shorthand: a_teacher=Load(…)."""
    loads = defaultdict(lambda: IDLE, {k.replace("_", "/"): v for k, v in load.items()})
    parsed = rule(value)
    check_policy("policy", parsed, contracts)
    policy = Policy(parsed, patience_s, ASLEEP, stand_ins(parsed, contracts))
    decision = choose(policy, request, loads, contracts)
    return decision.model if isinstance(decision, Send) else decision.status


LOST = Load(ready=0, lost=True)
FULL, FULLER = Load(ongoing=40, wait_s=1), Load(ongoing=40, wait_s=2)
SPILL = {"spill": {"limit": 40}}
CANARY = {"canary": {"share": 0.25, "to": "b/student", "rest": "student"}}
LENGTH = {"by_length": {"characters": 100}}
NESTED = {"asymmetric": {"passage": SPILL, "query": CANARY}}


@pytest.mark.parametrize(
    ("policy", "request_", "load", "model"),
    [
        ("teacher", QUERY, {}, "a/teacher"),
        ("student", PASSAGE, {}, "a/student"),
        ("b/student", PASSAGE, {}, "b/student"),
        ("asymmetric", PASSAGE, {}, "a/teacher"),
        ("asymmetric", QUERY, {}, "a/student"),
        ({"asymmetric": {"query": "b/student"}}, QUERY, {}, "b/student"),
        (SPILL, QUERY, {"a_teacher": Load(ongoing=39)}, "a/teacher"),
        (SPILL, QUERY, {"a_teacher": FULL}, "a/student"),
        (SPILL, QUERY, {"a_teacher": FULL, "a_student": FULLER}, "a/teacher"),
        (SPILL, QUERY, {"a_teacher": FULLER, "a_student": FULL}, "a/student"),
        (CANARY, Facts("query", draw=0.24), {}, "b/student"),
        (CANARY, Facts("query", draw=0.25), {}, "a/student"),
        (LENGTH, Facts("query", longest=100), {}, "a/student"),
        (LENGTH, Facts("query", longest=101), {}, "a/teacher"),
        (NESTED, PASSAGE, {"a_teacher": FULL}, "a/student"),
        (NESTED, PASSAGE, {}, "a/teacher"),
        (NESTED, Facts("query", draw=0.1), {}, "b/student"),
        # no replica runs: who shares the space answers, or no one
        ("teacher", QUERY, {"a_teacher": Load(ready=0)}, "a/student"),
        (SPILL, QUERY, {"a_teacher": Load(ready=0)}, "a/student"),
        ("teacher", QUERY, {"a_teacher": Load(ready=0), "a_student": Load(ready=0)}, 503),
        # its replicas died: the same, but where no one can answer, requests wait for new ones
        ("b/teacher", QUERY, {"b_teacher": LOST}, "b/student"),
        ("b/teacher", QUERY, {"b_teacher": LOST, "b_student": LOST}, "b/teacher"),
        ("b/teacher", QUERY, {"b_teacher": Load(ready=0)}, "b/teacher"),  # not known as yet
        # too long a wait is refused
        ("teacher", QUERY, {"a_teacher": Load(wait_s=60)}, "a/teacher"),
        ("teacher", QUERY, {"a_teacher": Load(wait_s=61)}, 429),
        (SPILL, QUERY, {"a_teacher": Load(ongoing=40, wait_s=61)}, "a/student"),
    ],
)
def test_a_policy_sends_a_request_to_its_encoder(policy, request_, load, model):
    assert chosen(policy, request_, **load) == model


def test_without_a_shared_space_a_cold_encoder_is_woken_and_its_caller_told_to_come_back():
    policy = Policy(rule("teacher"), 60, ASLEEP, stand_ins(rule("teacher"), OTHER))
    refusal = choose(policy, QUERY, {"a/teacher": Load(ready=0), "a/student": IDLE}, OTHER)
    assert isinstance(refusal, Refuse)
    assert (refusal.status, refusal.wake) == (503, "a/teacher")
    assert refusal.retry_after_s > 0


def test_a_request_waits_for_an_encoder_that_never_sleeps():
    down = {"a/teacher": Load(ready=0), "a/student": IDLE}
    decision = choose(Policy(rule("teacher"), 60), QUERY, down, SAME)
    assert isinstance(decision, Send) and decision.model == "a/teacher"


def test_a_stand_in_answers_only_in_a_size_that_it_has_and_the_wanted_one_is_woken():
    policy = Policy(rule("teacher"), 60, ASLEEP, stand_ins(rule("teacher"), PREFIX))
    load = {"a/teacher": Load(ready=0), "a/student": IDLE}
    small, full = (choose(policy, Facts("query", size), load, PREFIX) for size in (32, 64))
    assert isinstance(small, Send) and isinstance(full, Refuse)
    assert (small.model, small.dims, small.wake) == ("a/student", 32, "a/teacher")


def test_retry_after_is_the_wait_beyond_the_target_in_whole_seconds():
    refusal = choose(Policy(rule("teacher"), 2.0), QUERY, {"a/teacher": Load(wait_s=4.5)}, SAME)
    assert isinstance(refusal, Refuse)
    assert (refusal.status, refusal.retry_after_s) == (429, 3)


def test_a_canary_gets_its_share_of_texts_and_always_the_same_ones():
    texts = [f"text {number}" for number in range(4000)]
    draws = [Facts.of([text], None, "query", None).draw for text in texts]
    assert draws == [Facts.of([text, "more"], None, "passage", 8).draw for text in texts]
    assert sum(draw < 0.1 for draw in draws) == pytest.approx(400, abs=80)


def test_token_ids_have_a_length_and_a_draw_too():
    facts = Facts.of([], [[1, 2], [3]], "query", None)
    assert facts.longest == 8
    assert facts.draw == Facts.of([], [[1, 2]], "query", None).draw != 0


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [("teacher", (64, 32, 16)), ("student", (32, 16, 8)), ("asymmetric", (32, 16))],
)
def test_a_mixed_name_offers_only_the_sizes_that_all_its_encoders_have(policy, sizes):
    assert policy_dims(rule(policy), PREFIX) == sizes


def test_both_sides_of_an_asymmetric_name_give_vectors_of_one_size():
    load = dict.fromkeys(PREFIX, IDLE)
    decisions = [choose(Policy(rule("asymmetric")), r, load, PREFIX) for r in (QUERY, PASSAGE)]
    assert [d.dims for d in decisions] == [32, 32]


def test_a_size_that_is_not_offered_is_refused_with_those_that_are():
    load = dict.fromkeys(PREFIX, IDLE)
    decision = choose(Policy(rule("asymmetric")), Facts("query", dimensions=64), load, PREFIX)
    assert isinstance(decision, Refuse)
    assert (decision.status, decision.param) == (400, "dimensions")
    assert "32, 16" in decision.message


@pytest.mark.parametrize(
    ("teacher", "student", "policy"),
    [
        (contract(), contract(), "asymmetric"),
        (contract("s1"), contract("s2"), "student"),
        (contract(dims=(64, 32)), contract(dims=(32,)), "asymmetric"),
        (contract(dims=(64,)), contract(dims=(32,)), "student"),
        (contract(normalise=False), contract(), "student"),
        (None, contract(), "student"),
        (contract(), None, "teacher"),
    ],
)
def test_auto_mixes_only_where_one_index_can_hold_both(teacher, student, policy):
    assert auto_policy(teacher, student) == policy


@pytest.mark.parametrize(
    ("policy", "contracts", "said"),
    [
        ("asymmetric", OTHER, "spaces differ"),
        ("spill", OTHER, "spaces differ"),
        (LENGTH, OTHER, "spaces differ"),
        (NESTED, SAME | named("b", student=contract("s3")), "spaces differ"),
        (
            "asymmetric",
            named("a", teacher=contract(dims=(64,)), student=contract()),
            "no vector size",
        ),
        (
            "asymmetric",
            named("a", teacher=contract(), student=contract(normalise=False)),
            "normalises",
        ),
        ("asymmetric", named("a", student=contract()), "needs a/teacher"),
        (CANARY, SAME, "needs b/student"),
        (  # each two of them share a size, all three do not
            {"canary": {"share": 0.5, "to": "b/student", "rest": "asymmetric"}},
            named("a", teacher=contract(dims=(64, 32)), student=contract(dims=(64, 16)))
            | named("b", student=contract(dims=(32, 16))),
            "no vector size in common",
        ),
    ],
)
def test_a_policy_that_would_mix_spaces_is_refused_at_deployment(policy, contracts, said):
    with pytest.raises(UserError, match=said):
        check_policy("args", rule(policy), contracts)


@pytest.mark.parametrize("policy", ["student", "teacher"])
def test_one_encoder_alone_may_always_be_served(policy):
    check_policy("args", rule(policy), OTHER)


@pytest.mark.parametrize(
    ("policy", "where", "said"),
    [
        ("cheapest", "policy:", "Use one of"),
        ("asymetric", "policy:", "Did you mean 'asymmetric'"),
        ({"spil": {}}, "policy:", "Did you mean 'spill'"),
        ({"spill": {"limits": 3}}, r"policy.spill.limits:", "Did you mean 'limit'"),
        ({"spill": {"limit": 0}}, r"policy.spill.limit:", "greater than 0"),
        ({"spill": {"limit": True}}, r"policy.spill.limit:", "valid integer"),
        ({"spill": {"then": "pupil"}}, r"policy.spill.then:", "unknown"),
        ({"spill": 3}, r"policy.spill:", "needs its fields"),
        ({"spill": {}, "canary": {}}, "policy:", "one rule"),
        (["teacher"], "policy:", "one rule"),
        (
            {"canary": {"share": 2, "to": "teacher", "rest": "student"}},
            "policy.canary.share:",
            "less",
        ),
        ({"canary": {"share": 0.1, "to": "teacher"}}, r"policy.canary.rest:", "required"),
        ("canary", r"policy.canary.", "required"),
        (
            {"asymmetric": {"query": {"by_length": {"characters": -1}}}},
            r"policy.asymmetric.query.by_length.characters:",
            "greater than 0",
        ),
    ],
)
def test_a_faulty_policy_is_refused_with_the_field_s_place(policy, where, said):
    with pytest.raises(UserError, match=f"^{where}.*{said}"):
        rule(policy)

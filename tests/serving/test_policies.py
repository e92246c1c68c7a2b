import pytest

from stillroom.encoders.contract import Contract, Prompts
from stillroom.errors import UserError
from stillroom.serving.policies import (
    Facts,
    Refuse,
    Send,
    auto_policy,
    check_policy,
    choose,
    policy_dims,
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


SAME = {"teacher": contract(), "student": contract()}
OTHER = {"teacher": contract("s1"), "student": contract("s2")}
PREFIX = {"teacher": contract(dims=(64, 32, 16)), "student": contract(dims=(32, 16, 8))}


@pytest.mark.parametrize(
    ("policy", "role", "target"),
    [
        ("asymmetric", "passage", "teacher"),
        ("asymmetric", "query", "student"),
        ("student", "passage", "student"),
        ("student", "query", "student"),
        ("teacher", "passage", "teacher"),
        ("teacher", "query", "teacher"),
    ],
)
def test_a_policy_sends_each_role_to_its_encoder(policy, role, target):
    decision = choose(policy, Facts(role), SAME)
    assert isinstance(decision, Send)
    assert (decision.target, decision.dims) == (target, 32)


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [("teacher", (64, 32, 16)), ("student", (32, 16, 8)), ("asymmetric", (32, 16))],
)
def test_a_mixed_name_offers_only_the_sizes_that_both_encoders_have(policy, sizes):
    assert policy_dims(policy, PREFIX) == sizes


def test_both_sides_of_an_asymmetric_name_give_vectors_of_one_size():
    decisions = [choose("asymmetric", Facts(role), PREFIX) for role in ("query", "passage")]
    assert [d.dims for d in decisions] == [32, 32]


def test_a_size_that_is_not_offered_is_refused_with_those_that_are():
    decision = choose("asymmetric", Facts("query", dimensions=64), PREFIX)
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
    ("contracts", "said"),
    [
        (OTHER, "spaces differ"),
        ({"teacher": contract(dims=(64,)), "student": contract(dims=(32,))}, "no vector size"),
        ({"teacher": contract(), "student": contract(normalise=False)}, "normalises"),
        ({"student": contract()}, "needs the teacher"),
    ],
)
def test_a_policy_that_would_mix_spaces_is_refused_at_deployment(contracts, said):
    with pytest.raises(UserError, match=said):
        check_policy("args", "asymmetric", contracts)


@pytest.mark.parametrize("policy", ["student", "teacher"])
def test_one_encoder_alone_may_always_be_served(policy):
    check_policy("args", policy, OTHER)

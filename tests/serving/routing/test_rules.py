import pytest

from stillroom.errors import UserError
from stillroom.serving.messages import EmbedRequest
from stillroom.serving.routing.rules import RequestFeatures, parse_policy


def features(*texts, token_ids=None, role="query", dimensions=None):
    request = EmbedRequest("a", list(texts), token_ids, role, dimensions)
    return RequestFeatures.from_request(request)


def test_a_canary_gets_its_share_of_texts_and_always_the_same_texts():
    texts = [f"text {number}" for number in range(4000)]
    fractions = [features(text).hash_fraction for text in texts]
    assert fractions == [
        features(text, "more", role="passage", dimensions=8).hash_fraction for text in texts
    ]
    assert sum(fraction < 0.1 for fraction in fractions) == pytest.approx(400, abs=80)


def test_token_ids_have_a_length_and_a_hash_too():
    request = features(token_ids=[[1, 2], [3]])
    assert request.max_characters == 8
    assert request.hash_fraction == features(token_ids=[[1, 2]]).hash_fraction != 0


@pytest.mark.parametrize(
    ("policy", "where", "problem"),
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
def test_an_invalid_policy_is_refused_with_the_path_of_the_field(policy, where, problem):
    with pytest.raises(UserError, match=f"^{where}.*{problem}"):
        parse_policy("policy", policy, "a")

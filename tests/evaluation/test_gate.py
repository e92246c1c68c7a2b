import pytest

from stillroom.evaluation.gate import GateFloors, apply_gate


def report(**ndcg):
    roles = {"teacher": 0.8, "student": 0.7, "student_base": 0.6, "bm25": 0.65, **ndcg}
    models = {
        role: {
            "role": role, "dims": 8, "texts_per_second": 10 * (1 + value),
            "scores": {"one": {"ndcg@10": value}},
        }
        for role, value in roles.items()
        if value is not None
    }  # fmt: skip
    models["student"]["vectors"] = {
        "one": [
            {"precision": precision, "dims": dims, "ndcg@10": score}
            for dims, lost in ((8, 0.0), (4, 0.5))
            for precision, score in (("float32", 0.7 - lost), ("int8", 0.63 - lost))
        ]
    }
    if "asymmetric" in models:
        models["asymmetric"]["retention"] = {"one": 0.9, "mean": 0.9}
    retention = roles["student"] / roles["teacher"]
    return {
        "sets": {"one": {}},
        "models": models,
        "retention": {"one": retention, "mean": retention},
    }


ALL_FLOORS = GateFloors(
    mean_retention=0.8, every_set_retention=0.8, ndcg_by_set={"one": 0.7},
    small_vectors={"int8": 0.89}, texts_per_second=16.9, speedup=0.9, student_beats_base=True,
    student_beats_bm25=True,
)  # fmt: skip


def test_a_student_above_every_floor_passes():
    assert apply_gate(report(), ALL_FLOORS).passed
    assert apply_gate(report(student=0.1), GateFloors()).passed
    # A set's own floor replaces the one for all sets.
    assert apply_gate(
        report(), GateFloors(every_set_retention=0.99, retention_by_set={"one": 0.8})
    ).passed


@pytest.mark.parametrize(
    ("measured", "floors", "failure"),
    [
        ({"student": 0.6}, GateFloors(mean_retention=0.8), "mean retention is 0.750, 0.050 below"),
        (
            {"student": 0.6},
            GateFloors(every_set_retention=0.8),
            "retention on one is 0.750, 0.050 below",
        ),
        ({}, GateFloors(ndcg_by_set={"one": 0.75}), "nDCG@10 on one is 0.700, 0.050 below"),
        (
            {},
            GateFloors(ndcg_by_set={"two": 0.1}),
            "on two should be at least 0.100 and was not measured",
        ),
        (
            {"student": 0.6},
            GateFloors(every_set_retention=0.7, retention_by_set={"one": 0.8}),
            "retention on one",
        ),
        (
            {"student": 0.6},
            GateFloors(retention_by_set={"two": 0.8}),
            "on two should be at least 0.800 and",
        ),
        ({"asymmetric": 0.7}, GateFloors(asymmetric_retention=0.95), "is 0.900, 0.050 below"),
        ({}, GateFloors(asymmetric_retention=0.95), "mean asymmetric retention should be at least"),
        ({}, GateFloors(small_vectors={"int8": 0.95}), "int8 vectors keep is 0.900, 0.050 below"),
        (
            {},
            GateFloors(small_vectors={"binary": 0.5}),
            "binary vectors keep should be at least 0.500",
        ),
        ({}, GateFloors(texts_per_second=18), "texts per second is 17.000, 1.000 below"),
        (
            {"teacher": 1.0},
            GateFloors(speedup=2),
            "multiple of the teacher's is 0.850, 1.150 below",
        ),
        ({"student_base": 0.7}, ALL_FLOORS, "0.700 does not beat its own base's 0.700"),
        ({"bm25": 0.9}, ALL_FLOORS, "0.700 does not beat BM25's 0.900"),
        ({"bm25": None}, ALL_FLOORS, "should beat BM25, which was not measured"),
    ],
)
def test_a_failure_names_the_floor_and_the_difference(measured, floors, failure):
    verdict = apply_gate(report(**measured), floors)
    assert not verdict.passed
    assert len(verdict.failures) == 1
    assert failure in verdict.failures[0]


def elsewhere(low, high, of_teacher=0.9):
    """A report whose student differs from its base elsewhere by an interval."""
    difference = (low + high) / 2
    return {
        **report(),
        "elsewhere": {"retention": {"a": of_teacher, "mean": of_teacher}},
        "against_base": {
            "base": "untouched base",
            "corpus": {"first": 0.7, "second": 0.6, "difference": 0.1, "low": 0.05, "high": 0.2},
            "elsewhere": {
                "first": 0.6 + difference, "second": 0.6, "difference": difference,
                "low": low, "high": high,
            },
        },
    }  # fmt: skip


FLOORS_ELSEWHERE = GateFloors(elsewhere_of_teacher=0.85, elsewhere_not_below_base=True)


def test_a_student_that_is_not_worse_than_its_base_elsewhere_by_more_than_chance_passes():
    assert apply_gate(elsewhere(-0.03, 0.01), FLOORS_ELSEWHERE).passed
    assert apply_gate(elsewhere(0.01, 0.03), FLOORS_ELSEWHERE).passed


def test_a_student_that_is_worse_than_its_base_elsewhere_is_not_released():
    [failure] = apply_gate(elsewhere(-0.05, -0.01), FLOORS_ELSEWHERE).failures
    assert "0.570 against 0.600 (-0.030, 95 % interval -0.050 to -0.010)" in failure
    assert "release.elsewhere.not_below_base=false" in failure
    assert apply_gate(elsewhere(-0.05, -0.01), GateFloors()).passed


def test_the_share_of_the_teacher_elsewhere_is_a_floor_of_its_own():
    [failure] = apply_gate(elsewhere(0.0, 0.1, of_teacher=0.8), FLOORS_ELSEWHERE).failures
    assert failure == "mean retention elsewhere is 0.800, 0.050 below the floor of 0.850"


def test_what_was_not_measured_elsewhere_fails_only_a_floor_that_was_asked_for():
    assert apply_gate(report(), GateFloors(elsewhere_not_below_base=True)).passed
    [failure] = apply_gate(report(), FLOORS_ELSEWHERE).failures
    assert failure == "mean retention elsewhere should be at least 0.850 and was not measured"


def test_a_student_has_to_beat_its_untouched_base_where_that_was_measured():
    floors = GateFloors(student_beats_base=True)
    assert not apply_gate(report(student_base=0.1, base=0.75), floors).passed
    assert apply_gate(report(student_base=0.75, base=0.1), floors).passed

"""The report's block of other fields, and the student against the base that it was made from."""

import numpy as np
import pytest

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Comparison
from stillroom.evaluation.evaluate import EncodedSets
from stillroom.stages.report.elsewhere import against_base, elsewhere_block
from stillroom.stages.report.measure import MeasuredModel

QUERIES = 60
GUARDS = {
    "guard": EvaluationSet({"a": "one thing", "b": "another"}, {"q": "thing"}, {"q": {"a": 1}})
}


def measured(role, corpus, elsewhere):
    """A model with nDCG@10 around two numbers, by queries that differ."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, size=QUERIES)
    scores = {"guard": {"ndcg@10": elsewhere, "recall@100": 1.0, "mrr@10": elsewhere}}
    entry = {"role": role, "parameters": 1, "dims": 2, "texts_per_second": 9.0, "scores": scores}
    ndcg = {"held-out": corpus + noise, "guard": elsewhere + noise}
    return MeasuredModel({}, ndcg, entry, None, None, 0)


@pytest.fixture
def models():
    return {
        "teacher": measured("teacher", 0.8, 0.8),
        "student": measured("student", 0.7, 0.5),
        "student before training": measured("student_base", 0.3, 0.3),
        "untouched base": measured("base", 0.6, 0.6),
    }


def test_a_student_is_compared_with_its_untouched_base_query_by_query(models):
    result = against_base(models, ["held-out"], ["guard"])
    assert result["base"] == "untouched base"
    assert result["corpus"]["low"] == pytest.approx(0.1) == result["corpus"]["high"]
    assert result["elsewhere"]["difference"] == pytest.approx(-0.1)
    assert result["elsewhere"]["queries"] == QUERIES


def test_without_an_untouched_base_a_student_is_compared_with_its_start(models):
    del models["untouched base"]
    result = against_base(models, ["held-out"], [])
    assert result["base"] == "student before training" and result["elsewhere"] is None
    del models["student before training"]
    assert against_base(models, ["held-out"], []) is None


def test_the_block_has_every_row_without_speeds(models):
    vectors = np.eye(2, dtype=np.float32)
    both = EncodedSets(
        {"guard": vectors[:1]}, {"guard": vectors}, (2,), Comparison("cosine", True), 1.0
    )
    block = elsewhere_block(models, GUARDS, {"guard": "en"}, both)
    roles = [entry["role"] for entry in block["models"].values()]
    assert roles == ["teacher", "student", "student_base", "base", "asymmetric", "bm25"]
    assert block["retention"] == {"guard": 0.625, "mean": 0.625}
    assert block["models"]["student asks, teacher answers"]["retention"]["mean"] == 1 / 0.8
    assert not any("texts_per_second" in entry for entry in block["models"].values())
    assert block["sets"] == {"guard": {"queries": 1, "passages": 2}}
    assert list(elsewhere_block(models, GUARDS, None, None)["models"]) == list(models)

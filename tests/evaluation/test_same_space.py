"""Vectors that dot compares belong to one space only where their lengths agree, too."""

import numpy as np

from stillroom.encoders.contract import BaseContract
from stillroom.evaluation.same_space import compare_spaces


def test_raw_vectors_of_other_lengths_are_of_another_space_and_unit_vectors_have_none():
    vectors = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    teacher = dict.fromkeys(("query", "passage"), vectors)
    student = dict.fromkeys(("query", "passage"), 0.2 * vectors)
    kinds = {"similarity": "dot", "normalise": False}
    raw = BaseContract(max_tokens=8, dims=(12, 4), space="one", **kinds)
    cosine = BaseContract(max_tokens=8, dims=(12, 4), space="one")
    assert compare_spaces(raw, raw, teacher, teacher).conflict is None
    assert "differ too much" in compare_spaces(raw, raw, student, teacher).conflict
    assert compare_spaces(cosine, cosine, student, teacher).conflict is None
    assert "searched by" in compare_spaces(raw, cosine, teacher, teacher).conflict

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from stillroom.data.readers.files import kind_of, read_passages
from stillroom.serving.routing.shadow import (
    FEWEST_PROBES,
    PROBES,
    Disagreements,
    Fidelity,
    spearman,
)


def vectors(n, dims, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dims)).astype(np.float32)


@pytest.mark.parametrize("one_space", [True, False])
def test_a_student_that_equals_its_teacher_agrees_wholly(one_space):
    fidelity = Fidelity(one_space=one_space)
    told = [fidelity.compare(3 * row, row) for row in vectors(20, 8)]
    assert [a.rank for a in told[:FEWEST_PROBES]] == [None] * FEWEST_PROBES
    assert [a.rank for a in told[FEWEST_PROBES:]] == pytest.approx([1.0] * 12)
    cosines = [a.cosine for a in told]
    assert cosines == (pytest.approx([1.0] * 20) if one_space else [None] * 20)


def test_ranks_agree_across_spaces_of_other_sizes_when_neighbours_are_the_same():
    turned = np.linalg.qr(vectors(16, 16, seed=1))[0][:8]  # 8 → 16 dims, angles as they were
    same, other = Fidelity(one_space=False), Fidelity(one_space=False)
    rows, strangers = vectors(80, 8), vectors(80, 16, seed=2)
    agreeing = [same.compare(row, row @ turned).rank for row in rows]
    apart = [other.compare(row, far).rank for row, far in zip(rows, strangers, strict=True)]
    assert agreeing[FEWEST_PROBES:] == pytest.approx([1.0] * 72, abs=0.01)
    assert abs(np.mean(apart[FEWEST_PROBES:])) < 0.1
    assert len(same.probes) == PROBES


def test_rank_agreement_is_spearman_s():
    one, other = vectors(2, 30)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)


def test_the_texts_that_agree_least_are_kept_for_the_next_run(tmp_path):
    file = tmp_path / "kept" / "tiny.jsonl"
    texts = {f"text {number}\u2028\ud800": number / 100 for number in range(100)}
    kept = Disagreements(file, most=10)
    for text, agreement in reversed(texts.items()):
        kept.add({text: agreement})
    Disagreements(file, most=10).add({"the worst": -1.0, "the best": 1.0})
    assert [json.loads(line)["agreement"] for line in file.read_text().splitlines()] == [
        -1.0, *(number / 100 for number in range(9))
    ]  # fmt: skip
    assert list(file.parent.iterdir()) == [file]


def test_what_is_kept_is_read_as_passages(tmp_path):
    file = tmp_path / "tiny.jsonl"
    Disagreements(file, most=10).add({"how do I sort?": 0.2, "a 'quoted' \u2028 text": 0.1})
    assert kind_of(str(file)) == ("text", "passages")
    assert list(read_passages(file)) == ["a 'quoted' \u2028 text", "how do I sort?"]

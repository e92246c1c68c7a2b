import numpy as np
import pytest
from scipy.stats import spearmanr

from stillroom.serving.routing.agreement import MAX_PROBES, MIN_PROBES, AgreementTracker, spearman


def vectors(n, dims, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dims)).astype(np.float32)


@pytest.mark.parametrize("same_space", [True, False])
def test_a_student_with_its_teachers_vectors_agrees_fully(same_space):
    tracker = AgreementTracker(same_space=same_space)
    agreements = [tracker.compare(3 * row, row) for row in vectors(20, 8)]
    assert [a.rank_correlation for a in agreements[:MIN_PROBES]] == [None] * MIN_PROBES
    assert [a.rank_correlation for a in agreements[MIN_PROBES:]] == pytest.approx([1.0] * 12)
    cosines = [a.cosine for a in agreements]
    assert cosines == (pytest.approx([1.0] * 20) if same_space else [None] * 20)


def test_ranks_agree_across_spaces_of_different_sizes_when_neighbours_are_the_same():
    rotation = np.linalg.qr(vectors(16, 16, seed=1))[0][:8]  # 8 → 16 dims, angles stay
    related, unrelated = AgreementTracker(same_space=False), AgreementTracker(same_space=False)
    rows, random_rows = vectors(80, 8), vectors(80, 16, seed=2)
    high = [related.compare(row, row @ rotation).rank_correlation for row in rows]
    low = [
        unrelated.compare(row, other).rank_correlation
        for row, other in zip(rows, random_rows, strict=True)
    ]
    assert high[MIN_PROBES:] == pytest.approx([1.0] * 72, abs=0.01)
    assert abs(np.mean(low[MIN_PROBES:])) < 0.1
    assert len(related.probes) == MAX_PROBES


@pytest.mark.parametrize("same_space", [True, False])
def test_models_that_dot_compares_order_texts_by_raw_inner_products(same_space):
    """Texts of one direction, whose lengths the student has in the opposite order."""
    tracker = AgreementTracker(same_space=same_space)
    direction = np.ones(4, np.float32)
    lengths = np.arange(1, 21, dtype=np.float32)
    agreements = [
        tracker.compare((21 - length) * direction, length * direction) for length in lengths
    ]
    last = agreements[-1]
    assert last.rank_correlation == pytest.approx(-1.0)
    assert last.cosine == (pytest.approx(1.0) if same_space else None)


def test_rank_correlation_is_spearmans():
    first, second = vectors(2, 30)
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)

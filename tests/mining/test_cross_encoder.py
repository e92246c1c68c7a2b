import numpy as np
import pytest

from stillroom.errors import UserError
from stillroom.mining.cross_encoder import CrossEncoder
from support.tiny_models import tiny_cross_encoder

PAIRS = [("a query", "short"), ("a query", "a passage of many more words " * 60), ("b", "x y z")]


def test_a_pair_scores_the_same_alone_and_among_others(tmp_path):
    score = CrossEncoder(tiny_cross_encoder(tmp_path))
    scores = score(PAIRS)
    np.testing.assert_allclose(scores, [score([pair])[0] for pair in PAIRS], atol=1e-6)
    assert len(set(scores.tolist())) == 3
    assert ((scores > 0) & (scores < 1)).all()


def test_models_that_are_no_cross_encoders_are_refused(tmp_path):
    with pytest.raises(UserError, match="classifies into 3 labels, not one score"):
        CrossEncoder(tiny_cross_encoder(tmp_path / "three", labels=3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not a cross-encoder that can be loaded"):
        CrossEncoder(tmp_path / "empty")

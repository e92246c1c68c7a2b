import numpy as np
import pytest

from stillroom.data.readers.records import EvaluationSet
from stillroom.stages.release.playground import (
    EXAMPLES,
    MAX_CLUSTERS,
    choose_passages,
    cluster_vectors,
)


@pytest.mark.parametrize("limit", [1, 5, 30, 100, 1000])
def test_chosen_passages_keep_to_the_limit_and_answers_come_first(limit):
    passages = {f"p{n}": f"passage {n}" for n in range(100)}
    qrels = {f"q{n}": {f"p{(7 * n + 1) % 100}": 1, f"p{n}": 0, "gone": 1} for n in range(20)}
    queries = {f"q{n}": f"query {n}" for n in range(25)}  # some that nobody judged
    ids, examples = choose_passages(EvaluationSet(passages, queries, qrels), limit)
    assert len(ids) == len(set(ids)) == min(limit, 100)
    assert ids == [pid for pid in passages if pid in ids]
    assert len(examples) == EXAMPLES
    judged = {queries[qid]: grades for qid, grades in qrels.items()}
    for example in examples:
        assert all(judged[example.query].get(ids[row]) == 1 for row in example.answers)
    answers = sum(len(example.answers) for example in examples)
    assert answers == min(limit, EXAMPLES)


@pytest.mark.parametrize("count", [1, 3, 200])
def test_near_vectors_share_a_cluster(count):
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(MAX_CLUSTERS, 16)
    centre_of_vector = np.arange(count) % MAX_CLUSTERS
    clusters = cluster_vectors(
        (centres[centre_of_vector] + rng.normal(size=(count, 16)) / 10).astype(np.float16)
    )
    assert len(clusters) == count
    assert np.all(np.diff(np.bincount(clusters)) <= 0)  # the largest first
    for centre in set(centre_of_vector.tolist()):
        assert len(set(clusters[centre_of_vector == centre].tolist())) == 1

"""Speed measurement: which models are timed together, and on which texts."""

import pytest

from stillroom.data.readers.records import EvaluationSet
from stillroom.stages.report.measure import sample_passages, timing_groups


def dataset(name, count):
    passages = {f"{name}{i}": f"passage {i} of {name}" for i in range(count)}
    return EvaluationSet(passages, {"q": "a query"}, {"q": {f"{name}0": 1}}, {"passage": name})


@pytest.mark.parametrize("count", [1, 7, 40, 200])
def test_a_sample_is_spread_over_all_sets_and_keeps_their_prompts(count):
    sets = {"small": dataset("small", 10), "large": dataset("large", 90)}
    samples = sample_passages(sets, count)
    assert sum(len(sample.passages) for sample in samples.values()) == min(count, 100)
    for name, sample in samples.items():
        assert sample.passages.items() <= sets[name].passages.items()
        assert (sample.queries, sample.prompts) == ({}, {"passage": name})
    if count == 40:
        assert len(samples["small"].passages) == 4


def test_models_are_timed_in_turns_unless_memory_is_short():
    weight_bytes = {"teacher": 14, "student": 1}
    assert timing_groups(weight_bytes, free_bytes=80) == [["teacher", "student"]]
    assert timing_groups(weight_bytes, free_bytes=24) == [["teacher"], ["student"]]

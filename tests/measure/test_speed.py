from stillroom.measure.speed import RUNS, texts_per_second


def test_every_text_is_encoded_in_every_run_after_a_warm_up():
    calls = []
    speed = texts_per_second(calls.append, [str(i) for i in range(20)])
    assert [len(texts) for texts in calls] == [8] + [20] * RUNS
    assert speed > 0


def test_without_texts_there_is_no_speed():
    assert texts_per_second(lambda texts: None, []) is None

import dataclasses

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.create import create
from stillroom.evaluation.evaluate import measure

PASSAGES = {f"p{i}": f"the answer number {i} of many, {'so ' * (i % 5)}it is" for i in range(40)}
SET = EvaluationSet(
    PASSAGES,
    {f"q{i}": f"number {i}" for i in range(12)},
    {f"q{i}": {f"p{i}": 1} for i in range(12)},
)
TASK = {"query": "Instruct: which?\nQuery: ", "passage": "doc: "}


def test_teachers_are_told_a_set_s_task_and_students_go_by_their_own_prompts(decoder):
    def encoder(prompts):
        return create(
            str(decoder), space="s", attention="bidirectional", pooling="mean",
            precision="float32", prompts=prompts,
        )  # fmt: skip

    told = dataclasses.replace(SET, prompts=TASK)
    plain = {"query": "", "passage": ""}
    expected = measure(encoder(TASK), "student", {"one": SET})["scores"]
    assert measure(encoder(plain), "teacher", {"one": told})["scores"] == expected
    own = measure(encoder(plain), "student", {"one": told})["scores"]
    assert own == measure(encoder(plain), "student", {"one": SET})["scores"] != expected

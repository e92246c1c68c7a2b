import dataclasses

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.evaluation.evaluate import evaluate_encoder

PASSAGES = {f"p{i}": f"the answer number {i} of many, {'so ' * (i % 5)}it is" for i in range(40)}
SET = EvaluationSet(
    PASSAGES,
    {f"q{i}": f"number {i}" for i in range(12)},
    {f"q{i}": {f"p{i}": 1} for i in range(12)},
)
TASK = {"query": "Instruct: which?\nQuery: ", "passage": "doc: "}


def test_teachers_use_a_set_s_prompts_and_students_their_own(decoder):
    def encoder(prompts):
        return create_encoder(
            str(decoder),
            space="s",
            options=ContractOptions(
                attention="bidirectional", pooling="mean", precision="float32", prompts=prompts
            ),
        )

    told = dataclasses.replace(SET, prompts=TASK)
    plain = {"query": "", "passage": ""}
    expected = evaluate_encoder(encoder(TASK), "student", {"one": SET})["scores"]
    assert evaluate_encoder(encoder(plain), "teacher", {"one": told})["scores"] == expected
    own = evaluate_encoder(encoder(plain), "student", {"one": told})["scores"]
    assert own == evaluate_encoder(encoder(plain), "student", {"one": SET})["scores"] != expected

import dataclasses

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.evaluation.evaluate import encode_sets, evaluate_encoder

PASSAGES = {f"p{i}": f"the answer number {i} of many, {'so ' * (i % 5)}it is" for i in range(40)}
EVALUATION_SET = EvaluationSet(
    PASSAGES,
    {f"q{i}": f"number {i}" for i in range(12)},
    {f"q{i}": {f"p{i}": 1} for i in range(12)},
)
TASK_PROMPTS = {"query": "Instruct: which?\nQuery: ", "passage": "doc: "}


def test_teachers_use_a_set_s_prompts_and_students_their_own(decoder):
    def encoder(prompts):
        return create_encoder(
            str(decoder),
            space="s",
            options=ContractOptions(
                attention="bidirectional", pooling="mean", precision="float32", prompts=prompts
            ),
        )

    prompted = dataclasses.replace(EVALUATION_SET, prompts=TASK_PROMPTS)
    plain = {"query": "", "passage": ""}
    expected = evaluate_encoder(encoder(TASK_PROMPTS), "student", {"one": EVALUATION_SET})["scores"]
    assert evaluate_encoder(encoder(plain), "teacher", {"one": prompted})["scores"] == expected
    scores = evaluate_encoder(encoder(plain), "student", {"one": prompted})["scores"]
    assert (
        scores
        == evaluate_encoder(encoder(plain), "student", {"one": EVALUATION_SET})["scores"]
        != expected
    )


def test_a_prompt_given_for_queries_replaces_the_encoder_s_and_the_set_s(decoder):
    encoder = create_encoder(
        str(decoder),
        space="s",
        options=ContractOptions(
            pooling="mean", precision="float32", prompts={"query": "own: ", "passage": "own: "}
        ),
    )
    prompted = dataclasses.replace(EVALUATION_SET, prompts=TASK_PROMPTS)
    for role, sets in (("student", {"one": EVALUATION_SET}), ("teacher", {"one": prompted})):
        given = encode_sets(encoder, role, sets, query_prompt="given: ")
        expected = encoder.encode(EVALUATION_SET.judged_queries(), "query", prompt="given: ")
        assert (given.queries["one"] == expected).all()
        own = encode_sets(encoder, role, sets)
        assert (given.passages["one"] == own.passages["one"]).all()
        assert (own.queries["one"] != expected).any()

import dataclasses

import numpy as np
import pytest

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.evaluation.evaluate import encode_sets, evaluate_encoder, score_ranking

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


def test_a_passage_with_the_query_s_own_id_is_left_out_as_in_beir():
    # As in ArguAna and Quora: queries are texts of the collection.
    passages = {id: f"argument {id}" for id in ("a", "b", "answer")}
    copies = EvaluationSet(
        passages,
        {"a": "argument a", "b": "argument b"},
        {"a": {"answer": 1}, "b": {"answer": 1}},
    )
    ranking = np.array([[0, 2, 1], [1, 2, 0]])  # first the query itself, then its answer
    assert score_ranking(ranking, copies) == {"ndcg@10": 1, "recall@100": 1, "mrr@10": 1}
    assert copies.counts() == {"queries": 2, "passages": 3, "left_out": 2}


def test_a_passage_with_the_query_s_own_id_stays_where_it_is_judged_as_an_answer():
    same_ids = EvaluationSet({"1": "an answer", "2": "other"}, {"1": "a question"}, {"1": {"1": 1}})
    assert score_ranking(np.array([[0, 1]]), same_ids)["ndcg@10"] == 1
    assert same_ids.counts() == {"queries": 1, "passages": 2}


def test_a_hundred_passages_are_left_when_the_query_s_own_is_left_out(decoder):
    encoder = create_encoder(
        str(decoder), space="s", options=ContractOptions(pooling="mean", precision="float32")
    )
    # 101 copies of the query: it is left out, and its answer is among the other 100.
    passages = {f"p{i:03}": "the same text" for i in range(101)}
    dataset = EvaluationSet(passages, {"p000": "the same text"}, {"p000": {"p100": 1}})
    scores = evaluate_encoder(encoder, "student", {"one": dataset})["scores"]["one"]
    assert scores["recall@100"] == 1


def test_judged_passages_that_do_not_exist_count_as_not_found():
    dataset = EvaluationSet(
        {"p": "text"}, {"q": "one", "r": "two"}, {"q": {"p": 1}, "r": {}},
        missing={"q": {"gone": 1}, "r": {"gone": 1}},
    )  # fmt: skip
    scores = score_ranking(np.array([[0], [0]]), dataset)
    assert scores["recall@100"] == pytest.approx((1 / 2 + 0) / 2)
    assert scores["mrr@10"] == pytest.approx((1 + 0) / 2)

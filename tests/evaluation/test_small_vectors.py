"""Rankings of stored vectors equal those of plain loops over queries and passages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions
from stillroom.encoders.interface import truncate_vectors
from stillroom.encoders.vectors.quantise import RESCORE_FACTOR, VECTOR_PRECISIONS, Calibration
from stillroom.errors import UserError
from stillroom.evaluation import small_vectors
from stillroom.evaluation.evaluate import (
    combine_asymmetric,
    encode_asymmetric,
    encode_sets,
    report_entry,
    score_ranking,
    shared_dims,
)
from stillroom.evaluation.metrics import rank_passages
from stillroom.evaluation.small_vectors import (
    evaluate_precisions,
    rank_quantised,
    sizes_to_evaluate,
)
from support.make_encoder import make_encoder

SETS = {
    name: EvaluationSet(
        {f"p{i}": f"the {name} number {i} of many, {'so ' * (i % 5)}it is" for i in range(30)},
        {f"q{i}": f"{name} {i}" for i in range(6)},
        {f"q{i}": {f"p{i}": 1} for i in range(6)},
    )
    for name in ("answer", "reply")
}


def rank_slowly(precision, queries, passages, depth, calibration):
    """Rankings computed pair by pair in Python floats."""

    def best(scores, k):
        return sorted(scores, key=lambda row: (-scores[row], row))[:k]

    def stored(x, low, step):
        if precision in ("int8", "binary+rescoring"):
            return low + min(max(round((x - low) / step), 0), 255) * step
        return float(np.float16(x)) if precision == "float16" else x

    def product(query, passage):
        ranges = zip(
            query, passage, calibration.low.tolist(), calibration.step.tolist(), strict=True
        )
        return sum(q * stored(x, low, step) for q, x, low, step in ranges)

    passages = passages.tolist()
    rankings = []
    for query in queries.tolist():
        rows = range(len(passages))
        if precision.startswith("binary"):
            agreements = {
                row: sum((x > 0) == (y > 0) for x, y in zip(query, passages[row], strict=True))
                for row in rows
            }
            rows = best(
                agreements, RESCORE_FACTOR * depth if precision == "binary+rescoring" else depth
            )
        if precision != "binary":
            rows = best({row: product(query, passages[row]) for row in rows}, depth)
        rankings.append(rows)
    return rankings


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(VECTOR_PRECISIONS), st.integers(1, 40), st.integers(1, 12), st.integers(1, 9),
    st.integers(0, 999),
)  # fmt: skip
def test_every_precision_ranks_like_a_plain_implementation(precision, n, dims, depth, seed):
    rng = np.random.default_rng(seed)
    # Few distinct values, so that there are ties and float32's sums are exact.
    queries = (rng.integers(-3, 4, size=(4, dims)) / 4).astype(np.float32)
    passages = (rng.integers(-9, 10, size=(n, dims)) / 8 + 2**-13).astype(np.float32)
    calibration = Calibration(
        np.full(dims, -1, dtype=np.float32), np.full(dims, 2**-7, dtype=np.float32)
    )
    expected = rank_slowly(precision, queries, passages, depth, calibration)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_vectors, "DECODED_BLOCK", 7)
        rankings = rank_quantised(precision, queries, passages, depth, calibration)
    assert rankings.tolist() == expected


@pytest.fixture(scope="module")
def models(encoder):
    """A teacher of 64 dims that may be truncated, a student in its space, and one in another."""
    teacher, student, unrelated = (
        create_encoder(
            str(encoder),
            space=space,
            options=ContractOptions(
                pooling="mean",
                precision="float32",
                prompts={"query": prompt, "passage": ""},
            ),
            seed=seed,
            projection_dims=size,
        )
        for space, seed, size, prompt in (
            ("one", 0, 64, "ask: "), ("one", 1, 32, ""), ("other", 2, 32, ""),
        )
    )  # fmt: skip
    teacher.contract = teacher.contract.model_copy(update={"dims": (64, 32, 16)})
    return teacher, student, unrelated


def test_all_sizes_and_precisions_are_measured_from_one_encoding(models):
    teacher, *_ = models
    encoded = encode_sets(teacher, "teacher", SETS)
    results = evaluate_precisions(encoded, SETS, sizes_to_evaluate(encoded.dims, [24]))
    assert list(results) == list(SETS)
    entries = results["answer"]
    assert [(entry["dims"], entry["precision"]) for entry in entries] == [
        (dims, precision) for dims in (64, 32, 24, 16) for precision in VECTOR_PRECISIONS
    ]
    assert [entry["bytes"] for entry in entries[:5]] == [256, 128, 64, 8, 8]
    assert [entry["rescored_bytes"] for entry in entries[:5]] == [0, 0, 0, 0, 64]
    assert {entry["dims"] for entry in entries if not entry["trained"]} == {24}
    full_scores = report_entry("teacher", 1, encoded, SETS)["scores"]["answer"]
    assert {metric: entries[0][metric] for metric in full_scores} == full_scores
    short_vectors = teacher.encode(list(SETS["answer"].passages.values()), "passage", dims=16)
    np.testing.assert_array_equal(
        truncate_vectors(encoded.passages["answer"], 16, True), short_vectors
    )
    with pytest.raises(UserError, match="65 is not a size of vectors of 64 dims"):
        sizes_to_evaluate(encoded.dims, [65])


@pytest.mark.parametrize("precision", VECTOR_PRECISIONS)
def test_raw_vectors_are_ranked_by_inner_product_at_every_precision(precision):
    rng = np.random.default_rng(5)
    passages = (rng.integers(-60, 61, size=(40, 6)) * rng.uniform(0.1, 4, (40, 1))).astype("f4")
    queries = (rng.integers(-60, 61, size=(9, 6)) / 4).astype(np.float32)
    calibration = Calibration.fit(passages)
    expected = rank_slowly(precision, queries, passages, 10, calibration)
    assert rank_quantised(precision, queries, passages, 10, calibration).tolist() == expected


def test_raw_vectors_that_float16_cannot_hold_are_refused():
    passages = np.array([[1.0, 2.0], [70_000.0, 1.0]], dtype=np.float32)
    with pytest.raises(UserError, match="text 2: its vector is not finite"):
        rank_quantised("float16", passages, passages, 2, Calibration.fit(passages))


def test_an_encoder_that_dot_compares_is_ranked_by_its_raw_vectors_and_plain_prefixes(encoder):
    teacher = make_encoder(encoder, precision="float32", similarity="dot", dims=(64, 8)).eval()
    encoded = encode_sets(teacher, "teacher", SETS)
    entries = evaluate_precisions(encoded, SETS)["answer"]
    assert report_entry("teacher", 1, encoded, SETS)["similarity"] == "dot"
    part = SETS["answer"]
    passages = teacher.encode(list(part.passages.values()), "passage")
    queries = teacher.encode(part.judged_queries(), "query")
    for dims in (64, 8):
        scores = queries[:, :dims].astype(np.float64) @ passages[:, :dims].T.astype(np.float64)
        ranking = np.argsort(-scores, axis=1, kind="stable")[:, :100]
        entry = next(e for e in entries if (e["dims"], e["precision"]) == (dims, "float32"))
        for metric, score in score_ranking(ranking, part).items():
            assert entry[metric] == pytest.approx(score)


def test_a_student_searches_its_teacher_s_passages_at_their_shared_sizes(models):
    teacher, student, unrelated = models
    asymmetric = encode_asymmetric(student, teacher, SETS)
    assert asymmetric.dims == (32,)
    passages = teacher.encode(list(SETS["reply"].passages.values()), "passage", dims=32)
    queries = student.encode(SETS["reply"].judged_queries(), "query")
    np.testing.assert_array_equal(
        rank_passages(asymmetric.queries["reply"], asymmetric.passages["reply"], 9),
        rank_passages(queries, passages, 9),
    )
    encodings = [encode_sets(model, role, SETS) for model, role in
            ((student, "student"), (teacher, "teacher"))]  # fmt: skip
    combined = combine_asymmetric(*encodings, shared_dims(student.contract, teacher.contract))
    assert evaluate_precisions(combined, SETS) == evaluate_precisions(asymmetric, SETS)
    with pytest.raises(UserError, match=r"their spaces differ \(other and one\)"):
        encode_asymmetric(unrelated, teacher, SETS)

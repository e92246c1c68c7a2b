import re

from stillroom.measure.render import render, table

EVIL = "<script>alert('x')</script>"


def report():
    def model(role, ndcg):
        scores = {"ndcg@10": ndcg, "recall@100": 0.9, "mrr@10": 0.5}
        return {
            "role": role, "parameters": 23_000_000, "dims": 384, "texts_per_second": 123.4,
            "scores": {"held-out": scores},
        }  # fmt: skip

    bm25 = {**model("bm25", 0.5), "parameters": 0, "dims": 0, "texts_per_second": None}
    return {
        "sets": {"held-out": {"queries": 200, "passages": 2000}},
        "models": {"teacher": model("teacher", 0.8), "student": model("student", 0.6), "B": bm25},
        "retention": {"held-out": 0.75, "mean": 0.75},
    }


def extras():
    return {
        "name": EVIL,
        "hardware": "2 CPUs",
        "losses": {"teacher": [(1, 2.0), (2, 1.0)], "student": []},
        "negatives": {
            "kept": 10, "queries_without": 1, "rejected": {"too close": 3},
            "examples": [{"query": EVIL, "positive": EVIL, "negatives": [EVIL]}],
        },
    }  # fmt: skip


def test_the_table_has_a_row_a_model_the_best_first():
    header, *rows = table(report())
    assert header == ["model", "parameters", "dims", "texts/s", "nDCG@10", "Recall@100", "MRR@10"]
    assert [row[0] for row in rows] == ["teacher", "student", "B"]
    assert rows[1] == ["student", "23.0 M", "384", "123", "0.600", "0.900", "0.500"]
    assert rows[2][1:4] == ["–", "–", "–"]


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing():
    page = render(report(), extras())
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(", page)
    assert "<script" not in page


def test_the_page_says_plainly_who_is_above_whom():
    page = render(report(), extras())
    assert "The student is below the teacher: nDCG@10 0.600 against 0.800 (-0.200)." in page
    assert "The student is above BM25" in page
    assert "75.0 %" in page
    assert page.count("<polyline") == 1  # of a student without training there is no curve

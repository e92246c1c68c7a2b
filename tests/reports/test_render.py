import re

import pytest

from stillroom.reports.plots import speed_plot
from stillroom.reports.render import render_evaluation, render_report
from stillroom.reports.tables import elsewhere_table, score_table, small_vector_table, verdict

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
        "tokenizers": {},
    }


def extras():
    return {
        "name": EVIL,
        "hardware": "2 CPUs",
        "losses": {"teacher": [(1, 2.0), (2, 1.0)], "student": []},
        "negatives": {
            "kept": 10, "queries_without": 1, "rejected": {"too close": 3}, "recall": {EVIL: 0.97},
            "scores": {"edges": [0.0, 0.5, 1.0], "positives": [0, 4], "negatives": [9, 1]},
            "examples": [{"query": EVIL, "positive": EVIL, "negatives": [EVIL]}],
        },
    }  # fmt: skip


def test_the_table_has_a_row_per_model_with_the_best_first():
    header, *rows = score_table(report())
    assert header == ["model", "parameters", "dims", "texts/s", "nDCG@10", "Recall@100", "MRR@10"]
    assert [row[0] for row in rows] == ["teacher", "student", "B"]
    assert rows[1] == ["student", "23.0 M", "384", "123", "0.600", "0.900", "0.500"]
    assert rows[2][1:4] == ["–", "–", "–"]


def test_the_page_says_what_is_left_out_of_rankings_and_what_does_not_exist():
    counts = {"queries": 200, "passages": 2000, "left_out": 198, "missing": 5}
    page = render_report({**report(), "sets": {"held-out": counts}}, extras())
    assert "held-out: of 198 queries the passage with the query&#39;s own id is left out" in page
    assert "held-out: 5 judged passages do not exist, and count as not found" in page
    assert "left out, as in BEIR" not in render_report(report(), extras())


def test_the_page_loads_nothing_and_runs_no_script():
    page = render_report(report(), extras())
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(", page)
    assert "<script" not in page


def test_the_page_says_which_model_is_better():
    page = render_report(report(), extras())
    assert "The student is below the teacher: nDCG@10 0.600 against 0.800 (-0.200)." in page
    assert "The student is above BM25" in page
    assert "75.0 %" in page
    # A student that was not trained has no curve.
    assert page.partition("<h2>Training</h2>")[2].count("<polyline") == 1


def test_scores_of_positives_and_negatives_are_plotted_over_one_axis():
    page = render_report(report(), extras())
    plots = re.findall(r"Scores of (?:positives|negatives)</figcaption>|Scores of \w+;", page)
    assert plots == ["Scores of positives;", "Scores of negatives;"]
    # The tallest bar is 120 units high; empty bins have no bar.
    bars = re.findall(
        r'<rect x="([\d.]+)" y="[\d.]+" width="[\d.]+" height="([\d.]+)"></rect>', page
    )
    assert [(float(x), float(high)) for x, high in bars] == [(280, 120), (40, 120), (280, 13.3)]
    assert "97.0 %" in page


def small_vectors(*sets, dims=(384, 128)):
    return {
        name: [
            {
                "precision": precision, "dims": size, "trained": size == 384, "bytes": size * wide,
                "rescored_bytes": 0, "ndcg@10": 0.8 - 0.1 * i - 0.1 * index, "recall@100": 0.9,
            }
            for size in dims
            for i, (precision, wide) in enumerate((("float32", 4), ("int8", 1)))
        ]
        for index, name in enumerate(sets)
    }  # fmt: skip


def test_small_vectors_are_rows_with_their_share_of_float32_quality():
    header, *rows = small_vector_table(small_vectors("a", "b"))
    assert header == ["dims", "precision", "bytes", "a nDCG@10", "b nDCG@10", "mean", "of float32"]
    assert rows[0] == ["384", "float32", "1,536", "0.800", "0.700", "0.750", "100.0%"]
    assert rows[3] == ["128 (not trained)", "int8", "128", "0.700", "0.600", "0.650", "86.7%"]
    assert small_vector_table(small_vectors("a"))[0][3:] == ["nDCG@10", "Recall@100", "of float32"]


@pytest.mark.parametrize("dims", [(384, 128), (384,)])
def test_quality_is_plotted_against_bytes_on_both_pages(dims):
    measured = report()
    measured["models"]["student"]["vectors"] = small_vectors("held-out", dims=dims)
    measured["models"]["both"] = {
        **measured["models"]["student"], "role": "asymmetric",
        "retention": {"held-out": 0.875, "mean": 0.875},
    }  # fmt: skip
    for page in (render_report(measured, extras()), render_evaluation(measured, EVIL)):
        assert not re.findall(r"(?:src|href)\s*=|@import|url\(|<script", page)
        circles = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="4"><title>float32, 384', page)
        smaller = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="4"><title>int8, 384', page)
        assert len(circles) == len(smaller) == 2  # the student's, and the asymmetric pair's
        # Fewer bytes are further left, and less quality is further down.
        assert float(circles[0][0]) > float(smaller[0][0])
        assert float(circles[0][1]) < float(smaller[0][1])
    assert "87.5 %" in render_report(measured, extras())


@pytest.mark.parametrize(
    ("spread", "shown"),
    [(None, "123"), (1.2, "123"), (2.0, "123*")],
)
def test_a_speed_that_differed_between_rounds_is_marked_in_table_and_page(spread, shown):
    content = report()
    content["models"]["student"]["texts_per_second_spread"] = spread
    [row] = [row for row in score_table(content) if row[0] == "student"]
    assert row[3] == shown
    page = render_report(content, extras())
    assert shown in page
    assert ("rounds differed by up to 2.0 times" in page) is (spread == 2.0)


def difference(first, second, low, high):
    return {
        "first": first, "second": second, "difference": first - second, "low": low, "high": high,
        "queries": 100,
    }  # fmt: skip


def measured_elsewhere(on_corpus, elsewhere):
    """A report with two guards, on which the untouched base is better than the student."""

    def model(role, *ndcg):
        scores = {name: {"ndcg@10": value} for name, value in zip(("a", "b"), ndcg, strict=True)}
        return {"role": role, "parameters": 1, "dims": 8, "scores": scores}

    block = {
        "sets": {name: {"queries": 50, "passages": 500} for name in "ab"},
        "models": {
            "student": model("student", 0.5, 0.6),
            "teacher": model("teacher", 0.8, 0.8),
            "untouched base": model("base", 0.6, 0.7),
        },
        "retention": {"a": 0.625, "b": 0.75, "mean": 0.6875},
    }
    against = {"base": "untouched base", "corpus": on_corpus, "elsewhere": elsewhere}
    return {**report(), "elsewhere": block, "against_base": against}


BETTER, WORSE = difference(0.8, 0.7, 0.05, 0.15), difference(0.55, 0.65, -0.15, -0.05)


def test_one_sentence_on_top_says_whether_the_student_beats_its_base_and_loses_elsewhere():
    measured = measured_elsewhere(BETTER, WORSE)
    sentence = verdict(measured)
    assert sentence == (
        "On its corpus the student is better than its untouched base (nDCG@10 0.800 against 0.700: "
        "+0.100, 95 % interval +0.050 to +0.150); elsewhere, in other fields, it is worse than its "
        "untouched base (nDCG@10 0.550 against 0.650: -0.100, 95 % interval -0.150 to -0.050)."
    )
    page = render_report(measured, extras())
    assert page.index(sentence) < page.index("Your corpus") < page.index("Elsewhere")


def test_a_difference_that_may_be_chance_is_called_that():
    within = difference(0.7, 0.69, -0.01, 0.03)
    assert "as good as its untouched base, within chance" in verdict(
        measured_elsewhere(within, within)
    )
    assert "elsewhere, in other fields, it was not measured" in verdict(
        measured_elsewhere(BETTER, None)
    )
    assert verdict(report()) is None


def test_the_table_of_other_fields_has_the_share_of_the_teacher():
    assert elsewhere_table(measured_elsewhere(BETTER, WORSE)) == [
        ["model", "a", "b", "mean nDCG@10", "of the teacher"],
        ["teacher", "0.800", "0.800", "0.800", "100.0%"],
        ["untouched base", "0.600", "0.700", "0.650", "81.2%"],
        ["student", "0.500", "0.600", "0.550", "68.8%"],
    ]
    assert elsewhere_table(report()) == []
    assert "Nothing was measured outside of the corpus" in render_report(report(), extras())


def measured_in_two_fields():
    """A report with `your corpus` and `elsewhere`, and models of several speeds."""

    def model(role, ndcg, speed, spread=1.1):
        return {
            **report()["models"]["teacher"], "role": role, "texts_per_second": speed,
            "texts_per_second_spread": spread, "scores": {"held-out": scores(ndcg)},
        }  # fmt: skip

    def scores(ndcg):
        return {"ndcg@10": ndcg, "recall@100": 0.9, "mrr@10": 0.5}

    models = {
        "teacher": model("teacher", 0.8, 28.0),
        "untouched base": model("base", 0.6, 180.0),
        "student before training": model("student_base", 0.5, 410.0),
        "student": model("student", 0.76, 400.0, spread=9.0),
        "student asks, teacher answers": {
            **model("asymmetric", 0.78, 28.0),
            "retention": {"held-out": 0.975, "mean": 0.975},
        },
        "BM25": {**model("bm25", 0.55, None), "dims": 0},
    }
    elsewhere = {"teacher": 0.5, "untouched base": 0.48, "student": 0.4, "BM25": 0.3}
    return {
        **report(),
        "models": models,
        "elsewhere": {
            "sets": {"field": {"queries": 9, "passages": 90}},
            "models": {
                name: {"role": models[name]["role"], "scores": {"field": scores(ndcg)}}
                for name, ndcg in elsewhere.items()
            },
        },
    }


def test_quality_against_speed_is_a_curve_for_the_corpus_and_one_for_elsewhere():
    plot = speed_plot(measured_in_two_fields())
    corpus, elsewhere = plot.curves
    assert [curve.name for curve in plot.curves] == ["your corpus", "elsewhere"]
    # The slowest first; neither BM25 nor the pair of models, whose speed is the teacher's.
    assert [label for *_, label in corpus.points] == [
        "teacher, your corpus: 100.0%, 28 passages/s",
        "untouched base, your corpus: 75.0%, 180 passages/s",
        "student, your corpus: 95.0%, 400* passages/s",
        "student before training, your corpus: 62.5%, 410 passages/s",
    ]
    assert [label.split(",")[0] for *_, label in elsewhere.points] == [
        "teacher", "untouched base", "student",
    ]  # fmt: skip
    assert elsewhere.points[2][0] == corpus.points[2][0]  # one speed, measured once
    ticks = {label: y for y, label in plot.y_ticks}
    assert corpus.points[0][1] == elsewhere.points[0][1] == ticks["1.00"]
    assert corpus.points[2][1] == ticks["0.95"]
    ticks = {label: x for x, label in plot.x_ticks}
    assert list(ticks) == ["20", "50", "100", "200", "500"]
    assert ticks["20"] < corpus.points[0][0] < ticks["50"]
    # The axis is a logarithm: ten times as fast is as far everywhere.
    assert ticks["200"] - ticks["20"] == pytest.approx(ticks["500"] - ticks["50"], abs=0.2)


def test_names_beside_the_points_do_not_overlap_and_stay_in_the_plot():
    plot = speed_plot(measured_in_two_fields())
    assert sorted(text for *_, text in plot.labels) == [
        "student before training", *["student*"] * 2, "teacher", *["untouched base"] * 2,
    ]  # fmt: skip
    boxes = []
    for x, y, anchor, text in plot.labels:
        width = 6.5 * len(text)  # of 12 px
        boxes.append((x if anchor == "start" else x - width, y, width))
        assert plot.left < boxes[-1][0] < boxes[-1][0] + width < plot.right
    for i, (x, y, width) in enumerate(boxes):
        for x_other, y_other, width_other in boxes[:i]:
            assert x + width < x_other or x_other + width_other < x or abs(y - y_other) >= 12


def test_the_curve_of_speeds_is_drawn_where_there_are_two_models_with_a_speed():
    page = render_report(measured_in_two_fields(), extras())
    assert "<h2>Quality and speed</h2>" in page
    assert ">student*</text>" in page
    for name in ("teacher", "untouched base", "student before training"):
        assert f">{name}</text>" in page
    alone = measured_in_two_fields()
    for name in ("teacher", "untouched base", "student before training"):
        alone["models"][name]["texts_per_second"] = None  # an API's, for example
    assert speed_plot(alone) is None
    assert "Quality and speed" not in render_report(alone, extras())
    del alone["elsewhere"]
    alone["models"]["teacher"]["texts_per_second"] = 5.0
    [curve] = speed_plot(alone).curves
    assert curve.name == "your corpus"
    for found_nothing in alone["models"]["teacher"]["scores"].values():
        found_nothing["ndcg@10"] = 0.0
    assert speed_plot(alone) is None

"""Scores of a report as rows of text, the header first, and as sentences."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stillroom.config.languages import LANGUAGES
from stillroom.evaluation.gate import is_better, is_worse, mean_ndcg, model_with_role
from stillroom.evaluation.speed import is_unreliable

METRICS = {"ndcg@10": "nDCG@10", "recall@100": "Recall@100", "mrr@10": "MRR@10"}

ROLES = {
    "teacher": "the teacher",
    "student": "the student",
    "teacher_base": "the teacher before training",
    "student_base": "the student before training",
    "base": "its untouched base",
    "bm25": "BM25",
    "asymmetric": "the student, with passages by the teacher,",
    "asymmetric_base": "the student before training, with passages by the teacher,",
}

COMPARISONS = (
    ("teacher", "teacher_base"),
    ("teacher", "student_base"),
    ("student", "base"),
    ("student", "student_base"),
    ("student", "bm25"),
    ("student", "teacher"),
    ("asymmetric", "teacher"),
    ("asymmetric", "student"),
    ("asymmetric", "asymmetric_base"),
)


def score_table(report: Mapping[str, Any]) -> list[list[str]]:
    """A row per model, sorted by mean nDCG@10, best first."""
    sets = list(report["sets"])
    columns = [(name, metric) for name in sets for metric in METRICS]
    header = ["model", "parameters", "dims", "texts/s"]
    header += [
        METRICS[metric] if len(sets) == 1 else f"{name} {METRICS[metric]}"
        for name, metric in columns
    ]
    models = sorted(report["models"].items(), key=lambda item: -mean_ndcg(item[1]))
    return [header] + [
        [
            name,
            f"{model['parameters'] / 1e6:,.1f} M" if model["parameters"] else "–",
            f"{model['dims'] or '–'}{', dot' if model.get('similarity') == 'dot' else ''}",
            _speed(model),
            *(f"{model['scores'][set_name][metric]:.3f}" for set_name, metric in columns),
        ]
        for name, model in models
    ]


def verdict(report: Mapping[str, Any]) -> str | None:
    """Whether training paid: the student against the base that anybody can have, in a sentence.

    None where no base was measured.
    """
    differences = report.get("against_base")
    if differences is None:
        return None
    on_corpus = f"On its corpus the student is {_against(differences['corpus'])}"
    if differences["elsewhere"] is None:
        return f"{on_corpus}; elsewhere, in other fields, it was not measured."
    return f"{on_corpus}; elsewhere, in other fields, it is {_against(differences['elsewhere'])}."


def _against(difference: Mapping[str, Any]) -> str:
    if is_better(difference):
        how = "better than its untouched base"
    elif is_worse(difference):
        how = "worse than its untouched base"
    else:
        how = "as good as its untouched base, within chance"
    return (
        f"{how} (nDCG@10 {difference['first']:.3f} against {difference['second']:.3f}: "
        f"{difference['difference']:+.3f}, 95 % interval {difference['low']:+.3f} to "
        f"{difference['high']:+.3f})"
    )


def elsewhere_table(report: Mapping[str, Any]) -> list[list[str]]:
    """A row per model with its nDCG@10 on each guard, their mean, and that of the teacher's.

    Sorted by the mean, best first; empty where nothing was measured elsewhere.
    """
    block = report.get("elsewhere")
    if block is None:
        return []
    sets = list(block["sets"])
    teacher = mean_ndcg(model_with_role(block, "teacher"))
    models = sorted(block["models"].items(), key=lambda item: -mean_ndcg(item[1]))
    return [["model", *sets, "mean nDCG@10", "of the teacher"]] + [
        [
            name,
            *(f"{model['scores'][name_of_set]['ndcg@10']:.3f}" for name_of_set in sets),
            f"{mean_ndcg(model):.3f}",
            f"{mean_ndcg(model) / teacher:.1%}" if teacher else "–",
        ]
        for name, model in models
    ]


def unreliable_speeds(report: Mapping[str, Any]) -> str | None:
    """The note under a score table that explains its marked speeds; None where none is marked."""
    spreads = [_spread(model) or 0 for model in report["models"].values() if _is_marked(model)]
    if not spreads:
        return None
    return f"* rounds differed by up to {max(spreads):.1f} times: this speed is unreliable"


def bm25_languages(report: Mapping[str, Any]) -> str | None:
    """The note under a score table that says whose words BM25 compared; None without BM25."""
    languages = (model_with_role(report, "bm25") or {}).get("languages")
    if not languages:
        return None
    sets_by_language: dict[str, list[str]] = {}
    for name, code in languages.items():
        sets_by_language.setdefault(code, []).append(name)
    named = [
        LANGUAGES[code] + (f" ({', '.join(sets)})" if len(sets_by_language) > 1 else "")
        for code, sets in sets_by_language.items()
    ]
    return f"BM25 took the texts' language to be: {', '.join(named)}"


def set_notes(report: Mapping[str, Any]) -> Iterator[str]:
    """Notes under a score table, of what BEIR's rules count otherwise than a plain ranking."""
    for name, counts in report["sets"].items():
        if left_out := counts.get("left_out"):
            yield (
                f"{name}: of {left_out:,} queries the passage with the query's own id is left out, "
                "as in BEIR"
            )
        if missing := counts.get("missing"):
            yield f"{name}: {missing:,} judged passages do not exist, and count as not found"


def _speed(model: Mapping[str, Any]) -> str:
    """Texts per second; marked where rounds differed too much to be reliable."""
    if model["texts_per_second"] is None:
        return "–"
    return f"{model['texts_per_second']:,.0f}{'*' if _is_marked(model) else ''}"


def _spread(model: Mapping[str, Any]) -> float | None:
    return model.get("texts_per_second_spread")  # `stillroom evaluate` measures no spread


def _is_marked(model: Mapping[str, Any]) -> bool:
    return model["texts_per_second"] is not None and is_unreliable(_spread(model))


def mean_over_sets(vectors: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A model's entries of small vectors, with nDCG@10 as the mean over the sets.

    Args:
        vectors: set → entries, as `evaluate_precisions` returns them, in the same order for
            every set.
    """
    described = ("precision", "dims", "trained", "bytes", "rescored_bytes")
    return [
        {
            **{key: entries[0][key] for key in described},
            "ndcg@10": sum(entry["ndcg@10"] for entry in entries) / len(entries),
        }
        for entries in zip(*vectors.values(), strict=True)
    ]


def small_vector_table(vectors: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """A row per vector size and precision; arguments as for `mean_over_sets`."""
    sets = list(vectors)
    several = len(sets) > 1
    header = ["dims", "precision", "bytes"]
    header += [f"{name} nDCG@10" for name in sets] if several else ["nDCG@10", "Recall@100"]
    header += ["mean"] if several else []
    means = mean_over_sets(vectors)
    float32_score = means[0]["ndcg@10"]
    rows = [[*header, "of float32"]]
    for mean, *entries in zip(means, *vectors.values(), strict=True):
        scores = [entry["ndcg@10"] for entry in entries]
        scores.append(mean["ndcg@10"] if several else entries[0]["recall@100"])
        rows.append(
            [
                f"{mean['dims']:,}" + ("" if mean["trained"] else " (not trained)"),
                mean["precision"],
                f"{mean['bytes']:,}"
                + (f" + {mean['rescored_bytes']:,}" if mean["rescored_bytes"] else ""),
                *(f"{score:.3f}" for score in scores),
                f"{mean['ndcg@10'] / float32_score:.1%}" if float32_score else "–",
            ]
        )
    return rows


def comparisons(report: Mapping[str, Any]) -> Iterator[str]:
    """Sentences that compare models' mean nDCG@10; models that were not measured are left out."""
    for role, rival in COMPARISONS:
        model, other = model_with_role(report, role), model_with_role(report, rival)
        if model is not None and other is not None:
            difference = mean_ndcg(model) - mean_ndcg(other)
            verb = "is above" if difference > 0 else "is below" if difference < 0 else "equals"
            subject = ROLES[role][0].upper() + ROLES[role][1:]
            yield (
                f"{subject} {verb} {ROLES[rival]}: nDCG@10 {mean_ndcg(model):.3f} against "
                f"{mean_ndcg(other):.3f} ({difference:+.3f})."
            )

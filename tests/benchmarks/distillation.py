"""What distillation keeps: a strong teacher in a small student, and what each loss is worth.

    python tests/benchmarks/distillation.py strong   --data DIR [--seeds 1 2]
    python tests/benchmarks/distillation.py ablation --data DIR [--seeds 1 2] [--mixes NAME …]
    python tests/benchmarks/distillation.py against  --data DIR [--seeds 1 2]

The teacher is all-mpnet-base-v2 as it comes; the student three layers of all-MiniLM-L6-v2, in the
teacher's space. They learn from docstrings of this environment, or --pairs, from
DIR/debian/train.jsonl, and from texts without labels where --texts names some: JSON Lines as they
are, plain text in parts as short as queries, too. Measured is nDCG@10 on held-out docstrings and on
the sets in DIR (cranfield, med, npl and debian, in BEIR layout), cut to --passages, answers first.

`strong` is jobs/recipes/strong-teacher.yaml's student on that corpus, after every phase; `ablation`
gives each loss alone, and mixes, the same steps on pairs; `against` trains the student's first
phase, and the same student on the same texts in the same order by sentence-transformers' trainer
and its MSELoss on the same vectors, with each of --their-rates, and tells the seconds of all.
`--set student.phases.0.steps=4000 …` changes the recipe for another budget.

What has been made is never made again, so that a stopped run goes on, and several can share a root.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from recipes_quality import TASKS, cut_sets

from stillroom.cluster.session import connect, disconnect
from stillroom.config.load import read_recipe
from stillroom.config.student import PairDistillation, PairLosses, Student
from stillroom.config.validation import validate
from stillroom.encoders.contract import BaseContract
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.files.options import Resize
from stillroom.encoders.layers.packing import pack_attention
from stillroom.evaluation.evaluate import (
    EncodedSets,
    combine_asymmetric,
    encode_sets,
    evaluate_bm25,
    report_entry,
)
from stillroom.learning.engine.torch_engine import TorchEngine
from stillroom.learning.loop import TrainOptions, scheduled_learning_rate, train
from stillroom.learning.objectives.distillation import Distillation
from stillroom.learning.order import WorkerShard
from stillroom.learning.prefetch import Prefetcher
from stillroom.observability.run_journal import open_journal
from stillroom.pipeline.plan import pipeline
from stillroom.pipeline.run import produce
from stillroom.stages.corpus.artifact import read_evaluation_sets
from stillroom.stages.student import fit_projection_start, initial_encoder
from stillroom.stages.training_batches import distillation_batches
from stillroom.stages.vectors.teacher_vectors import TeacherVectors, stored_vectors
from stillroom.storage.artifacts import Store
from stillroom.training.worker import trains_packed

RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "strong-teacher.yaml"
TEACHER = "teacher: all-mpnet-base-v2"
ALONE = (
    "cosine",
    "pairwise_mse",
    "similarity_order",
    "ranking_kl",
    "score_kl",
    "margin_mse",
    "contrastive",
)
WEIGHTS = {"pairwise_mse": 20.0, "similarity_order": 10.0, "margin_mse": 10.0}  # others 1
NONE = dict.fromkeys(ALONE, 0.0)
MIXES = {
    **{name: {**NONE, name: WEIGHTS.get(name, 1.0)} for name in ALONE},
    "Jasper's three": {**NONE, "cosine": 10.0, "pairwise_mse": 200.0, "similarity_order": 20.0},
    "scores + contrastive, the default": PairLosses().model_dump(),
    "the recipe's": None,  # of its phase on pairs, as it stands
}


def main():
    options = argparse.ArgumentParser()
    options.add_argument("proof", choices=["strong", "ablation", "against"])
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--pairs", type=Path, help="pairs in place of docstrings")
    options.add_argument("--texts", type=Path, nargs="*", default=[], help="a source each")
    options.add_argument("--parts", type=int, nargs="*", default=[24, 48], help="tokens, of .txt")
    options.add_argument("--max-pairs", type=int, default=4000, help="of a source")
    options.add_argument("--root", type=Path, default=Path("runs/distillation"))
    options.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    options.add_argument("--passages", type=int, default=2000, help="of a set, at most")
    options.add_argument("--steps", type=int, default=200, help="of a student in the ablation")
    options.add_argument("--batch", type=int, default=64, help="pairs a step in the ablation")
    options.add_argument("--their-rates", type=float, nargs="*", default=[5e-4, 1e-4, 2e-5])
    options.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    options.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    options.add_argument("--device", default="cpu")
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
            "sources": sources(chosen, recipe["student"]["base"]),
            "max_pairs": chosen.max_pairs,
            "held_out": {"queries": 200, "passages": 1000, "source": "docstrings"},
            "evaluation": {name: str(folder) for name, folder in sets.items()},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "distillation.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return read_recipe(file, chosen.set)


def sources(chosen, tokenizer):
    docstrings = {"format": "docstrings", "packages": ["torch", "transformers", "numpy", "ray"]}
    if chosen.pairs is not None:
        docstrings = {"format": "files", "pairs": [str(chosen.pairs)]}
    debian = {"format": "files", "pairs": [str(chosen.data / "debian" / "train.jsonl")]}
    found = {"docstrings": docstrings, "debian": debian}
    for file in chosen.texts:
        if file.suffix == ".txt":
            cut = {"format": "documents", "passages": [str(file)], "tokenizer": tokenizer}
            found |= {f"{file.stem}-{n}": {**cut, "passage_tokens": n} for n in chosen.parts}
        else:
            found[file.stem] = {"format": "files", "passages": [str(file)]}
    return found


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
        with open_journal(self.store, {"recipe": self.recipe.name}) as self.journal:
            self.prove()
        print(self.table())

    def prove(self):
        self.references()
        for seed in self.chosen.seeds:
            if self.chosen.proof == "strong":
                phases = self.student(self.recipe.student, seed)
                for number, student in enumerate(phases, 1):
                    self.measured(f"three layers, {number} of {len(phases)} phases", student, seed)
            elif self.chosen.proof == "ablation":
                for mix in self.chosen.mixes:
                    [student] = self.student(self.on_pairs(mix), seed)
                    self.measured(mix, student, seed)
            else:
                self.against(seed)

    def student(self, section, seed):
        """What each phase of a student left, made now if it was not."""
        phases = []
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
            done = produce(again, {}, self.store, self.recipe.scale, self.journal)
            self.made[step.ref] = (again, done.artifact)
            if step.stage == "student":
                phases.append(functools.partial(load_encoder, done.artifact.path))
        return phases

    def against(self, seed):
        """The first phase by us and by sentence-transformers; the clock stands while either is
        made ready."""
        from their_distillation import distilled  # of what `bench` installs

        section, device = self.recipe.student, torch.device(self.chosen.device)
        phase, limits = section.phases[0], self.recipe.scale.student
        made = {step.stage: artifact for step, artifact in self.made.values()}
        teacher_vectors = TeacherVectors(
            made["corpus"],
            lambda files, device: stored_vectors(files, made["teacher"], made["vectors"]),
        )

        def begun():
            torch.manual_seed(seed)
            encoder = initial_encoder(section, seed, self.terms.space, self.terms, teacher_vectors)
            return self.on_device(encoder)

        ours = begun().train()
        if trains_packed(ours, limits):
            pack_attention(ours.backbone)
        fit_projection_start(teacher_vectors, phase, ours)
        batches = distillation_batches(teacher_vectors, None, phase, seed, ours, WorkerShard())
        warmup = round(phase.warmup_ratio * phase.steps)
        began = time.perf_counter()
        train(
            TorchEngine(ours, weight_decay=phase.weight_decay, max_grad_norm=phase.max_grad_norm),
            Distillation(**phase.losses.model_dump()),
            Prefetcher(batches, phase.steps),
            TrainOptions(
                steps=phase.steps,
                learning_rate=functools.partial(
                    scheduled_learning_rate,
                    steps=phase.steps,
                    warmup=warmup,
                    peak=phase.learning_rate,
                ),
                seed=seed,
                pad_id=ours.pad_id,
                micro_batch_tokens=limits.micro_batch_tokens,
            ),
        )
        self.compared("stillroom", ours, time.perf_counter() - began, seed)
        rows = np.concatenate([batches.ids(step) for step in range(phase.steps)])
        everything = [*teacher_vectors.corpus_data.passages, *teacher_vectors.corpus_data.queries]
        passages = len(teacher_vectors.corpus_data.passages)
        queries_nd, passages_nd = teacher_vectors.rows(device)
        vectors_nd = np.empty((len(rows), self.terms.dims[0]), dtype=np.float32)
        for vectors, first, mine in (
            (passages_nd, 0, rows < passages),
            (queries_nd, passages, rows >= passages),
        ):
            vectors_nd[mine] = vectors[rows[mine] - first]
        for rate in self.chosen.their_rates:
            theirs = begun()
            seconds = distilled(
                theirs,
                section.base,
                section.layers,
                section.dropout,
                [everything[row] for row in rows],
                torch.from_numpy(vectors_nd),
                phase.model_copy(update={"learning_rate": rate}),
                device=self.chosen.device,
                seed=seed,
            )
            self.compared(f"sentence-transformers, {rate:g}", theirs, seconds, seed)

    def compared(self, name, encoder, seconds, seed):
        print(f"{name}, seed {seed}: {seconds:.1f} s", flush=True)
        self.measured(f"by {name}", encoder.eval, seed)

    def on_pairs(self, mix):
        """The recipe's student with one phase on pairs, of some losses; `ranking_kl` ranks what the
        recipe's phase draws."""
        [recipes] = [one for one in self.recipe.student.phases if isinstance(one, PairDistillation)]
        losses = MIXES[mix] or recipes.losses.model_dump()
        phase = {
            "data": "pairs", "steps": self.chosen.steps, "global_batch": self.chosen.batch,
            "learning_rate": 3e-4,
            "query_tokens": 48, "passage_tokens": 96, "losses": losses,
            "ranking_kl_passages": recipes.ranking_kl_passages if losses["ranking_kl"] else 0,
        }  # fmt: skip
        kept = json.loads(self.recipe.student.model_dump_json())
        return validate(Student, {**kept, "phases": [phase]}, "ablation")

    def sets(self):
        return read_evaluation_sets(next(a for s, a in self.made.values() if s.stage == "corpus"))

    def references(self):
        for step in pipeline(self.recipe):
            if step.stage in ("corpus", "teacher", "vectors", "negatives"):
                done = produce(step, {}, self.store, self.recipe.scale, self.journal)
                self.made[step.ref] = (step, done.artifact)
        [teacher] = [artifact for step, artifact in self.made.values() if step.stage == "teacher"]
        self.terms = BaseContract.read(teacher.path)
        self.by_teacher = self.encoded(teacher)
        base, layers = self.recipe.student.base, self.recipe.student.layers
        self.measured("all-MiniLM-L6-v2 as it comes", lambda: create_encoder(base, space="none"))
        self.measured(
            "three layers before",
            lambda: create_encoder(base, space="none", resize=Resize(layers=layers)),
        )
        file = self.figures / "BM25.json"
        if not file.exists():
            keep(file, evaluate_bm25(self.sets()))

    def encoded(self, teacher):
        """The teacher's vectors of the sets, and its figures where they are not there."""
        file = self.chosen.root / "vectors of the sets.npz"
        if not (self.figures / f"{TEACHER}.json").exists():
            encoder = self.on_device(load_encoder(teacher.path))
            made = encode_sets(encoder, "teacher", self.sets())
            np.savez(file, **made.passages)
            figures = report_entry("teacher", encoder.parameters_total, made, self.sets())
            keep(self.figures / f"{TEACHER}.json", figures)
        with np.load(file) as passages:
            return EncodedSets({}, dict(passages), self.terms.dims[:1], True, 0.0)

    def measured(self, name, make, seed=None):
        """A model on the sets, and with passages by the teacher where they share a space."""
        suffix = ".json" if seed is None else f", seed {seed}.json"
        if (self.figures / f"{name}{suffix}").exists():
            return
        encoder = self.on_device(make())
        encoded = encode_sets(encoder, "student", self.sets())
        size = encoder.parameters_total
        if encoder.contract.space == self.terms.space:
            both = combine_asymmetric(encoded, self.by_teacher, encoder.contract.dims[:1])
            file = self.figures / f"{name}, passages by the teacher{suffix}"
            keep(file, report_entry("asymmetric", size, both, self.sets()))
        keep(self.figures / f"{name}{suffix}", report_entry("student", size, encoded, self.sets()))

    def on_device(self, encoder):
        return encoder.to(self.chosen.device)

    def table(self):
        """nDCG@10 of every model and set, and the mean retention: means and ranges of the seeds."""
        found = {}
        for file in sorted(self.figures.glob("*.json"), key=lambda file: file.stat().st_mtime):
            name = file.stem.replace(f", seed {file.stem.rpartition(', seed ')[2][:1]}", "")
            found.setdefault(name, []).append(json.loads(file.read_text()))
        [teacher] = found[TEACHER]
        sets = ["held-out", *TASKS]
        lines = ["| | parameters | " + " | ".join(sets) + " | retention |"]
        lines.append("| --- |" + " --- |" * (len(sets) + 2))
        for name, seeds in found.items():
            columns = [[one["scores"][column] for one in seeds] for column in sets]
            kept = [
                statistics.mean(one["scores"][of] / teacher["scores"][of] for of in sets)
                for one in seeds
            ]
            cells = [mean_and_range(scores) for scores in [*columns, kept]]
            size = f"{seeds[0]['parameters'] / 1e6:.1f} M"
            lines.append(f"| {name} | {size} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def mean_and_range(figures):
    spread = f" ({min(figures):.3f}–{max(figures):.3f})" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.3f}{spread}"


def keep(file, figures):
    scores = {name: found["ndcg@10"] for name, found in figures["scores"].items()}
    file.write_text(json.dumps({"scores": scores, "parameters": figures["parameters"]}))
    print(file.stem, scores, flush=True)


if __name__ == "__main__":
    main()

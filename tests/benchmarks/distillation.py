"""Quality that a small student keeps of a strong teacher, and the effect of each loss.

    python tests/benchmarks/distillation.py elsewhere --data DIR [--seeds 1 2] [--recipes NAME …]
    python tests/benchmarks/distillation.py strong    --data DIR [--seeds 1 2]
    python tests/benchmarks/distillation.py ablation  --data DIR [--seeds 1 2] [--mixes NAME …]
    python tests/benchmarks/distillation.py against   --data DIR [--seeds 1 2]

The teacher is all-mpnet-base-v2 as it comes; the student all-MiniLM-L6-v2, in the teacher's space.

`elsewhere` is jobs/recipes/student-6.yaml and student-3.yaml as they stand, judged on sets of
fields that they have seen nothing of: those in DIR, of which no text is trained on. Nothing is
chosen by them: the last weights of each phase are measured, and those of step 0.

In the others the student is student-3's, learns the teacher's vectors, not its base's, from
docstrings of this environment, or
--pairs, from DIR/debian/train.jsonl, and from texts without labels where --texts names some: JSON
Lines as they are, plain text also in parts as short as queries. The measure is nDCG@10 on held-out
docstrings and on the sets in DIR (cranfield, med, npl and debian, in BEIR layout), cut to
--passages, answers first.

`strong` is jobs/recipes/student-3.yaml's student on that corpus, after every phase; `ablation`
trains with each loss alone, and with mixes, for the same steps on pairs; `against` trains the
student's first phase, and the same student on the same texts in the same order with
sentence-transformers' trainer and its MSELoss on the same vectors, with each of --their-rates, and
prints the seconds of each. `--set student.phases.0.steps=4000 …` changes the recipe for another
budget.

Finished parts are reused, so that a stopped run can be continued and several can share a root.
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
from stillroom.stages.student import initial_encoder
from stillroom.stages.student_start import StudentStart, fit_start, given_layers
from stillroom.stages.training_batches import distillation_batches
from stillroom.stages.vectors.teacher_vectors import TeacherVectors, stored_vectors
from stillroom.storage.artifacts import Store
from stillroom.training.worker import trains_packed

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
TEACHER = "teacher: all-mpnet-base-v2"
LOSSES = (
    "cosine",
    "pairwise_mse",
    "similarity_order",
    "ranking_kl",
    "score_kl",
    "margin_mse",
    "contrastive",
)
WEIGHTS = {"pairwise_mse": 20.0, "similarity_order": 10.0, "margin_mse": 10.0}  # others 1
NO_LOSS = dict.fromkeys(LOSSES, 0.0)
MIXES = {
    **{name: {**NO_LOSS, name: WEIGHTS.get(name, 1.0)} for name in LOSSES},
    "Jasper's three": {**NO_LOSS, "cosine": 10.0, "pairwise_mse": 200.0, "similarity_order": 20.0},
    "scores + contrastive, the default": PairLosses().model_dump(),
    "the recipe's": None,  # of its phase on pairs, as it stands
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["elsewhere", "strong", "ablation", "against"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, help="pairs in place of docstrings")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="a source each")
    parser.add_argument("--parts", type=int, nargs="*", default=[24, 48], help="tokens, of .txt")
    parser.add_argument("--max-pairs", type=int, default=4000, help="of a source")
    parser.add_argument("--root", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--recipes", nargs="+", default=["student-6", "student-3"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--passages", type=int, default=2000, help="of a set, at most")
    parser.add_argument("--steps", type=int, default=200, help="of a student in the ablation")
    parser.add_argument("--batch", type=int, default=64, help="pairs a step in the ablation")
    parser.add_argument("--their-rates", type=float, nargs="*", default=[5e-4, 1e-4, 2e-5])
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for name in options.recipes if options.command == "elsewhere" else ["student-3"]:
        Experiment(write_recipe(options, name), options).run()
    disconnect()


def write_recipe(options, name):
    """Reads a recipe with these evaluation sets and, but for `elsewhere`, a corpus of
    these sources."""
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    sets = cut_sets(options.data, options.root / "sets", options.passages, tasks=False)
    corpus = {
        "sources": sources(options, recipe["student"]["base"]),
        "max_pairs": options.max_pairs,
        "held_out": {"queries": 200, "passages": 1000, "source": "docstrings"},
    }
    if options.command == "elsewhere":
        corpus = recipe["corpus"]
        for phase in recipe["student"]["phases"]:
            phase.pop("evaluate_every", None)
    else:
        recipe["student"]["layers"] = [0, 2, 5]
        for phase in recipe["student"]["phases"]:
            phase.pop("target", None)
    recipe |= {
        "name": name,
        "root": str(options.root),
        "corpus": {
            **corpus,
            "evaluation": {name: str(folder) for name, folder in sets.items()},
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "distillation.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return read_recipe(file, options.set)


def sources(options, tokenizer):
    docstrings = {"format": "docstrings", "packages": ["torch", "transformers", "numpy", "ray"]}
    if options.pairs is not None:
        docstrings = {"format": "files", "pairs": [str(options.pairs)]}
    debian = {"format": "files", "pairs": [str(options.data / "debian" / "train.jsonl")]}
    result = {"docstrings": docstrings, "debian": debian}
    for file in options.texts:
        if file.suffix == ".txt":
            cut = {"format": "documents", "passages": [str(file)], "tokenizer": tokenizer}
            result |= {f"{file.stem}-{n}": {**cut, "passage_tokens": n} for n in options.parts}
        else:
            result[file.stem] = {"format": "files", "passages": [str(file)]}
    return result


class Experiment:
    """Runs a recipe's steps, some of them with another student, and measures the models."""

    def __init__(self, recipe, options):
        self.recipe, self.options = recipe, options
        self.store = Store(recipe.root)
        self.produced = {}
        self.figures = options.root / "figures"
        self.figures.mkdir(exist_ok=True)

    def run(self):
        connect(self.recipe.scale)
        with open_journal(self.store, {"recipe": self.recipe.name}) as self.journal:
            self.train_and_measure()
        print(self.table())

    def train_and_measure(self):
        self.measure_references()
        for seed in self.options.seeds:
            if self.options.command == "elsewhere":
                self.train_and_measure_phases(self.recipe.student, self.recipe.name, seed)
            elif self.options.command == "strong":
                self.train_and_measure_phases(self.recipe.student, "three layers", seed)
            elif self.options.command == "ablation":
                for mix in self.options.mixes:
                    [student] = self.train_student(self.student_on_pairs(mix), seed)
                    self.measure(mix, functools.partial(load_encoder, student.path), seed)
            else:
                self.compare_with_sentence_transformers(seed)

    def train_and_measure_phases(self, section, name, seed):
        """Measures the student before its first step, and after each phase."""
        phases = self.train_student(section, seed)
        start = functools.partial(self.student_at_start, section, seed, phases[0])
        self.measure(f"{name}, step 0", start, seed)
        for number, artifact in enumerate(phases, 1):
            load = functools.partial(load_encoder, artifact.path)
            self.measure(f"{name}, {number} of {len(phases)} phases", load, seed)

    def student_at_start(self, section, seed, first_phase):
        """The student of step 0, whose start the first phase has kept."""
        contract = self.teacher_contract
        start = StudentStart.read(first_phase.path)
        return initial_encoder(
            section, seed, contract.space, contract, self.teacher_vectors(), start
        ).eval()

    def teacher_vectors(self):
        artifacts = {step.stage: artifact for step, artifact in self.produced.values()}
        return TeacherVectors(
            artifacts["corpus"],
            lambda files, device: stored_vectors(files, artifacts["teacher"], artifacts["vectors"]),
        )

    def train_student(self, section, seed):
        """The artifact of each phase of a student; trains what is not there yet."""
        phases = []
        seeded = self.recipe.model_copy(update={"student": section})
        steps = pipeline(seeded)
        for step in steps[: 1 + max(i for i, s in enumerate(steps) if s.stage == "student")]:
            if step.stage == "student":
                # Only the student depends on the seed: the corpus and the negatives are reused.
                inputs = {
                    role: self.produced[source.ref][0] if source.stage == "student" else source
                    for role, source in step.inputs.items()
                }
                seeded_step = dataclasses.replace(
                    step, args={**step.args, "seed": seed}, inputs=inputs
                )
            else:
                seeded_step = step
            result = produce(seeded_step, {}, self.store, self.recipe.scale, self.journal)
            self.produced[step.ref] = (seeded_step, result.artifact)
            if step.stage == "student":
                phases.append(result.artifact)
        return phases

    def compare_with_sentence_transformers(self, seed):
        """Trains the first phase by stillroom and by sentence-transformers; preparation is not
        timed."""
        from their_distillation import train_with_sentence_transformers  # needs `bench`'s packages

        section, device = self.recipe.student, torch.device(self.options.device)
        phase, limits = section.phases[0], self.recipe.scale.student
        teacher_vectors = self.teacher_vectors()
        contract = self.teacher_contract
        initial = functools.partial(
            initial_encoder, section, seed, contract.space, contract, teacher_vectors
        )

        def fresh_student(start):
            torch.manual_seed(seed)
            return self.on_device(initial(start))

        start = fit_start(section, phase, seed, teacher_vectors, initial)
        our_student = fresh_student(start).train()
        if trains_packed(our_student, limits):
            pack_attention(our_student.backbone)
        batches = distillation_batches(
            teacher_vectors, None, phase, seed, our_student, WorkerShard()
        )
        warmup = round(phase.warmup_ratio * phase.steps)
        started = time.perf_counter()
        train(
            TorchEngine(
                our_student, weight_decay=phase.weight_decay, max_grad_norm=phase.max_grad_norm
            ),
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
                pad_id=our_student.pad_id,
                micro_batch_tokens=limits.micro_batch_tokens,
            ),
        )
        self.measure_trained("stillroom", our_student, time.perf_counter() - started, seed)
        rows = np.concatenate([batches.ids(step) for step in range(phase.steps)])
        all_texts = [*teacher_vectors.corpus_data.passages, *teacher_vectors.corpus_data.queries]
        passages = len(teacher_vectors.corpus_data.passages)
        queries_nd, passages_nd = teacher_vectors.rows(device)
        vectors_nd = np.empty((len(rows), self.teacher_contract.dims[0]), dtype=np.float32)
        for vectors, first, selected in (
            (passages_nd, 0, rows < passages),
            (queries_nd, passages, rows >= passages),
        ):
            vectors_nd[selected] = vectors[rows[selected] - first]
        for rate in self.options.their_rates:
            their_student = fresh_student(StudentStart(start.layers))
            seconds = train_with_sentence_transformers(
                their_student,
                section.base,
                start.layers,
                section.dropout,
                [all_texts[row] for row in rows],
                torch.from_numpy(vectors_nd),
                phase.model_copy(update={"learning_rate": rate}),
                device=self.options.device,
                seed=seed,
            )
            self.measure_trained(f"sentence-transformers, {rate:g}", their_student, seconds, seed)

    def measure_trained(self, name, encoder, seconds, seed):
        print(f"{name}, seed {seed}: {seconds:.1f} s", flush=True)
        self.measure(f"by {name}", encoder.eval, seed)

    def student_on_pairs(self, mix):
        """The recipe's student with one phase on pairs and a mix of losses; `ranking_kl` samples as
        many passages as the recipe's phase."""
        [recipe_phase] = [p for p in self.recipe.student.phases if isinstance(p, PairDistillation)]
        losses = MIXES[mix] or recipe_phase.losses.model_dump()
        phase = {
            "data": "pairs", "steps": self.options.steps, "global_batch": self.options.batch,
            "learning_rate": 3e-4,
            "query_tokens": 48, "passage_tokens": 96, "losses": losses,
            "ranking_kl_passages": recipe_phase.ranking_kl_passages if losses["ranking_kl"] else 0,
        }  # fmt: skip
        fields = json.loads(self.recipe.student.model_dump_json())
        return validate(Student, {**fields, "phases": [phase]}, "ablation")

    def sets(self):
        return read_evaluation_sets(
            next(a for s, a in self.produced.values() if s.stage == "corpus")
        )

    def measure_references(self):
        for step in pipeline(self.recipe):
            if step.stage in ("corpus", "teacher", "vectors", "negatives"):
                result = produce(step, {}, self.store, self.recipe.scale, self.journal)
                self.produced[step.ref] = (step, result.artifact)
        [teacher] = [
            artifact for step, artifact in self.produced.values() if step.stage == "teacher"
        ]
        self.teacher_contract = BaseContract.read(teacher.path)
        self.teacher_encoded = self.encode_teacher(teacher)
        base, layers = self.recipe.student.base, given_layers(self.recipe.student)
        self.measure("all-MiniLM-L6-v2 as it comes", lambda: create_encoder(base, space="none"))
        if layers is not None:
            self.measure(
                "three layers before",
                lambda: create_encoder(base, space="none", resize=Resize(layers=layers)),
            )
        file = self.figures / "BM25.json"
        if not file.exists():
            write_figures(file, evaluate_bm25(self.sets(), dict.fromkeys(self.sets(), "en")))

    def encode_teacher(self, teacher):
        """The teacher's vectors of the sets; writes its figures if they are not there yet."""
        file = self.options.root / "vectors of the sets.npz"
        if not (self.figures / f"{TEACHER}.json").exists():
            encoder = self.on_device(load_encoder(teacher.path))
            encoded = encode_sets(encoder, "teacher", self.sets())
            np.savez(file, **encoded.passages)
            figures = report_entry("teacher", encoder.parameters_total, encoded, self.sets())
            write_figures(self.figures / f"{TEACHER}.json", figures)
        with np.load(file) as passages:
            contract = self.teacher_contract
            return EncodedSets({}, dict(passages), contract.dims[:1], contract.comparison, 0.0)

    def measure(self, name, make, seed=None):
        """Measures a model on the sets, and with the teacher's passages if they share a space."""
        suffix = ".json" if seed is None else f", seed {seed}.json"
        if (self.figures / f"{name}{suffix}").exists():
            return
        encoder = self.on_device(make())
        encoded = encode_sets(encoder, "student", self.sets())
        size = encoder.parameters_total
        if encoder.contract.space == self.teacher_contract.space:
            asymmetric = combine_asymmetric(
                encoded, self.teacher_encoded, encoder.contract.dims[:1]
            )
            file = self.figures / f"{name}, passages by the teacher{suffix}"
            write_figures(file, report_entry("asymmetric", size, asymmetric, self.sets()))
        write_figures(
            self.figures / f"{name}{suffix}", report_entry("student", size, encoded, self.sets())
        )

    def on_device(self, encoder):
        return encoder.to(self.options.device)

    def table(self):
        """nDCG@10 of every model and set, and the mean retention: means and ranges of the seeds."""
        scores_by_name = {}
        for file in sorted(self.figures.glob("*.json"), key=lambda file: file.stat().st_mtime):
            name = file.stem.replace(f", seed {file.stem.rpartition(', seed ')[2][:1]}", "")
            scores_by_name.setdefault(name, []).append(json.loads(file.read_text()))
        [teacher] = scores_by_name[TEACHER]
        sets = ["held-out", *TASKS]
        lines = ["| | parameters | " + " | ".join(sets) + " | retention |"]
        lines.append("| --- |" + " --- |" * (len(sets) + 2))
        for name, seeds in scores_by_name.items():
            columns = [[figures["scores"][column] for figures in seeds] for column in sets]
            retentions = [
                statistics.mean(figures["scores"][s] / teacher["scores"][s] for s in sets)
                for figures in seeds
            ]
            cells = [mean_and_range(scores) for scores in [*columns, retentions]]
            size = f"{seeds[0]['parameters'] / 1e6:.1f} M"
            lines.append(f"| {name} | {size} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def mean_and_range(figures):
    spread = f" ({min(figures):.3f}–{max(figures):.3f})" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.3f}{spread}"


def write_figures(file, figures):
    scores = {name: scores_of_set["ndcg@10"] for name, scores_of_set in figures["scores"].items()}
    file.write_text(json.dumps({"scores": scores, "parameters": figures["parameters"]}))
    print(file.stem, scores, flush=True)


if __name__ == "__main__":
    main()

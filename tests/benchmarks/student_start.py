"""What a student keeps of its teacher before any training, by its projection and by its layers.

    python tests/benchmarks/student_start.py --data DIR --texts FILE… --cache DIR

The teacher and the student's base are those of jobs/recipes/student-6.yaml. The projection is
solved from the texts, one a line in each FILE: first from the first FILE alone, then from all.
The measure is nDCG@10 on the sets in DIR, cut to --passages, answers first: of the student alone,
and of its queries among the teacher's passages, as the mean share of the teacher's own nDCG@10.

`--layers N` then compares subsets of N layers. Vectors are kept in --cache by the names of files
and sets: take another folder for other texts.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
import yaml
from recipes_quality import cut_sets

from stillroom.data.readers.beir import read_beir
from stillroom.encoders.files.create import create_encoder
from stillroom.encoders.files.options import ContractOptions, Resize
from stillroom.evaluation.evaluate import RANKING_DEPTH, score_ranking
from stillroom.evaluation.metrics import rank_passages
from stillroom.learning.layer_choice import search_layers
from stillroom.learning.linear_maps import Moments
from stillroom.learning.projection import candidate_maps, solve_map

MIXTURES = (0.2, 0.4)  # of ridge, with the orthogonal map: not among those that a start tries
RECIPE = Path(__file__).parents[2] / "jobs" / "recipes" / "student-6.yaml"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--layers", type=int)
    options = parser.parse_args()
    recipe = yaml.safe_load(RECIPE.read_text())
    folders = cut_sets(options.data, options.cache / "sets", options.passages, tasks=False)
    sets = {name: read_beir(folder) for name, folder in folders.items()}
    files = {file.stem: file.read_text().rstrip("\n").split("\n") for file in options.texts}
    base = recipe["student"]["base"]
    teacher = Vectors(recipe["teacher"]["base"], None, "teacher", options, sets, files)
    student = Vectors(base, None, "all layers", options, sets, files)
    teacher_scores = {name: ndcg(s, *teacher.of_set(name)) for name, s in sets.items()}
    base_scores = {name: ndcg(s, *student.of_set(name)) for name, s in sets.items()}
    print_row("", *sets, "share", "passages by the teacher", "share", "held back: own, teacher's")
    print_row("teacher", *map(number, teacher_scores.values()), "1")
    share = mean_share(base_scores, teacher_scores)
    print_row("base, untouched", *map(number, base_scores.values()), number(share))
    for count in sorted({1, len(files)}):
        names = list(files)[:count]
        print_row(f"*solved from {' and '.join(names)}*")
        fit = fit_map(student, teacher, names)
        moments = Moments.of(student.of_texts(names), teacher.of_texts(names))
        maps = dict(candidate_maps(moments))
        for share_of_ridge in MIXTURES:
            mixture = (1 - share_of_ridge) * maps["procrustes"] + share_of_ridge * maps["ridge 0.3"]
            maps[f"{1 - share_of_ridge:.1f} procrustes + {share_of_ridge:.1f} ridge 0.3"] = mixture
        for name, weight in maps.items():
            marked = f"**{name}**" if name == fit.name else name
            figures = both_ways(weight.float().numpy(), student, teacher, sets, teacher_scores)
            score = fit.scores.get(name)
            held_back = f"{score.symmetric:.3f}, {score.asymmetric:.3f}" if score else "–"
            print_row(marked, *figures, held_back)
    if options.layers:
        print_subsets(options, base, teacher, teacher_scores, sets, files)


def print_subsets(options, base, teacher, teacher_scores, sets, files):
    """A row for each subset of layers that the search tries, in the order of its score."""
    rows = []

    def score(layers):
        name = " ".join(map(str, layers))
        student = Vectors(base, layers, f"layers {name}", options, sets, files)
        fit = fit_map(student, teacher, list(files))
        figures = both_ways(fit.weight_dh.numpy(), student, teacher, sets, teacher_scores)
        score = fit.scores[fit.name].mean
        rows.append((score, [name, *figures, f"{score:.3f}", fit.name]))
        return score

    search_layers(student_layers(base), options.layers, score)
    print_row("layers", *sets, "share", "passages by the teacher", "share", "held back", "map")
    for _, row in sorted(rows, reverse=True):
        print_row(*row)


def student_layers(base):
    return create_encoder(base, space="none").backbone.config.num_hidden_layers


class Vectors:
    """A model's vectors of sets and files, made when they are asked for."""

    def __init__(self, base, layers, name, options, sets, files):
        self.base, self.layers, self.max_tokens = base, layers, options.max_tokens
        self.sets, self.files, self.folder = sets, files, options.cache / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.encoder = None

    def of_set(self, name):
        dataset = self.sets[name]
        queries = self._cached(f"{name}.queries", dataset.judged_queries(), "query")
        return queries, self._cached(f"{name}.passages", list(dataset.passages.values()), "passage")

    def of_texts(self, names):
        vectors = [self._cached(name, self.files[name], "passage") for name in names]
        return torch.from_numpy(np.concatenate(vectors))

    def _cached(self, name, texts, role):
        file = self.folder / f"{name}.npy"
        if not file.exists():
            if self.encoder is None:
                contract = ContractOptions(max_tokens=self.max_tokens)
                resize = Resize(layers=self.layers)
                self.encoder = create_encoder(
                    self.base, space="none", options=contract, resize=resize
                ).eval()
            np.save(file, self.encoder.encode(texts, role))
        return np.load(file)


def fit_map(student, teacher, names):
    states, vectors = student.of_texts(names), teacher.of_texts(names)
    return solve_map(states.__getitem__, vectors.__getitem__, len(states), normalise=True)


def both_ways(weight, student, teacher, sets, teacher_scores):
    """nDCG@10 of each set and its mean share, of the student alone and with the teacher's
    passages."""
    alone, with_teacher = {}, {}
    for name, dataset in sets.items():
        queries, passages = (unit(vectors @ weight.T) for vectors in student.of_set(name))
        alone[name] = ndcg(dataset, queries, passages)
        with_teacher[name] = ndcg(dataset, queries, teacher.of_set(name)[1])
    shares = [mean_share(scores, teacher_scores) for scores in (alone, with_teacher)]
    return (
        *map(number, alone.values()), f"**{number(shares[0])}**",
        " ".join(map(number, with_teacher.values())), f"**{number(shares[1])}**",
    )  # fmt: skip


def ndcg(dataset, queries, passages):
    ranking = rank_passages(queries, passages, RANKING_DEPTH)
    return score_ranking(ranking, dataset)["ndcg@10"]


def mean_share(scores, teacher_scores):
    return statistics.mean(scores[name] / teacher_scores[name] for name in scores)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def number(value):
    return f"{value:.3f}".removeprefix("0")


def print_row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

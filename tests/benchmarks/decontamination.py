"""Recall on planted contamination, hits on clean text, and pairs a second of one CPU.

    python tests/benchmarks/decontamination.py [--data DIR …] [--limit 2000] [--scale 200000]

Without --data, on docstrings of this environment. DIR is in BEIR layout; where it has a
train.jsonl its pairs are the clean text, otherwise half of its passages are.

Half of a collection's texts are tested, planted one by one into pairs under each edit of
tests/support/text_edits.py. "clean" is the share of pairs that are hit although nothing was planted
in them. Real copies among them count as false hits, so it is an upper bound; --show N prints some.

--scale N measures size only: N answers and 50,000 pairs of words sampled by Zipf's law.
"""

import argparse
import json
import pickle
import resource
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from stillroom.data.cleaning.contamination_index import ContaminationIndex
from stillroom.data.cleaning.decontaminate import decontaminate
from stillroom.data.cleaning.word_hashes import hash_words
from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.docstrings import docstring_pairs
from stillroom.data.readers.files import read_pairs
from stillroom.data.readers.records import EvaluationSet, Pair
from support.text_edits import EDITS, edit


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=2000, help="texts planted of each kind")
    parser.add_argument("--show", type=int, default=0, help="hits on clean text to print")
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--scale", type=int, help="answers of a generated set")
    options = parser.parse_args()
    if options.scale:
        measure_scale(options.scale)
        return
    collections = [beir_collection(folder) for folder in options.data] or [docstring_collection()]
    for name, tested, clean in collections:
        measure(name, tested, clean, options)


def measure_scale(answers):
    def texts(count, seed):
        random = np.random.default_rng(seed)
        words = np.minimum(random.zipf(1.2, size=(count, 60)), 200_000)
        return [" ".join(map("w{}".format, row)) for row in words.tolist()]

    tested = evaluation_set_of([Pair(text[:40], text) for text in texts(answers, 0)])
    pairs = [Pair(text[:40], text) for text in texts(50_000, 1)]
    started = time.process_time()
    index = ContaminationIndex.build({"generated": tested})
    build_seconds = time.process_time() - started
    started = time.process_time()
    decontaminate(pairs, index)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = len(pickle.dumps(index)) / 2**20
    print(
        f"{answers:,} answers: built in {build_seconds:.0f} s, pickled {size:,.0f} MiB,"
        f" peak {peak:.1f} GiB with the texts; {len(pairs) / seconds:,.0f} pairs a CPU second"
    )


def docstring_collection():
    pairs = list(islice(docstring_pairs(["torch", "transformers", "numpy", "ray"]), 30_000))
    Random(0).shuffle(pairs)
    half = len(pairs) // 2
    return "docstrings", evaluation_set_of(pairs[:half]), pairs[half:]


def evaluation_set_of(pairs):
    return EvaluationSet(
        {f"p{i}": pair.passage for i, pair in enumerate(pairs)},
        {f"q{i}": pair.query for i, pair in enumerate(pairs)},
        {f"q{i}": {f"p{i}": 1} for i in range(len(pairs))},
    )


def beir_collection(folder):
    evaluation_set = read_beir(folder)
    if (folder / "train.jsonl").exists():
        return folder.name, evaluation_set, list(read_pairs(folder / "train.jsonl"))
    passages = sorted(text for text in set(evaluation_set.passages.values()) if text.strip())
    Random(0).shuffle(passages)
    half = len(passages) // 2
    tested = {f"p{i}": text for i, text in enumerate(passages[:half])}
    queries = dict(evaluation_set.queries)
    tested_set = EvaluationSet(tested, queries, {q: {"p0": 1} for q in queries})
    return folder.name, tested_set, [Pair(text[:20], text) for text in passages[half:]]


def measure(name, tested, clean, options):
    answer_only_sets = (
        {name} if not any(pair.query != pair.passage[:20] for pair in clean[:9]) else set()
    )
    started = time.process_time()
    index = ContaminationIndex.build({name: tested}, whole=answer_only_sets, share=options.share)
    build_seconds = time.process_time() - started
    started = time.process_time()
    _, hits = decontaminate(clean, index)
    seconds = time.process_time() - started
    rows = len(index.ids.starts) - 1
    print(f"\n## {name}: {rows:,} tested texts of {len(tested.passages):,} passages")
    print(f"built in {build_seconds:.1f} s, {len(clean) / seconds:,.0f} pairs a CPU second")
    print(
        f"clean: {len(hits) / len(clean):.2%} of {len(clean):,} pairs hit:",
        dict(Counter(hit.kind for hit in hits)),
    )
    for hit in Random(1).sample(hits, min(options.show, len(hits))):
        texts = tested.queries if hit.role == "query" else tested.passages
        print(json.dumps([hit.kind, hit.score, hit.what, hit.text[:600], texts[hit.id][:600]]))
    hit_pairs = {hit.pair for hit in hits}
    clean_pairs = [pair for i, pair in enumerate(clean) if i not in hit_pairs]
    answers = sorted({text for i, text in enumerate(index_texts(tested, index)) if text.strip()})
    counts = hash_words(answers).counts
    print("| edit | " + " | ".join(f"{label} (n)" for label in ("13+ words", "8–12", "4–7")) + " |")
    print("| --- | --- | --- | --- |")
    word_ranges = [(13, 1 << 30), (8, 12), (4, 7)]
    texts_by_size = []
    for low, high in word_ranges:
        texts_of_size = [t for t, n in zip(answers, counts, strict=True) if low <= n <= high]
        texts_by_size.append(
            Random(2).sample(texts_of_size, min(options.limit, len(texts_of_size)))
        )
    others = [pair.passage for pair in clean_pairs]
    for kind in EDITS:
        cells = []
        for texts in texts_by_size:
            random = Random(3)
            planted = [Pair("", edit(kind, text, random, others)) for text in texts]
            hits_of_edit = decontaminate(planted, index)[1]
            cells.append(f"{len(hits_of_edit) / len(texts):.3f} ({len(texts):,})" if texts else "–")
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


def index_texts(tested, index):
    for i in range(len(index.is_query)):
        texts = tested.queries if index.is_query[i] else tested.passages
        yield texts[index.ids[i]]


if __name__ == "__main__":
    main()

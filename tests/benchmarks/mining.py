"""Mining compared with sentence-transformers' `mine_hard_negatives`: time, memory, same result.

    python tests/benchmarks/mining.py [--passages 100000] [--queries 20000] [--rounds 2]
    python tests/benchmarks/mining.py --growth 100000 300000 1000000 [--queries 2000]

Both get the same clustered unit vectors of 384 dims, and the same rule: the 4 best below 95 % of
the positive's score among the 45 best. Each run is its own process, in the order A B A B …; all of
mining is timed, from texts and vectors to rows of text, without embedding. sentence-transformers
runs without FAISS, its default, and with it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIMS, NEGATIVES, SHARE = 384, 4, 0.95
CANDIDATES = 10 * NEGATIVES  # the default of sentence-transformers
CHECKED = 200  # queries that are compared with brute force
SHARD = 65536


def write_vectors(folder, passages, queries, seed=0):
    """Writes shards of float16 passages, queries close to some of them, and the rows of those."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2000, DIMS)).astype(np.float32)
    for number, start in enumerate(range(0, passages, SHARD)):
        count = min(SHARD, passages - start)
        cluster_centres = centres[rng.integers(0, len(centres), count)]
        vectors = unit(cluster_centres + rng.normal(size=(count, DIMS)).astype(np.float32))
        np.save(folder / f"shard-{number:06d}.npy", vectors.astype(np.float16))
    saved_shards = [np.load(f, mmap_mode="r") for f in sorted(folder.glob("shard-*.npy"))]
    answers = np.sort(rng.permutation(passages)[:queries])
    answer_vectors = np.stack([saved_shards[row // SHARD][row % SHARD] for row in answers])
    noise = 0.03 * rng.normal(size=answer_vectors.shape).astype(np.float32)
    query_vectors = unit(answer_vectors.astype(np.float32) + noise)
    np.save(folder / "queries.npy", query_vectors.astype(np.float16))
    np.save(folder / "answers.npy", answers)


def clocks():
    """Wall-clock seconds, and CPU seconds of all threads, which depend less on other load."""
    return np.array([time.perf_counter(), time.process_time()])


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shards(folder):
    start = 0
    for file in sorted(folder.glob("shard-*.npy")):
        vectors = np.load(file, mmap_mode="r")
        yield np.arange(start, start + len(vectors)), vectors
        start += len(vectors)


def texts(folder):
    count = sum(len(rows) for rows, _ in shards(folder))
    answers = np.load(folder / "answers.npy")
    return [f"passage {i}" for i in range(count)], [f"query {i}" for i in answers], answers


def mine_stillroom(folder):
    from stillroom.mining.exact import chunk_sizes, row_dots, search
    from stillroom.mining.known_texts import hash_groups, hash_queries, write_known_texts
    from stillroom.mining.select import SelectionRule, select_negatives
    from stillroom.storage.columns import Ragged

    passages, queries, answers = texts(folder)
    query_vectors = np.load(folder / "queries.npy", mmap_mode="r")
    started = clocks()
    rule = SelectionRule(SHARE, None, None, 0, CANDIDATES, NEGATIVES, "top")
    no_negatives = Ragged.of([[]] * len(queries))
    none = np.empty(0, dtype=np.int64)
    known_texts = write_known_texts(
        folder / "known", [hash_groups(passages)], [hash_queries(queries)], answers, no_negatives,
        excluded=none, excluded_rows=none,
    )  # fmt: skip
    query_block, passages_per_product = chunk_sizes(2**30, DIMS, CANDIDATES)
    selected = []
    for first in range(0, len(queries), query_block):
        block = query_vectors[first : first + query_block].astype(np.float32)
        block_answers = answers[first : first + query_block]
        positive = np.concatenate(
            [
                vectors[
                    block_answers[(block_answers >= rows[0]) & (block_answers <= rows[-1])]
                    - rows[0]
                ]
                for rows, vectors in shards(folder)
            ]
        )
        candidates = search(
            block, shards(folder), CANDIDATES + 2, passages_per_product=passages_per_product
        )
        scores = row_dots(block, positive)
        selected.append(
            select_negatives(
                *candidates,
                positive_score_q=scores,
                texts=known_texts,
                rule=rule,
                seed=0,
                first=first,
            ).negatives
        )
    negatives = np.concatenate(selected)
    triplets = [
        (query, passages[answer], *(passages[row] for row in mined if row >= 0))
        for query, answer, mined in zip(queries, answers, negatives, strict=True)
    ]
    return clocks() - started, {row[0]: row[2:] for row in triplets}


def mine_sentence_transformers(folder, use_faiss):
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    passages, queries, answers = texts(folder)
    query_vectors = np.load(folder / "queries.npy").astype(np.float32)
    vectors = np.concatenate([v for _, v in shards(folder)]).astype(np.float32)

    class FixedVectors:
        """A model that returns prepared vectors."""

        device = torch.device("cpu")

        def encode_document(self, texts, **_):
            return vectors

        def encode_query(self, texts, **_):
            return query_vectors

        def get_embedding_dimension(self):
            return DIMS

        def similarity(self, first, second):
            return torch.as_tensor(first) @ torch.as_tensor(second).T

        def similarity_pairwise(self, first, second):
            return (torch.as_tensor(first) * torch.as_tensor(second)).sum(1)

    pairs = Dataset.from_dict({"query": queries, "positive": [passages[i] for i in answers]})
    started = clocks()
    triplets = mine_hard_negatives(
        pairs, FixedVectors(), corpus=passages, relative_margin=1 - SHARE, num_negatives=NEGATIVES,
        range_max=CANDIDATES + 1, output_format="triplet", use_faiss=use_faiss, verbose=False,
    )  # fmt: skip
    negatives_by_query = {}
    for row in triplets:
        negatives_by_query.setdefault(row["query"], []).append(row["negative"])
    return clocks() - started, negatives_by_query


SIDES = {
    "stillroom": mine_stillroom,
    "sentence-transformers": lambda folder: mine_sentence_transformers(folder, False),
    "sentence-transformers, FAISS": lambda folder: mine_sentence_transformers(folder, True),
}


def agreement(folder, negatives_by_query):
    """The share of a sample of queries whose negatives equal those of brute force."""
    passages, queries, answers = texts(folder)
    query_vectors = np.load(folder / "queries.npy").astype(np.float32)
    sample = np.linspace(0, len(queries) - 1, min(CHECKED, len(queries))).astype(int)
    shard_scores = [
        vectors.astype(np.float32) @ query_vectors[sample].T for _, vectors in shards(folder)
    ]
    is_equal = []
    for i, scores in zip(sample, np.concatenate(shard_scores).T, strict=True):
        best = np.lexsort((np.arange(len(scores)), -scores))[: CANDIDATES + 1]
        limit = SHARE * scores[answers[i]]
        allowed = [row for row in best if row != answers[i] and scores[row] <= limit]
        expected = [passages[row] for row in allowed[:NEGATIVES]]
        is_equal.append(list(negatives_by_query.get(queries[i], [])) == expected)
    return float(np.mean(is_equal))


def run(folder, side):
    """Runs one side in its own process: its times and peak memory."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def summary(result):
    return (
        f"{result['seconds']:.1f} s ({result['computing']:.1f} s of CPU time), "
        f"{result['gib']:.2f} GiB, {result['agreement']:.1%} equal to brute force"
    )


def compare(options, folder):
    figures = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            figures[side].append(run(folder, side))
            last = figures[side][-1]
            print(f"round {number + 1}: {side}: {summary(last)}", flush=True)
    medians = {
        side: {
            figure: statistics.median(f[figure] for f in runs)
            for figure in ("seconds", "computing")
        }
        for side, runs in figures.items()
    }
    memory = {side: max(f["gib"] for f in runs) for side, runs in figures.items()}
    ours = medians.pop("stillroom")
    for side, theirs in medians.items():
        print(
            f"{theirs['seconds'] / ours['seconds']:.2f} times as fast as {side} "
            f"({theirs['computing'] / ours['computing']:.2f} times less CPU time), in "
            f"{memory['stillroom']:.2f} GiB against {memory[side]:.2f} GiB"
        )


def grow(options):
    for passages in options.growth:
        with tempfile.TemporaryDirectory() as name:
            write_vectors(Path(name), passages, options.queries)
            result = run(Path(name), "stillroom")
            ns_per_pair = 1e9 * result["computing"] / passages / options.queries
            print(
                f"{passages:,} passages, {options.queries:,} queries: {summary(result)}, "
                f"{ns_per_pair:.2f} ns per pair of them",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--growth", type=int, nargs="+")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        (seconds, computing), negatives_by_query = SIDES[options.side](options.folder)
        gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures = {"seconds": seconds, "computing": computing, "gib": gib}
        print(json.dumps({**figures, "agreement": agreement(options.folder, negatives_by_query)}))
    elif options.growth:
        grow(options)
    else:
        with tempfile.TemporaryDirectory() as name:
            write_vectors(Path(name), options.passages, options.queries)
            compare(options, Path(name))


if __name__ == "__main__":
    main()

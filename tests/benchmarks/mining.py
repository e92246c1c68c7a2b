"""Mining against sentence-transformers' `mine_hard_negatives`: time, memory, and the same result.

    python tests/benchmarks/mining.py [--passages 100000] [--queries 20000] [--rounds 2]
    python tests/benchmarks/mining.py --growth 100000 300000 1000000 [--queries 2000]

Both get the same unit vectors of 384 dims, clustered, and the same rule: the 4 best below 95 % of
the positive's score among the 45 best. Each run is a process of its own, in the order A B A B …;
timed is the whole of mining, from texts and vectors to rows of text, without embedding.
sentence-transformers runs without FAISS, which is its default, and with it.
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
CANDIDATES = 10 * NEGATIVES  # as sentence-transformers searches, for each of its own defaults
CHECKED = 200  # queries against brute force
SHARD = 65536


def make(folder, passages, queries, seed=0):
    """Shards of float16, made and written one after the other. A query's answer is its row."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2000, DIMS)).astype(np.float32)
    for number, start in enumerate(range(0, passages, SHARD)):
        count = min(SHARD, passages - start)
        near = centres[rng.integers(0, len(centres), count)]
        vectors = unit(near + rng.normal(size=(count, DIMS)).astype(np.float32))
        np.save(folder / f"shard-{number:06d}.npy", vectors.astype(np.float16))
    first = [np.load(f, mmap_mode="r") for f in sorted(folder.glob("shard-*.npy"))]
    answers = np.sort(rng.permutation(passages)[:queries])
    own = np.stack([first[row // SHARD][row % SHARD] for row in answers]).astype(np.float32)
    asked = unit(own + 0.03 * rng.normal(size=own.shape).astype(np.float32))
    np.save(folder / "queries.npy", asked.astype(np.float16))
    np.save(folder / "answers.npy", answers)


def clocks():
    """Seconds on the wall, and of all threads' computing: other work disturbs the latter less."""
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


def ours(folder):
    from stillroom.mining.exact import dot, search, sizes
    from stillroom.mining.known import texts_of
    from stillroom.mining.select import Rule, select

    passages, queries, answers = texts(folder)
    asked = np.load(folder / "queries.npy", mmap_mode="r")
    began = clocks()
    rule = Rule(SHARE, None, None, 0, CANDIDATES, NEGATIVES, "top")
    known = texts_of(queries, passages, answers, [[]] * len(queries), [], searched=False)
    block, together = sizes(2**30, DIMS, CANDIDATES)
    rows = []
    for first in range(0, len(queries), block):
        mine = asked[first : first + block].astype(np.float32)
        own = answers[first : first + block]
        positive = np.concatenate(
            [v[own[(own >= r[0]) & (own <= r[-1])] - r[0]] for r, v in shards(folder)]
        )
        found = search(mine, shards(folder), CANDIDATES + 2, together=together)
        scores = dot(mine, positive)
        rows.append(
            select(
                *found, positive_score_q=scores, texts=known, rule=rule, seed=0, first=first
            ).negatives
        )
    negatives = np.concatenate(rows)
    made = [
        (query, passages[own], *(passages[row] for row in mined if row >= 0))
        for query, own, mined in zip(queries, answers, negatives, strict=True)
    ]
    return clocks() - began, {row[0]: row[2:] for row in made}


def theirs(folder, use_faiss):
    import torch
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    passages, queries, answers = texts(folder)
    asked = np.load(folder / "queries.npy").astype(np.float32)
    vectors = np.concatenate([v for _, v in shards(folder)]).astype(np.float32)

    class Given:
        """A model that is asked for nothing but the vectors it is given."""

        device = torch.device("cpu")

        def encode_document(self, given, **_):
            return vectors

        def encode_query(self, given, **_):
            return asked

        def get_embedding_dimension(self):
            return DIMS

        def similarity(self, one, other):
            return torch.as_tensor(one) @ torch.as_tensor(other).T

        def similarity_pairwise(self, one, other):
            return (torch.as_tensor(one) * torch.as_tensor(other)).sum(1)

    pairs = Dataset.from_dict({"query": queries, "positive": [passages[i] for i in answers]})
    began = clocks()
    made = mine_hard_negatives(
        pairs, Given(), corpus=passages, relative_margin=1 - SHARE, num_negatives=NEGATIVES,
        range_max=CANDIDATES + 1, output_format="triplet", use_faiss=use_faiss, verbose=False,
    )  # fmt: skip
    found = {}
    for row in made:
        found.setdefault(row["query"], []).append(row["negative"])
    return clocks() - began, found


SIDES = {
    "stillroom": ours,
    "sentence-transformers": lambda folder: theirs(folder, False),
    "sentence-transformers, FAISS": lambda folder: theirs(folder, True),
}


def agreement(folder, found):
    """The share of a sample's queries whose negatives are those that brute force finds."""
    passages, queries, answers = texts(folder)
    asked = np.load(folder / "queries.npy").astype(np.float32)
    sample = np.linspace(0, len(queries) - 1, min(CHECKED, len(queries))).astype(int)
    every = [vectors.astype(np.float32) @ asked[sample].T for _, vectors in shards(folder)]
    same = []
    for i, scores in zip(sample, np.concatenate(every).T, strict=True):
        best = np.lexsort((np.arange(len(scores)), -scores))[: CANDIDATES + 1]
        limit = SHARE * scores[answers[i]]
        allowed = [row for row in best if row != answers[i] and scores[row] <= limit]
        expected = [passages[row] for row in allowed[:NEGATIVES]]
        same.append(list(found.get(queries[i], [])) == expected)
    return float(np.mean(same))


def run(folder, side):
    """One side in a process of its own: seconds, and the most memory it had."""
    words = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def said(figures):
    return (
        f"{figures['seconds']:.1f} s ({figures['computing']:.1f} s of computing), "
        f"{figures['gib']:.2f} GiB, {figures['agreement']:.1%} as brute force"
    )


def compare(chosen, folder):
    figures = {side: [] for side in SIDES}
    for number in range(chosen.rounds):
        for side in SIDES:
            figures[side].append(run(folder, side))
            last = figures[side][-1]
            print(f"round {number + 1}: {side}: {said(last)}", flush=True)
    medians = {
        side: {of: statistics.median(f[of] for f in runs) for of in ("seconds", "computing")}
        for side, runs in figures.items()
    }
    memory = {side: max(f["gib"] for f in runs) for side, runs in figures.items()}
    own = medians.pop("stillroom")
    for side, other in medians.items():
        print(
            f"{other['seconds'] / own['seconds']:.2f} times as fast as {side} "
            f"({other['computing'] / own['computing']:.2f} by computing), in "
            f"{memory['stillroom']:.2f} GiB against {memory[side]:.2f} GiB"
        )


def grow(chosen):
    for passages in chosen.growth:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), passages, chosen.queries)
            found = run(Path(name), "stillroom")
            each = 1e9 * found["computing"] / passages / chosen.queries
            print(
                f"{passages:,} passages, {chosen.queries:,} queries: {said(found)}, "
                f"{each:.2f} ns a pair of them",
                flush=True,
            )


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--passages", type=int, default=100_000)
    options.add_argument("--queries", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--growth", type=int, nargs="+")
    options.add_argument("--side", choices=SIDES)
    options.add_argument("--folder", type=Path)
    chosen = options.parse_args()
    if chosen.side:
        (seconds, computing), found = SIDES[chosen.side](chosen.folder)
        gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        figures = {"seconds": seconds, "computing": computing, "gib": gib}
        print(json.dumps({**figures, "agreement": agreement(chosen.folder, found)}))
    elif chosen.growth:
        grow(chosen)
    else:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), chosen.passages, chosen.queries)
            compare(chosen, Path(name))


if __name__ == "__main__":
    main()

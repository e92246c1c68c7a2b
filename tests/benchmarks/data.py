"""The corpus stage on generated pairs: pairs a second, and peak memory that does not grow.

    python tests/benchmarks/data.py [--pairs 100000 1000000] [--near] [--negatives 1] [--files 8]

One in ten pairs repeats another's passage under another query, and one in twenty a passage with
one or two words changed. Each size is a separate run with its own processes. Four times a second
their memory (USS: without the page cache and without Ray's object store, which --store bounds and
which is hardly used) and their CPU time are added up.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.process_memory import with_descendants

EVERY_S = 0.25
PHRASES = 200_000  # of four words each, as texts repeat phrases
COPIES, NEAR_COPIES = 0.10, 0.05
BLOCK = 10_000  # pairs that are generated at a time; copies are of a pair in the same block


def generate(folder, count, files, negatives, lengths=(10, 30)):
    """Writes JSONL files of pairs, the same for the same arguments.

    Args:
        lengths: of the passages, in phrases of four words: at least, and less than.
    """
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvb"))
    words = np.array(["".join(rng.choice(letters, size=n)) for n in rng.integers(2, 10, 30_000)])
    weights = np.cumsum(1 / np.arange(1, len(words) + 1))  # Zipf's law, as in real text
    sampled = words[np.searchsorted(weights, rng.random((PHRASES, 4)) * weights[-1])]
    phrases = np.array([" ".join(group) for group in sampled], dtype=object)
    for number, part in enumerate(np.array_split(np.arange(count), files)):
        with (folder / f"{number:04d}.jsonl").open("w") as file:
            for start in range(0, len(part), BLOCK):
                rng = np.random.default_rng([1, number, start])
                rows = min(BLOCK, len(part) - start)
                file.writelines(pair_lines(rng, rows, phrases, negatives, lengths))


def pair_lines(rng, count, phrases, negatives, lengths):
    lengths = rng.integers(*lengths, size=count * (1 + negatives))
    ends = np.cumsum(lengths)
    sampled = phrases[rng.integers(PHRASES, size=ends[-1])].tolist()
    texts = [sampled[end - n : end] for end, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
    queries = phrases[rng.integers(PHRASES, size=(count, 3))].tolist()
    chances, others = rng.random(count).tolist(), rng.random(count).tolist()
    for i in range(count):
        passage = texts[i]
        if i and chances[i] < COPIES + NEAR_COPIES:
            passage = list(texts[int(others[i] * i)])
            if chances[i] < NEAR_COPIES:
                for position in range(0, len(passage), 15):
                    passage[position] += "s"
        row = {"query": " ".join(queries[i]), "positive": " ".join(passage)}
        if negatives:
            negative_texts = texts[count + i * negatives : count + (i + 1) * negatives]
            row["negatives"] = [" ".join(text) for text in negative_texts]
        yield json.dumps(row) + "\n"


def time_corpus_stage(folder, store, drop_near_copies):
    """Runs the stage alone, with Ray on all cores; prints its seconds and counts."""
    import ray.data

    from stillroom.config.corpus import Corpus
    from stillroom.config.scale import Scale
    from stillroom.stages.corpus import stage as module
    from stillroom.stages.corpus.shards import ChunkSizes
    from stillroom.storage.artifacts import Store

    content = {
        "sources": {
            "made": {"format": "files", "pairs": [str(f) for f in sorted(folder.glob("*.jsonl"))]}
        },
        "held_out": {"queries": 200, "passages": 1000},
        "near_duplicates": {"min_jaccard": 0.8} if drop_near_copies else None,
    }
    module.SIZES = ChunkSizes(serial_bytes=0)  # every size runs in parallel, like the large ones
    section = Corpus.model_validate_json(json.dumps(content))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    quiet = ray.LoggingConfig(log_level="ERROR")
    ray.init(include_dashboard=False, object_store_memory=store, logging_config=quiet)
    with Store(str(folder / "runs")).draft("corpus", "made", "k") as draft:
        started = time.perf_counter()
        summary = module.corpus(section=section, seed=0, scale=Scale(), out=draft)
        seconds = time.perf_counter() - started
    ray.shutdown()
    print(json.dumps({"seconds": seconds, **summary["sources"]["made"]["pairs"]}))


class Watch(threading.Thread):
    """Watches a process and its descendants: peak bytes of memory, and seconds of CPU."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.top, self.stopped = psutil.Process(pid), threading.Event()
        self.peak = self.largest = 0
        self.used = {}

    def run(self):
        while not self.stopped.wait(EVERY_S):
            used_bytes = []
            for process in with_descendants(self.top):
                try:
                    used_bytes.append(process.memory_full_info().uss)
                    times = process.cpu_times()
                    self.used[process.pid] = times.user + times.system
                except psutil.Error:
                    continue
            self.peak = max(self.peak, sum(used_bytes))
            self.largest = max(self.largest, max(used_bytes, default=0))


def measure_corpus_stage(count, options):
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        started = time.perf_counter()
        generate(folder, count, options.files, options.negatives)
        print(f"{count:,} pairs: made in {time.perf_counter() - started:.0f} s", flush=True)
        command = [sys.executable, __file__, "--stage", str(folder), "--store", str(options.store)]
        command += ["--near"] * options.near
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
        watch = Watch(process.pid)
        watch.start()
        out, _ = process.communicate()
        watch.stopped.set()
        watch.join()
        if process.returncode:
            raise SystemExit(process.returncode)
        usage = {"peak": watch.peak, "largest": watch.largest, "cpu": sum(watch.used.values())}
        return {**json.loads(out.splitlines()[-1]), **usage}
    finally:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--negatives", type=int, default=0, help="of each pair")
    parser.add_argument("--near", action="store_true", help="near-copies are dropped, too")
    parser.add_argument("--store", type=int, default=256 << 20, help="bytes of Ray's store")
    parser.add_argument("--folder", help="where there is room: some 3 KB a pair")
    parser.add_argument("--stage", type=Path)
    options = parser.parse_args()
    if options.stage:
        time_corpus_stage(options.stage, options.store, options.near)
        return
    before = None
    for count in options.pairs:
        result = measure_corpus_stage(count, options)
        speed, peak = count / result["seconds"], result["peak"]
        dropped = {reason: n for reason, n in result.items() if reason in REASONS and n}
        print(
            f"{count:,} pairs: {result['seconds']:.1f} s, {speed:,.0f} pairs/s, "
            f"{result['cpu']:.0f} s of CPU, peak "
            f"{peak / 2**20:,.0f} MiB in all, {result['largest'] / 2**20:,.0f} MiB in one process; "
            f"{result['kept']:,} kept, {dropped}",
            flush=True,
        )
        if before:
            print(f"  speed × {speed / before[0]:.2f}, peak memory × {peak / before[1]:.2f}")
        before = speed, peak


REASONS = ("query_is_passage", "repeated_passages", "repeated_queries", "near_copies", "held_out")

if __name__ == "__main__":
    main()

"""The corpus stage on generated pairs: pairs a second, and peak memory that does not grow.

    python tests/benchmarks/data.py [--pairs 100000 1000000] [--near] [--negatives 1] [--files 8]

One in ten pairs repeats another's passage under another query, and one in twenty a passage with
one or two words changed. Each size is a run of its own, in processes of its own; four times a
second what all of them hold for themselves is added up (USS: neither the page cache nor Ray's
object store, of which --store is the bound and of which next to nothing is used), and so is the
processors' time.
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

EVERY_S = 0.25
PHRASES = 200_000  # of four words each, as texts repeat phrases
COPIES, NEAR_COPIES = 0.10, 0.05
BLOCK = 10_000  # pairs that are made at a time, whose copies are of one another


def generate(folder, count, files, negatives):
    """JSONL files of pairs, the same for the same arguments."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvb"))
    words = np.array(["".join(rng.choice(letters, size=n)) for n in rng.integers(2, 10, 30_000)])
    often = np.cumsum(1 / np.arange(1, len(words) + 1))  # as in real text
    drawn = words[np.searchsorted(often, rng.random((PHRASES, 4)) * often[-1])]
    phrases = np.array([" ".join(four) for four in drawn], dtype=object)
    for number, part in enumerate(np.array_split(np.arange(count), files)):
        with (folder / f"{number:04d}.jsonl").open("w") as file:
            for begin in range(0, len(part), BLOCK):
                rng = np.random.default_rng([1, number, begin])
                file.writelines(lines(rng, min(BLOCK, len(part) - begin), phrases, negatives))


def lines(rng, count, phrases, negatives):
    lengths = rng.integers(10, 30, size=count * (1 + negatives))
    ends = np.cumsum(lengths)
    drawn = phrases[rng.integers(PHRASES, size=ends[-1])].tolist()
    texts = [drawn[end - n : end] for end, n in zip(ends.tolist(), lengths.tolist(), strict=True)]
    queries = phrases[rng.integers(PHRASES, size=(count, 3))].tolist()
    fates, others = rng.random(count).tolist(), rng.random(count).tolist()
    for i in range(count):
        passage = texts[i]
        if i and fates[i] < COPIES + NEAR_COPIES:
            passage = list(texts[int(others[i] * i)])
            if fates[i] < NEAR_COPIES:
                for place in range(0, len(passage), 15):
                    passage[place] += "s"
        row = {"query": " ".join(queries[i]), "positive": " ".join(passage)}
        if negatives:
            own = texts[count + i * negatives : count + (i + 1) * negatives]
            row["negatives"] = [" ".join(text) for text in own]
        yield json.dumps(row) + "\n"


def stage(folder, store, near):
    """The stage alone, with Ray on all cores; prints what came of it."""
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
        "near_duplicates": {"min_jaccard": 0.8} if near else None,
    }
    module.SIZES = ChunkSizes(serial_bytes=0)  # every size takes the way of the large ones
    section = Corpus.model_validate_json(json.dumps(content))
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    quiet = ray.LoggingConfig(log_level="ERROR")
    ray.init(include_dashboard=False, object_store_memory=store, logging_config=quiet)
    with Store(str(folder / "runs")).draft("corpus", "made", "k") as draft:
        began = time.perf_counter()
        summary = module.corpus(section=section, seed=0, scale=Scale(), out=draft)
        seconds = time.perf_counter() - began
    ray.shutdown()
    print(json.dumps({"seconds": seconds, **summary["sources"]["made"]["pairs"]}))


class Watch(threading.Thread):
    """The peak of what a process and all below it hold, in bytes, and their seconds of CPU."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.top, self.over = psutil.Process(pid), threading.Event()
        self.peak = self.largest = 0
        self.used = {}

    def run(self):
        while not self.over.wait(EVERY_S):
            held = []
            for process in self._all():
                try:
                    held.append(process.memory_full_info().uss)
                    times = process.cpu_times()
                    self.used[process.pid] = times.user + times.system
                except psutil.Error:
                    continue
            self.peak = max(self.peak, sum(held))
            self.largest = max(self.largest, max(held, default=0))

    def _all(self):
        try:
            return [self.top, *self.top.children(recursive=True)]
        except psutil.Error:
            return []


def measured(count, chosen):
    folder = Path(tempfile.mkdtemp(dir=chosen.folder))
    try:
        began = time.perf_counter()
        generate(folder, count, chosen.files, chosen.negatives)
        print(f"{count:,} pairs: made in {time.perf_counter() - began:.0f} s", flush=True)
        words = [sys.executable, __file__, "--stage", str(folder), "--store", str(chosen.store)]
        words += ["--near"] * chosen.near
        run = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ})
        watch = Watch(run.pid)
        watch.start()
        out, _ = run.communicate()
        watch.over.set()
        watch.join()
        if run.returncode:
            raise SystemExit(run.returncode)
        found = {"peak": watch.peak, "largest": watch.largest, "cpu": sum(watch.used.values())}
        return {**json.loads(out.splitlines()[-1]), **found}
    finally:
        shutil.rmtree(folder)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000])
    options.add_argument("--files", type=int, default=8)
    options.add_argument("--negatives", type=int, default=0, help="of each pair")
    options.add_argument("--near", action="store_true", help="near-copies are dropped, too")
    options.add_argument("--store", type=int, default=256 << 20, help="bytes of Ray's store")
    options.add_argument("--folder", help="where there is room: some 3 KB a pair")
    options.add_argument("--stage", type=Path)
    chosen = options.parse_args()
    if chosen.stage:
        stage(chosen.stage, chosen.store, chosen.near)
        return
    before = None
    for count in chosen.pairs:
        found = measured(count, chosen)
        speed, peak = count / found["seconds"], found["peak"]
        dropped = {why: n for why, n in found.items() if why in WHY and n}
        print(
            f"{count:,} pairs: {found['seconds']:.1f} s, {speed:,.0f} pairs/s, "
            f"{found['cpu']:.0f} s of CPU, peak "
            f"{peak / 2**20:,.0f} MiB in all, {found['largest'] / 2**20:,.0f} MiB in one process; "
            f"{found['kept']:,} kept, {dropped}",
            flush=True,
        )
        if before:
            print(f"  speed × {speed / before[0]:.2f}, peak memory × {peak / before[1]:.2f}")
        before = speed, peak


WHY = ("query_is_passage", "repeated_passages", "repeated_queries", "near_copies", "held_out")

if __name__ == "__main__":
    main()

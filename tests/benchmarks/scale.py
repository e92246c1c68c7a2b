"""The whole pipeline on generated pairs: seconds and peak memory of every stage.

    python tests/benchmarks/scale.py [--pairs 100000 1000000 10000000] [--out FOLDER]

Corpus, teacher (20 steps), vectors, negatives, student (20 steps) and report, with random models of
one or two narrow layers. Each size is a run with its own processes and its own Ray. The memory of
its processes is read every half second from /proc/PID/smaps_rollup: the proportional set size
(PSS), of which anonymous memory counts as a process's own. Ray's object store and mapped files are
counted apart: the system drops pages of files when it needs the memory. Everything is written
under --out, and deleted afterwards; that takes some 1.5 KB a pair.

The goals: seconds in proportion to the pairs within a factor of 1.3; the peak of every process at
ten times the pairs at most 1.2 times as high; ten million pairs in two hours.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from datetime import date
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import generate
from support.process_memory import process_memory, with_descendants

EVERY_S = 0.5
DISK_EVERY_S = 5.0
MIB = 2**20
EVENT = "@event "  # before the lines of the run that this script reads
STEPS = 20  # of teacher and student
TIME_GOAL, MEMORY_GOAL, HOURS_GOAL = 1.3, 1.2, 2.0
SMALL_PROCESS = 64 * MIB  # below it, a process's growth is not compared
SHOWN_PROCESS = 150 * MIB  # below it, a process is not in the table


def write_recipe(folder, files):
    phase = {"steps": STEPS, "global_batch": 64, "learning_rate": 1e-3}
    phase |= {"query_tokens": 16, "passage_tokens": 32}
    recipe = {
        "root": str(folder / "runs"),
        "corpus": {
            "sources": {"made": {"format": "files", "pairs": files}},
            "held_out": {"queries": 200, "passages": 1000},
        },
        "evaluation": {"made_guards": {"sets": 0}},
        "teacher": {
            "base": "random:llama:layers=1,hidden=32", "attention": "bidirectional",
            "pooling": "mean", "max_tokens": 32, "precision": "float32",
            "lora": {"rank": 4, "alpha": 8},
            "phases": [{"objective": "contrastive", **phase}],
        },
        # Every query is searched among all passages: exact search would take 100 times as long for
        # 10 times the pairs.
        "negatives": {
            "sample_from": 8, "per_query": 2,
            "ivf": {"min_passages": 50_000, "nprobe": 8, "min_recall": 0.0},
        },
        "student": {
            "base": "random:bert:layers=2,hidden=32", "pooling": "mean", "max_tokens": 32,
            "precision": "float32", "phases": [{"data": "pairs", **phase}],
        },
        "scale": {
            "teacher": {"workers": 2, "engine": "torch"}, "student": {"workers": 2},
            "vectors": {"actors": 2}, "negatives": {"actors": 2, "memory_gib": 0.25},
        },
    }  # fmt: skip
    path = folder / "scale.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def run_recipe(path):
    """Runs the recipe in this process; tells `measure` when each stage has ended."""
    from stillroom.config.load import read_recipe
    from stillroom.pipeline.plan import pipeline
    from stillroom.pipeline.run import run_steps
    from stillroom.preflight.core_speed import measure_core_flops
    from stillroom.preflight.recipe import check_recipe
    from stillroom.preflight.sizes import estimate_sizes

    started = time.perf_counter()
    recipe = read_recipe(str(path), [])
    steps = [step for step in pipeline(recipe) if step.stage != "release"]
    check_recipe(recipe, steps)
    tell(stage="check", seconds=time.perf_counter() - started, next=steps[0].stage)
    for number, result in enumerate(run_steps(recipe, steps), start=1):
        tell(
            stage=result.step.stage,
            seconds=result.seconds,
            rows=rows_of(result),
            bytes=result.artifact.size_bytes,
            next=steps[number].stage if number < len(steps) else "end",
        )
        if result.step.stage == "corpus":
            summary = result.artifact.manifest["made_by"]["summary"]
            texts = summary["pairs"] + summary["passages"]
            sizes = estimate_sizes(recipe, texts, core_flops=measure_core_flops())
            tell(predicted=sizes.as_json())


def tell(**event):
    print(EVENT + json.dumps(event), flush=True)


def rows_of(result):
    """Rows that a stage processed, by its summary: pairs, texts or training examples."""
    summary = result.artifact.manifest["made_by"]["summary"]
    match result.step.stage:
        case "corpus":
            return summary["sources"]["made"]["pairs"]["read"]
        case "vectors":
            return summary["queries"] + summary["passages"]
        case "teacher" | "student":
            return STEPS * result.step.args["phase"].global_batch
        case "report":
            return sum(n for counts in summary["sets"].values() for n in counts.values())
    return None


class MemoryWatch(threading.Thread):
    """Peaks of memory and disk, by stage, of a process and its descendants.

    Attributes:
        stage: that runs now.
        peaks: stage → kind of process → bytes of one; and `all`, `store`, `mapped`, `disk`.
    """

    def __init__(self, pid, folder):
        super().__init__(daemon=True)
        self.driver, self.folder = psutil.Process(pid), folder
        self.stage, self.stopped = "check", threading.Event()
        self.peaks = defaultdict(lambda: defaultdict(int))
        self.kinds = {}  # process id → its last name that says what it does
        self.disk_at = 0.0

    def run(self):
        while not self.stopped.wait(EVERY_S):
            totals = defaultdict(int)
            peaks = self.peaks[self.stage]
            for process in with_descendants(self.driver):
                try:
                    name, sizes = self.kind(process), process_memory(process.pid)
                except (psutil.Error, OSError):
                    continue
                totals["all"] += sizes["Pss_Anon"]
                totals["store"] += sizes["Pss_Shmem"]
                totals["mapped"] += sizes["Pss_File"]
                peaks[name] = max(peaks[name], sizes["Pss_Anon"])
            if time.monotonic() - self.disk_at > DISK_EVERY_S:
                self.disk_at = time.monotonic()
                totals["disk"] = disk_bytes(self.folder)
            for name, size in totals.items():
                peaks[name] = max(peaks[name], size)

    def kind(self, process):
        if process.pid == self.driver.pid:
            return "driver"
        title = " ".join(process.cmdline())
        if not title.startswith("ray::"):
            return "Ray itself"
        name = title.removeprefix("ray::").split(".")[0].split()[0]
        if name != "IDLE":  # else it may hold what it was
            self.kinds[process.pid] = name
        return self.kinds.get(process.pid, "idle worker")


def disk_bytes(folder):
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:  # deleted meanwhile
                continue
    return total


def measure(count, options):
    """Stage → its figures, for a number of pairs; and what `stillroom check --texts` predicts."""
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=options.out))
    try:
        started = time.perf_counter()
        generate(folder, count, files=8, negatives=0, lengths=(3, 9))
        made = disk_bytes(folder)
        seconds = time.perf_counter() - started
        print(f"{count:,} pairs: made in {seconds:.0f} s, {made / MIB:,.0f} MiB", flush=True)
        recipe = write_recipe(folder, [str(file) for file in sorted(folder.glob("*.jsonl"))])
        command = [sys.executable, __file__, "--run", str(recipe)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
        watch = MemoryWatch(process.pid, folder / "runs")
        watch.start()
        stages = {}
        for line in process.stdout:
            if not line.startswith(EVENT):
                continue
            event = json.loads(line.removeprefix(EVENT))
            if "predicted" in event:
                predicted = event["predicted"]
                continue
            stages[event["stage"]] = event
            watch.stage = event["next"]
            print(f"{event['stage']}: {event['seconds']:,.0f} s", flush=True)
        watch.stopped.set()
        watch.join()
        measured = {stage: {**event, **watch.peaks[stage]} for stage, event in stages.items()}
        if process.wait():
            print_table(count, measured)
            raise SystemExit(f"{watch.stage} failed: its message is above")
        return measured, predicted
    finally:
        shutil.rmtree(folder)


TOTALS = ("all", "store", "mapped", "disk")
NOT_PROCESSES = {*TOTALS, "stage", "next", "seconds", "rows", "bytes"}


def process_peaks(figures):
    return {kind: size for kind, size in figures.items() if kind not in NOT_PROCESSES}


def print_table(count, stages):
    print(f"\n| {count:,} pairs | seconds | rows/s | artifact | on disk | driver | workers | all |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- | ---: |")
    for stage, figures in stages.items():
        peaks = process_peaks(figures)
        workers = ", ".join(
            f"{kind} {size / MIB:,.0f}"
            for kind, size in sorted(peaks.items())
            if kind != "driver" and size > SHOWN_PROCESS
        )
        rows = figures.get("rows")
        speed = f"{rows / figures['seconds']:,.0f}" if rows else ""
        sizes = [figures.get(name, 0) / MIB for name in ("bytes", "disk", "driver", "all")]
        artifact, disk, driver, everything = (f"{size:,.0f}" if size else "" for size in sizes)
        print(
            f"| {stage} | {figures['seconds']:,.0f} | {speed} | {artifact} | {disk} | {driver} "
            f"| {workers} | {everything} |"
        )
    seconds = sum(figures["seconds"] for figures in stages.values())
    largest = {name: max(figures[name] for figures in stages.values()) / MIB for name in TOTALS}
    print(
        f"\nTogether {seconds:,.0f} s; peaks: {largest['all']:,.0f} MiB of all processes, "
        f"{largest['store']:,.0f} of the object store, {largest['mapped']:,.0f} of mapped files; "
        f"{largest['disk']:,.0f} MiB on disk.",
        flush=True,
    )


def print_predictions(stages, predicted):
    """How predictions and measurements compare: predicted / measured."""
    stored = 0
    for stage in predicted["stages"]:
        name = stage["what"].partition(".")[0]
        if (figures := stages.get(name)) is None:
            continue
        stored += figures["bytes"]
        pairs = {
            "artifact": (stage["stored"], figures["bytes"]),
            "files at the worst moment": (
                stored - figures["bytes"] + stage["stored"] + stage["temporary"],
                figures["disk"],
            ),
            "memory": (stage["memory_of_one_node"], figures["all"]),
            "driver": (stage["memory"]["driver"], figures["driver"]),
        }
        ratios = [
            f"{what} {told / MIB:,.1f} of {was / MIB:,.1f} MiB ({told / max(was, 1):.2f})"
            for what, (told, was) in pairs.items()
        ]
        print(f"predicted, {name}: {', '.join(ratios)}")


def compare(before, after):
    """Prints what grows faster than the goals between two (pairs, stages)."""
    (few, small), (many, large) = before, after
    factor = many / few
    for stage, figures in large.items():
        slower = figures["seconds"] / small[stage]["seconds"] / factor
        grown = [
            f"{kind} × {size / small[stage][kind]:.2f}"
            for kind, size in process_peaks(figures).items()
            if size > SMALL_PROCESS and size > MEMORY_GOAL * small[stage].get(kind, size)
        ]
        verdict = "; ".join(
            ([f"seconds × {slower * factor:.1f}"] if slower > TIME_GOAL else []) + grown
        )
        print(f"{stage}: {verdict or 'within the goals'} for {factor:g} times the pairs")
    hours = sum(figures["seconds"] for figures in large.values()) / 3600
    print(f"{hours:.2f} h for {many:,} pairs", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--out", help="where there is room; default: the system's folder for this")
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.run:
        run_recipe(options.run)
        return
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("torch", "ray", "pyarrow")
    )
    print(
        f"{date.today()}, {os.cpu_count()} CPUs, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, {versions}"
    )
    before = None
    for count in options.pairs:
        stages, predicted = measure(count, options)
        print_table(count, stages)
        print_predictions(stages, predicted)
        if before:
            compare(before, (count, stages))
        before = count, stages


if __name__ == "__main__":
    main()

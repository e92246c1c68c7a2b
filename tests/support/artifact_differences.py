"""Whether two runs of a recipe made the same artifacts."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from stillroom.storage.object_store import sha256

# Files that differ from run to run: they hold times or speeds, or fingerprints of such files, and
# PEFT writes a set in any order. `comparable` returns what must still be equal.
TIME_DEPENDENT_FILES = {
    "metrics.jsonl", "report.json", "report.html", "release.json", "README.md", "teacher.json",
    "adapter_config.json",
}  # fmt: skip


def all_differences(expected: dict[str, Path], actual: dict[str, Path]) -> Iterator[str]:
    """What differs between two runs' artifacts, ref → folder."""
    yield from (f"{ref} is in one alone" for ref in expected.keys() ^ actual.keys())
    for ref in sorted(expected.keys() & actual.keys()):
        yield from (f"{ref}: {text}" for text in differences(expected[ref], actual[ref]))


def differences(expected: Path, actual: Path) -> Iterator[str]:
    """Files in which two artifacts differ by more than float32's rounding."""
    files = {
        folder: {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
        for folder in (expected, actual)
    }
    yield from (f"{name} is in one alone" for name in files[expected] ^ files[actual])
    for name in sorted(files[expected] & files[actual] - {"manifest.json"}):
        a, b = expected / name, actual / name
        if sha256(a) == sha256(b):
            continue
        if a.name in TIME_DEPENDENT_FILES:
            if comparable(a) != comparable(b):
                yield f"{name} differs"
        elif a.suffix == ".safetensors":
            tensors, others = load_file(a), load_file(b)
            # A vector adds up the rounding of all weights.
            atol = 1e-4 if a.parent.name == "vectors" else 1e-7
            if tensors.keys() != others.keys():
                yield f"{name} holds other tensors"
            for key, tensor in tensors.items():
                if not torch.allclose(tensor.float(), others[key].float(), rtol=1e-5, atol=atol):
                    yield f"{name}: {key}"
        else:
            yield name


def comparable(file: Path) -> object:
    """The content of a file that does not depend on time."""
    if file.name == "metrics.jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return [(line["step"], round(line["loss"], 5)) for line in lines]
    if file.name == "report.json":
        report = json.loads(file.read_text())
        return {name: model["scores"] for name, model in report["models"].items()}
    if file.name == "release.json":
        return json.loads(file.read_text())["gate"]
    if file.name == "adapter_config.json":
        content = json.loads(file.read_text())
        return {**content, "target_modules": sorted(content["target_modules"])}
    return None

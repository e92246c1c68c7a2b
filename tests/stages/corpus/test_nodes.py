"""Cleaning on three nodes: the same corpus, wherever its tasks run and whichever of them die."""

import functools
import json
import logging

import pytest
import ray

from stillroom.config.corpus import Corpus
from stillroom.config.scale import Scale
from stillroom.stages.corpus import reading, stage, workspace
from stillroom.stages.corpus.shards import ChunkSizes
from stillroom.stages.corpus.stage import corpus
from stillroom.storage.artifacts import Store
from support import local_cluster as support
from support.local_cluster import killed_when, local_cluster, noted_nodes, run_noted
from support.row_files import write_rows

SIZES = {"rows": 20, "characters": 9000, "records": 300}
# Every kind of task, and the module that names its function.
TASKS = {
    "read": (reading, "_read"),
    "group": (workspace, "_run_group"),
    "range": (workspace, "_run_range"),
}


def long_text(number):
    return " ".join(f"word{(number * 7919 + i * i) % 997}" for i in range(60))


def pair(number):
    negatives = [long_text(number + 1), f"a short one {number % 7}"]
    return {"query": f"query {number}", "positive": long_text(number), "negatives": negatives}


@pytest.fixture
def sources(tmp_path):
    """Sources on the disk that all nodes have, and one, `~/own.jsonl`, of the driver alone."""
    shared, own = tmp_path / "shared", tmp_path / "node-0"
    shared.mkdir()
    own.mkdir()
    pairs = [pair(number % 150) for number in range(200)]
    copies = [{"query": f"copy {i}", "positive": f"{long_text(i)} more"} for i in range(20)]
    write_rows(own / "own.jsonl", [*copies, *map(pair, range(300, 340))])
    passages = [{"text": long_text(number)} for number in range(100, 260)]
    return {
        "shared": {
            "format": "files",
            "pairs": [
                str(write_rows(shared / f"pairs-{start}.jsonl", pairs[start : start + 50]))
                for start in range(0, 200, 50)
            ],
            "passages": [str(write_rows(shared / "passages.jsonl", passages))],
        },
        "own": {"format": "files", "pairs": ["~/own.jsonl"]},
    }


def made_files(sources, root):
    """The checksums of the corpus's files."""
    content = {
        "sources": sources,
        "near_duplicates": {"min_jaccard": 0.8},
        "held_out": {"queries": 2, "passages": 9},
        "max_pairs": 120,
    }
    section = Corpus.model_validate_json(json.dumps(content))
    with Store(str(root)).draft("corpus", "small", "k") as draft:
        corpus(section=section, seed=3, scale=Scale(), out=draft)
        files = draft.publish({}).manifest["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


@pytest.mark.full  # some 20 s
def test_files_depend_neither_on_nodes_of_which_one_dies_nor_on_where_a_source_is(
    sources, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(stage, "SIZES", ChunkSizes(**SIZES))
    with monkeypatch.context() as here:
        here.setenv("HOME", str(tmp_path / "node-0"))
        expected = made_files(sources, tmp_path / "alone")
    monkeypatch.setattr(stage, "SIZES", ChunkSizes(**SIZES, serial_bytes=0))
    notes = tmp_path / "notes"
    notes.mkdir()
    ray.cloudpickle.register_pickle_by_value(support)
    with local_cluster(tmp_path) as cluster, caplog.at_level(logging.INFO):
        victim = next(iter(cluster.workers))
        for kind, (module, name) in TASKS.items():
            dies = victim if kind == "group" else None
            noted = functools.partial(run_noted, notes, kind, dies, getattr(module, name))
            monkeypatch.setattr(module, name, noted)
        with killed_when(cluster, victim, lambda: victim in noted_nodes(notes, "group")):
            assert made_files(sources, tmp_path / "together") == expected
        nodes = {node["NodeID"] for node in ray.nodes()}
    assert noted_nodes(notes, "group") == nodes and len(nodes) == 3
    assert noted_nodes(notes, "range") >= nodes - {victim}
    assert "~/own.jsonl: read on this machine, since others lack it" in caplog.text

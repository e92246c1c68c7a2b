"""Cleaning, encoding and mining on three nodes that share no folder but the root, against one:
`make clusters`.
"""

import sys
import threading
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from stillroom.config.load import read_recipe
from stillroom.observability.run_journal import open_journal
from stillroom.pipeline.plan import pipeline
from stillroom.pipeline.run import produce
from stillroom.stages.corpus import stage as corpus_stage
from stillroom.stages.corpus.shards import ChunkSizes
from stillroom.storage.artifacts import Store
from support.local_cluster import killed_when, local_cluster
from support.row_files import write_rows

TINY = Path(__file__).parents[2] / "jobs" / "recipes" / "tiny.yaml"
SPREAD = ("corpus", "vectors", "negatives")  # stages that use all nodes
PAIRS = 1200


def pair(number):
    words = [f"word{(number * 7919 + i * i) % 997}" for i in range(40)]
    return {"query": f"query {number} {' '.join(words[:5])}", "positive": " ".join(words)}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    files = [
        str(write_rows(folder / f"{start}.jsonl", [*map(pair, range(start, start + PAIRS // 6))]))
        for start in range(0, PAIRS, PAIRS // 6)
    ]
    return [
        f"corpus.sources={{own: {{format: files, pairs: {files}}}}}",
        "corpus.max_pairs=800", "corpus.near_duplicates={min_jaccard: 0.8}",
        "teacher.phases=[]", "scale.vectors.actors=3", "scale.negatives.actors=3",
    ]  # fmt: skip


class Nodes(threading.Thread):
    """Watches which nodes work on something."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.stage, self.ended = cluster, "", threading.Event()
        self.busy = {}  # stage → ids of nodes

    def run(self):
        while not self.ended.wait(0.02):
            all_nodes = [self.cluster.cluster.head_node, *self.cluster.workers.values()]
            busy = {node.node_id for node in all_nodes if self.cluster.busy(node)}
            self.busy.setdefault(self.stage, set()).update(busy)


def run_pipeline(recipe, cluster, dies_in=()):
    """Runs the stages up to `negatives`, with a teacher that is not trained; returns checksums by
    file, and the nodes that worked on each stage.

    Args:
        dies_in: stages in which a node is killed while it works; another one then comes.
    """
    store, artifacts, nodes = Store(recipe.root), {}, Nodes(cluster)
    nodes.start()
    with open_journal(store, {}) as journal:
        for step in pipeline(recipe, gate=False):
            nodes.stage = step.stage

            def make(step=step):
                result = produce(step, artifacts, store, recipe.scale, journal)
                artifacts[step.ref] = result.artifact

            if step.stage == "student":
                break
            if step.stage in dies_in:
                victim, node = next(iter(cluster.workers.items()))
                with killed_when(cluster, victim, lambda node=node: cluster.busy(node)):
                    make()
                cluster.add_node()
            else:
                make()
    nodes.ended.set()
    nodes.join()
    return checksums(artifacts), nodes.busy


def checksums(artifacts):
    """Stage and file → SHA-256; not of files that hold times."""
    return {
        f"{artifact.stage}/{file}": entry["sha256"]
        for artifact in artifacts.values()
        for file, entry in artifact.manifest["files"].items()
        if artifact.stage == "corpus" or file.endswith((".npy", ".safetensors"))
    }


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    sizes = ChunkSizes(rows=100, characters=30_000, records=2000, serial_bytes=0)
    monkeypatch.setattr(corpus_stage, "SIZES", sizes)


@pytest.fixture(scope="module")
def alone(overrides, tmp_path_factory):
    """The checksums of one node."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = read_recipe(TINY, [*overrides, f"root={folder / 'runs'}"])
    with local_cluster(folder, nodes=1, cpus=6) as cluster:
        return run_pipeline(recipe, cluster)[0]


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_three_nodes_make_the_artifacts_of_one_and_all_of_them_work(
    alone, overrides, bucket, tmp_path, kind
):
    root = str(tmp_path / "runs") if kind == "folder" else f"s3://{bucket}/{tmp_path.name}"
    with local_cluster(tmp_path, cpus=2) as cluster:
        recipe = read_recipe(TINY, [*overrides, f"root={root}"])
        files, busy = run_pipeline(recipe, cluster)
        nodes = {cluster.cluster.head_node.node_id, *cluster.workers}
    assert files == alone
    assert {stage: busy[stage] for stage in SPREAD} == dict.fromkeys(SPREAD, nodes)


def test_a_node_that_dies_in_cleaning_in_encoding_and_in_mining_changes_no_artifact(
    alone, overrides, tmp_path
):
    with local_cluster(tmp_path, cpus=2) as cluster:
        recipe = read_recipe(TINY, [*overrides, f"root={tmp_path / 'runs'}"])
        assert run_pipeline(recipe, cluster, dies_in=SPREAD)[0] == alone

"""The teacher's vectors of every training query and passage."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import ray

from stillroom.artifacts import Artifact, Draft
from stillroom.config import Actors, Scale
from stillroom.config import Vectors as Section
from stillroom.encoders.contract import Contract, Role
from stillroom.encoders.store import load
from stillroom.encoders.vectors import StoredVectors, shard_path, write_whole
from stillroom.stages.corpus import CorpusFiles

log = logging.getLogger(__name__)


def vectors(
    *, section: Section, corpus: Artifact, teacher: Artifact, scale: Scale, out: Draft
) -> dict[str, int]:
    """Writes queries/ and passages/ as `StoredVectors`, and the contract they follow.

    What a killed run left of its shards is kept: only missing ones are encoded.
    """
    texts = CorpusFiles.read(corpus)
    parts: list[tuple[str, Role, list[str]]] = [
        ("queries", "query", texts.queries),
        ("passages", "passage", texts.passages),
    ]
    for name, role, of in parts:
        _embed(of, role, teacher.path, out.path / name, section.shard, scale.vectors)
    contract = Contract.read(teacher.path)
    contract.write(out.path)
    return {
        "queries": len(texts.queries),
        "passages": len(texts.passages),
        "dims": contract.dims[0],
    }


def _embed(
    texts: list[str], role: Role, model: Path, folder: Path, shard: int, scale: Actors
) -> None:
    folder.mkdir(exist_ok=True)
    # Texts of like length share a shard, so that almost nothing is padding.
    order = np.argsort([len(text) for text in texts], kind="stable")
    write_whole(folder / "order.npy", order)
    shards = -(-len(texts) // shard)
    missing = [i for i in range(shards) if not shard_path(folder, i).exists()]
    if len(missing) < shards:
        log.info(
            "%s: %d of %d shards are there already", folder.name, shards - len(missing), shards
        )
    if not missing:
        return
    # The longest shards first: the pool then finishes together.
    rows = [
        {"shard": i, "texts": [texts[j] for j in order[i * shard : (i + 1) * shard]]}
        for i in reversed(missing)
    ]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Embedder,
        fn_constructor_args=(model, role),
        compute=ray.data.ActorPoolStrategy(size=min(scale.actors, len(rows))),
        num_cpus=scale.cpus,
        num_gpus=scale.gpus,
    )
    for done, row in enumerate(made.iter_rows(), start=1):
        array = np.frombuffer(row["vectors"], dtype=np.float16).reshape(-1, row["dims"])
        write_whole(shard_path(folder, row["shard"]), array)
        log.info("%s: shard %d of %d", folder.name, shards - len(missing) + done, shards)


class _Embedder:
    """One of the pool's actors."""

    def __init__(self, model: Path, role: Role):
        self.encoder = load(model, device="cuda" if ray.get_gpu_ids() else "cpu")
        self.role: Role = role

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        found = self.encoder.encode(row["texts"], self.role).astype(np.float16)
        # Bytes, not a tensor column: shards differ in length, and this is a plain copy.
        return {"shard": row["shard"], "vectors": found.tobytes(), "dims": found.shape[1]}


def stored(artifact: Artifact) -> tuple[StoredVectors, StoredVectors]:
    """(queries, passages) of a `vectors` artifact."""
    return StoredVectors(artifact.path / "queries"), StoredVectors(artifact.path / "passages")

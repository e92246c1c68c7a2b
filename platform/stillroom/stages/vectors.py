"""The teacher's vectors of every training query and passage."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.config.recipe import Vectors as Section
from stillroom.config.scale import Actors, Scale
from stillroom.encoders.contract import Contract, Role
from stillroom.encoders.encode import Encoder
from stillroom.encoders.locate import fingerprint, locate, of_artifact
from stillroom.encoders.store import load
from stillroom.encoders.vectors import (
    DIGESTS,
    OfTexts,
    StoredVectors,
    digest,
    shard_path,
    write_whole,
)
from stillroom.errors import UserError
from stillroom.learning.batches import Rows
from stillroom.stages.corpus import CorpusFiles

TEACHER = "teacher.json"  # whose vectors these are

log = logging.getLogger(__name__)


def vectors(
    *,
    section: Section,
    corpus: Artifact,
    scale: Scale,
    out: Draft,
    teacher: Artifact | None = None,
    model: str = "",
) -> dict[str, int]:
    """Writes queries/ and passages/ as `StoredVectors`, and the teacher's contract.

    A text gets the prompt of its source, as in training. What a killed run left of its shards is
    kept: only missing ones are encoded.

    Args:
        model: the name of another encoder, in place of the teacher, which has its own prompts.
    """
    texts = CorpusFiles.read(corpus)
    encoder = teacher.path if teacher is not None else locate(of_artifact(model, out.store))
    parts: list[tuple[str, Role, list[str]]] = [
        ("queries", "query", texts.queries),
        ("passages", "passage", texts.passages),
    ]
    for name, role, of in parts:
        prompts: Sequence[str | None] = [None] * len(of)
        if teacher is not None:
            prompts = teacher_prompts(texts, role, Contract.read(teacher.path))
        embed(of, prompts, role, encoder, out.path / name, section.shard, scale.vectors)
    if teacher is not None:
        Contract.read(teacher.path).write(out.path)
        atomic_json(out.path / TEACHER, {"fingerprint": fingerprint(str(teacher.path))})
    return {
        "queries": len(texts.queries),
        "passages": len(texts.passages),
        "dims": StoredVectors(out.path / "passages").dims,
    }


def teacher_prompts(files: CorpusFiles, role: Role, contract: Contract) -> list[str]:
    """What the teacher is told before each query or passage: its source's task, or its own."""
    own = str(getattr(contract.prompts, role))
    known = [own if of is None else str(getattr(of, role)) for of in files.prompts]
    return [known[number] for number in (files.source if role == "query" else files.passage_source)]


def embed(
    texts: list[str],
    prompts: Sequence[str | None],
    role: Role,
    model: Path,
    folder: Path,
    shard: int,
    scale: Actors,
) -> None:
    """Writes a folder of `StoredVectors`, whatever shards are not in it yet."""
    folder.mkdir(exist_ok=True)
    # Texts of like length share a shard, so that almost nothing is padding.
    order = np.argsort([len(text) for text in texts], kind="stable")
    write_whole(folder / "order.npy", order)
    digests = [digest(p or "", text) for p, text in zip(prompts, texts, strict=True)]
    write_whole(folder / DIGESTS, np.array(digests, dtype=np.uint64))
    shards = -(-len(texts) // shard)
    missing = [i for i in range(shards) if not shard_path(folder, i).exists()]
    if len(missing) < shards:
        log.info(
            "%s: %d of %d shards are there already", folder.name, shards - len(missing), shards
        )
    if not missing:
        return
    # The longest shards first: the pool then finishes together.
    rows = []
    for i in reversed(missing):
        mine = order[i * shard : (i + 1) * shard]
        of_mine = {"texts": [texts[j] for j in mine], "prompts": [prompts[j] for j in mine]}
        rows.append({"shard": i, **of_mine})
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
        found = encode_prompted(self.encoder, row["texts"], row["prompts"], self.role)
        # Bytes, not a tensor column: shards differ in length, and this is a plain copy.
        return {"shard": row["shard"], "vectors": found.tobytes(), "dims": found.shape[1]}


def encode_prompted(
    encoder: Encoder, texts: Sequence[str], prompts: Sequence[str | None], role: Role
) -> np.ndarray:
    """Vectors of texts that have a prompt each, or None for the encoder's own: float16,
    (n, dims)."""
    found = np.empty((len(texts), encoder.contract.dims[0]), dtype=np.float16)
    for prompt in dict.fromkeys(prompts):
        places = [place for place, own in enumerate(prompts) if own == prompt]
        found[places] = encoder.encode([texts[place] for place in places], role, prompt=prompt)
    return found


@dataclass(frozen=True)
class Fresh:
    """Vectors that are made when they are asked for, by rows of texts."""

    encoder: Encoder
    texts: Sequence[str]
    prompts: Sequence[str]
    role: Role

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        texts, prompts = ([of[row] for row in rows] for of in (self.texts, self.prompts))
        return encode_prompted(self.encoder, texts, prompts, self.role)


def of_teacher(
    files: CorpusFiles, teacher: Artifact, vectors: Artifact | None, device: torch.device
) -> tuple[Rows, Rows]:
    """The teacher's vectors of a corpus's queries and passages, by row.

    Args:
        vectors: where they are stored; None has them made when they are asked for.
        device: where the teacher then runs.

    Raises:
        UserError: when what is stored is another teacher's, or of other texts or prompts.
    """
    contract = Contract.read(teacher.path)
    parts: list[tuple[str, Role, list[str]]] = [
        ("queries", "query", files.queries),
        ("passages", "passage", files.passages),
    ]
    prompts = [teacher_prompts(files, role, contract) for _, role, _ in parts]
    if vectors is None:
        encoder = load(teacher.path, device=str(device))
        first, second = (
            Fresh(encoder, texts, told, role)
            for (_, role, texts), told in zip(parts, prompts, strict=True)
        )
        return first, second
    made_by = json.loads((vectors.path / TEACHER).read_text())["fingerprint"]
    if made_by != fingerprint(str(teacher.path)):
        raise UserError(
            str(vectors.path),
            f"was made by another teacher than {teacher.path}",
            "Delete that artifact, and run again",
        )
    queries, passages = (
        OfTexts(StoredVectors(vectors.path / name), texts, told)
        for (name, _, texts), told in zip(parts, prompts, strict=True)
    )
    return queries, passages

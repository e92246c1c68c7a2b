"""TODO docstring: stages/vectors/embed.py."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from stillroom.cluster.capacity import asks, require
from stillroom.cluster.gauges import Progress
from stillroom.config.scale import Embedders
from stillroom.encoders.api_encoder import RemoteEncoder
from stillroom.encoders.contract import Role
from stillroom.encoders.files.load import load
from stillroom.encoders.interface import Embedder
from stillroom.encoders.vectors.stored import DIGESTS, digest, shard_path, skipped_path, write_whole
from stillroom.errors import UserError
from stillroom.observability.log_context import Said, begin, said
from stillroom.stages.api_teacher import is_remote
from stillroom.storage.artifacts import atomic_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Texts that become one folder of `StoredVectors`.

    Attributes:
        prompts: of each text; None = the encoder's own.
        sources: of each text, to name one that cannot be embedded.
    """

    name: str  # of the folder
    role: Role
    texts: Sequence[str]
    prompts: Sequence[str | None]
    sources: Sequence[str] | None = None


def embed(
    parts: Sequence[Part],
    model: os.PathLike[str],
    out: Path,
    shard: int,
    scale: Embedders,
    *,
    remote: RemoteEncoder | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Writes the parts' folders, whatever shards are not in them yet.

    One pool of actors makes them all, so that each loads the model once.

    Args:
        out: the folder of the parts' folders.
        shard: texts that are encoded, and kept, at once.
        remote: what the model is, where it is an API. It is asked from here, for its budget, pace
            and kept answers are in one place.
    """
    if remote is None and is_remote(Path(model)):
        raise UserError(
            os.fspath(model),
            "is an API, which only a recipe's own teacher may be",
            "Name a model with weights, or set teacher.api",
        )
    progress = Progress(sum(len(part.texts) for part in parts))
    folders = {part.name: _Folder(part, out / part.name, shard) for part in parts}
    rows = []
    for folder in folders.values():
        folder.prepare()
        # An API has kept the vectors of shards that are there, and counts them into its budget.
        missing = folder.missing(whole=remote is not None)
        progress.add(len(folder.part.texts) - sum(map(folder.size, missing)), fresh=False)
        # The longest shards first: the pool then finishes together.
        rows += [folder.row(number) for number in reversed(missing)]
    if not rows:
        return
    made: Iterable[dict[str, Any]]
    if remote is not None:
        made = map(_Embedder(remote), rows)
    else:
        require("vectors", scale, 1)
        made = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map(
                _LoadedEmbedder,
                fn_constructor_args=(model, trust_remote_code, said()),
                compute=ray.data.ActorPoolStrategy(size=min(scale.actors, len(rows))),
                **asks(scale),
            )
            .iter_rows()
        )
    for row in made:
        folder = folders[row["part"]]
        folder.write(row, skip=scale.on_error == "skip")
        progress.add(folder.size(row["shard"]))


class _Folder:
    """A part's folder while its shards are made."""

    def __init__(self, part: Part, path: Path, shard: int):
        self.part, self.path, self.shard = part, path, shard
        # Texts of like length share a shard, so that almost nothing is padding.
        self.order = np.argsort([len(text) for text in part.texts], kind="stable")
        self.shards = -(-len(part.texts) // shard)
        self.there = 0

    def prepare(self) -> None:
        """Writes all but the shards."""
        self.path.mkdir(exist_ok=True)
        write_whole(self.path / "order.npy", self.order)
        prompted = zip(self.part.prompts, self.part.texts, strict=True)
        digests = [digest(prompt, text) for prompt, text in prompted]
        write_whole(self.path / DIGESTS, np.array(digests, dtype=np.uint64))

    def missing(self, *, whole: bool) -> list[int]:
        """Shards to make: `whole` takes those that are there for missing, too."""
        missing = [i for i in range(self.shards) if whole or not shard_path(self.path, i).exists()]
        self.there = self.shards - len(missing)
        if self.there:
            log.info(
                "%s: %d of %d shards are there already", self.part.name, self.there, self.shards
            )
        return missing

    def rows(self, number: int) -> np.ndarray:
        """Of a shard, in the part's texts."""
        return self.order[number * self.shard : (number + 1) * self.shard]

    def size(self, number: int) -> int:
        return len(self.rows(number))

    def row(self, number: int) -> dict[str, Any]:
        """What an embedder needs for a shard."""
        rows = self.rows(number)
        return {
            "part": self.part.name,
            "role": self.part.role,
            "shard": number,
            "texts": [self.part.texts[i] for i in rows],
            "prompts": [self.part.prompts[i] for i in rows],
        }

    def write(self, row: dict[str, Any], *, skip: bool) -> None:
        """Keeps what an embedder made of a shard.

        Raises:
            UserError: at a text that could not be embedded, unless such are to be skipped.
        """
        number, name = row["shard"], self.part.name
        rows = self.rows(number)
        failed = {int(rows[place]): why for place, why in json.loads(row["failed"])}
        for at, why in failed.items():
            source = "" if self.part.sources is None else f" of source {self.part.sources[at]}"
            where, what = f"{name}, row {at}{source}", f"{self.part.texts[at][:60]!r}: {why}"
            if not skip:
                raise UserError(
                    where,
                    f"cannot be embedded, {what}",
                    "Take it out of its source, or leave such texts out with "
                    "scale.vectors.on_error=skip",
                )
            log.warning("%s: skipped, %s", where, what)
        if failed:
            atomic_json(skipped_path(self.path, number), failed)
        array = np.frombuffer(row["vectors"], dtype=np.float16).reshape(-1, row["dims"])
        write_whole(shard_path(self.path, number), array)
        self.there += 1
        log.info("%s: shard %d of %d", name, self.there, self.shards)


class _Embedder:
    def __init__(self, encoder: Embedder):
        self.encoder = encoder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        texts, prompts = np.array(row["texts"], object), np.array(row["prompts"], object)
        found, failed = isolated(
            lambda at: encode_prompted(self.encoder, texts[at], prompts[at], row["role"]),
            len(texts),
            self.encoder.contract.dims[0],
        )
        # Bytes, not a tensor column: shards differ in length, and this is a plain copy.
        return {
            "part": row["part"],
            "shard": row["shard"],
            "vectors": found.tobytes(),
            "dims": found.shape[1],
            "failed": json.dumps([*failed.items()]),
        }


class _LoadedEmbedder(_Embedder):
    """One of the pool's actors."""

    def __init__(self, model: os.PathLike[str], trust_remote_code: bool, by: Said):
        begin(by)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        super().__init__(load(Path(model), device=device, trust_remote_code=trust_remote_code))


def isolated(
    encode: Callable[[np.ndarray], np.ndarray], count: int, dims: int
) -> tuple[np.ndarray, dict[int, str]]:
    """Vectors of texts, of which some may fail their encoder, and those that do.

    Args:
        encode: rows of texts → their vectors, (rows, dims).

    Returns:
        float16 (count, dims), zeros for what failed; and row → why.

    Raises:
        Exception: the encoder's own, where every one of several texts fails it.
    """
    found = np.zeros((count, dims), dtype=np.float16)
    failed: dict[int, str] = {}
    fault: Exception | None = None
    waiting = [np.arange(count)]
    while waiting:
        rows = waiting.pop()
        try:
            vectors = encode(rows)
        except UserError:  # of an API: it is not the text's
            raise
        except Exception as one:
            fault = one
            if len(rows) > 1:
                waiting += np.array_split(rows, 2)
            else:
                failed[int(rows[0])] = f"{type(one).__name__}: {' '.join(str(one).split())[:200]}"
            continue
        whole = np.isfinite(vectors).all(1)
        found[rows[whole]] = vectors[whole]
        if len(rows) > 1:
            # Alone, a text is not spoilt by its neighbours in the batch.
            waiting += [rows[i : i + 1] for i in np.flatnonzero(~whole)]
        elif not whole.all():
            failed[int(rows[0])] = "its vector is not finite"
    if fault is not None and len(failed) == count > 1:
        raise fault
    return found, dict(sorted(failed.items()))


def encode_prompted(
    encoder: Embedder, texts: Sequence[str], prompts: Sequence[str | None], role: Role
) -> np.ndarray:
    """Vectors of texts that have a prompt each, or None for the encoder's own: float16,
    (n, dims)."""
    found = np.empty((len(texts), encoder.contract.dims[0]), dtype=np.float16)
    for prompt in dict.fromkeys(prompts):
        places = [place for place, own in enumerate(prompts) if own == prompt]
        found[places] = encoder.encode([texts[place] for place in places], role, prompt=prompt)
    return found

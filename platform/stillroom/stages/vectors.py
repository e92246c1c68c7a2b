"""The teacher's vectors of every training query and passage."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch

from stillroom.artifacts import Artifact, Draft, atomic_json
from stillroom.config.recipe import Vectors as Section
from stillroom.config.scale import Embedders, Scale
from stillroom.encoders.contract import Role, Terms
from stillroom.encoders.embedder import Embedder
from stillroom.encoders.locate import fingerprint, model_of
from stillroom.encoders.remote import RemoteEncoder
from stillroom.encoders.store import load
from stillroom.encoders.vectors import (
    DIGESTS,
    OfTexts,
    StoredVectors,
    digest,
    shard_path,
    skipped_path,
    write_whole,
)
from stillroom.errors import UserError
from stillroom.learning.batches import Rows
from stillroom.logs import Said, begin, said
from stillroom.stages.api import is_remote, remote_of
from stillroom.stages.corpus import CorpusFiles
from stillroom.stages.progress import Progress
from stillroom.stages.room import asks, require

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
    trusted: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes queries/ and passages/ as `StoredVectors`, and the teacher's contract.

    A text gets the prompt of its source, as in training. What a killed run left of its shards is
    kept: only missing ones are encoded. A text that cannot be is found by halving.

    Args:
        model: the name of another encoder, in place of the teacher, which has its own prompts.
        trusted: "teacher", where it may run code that it brings with it.

    Raises:
        UserError: naming a text that cannot be embedded, unless such are to be skipped.
    """
    texts = CorpusFiles.read(corpus)
    encoder = teacher if teacher is not None else model_of(model, out.store)
    remote = None if teacher is None else remote_of(teacher.path, scale.teacher_api, out.store)
    parts: list[tuple[str, Role, list[str], np.ndarray]] = [
        ("queries", "query", texts.queries, texts.source),
        ("passages", "passage", texts.passages, texts.passage_source),
    ]
    progress = Progress(sum(len(of) for _, _, of, _ in parts))
    for name, role, of, source in parts:
        # Another model than the teacher has its own prompts, whatever the source.
        prompts = [None] * len(of) if teacher is None else texts.prompts_of(role)
        embed(
            of,
            prompts,
            role,
            encoder,
            out.path / name,
            section.shard,
            scale.vectors,
            sources=[texts.sources[number] for number in source],
            remote=remote,
            trust_remote_code="teacher" in trusted,
            progress=progress,
        )
    if teacher is not None:
        Terms.read(teacher.path).write(out.path)
        atomic_json(out.path / TEACHER, {"fingerprint": fingerprint(str(teacher.path))})
    made = {name: StoredVectors(out.path / name) for name, *_ in parts}
    skipped = {
        name: {f"row {row}": f"{of[row][:60]!r}: {why}" for row, why in made[name].skipped.items()}
        for name, _, of, _ in parts
    }
    return {
        "queries": len(texts.queries),
        "passages": len(texts.passages),
        "dims": made["passages"].dims,
        **({"skipped": skipped} if any(skipped.values()) else {}),
    }


def embed(
    texts: list[str],
    prompts: Sequence[str | None],
    role: Role,
    model: os.PathLike[str],
    folder: Path,
    shard: int,
    scale: Embedders,
    *,
    sources: Sequence[str] | None = None,
    remote: RemoteEncoder | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a folder of `StoredVectors`, whatever shards are not in it yet.

    Args:
        sources: of each text, to name one that cannot be embedded.
        remote: what the model is, where it is an API. It is asked from here, for its budget, pace
            and kept answers are in one place.
        progress: is told of every shard.
    """
    if remote is None and is_remote(Path(model)):
        raise UserError(
            os.fspath(model),
            "is an API, which only a recipe's own teacher may be",
            "Name a model with weights, or set teacher.api",
        )
    folder.mkdir(exist_ok=True)
    # Texts of like length share a shard, so that almost nothing is padding.
    order = np.argsort([len(text) for text in texts], kind="stable")
    write_whole(folder / "order.npy", order)
    digests = [digest(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    write_whole(folder / DIGESTS, np.array(digests, dtype=np.uint64))
    shards = -(-len(texts) // shard)
    # An API has kept the vectors of shards that are there, and counts them into its budget.
    missing = [i for i in range(shards) if remote or not shard_path(folder, i).exists()]
    if len(missing) < shards:
        log.info(
            "%s: %d of %d shards are there already", folder.name, shards - len(missing), shards
        )
    sizes = [min(shard, len(texts) - i * shard) for i in range(shards)]
    if progress is not None:
        progress.add(len(texts) - sum(sizes[i] for i in missing), fresh=False)
    if not missing:
        return
    # The longest shards first: the pool then finishes together.
    rows = []
    for i in reversed(missing):
        mine = order[i * shard : (i + 1) * shard]
        of_mine = {"texts": [texts[j] for j in mine], "prompts": [prompts[j] for j in mine]}
        rows.append({"shard": i, **of_mine})
    made: Iterable[dict[str, Any]]
    if remote is not None:
        made = map(_Embedder(remote, role), rows)
    else:
        require("vectors", scale, 1)
        made = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map(
                _LoadedEmbedder,
                fn_constructor_args=(model, role, trust_remote_code, said()),
                compute=ray.data.ActorPoolStrategy(size=min(scale.actors, len(rows))),
                **asks(scale),
            )
            .iter_rows()
        )
    for done, row in enumerate(made, start=1):
        array = np.frombuffer(row["vectors"], dtype=np.float16).reshape(-1, row["dims"])
        mine = order[row["shard"] * shard :]
        failed = {int(mine[place]): why for place, why in json.loads(row["failed"])}
        for at, why in failed.items():
            source = "" if sources is None else f" of source {sources[at]}"
            where, what = f"{folder.name}, row {at}{source}", f"{texts[at][:60]!r}: {why}"
            if scale.on_error == "raise":
                raise UserError(
                    where,
                    f"cannot be embedded, {what}",
                    "Take it out of its source, or leave such texts out with "
                    "scale.vectors.on_error=skip",
                )
            log.warning("%s: skipped, %s", where, what)
        if failed:
            atomic_json(skipped_path(folder, row["shard"]), failed)
        write_whole(shard_path(folder, row["shard"]), array)
        log.info("%s: shard %d of %d", folder.name, shards - len(missing) + done, shards)
        if progress is not None:
            progress.add(sizes[row["shard"]])


class _Embedder:
    def __init__(self, encoder: Embedder, role: Role):
        self.encoder = encoder
        self.role: Role = role

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        texts, prompts = np.array(row["texts"], object), np.array(row["prompts"], object)
        found, failed = isolated(
            lambda rows: encode_prompted(self.encoder, texts[rows], prompts[rows], self.role),
            len(texts),
            self.encoder.contract.dims[0],
        )
        # Bytes, not a tensor column: shards differ in length, and this is a plain copy.
        return {
            "shard": row["shard"],
            "vectors": found.tobytes(),
            "dims": found.shape[1],
            "failed": json.dumps([*failed.items()]),
        }


class _LoadedEmbedder(_Embedder):
    """One of the pool's actors."""

    def __init__(self, model: os.PathLike[str], role: Role, trust_remote_code: bool, by: Said):
        begin(by)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        encoder = load(Path(model), device=device, trust_remote_code=trust_remote_code)
        super().__init__(encoder, role)


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


@dataclass(frozen=True)
class Fresh:
    """Vectors that are made when they are asked for, by rows of texts."""

    encoder: Embedder
    texts: Sequence[str]
    prompts: Sequence[str | None]
    role: Role
    skipped: tuple[int, ...] = ()

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        texts, prompts = ([of[row] for row in rows] for of in (self.texts, self.prompts))
        return encode_prompted(self.encoder, texts, prompts, self.role)


class Teaching(Rows, Protocol):
    """A teacher's vectors by row; `skipped` are rows that it has none of."""

    @property
    def skipped(self) -> Sequence[int]: ...


@dataclass
class Taught:
    """A corpus and its teacher's vectors. A worker reads them once, however many ask.

    Args:
        open: (files, device) → the vectors of the queries and of the passages, by row. A teacher
            that has yet to make them does so on that device.
    """

    corpus: Artifact
    open: Callable[[CorpusFiles, torch.device], tuple[Teaching, Teaching]]
    _rows: tuple[Teaching, Teaching] | None = field(default=None, init=False, repr=False)

    @cached_property
    def files(self) -> CorpusFiles:
        return CorpusFiles.read(self.corpus)

    def rows(self, device: torch.device) -> tuple[Teaching, Teaching]:
        """What `open` gives the first who asks; all of a worker's have one device."""
        if self._rows is None:
            self._rows = self.open(self.files, device)
        return self._rows


def fresh(files: CorpusFiles, teacher: Embedder) -> tuple[Teaching, Teaching]:
    """The teacher's vectors of a corpus's queries and passages, by row, made when asked for."""
    return (
        Fresh(teacher, files.queries, files.prompts_of("query"), "query"),
        Fresh(teacher, files.passages, files.prompts_of("passage"), "passage"),
    )


def stored(files: CorpusFiles, teacher: Artifact, vectors: Artifact) -> tuple[Teaching, Teaching]:
    """The same, from a `vectors` artifact.

    Raises:
        UserError: when that is another teacher's, or of other texts or prompts.
    """
    made_by = json.loads((vectors.path / TEACHER).read_text())["fingerprint"]
    if made_by != fingerprint(str(teacher.path)):
        raise UserError(
            str(vectors.path),
            f"was made by another teacher than {teacher.path}",
            "Delete that artifact, and run again",
        )
    queries, passages = (StoredVectors(vectors.path / name) for name in ("queries", "passages"))
    return (
        OfTexts(queries, files.queries, files.prompts_of("query")),
        OfTexts(passages, files.passages, files.prompts_of("passage")),
    )

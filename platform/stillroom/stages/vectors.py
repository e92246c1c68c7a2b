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

    def as_part(name: str, role: Role, of: list[str], source: np.ndarray) -> Part:
        # Another model than the teacher has its own prompts, whatever the source.
        prompts = [None] * len(of) if teacher is None else texts.prompts_of(role)
        return Part(name, role, of, prompts, [texts.sources[number] for number in source])

    parts = [
        as_part("queries", "query", texts.queries, texts.source),
        as_part("passages", "passage", texts.passages, texts.passage_source),
    ]
    embed(
        parts,
        encoder,
        out.path,
        section.shard,
        scale.vectors,
        remote=remote,
        trust_remote_code="teacher" in trusted,
    )
    if teacher is not None:
        Terms.read(teacher.path).write(out.path)
        atomic_json(out.path / TEACHER, {"fingerprint": fingerprint(str(teacher.path))})
    made = {part.name: StoredVectors(out.path / part.name) for part in parts}
    skipped = {
        part.name: {
            f"row {row}": f"{part.texts[row][:60]!r}: {why}"
            for row, why in made[part.name].skipped.items()
        }
        for part in parts
    }
    return {
        "queries": len(texts.queries),
        "passages": len(texts.passages),
        "dims": made["passages"].dims,
        **({"skipped": skipped} if any(skipped.values()) else {}),
    }


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

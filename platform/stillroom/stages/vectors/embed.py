"""Encodes many texts into folders of `StoredVectors`, by a pool of actors or by an API."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from stillroom.cluster.capacity import ray_options, require_capacity
from stillroom.cluster.progress import Progress
from stillroom.config.scale import EmbeddingActors
from stillroom.encoders.api_encoder import ApiEncoder
from stillroom.encoders.contract import Role
from stillroom.encoders.files.load import load_encoder
from stillroom.encoders.interface import Embedder
from stillroom.encoders.usable_vectors import UnusableVectorError, require_usable
from stillroom.encoders.vectors.stored import (
    DIGESTS_FILE,
    StoredVectors,
    shard_path,
    skipped_path,
    text_digest,
    write_array,
    write_order,
)
from stillroom.errors import UserError, one_line, quote
from stillroom.observability.log_context import (
    LogContext,
    capture_context,
    configure_worker_logging,
)
from stillroom.stages.api_teacher import is_api
from stillroom.stages.vectors.digests import text_digests, write_index
from stillroom.stages.vectors.reuse import Found, KnownVectors
from stillroom.storage.atomic import atomic_write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextsToEmbed:
    """Texts that become one folder of `StoredVectors`.

    Attributes:
        prompts: of each text; None for the encoder's own.
        sources: of each text, to name one that cannot be encoded.
    """

    folder: str
    role: Role
    texts: Sequence[str]
    prompts: Sequence[str | None]
    sources: Sequence[str] | None = None


@dataclass(frozen=True)
class TextCounts:
    """Texts of all folders by where their vectors are from.

    Attributes:
        reused: copied from artifacts that were there.
        encoded: given to the encoder, those that it could not encode among them.
        resumed: of shards that an earlier try, which was killed, had finished.
    """

    reused: int
    encoded: int
    resumed: int


def embed(
    texts: Sequence[TextsToEmbed],
    model: os.PathLike[str],
    out: Path,
    shard_size: int,
    scale: EmbeddingActors,
    *,
    api: ApiEncoder | None = None,
    known: KnownVectors | None = None,
    trust_remote_code: bool = False,
) -> TextCounts:
    """Writes the missing shards of each folder.

    One pool of actors makes all shards, so that each actor loads the model once.

    Args:
        out: the folder of the folders.
        shard_size: texts that are encoded, and written, at once.
        api: the model, where it is an API. It is called from this process, because its budget,
            rate limits and cache are in one place.
        known: vectors of the same encoder, which are copied; the folders then get an index, by
            which theirs are found in turn.

    Raises:
        UserError: at a text that cannot be encoded, unless such are to be skipped.
    """
    if api is None and is_api(Path(model)):
        raise UserError(
            os.fspath(model),
            "is an API; only a recipe's own teacher may be one",
            "Name a model with weights, or set teacher.api",
        )
    progress = Progress(sum(len(part.texts) for part in texts))
    folders = {
        part.folder: _ShardFolder(part, out / part.folder, shard_size, known) for part in texts
    }
    rows = []
    for folder in folders.values():
        folder.prepare()
        # An API has the vectors of finished shards in its cache, and counts them in its budget.
        missing = folder.missing(all_shards=api is not None)
        missing = [number for number in missing if not folder.copy_known(number)]
        progress.add(len(folder.part.texts) - sum(map(folder.size, missing)), counted=False)
        # The shards of the longest texts first: the actors then finish at about the same time.
        rows += [folder.row(number) for number in reversed(missing)]
    for row in _encoded_shards(rows, model, scale, api, trust_remote_code):
        folder = folders[row["part"]]
        folder.write(row, skip=scale.on_error == "skip")
        progress.add(folder.size(row["shard"]))
    for folder in folders.values():
        folder.finish()
    return TextCounts(
        reused=sum(folder.reused for folder in folders.values()),
        encoded=sum(folder.encoded for folder in folders.values()),
        resumed=sum(folder.resumed for folder in folders.values()),
    )


def _encoded_shards(
    rows: list[dict[str, Any]],
    model: os.PathLike[str],
    scale: EmbeddingActors,
    api: ApiEncoder | None,
    trust_remote_code: bool,
) -> Iterable[dict[str, Any]]:
    """The results of `_ShardEncoder` for the rows, as they come."""
    if api is not None:
        return map(_ShardEncoder(api), rows)
    if not rows:
        return []
    require_capacity("vectors", scale, 1)
    # Ray's C++ code prints here that 'MapWorker(Map(…))' has arguments in the object store,
    # because Ray Data puts the function there. No setting of Ray hides only this line.
    encoded: Iterable[dict[str, Any]] = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(
            _ShardEncoderActor,
            fn_constructor_args=(model, trust_remote_code, capture_context()),
            compute=ray.data.ActorPoolStrategy(size=min(scale.actors, len(rows))),
            **ray_options(scale),
        )
        .iter_rows()
    )
    return encoded


class _ShardFolder:
    """A folder of `StoredVectors` while its shards are made."""

    def __init__(self, part: TextsToEmbed, path: Path, shard_size: int, known: KnownVectors | None):
        self.part, self.path, self.shard_size, self.known = part, path, shard_size, known
        # Texts of similar length share a shard, so that there is little padding.
        lengths = np.fromiter(map(len, part.texts), dtype=np.int64, count=len(part.texts))
        self.order = np.argsort(lengths, kind="stable")
        self.shards = -(-len(part.texts) // shard_size)
        self.finished = 0
        self.reused = self.encoded = self.resumed = 0  # texts
        self.found: dict[int, Found] = {}  # of the shards whose texts are partly known

    def prepare(self) -> None:
        """Writes everything but the shards."""
        self.path.mkdir(exist_ok=True)
        write_order(self.path, self.order)
        prompted = zip(self.part.prompts, self.part.texts, strict=True)
        digests = (text_digest(prompt, text) for prompt, text in prompted)
        array = np.fromiter(digests, dtype=np.uint64, count=len(self.part.texts))
        write_array(self.path / DIGESTS_FILE, array)
        if self.known is not None:
            self.digests = text_digests(self.part.role, self.part.prompts, self.part.texts)

    def missing(self, *, all_shards: bool) -> list[int]:
        """Shards to make: those without a file, or all."""
        missing = [
            i for i in range(self.shards) if all_shards or not shard_path(self.path, i).exists()
        ]
        self.finished = self.shards - len(missing)
        self.resumed = len(self.part.texts) - sum(map(self.size, missing))
        if self.finished:
            log.info(
                "%s: %d of %d shards exist already", self.part.folder, self.finished, self.shards
            )
        return missing

    def rows(self, number: int) -> np.ndarray:
        """A shard's rows in `part.texts`."""
        return self.order[number * self.shard_size : (number + 1) * self.shard_size]

    def size(self, number: int) -> int:
        """Texts in a shard."""
        return len(self.rows(number))

    def copy_known(self, number: int) -> bool:
        """Looks a shard's texts up; writes the shard, and returns True, where all are known."""
        if self.known is None:
            return False
        found = self.known.find(self.digests[self.rows(number)])
        known = self.size(number) - len(found.missing)
        self.reused += known
        if not len(found.missing):
            self._write_shard(number, self.known.read(found))
            return True
        if known:
            self.found[number] = found
        return False

    def row(self, number: int) -> dict[str, Any]:
        """The input of `_ShardEncoder` for a shard: its texts that have no vector yet."""
        rows = self._rows_to_encode(number)
        return {
            "part": self.part.folder,
            "role": self.part.role,
            "shard": number,
            "texts": [self.part.texts[i] for i in rows],
            "prompts": [self.part.prompts[i] for i in rows],
            "partial": number in self.found,
        }

    def _rows_to_encode(self, number: int) -> np.ndarray:
        rows = self.rows(number)
        return rows[self.found[number].missing] if number in self.found else rows

    def write(self, row: dict[str, Any], *, skip: bool) -> None:
        """Writes the result of `_ShardEncoder` for a shard.

        Raises:
            UserError: at a text that could not be encoded, unless such are to be skipped.
        """
        number, name = row["shard"], self.part.folder
        rows = self._rows_to_encode(number)
        failed = {int(rows[index]): reason for index, reason in json.loads(row["failed"])}
        for text_row, reason in failed.items():
            sources = self.part.sources
            source = "" if sources is None else f" of source {sources[text_row]}"
            where = f"{name}, row {text_row}{source}"
            problem = f"{quote(self.part.texts[text_row])}: {reason}"
            if not skip:
                raise UserError(
                    where,
                    f"cannot be encoded, {problem}",
                    "Remove it from its source, or skip such texts with "
                    "scale.vectors.on_error=skip",
                )
            log.warning("%s: skipped, %s", where, problem)
        if failed:
            atomic_write_json(skipped_path(self.path, number), failed)
        array = np.frombuffer(row["vectors"], dtype=np.float16).reshape(-1, row["dims"])
        self.encoded += len(array)
        if self.known is not None and number in self.found:
            found = self.found.pop(number)
            encoded, array = array, self.known.read(found)
            array[found.missing] = encoded
        self._write_shard(number, array)

    def _write_shard(self, number: int, array: np.ndarray) -> None:
        write_array(shard_path(self.path, number), array)
        self.finished += 1
        log.info("%s: shard %d of %d", self.part.folder, self.finished, self.shards)

    def finish(self) -> None:
        """Writes the index of the finished folder, for later artifacts of the same encoder."""
        if self.known is None:
            return
        write_index(self.path, self.digests, StoredVectors(self.path).skipped)
        log.info(
            "%s: %d texts encoded, %d vectors reused",
            *(self.part.folder, self.encoded, self.reused),
        )


class _ShardEncoder:
    def __init__(self, encoder: Embedder):
        self.encoder = encoder

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        texts, prompts = np.array(row["texts"], object), np.array(row["prompts"], object)
        vectors, failed = encode_isolating_failures(
            lambda rows: encode_with_prompts(self.encoder, texts[rows], prompts[rows], row["role"]),
            len(texts),
            self.encoder.contract.dims[0],
            others_have_vectors=row["partial"],
        )
        # Bytes, not a tensor column: shards differ in length, and bytes are copied as they are.
        return {
            "part": row["part"],
            "shard": row["shard"],
            "vectors": vectors.tobytes(),
            "dims": vectors.shape[1],
            "failed": json.dumps([*failed.items()]),
        }


class _ShardEncoderActor(_ShardEncoder):
    """One actor of the pool."""

    def __init__(self, model: os.PathLike[str], trust_remote_code: bool, context: LogContext):
        configure_worker_logging(context)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        super().__init__(
            load_encoder(Path(model), device=device, trust_remote_code=trust_remote_code)
        )


def encode_isolating_failures(
    encode: Callable[[np.ndarray], np.ndarray],
    count: int,
    dims: int,
    *,
    others_have_vectors: bool = False,
) -> tuple[np.ndarray, dict[int, str]]:
    """Encodes texts, some of which may make the encoder fail; halving finds these.

    Args:
        encode: rows of texts → their vectors, float16 (rows, dims).
        count: texts.
        others_have_vectors: these are what an earlier encode left over, so that all may fail.

    Returns:
        Vectors, float16 (count, dims), zeros for texts that failed; and row → reason.

    Raises:
        UserError: an API's, or a broken model's: no text caused it.
        Exception: the encoder's error, if every one of several texts fails, and none was left over.
    """
    result = np.zeros((count, dims), dtype=np.float16)
    failed: dict[int, str] = {}
    last_error: Exception | None = None
    pending = [np.arange(count)]
    while pending:
        rows = pending.pop()
        try:
            result[rows] = encode(rows)
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, UnusableVectorError):
                raise
            last_error = error
            # Encoded alone, a text cannot be affected by others in its batch.
            if len(rows) > 1:
                pending += np.array_split(rows, 2)
            elif isinstance(error, UnusableVectorError):
                failed[int(rows[0])] = error.problem
            else:
                failed[int(rows[0])] = f"{type(error).__name__}: {one_line(error, 200)}"
    if last_error is not None and len(failed) == count > 1 and not others_have_vectors:
        raise last_error
    return result, dict(sorted(failed.items()))


def encode_with_prompts(
    encoder: Embedder, texts: Sequence[str], prompts: Sequence[str | None], role: Role
) -> np.ndarray:
    """Vectors of texts with a prompt each, None for the encoder's own: float16, (n, dims).

    Raises:
        UnusableVectorError: naming a text whose vector is not finite or has no length, or that
            float16 cannot hold.
    """
    vectors = np.empty((len(texts), encoder.contract.dims[0]), dtype=np.float16)
    for prompt in dict.fromkeys(prompts):
        rows = [row for row, own_prompt in enumerate(prompts) if own_prompt == prompt]
        encoded = encoder.encode([texts[row] for row in rows], role, prompt=prompt)
        with np.errstate(over="ignore"):
            vectors[rows] = encoded
    try:
        require_usable(vectors, normalised=encoder.contract.normalise, texts=texts)
    except UnusableVectorError as error:  # it was usable before it was rounded
        problem = f"{error.problem} in float16, in which vectors are stored"
        raise error.of_text(error.row, problem, texts[error.row]) from None
    return vectors

"""Encodes many texts into folders of `StoredVectors`, by a pool of actors or by an API.

The driver holds names of shards, and the rows of the few that are being encoded. Texts are read
where they are encoded.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from stillroom.cluster.actor_stream import CALLS_PER_ACTOR, stream_actors
from stillroom.cluster.capacity import ray_options, require_capacity
from stillroom.cluster.progress import Progress
from stillroom.config.scale import EmbeddingActors
from stillroom.encoders.api_encoder import ApiEncoder
from stillroom.errors import UserError
from stillroom.observability.log_context import capture_context
from stillroom.stages.api_teacher import is_api
from stillroom.stages.vectors.encode import EncodedTexts, EncodingActor, RowEncoder
from stillroom.stages.vectors.reuse import KnownVectors
from stillroom.stages.vectors.shard_folder import ShardFolder, ShardToEncode
from stillroom.stages.vectors.texts import OpenTexts


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
    open_texts: OpenTexts,
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
        open_texts: called here and in each actor.
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
    parts = open_texts()
    progress = Progress(sum(len(part.texts) for part in parts))
    folders = [
        ShardFolder(open_texts, number, out, shard_size, known) for number in range(len(parts))
    ]
    to_encode: list[tuple[ShardFolder, int]] = []
    for folder in folders:
        folder.prepare()
        # An API has the vectors of finished shards in its cache, and counts them in its budget.
        missing = folder.missing(all_shards=api is not None)
        missing = [number for number in missing if not folder.copy_known(number)]
        progress.add(len(folder.part.texts) - sum(map(folder.size, missing)), counted=False)
        # The shards of the longest texts first: the actors then finish at about the same time.
        to_encode += [(folder, number) for number in reversed(missing)]
    shards = (folder.to_encode(number) for folder, number in to_encode)
    encoded: Iterator[tuple[ShardToEncode, EncodedTexts]]
    if api is not None:
        encoded = _encoded_here(RowEncoder(parts, api), shards)
    elif to_encode:
        arguments = open_texts, model, trust_remote_code, capture_context()
        actors = _start_actors(min(scale.actors, len(to_encode)), scale, arguments)
        encoded = stream_actors(actors, _start_encoding, shards)
    else:
        encoded = iter(())
    for shard, texts in encoded:
        shard.folder.write(shard, texts, skip=scale.on_error == "skip")
        progress.add(shard.folder.size(shard.number))
    for folder in folders:
        folder.finish()
    return TextCounts(
        reused=sum(folder.reused for folder in folders),
        encoded=sum(folder.encoded for folder in folders),
        resumed=sum(folder.resumed for folder in folders),
    )


def _encoded_here(
    encoder: RowEncoder, shards: Iterable[ShardToEncode]
) -> Iterator[tuple[ShardToEncode, EncodedTexts]]:
    for shard in shards:
        yield shard, encoder(shard.folder.number, shard.rows, shard.found is not None)


def _start_actors(count: int, scale: EmbeddingActors, arguments: Sequence[Any]) -> list[Any]:
    require_capacity("vectors", scale, 1)
    actor_class = ray.remote(
        **ray_options(scale),
        max_concurrency=CALLS_PER_ACTOR,
        # A dead actor is restarted, and its unanswered calls are repeated.
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy="SPREAD",
    )(EncodingActor)
    return [actor_class.remote(*arguments) for _ in range(count)]


def _start_encoding(actor: Any, shard: ShardToEncode) -> Any:
    return actor.encode.remote(shard.folder.number, shard.rows, shard.found is not None)

"""The stage `vectors`: an encoder's vectors of every training query and passage."""

import functools
from collections.abc import Sequence
from typing import NotRequired, TypedDict

from stillroom.config.recipe import Vectors as Section
from stillroom.config.scale import Scale
from stillroom.encoders.contract import BaseContract
from stillroom.encoders.model_names import find_model, model_fingerprint
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.errors import quote
from stillroom.stages.api_teacher import api_encoder, is_api
from stillroom.stages.vectors.embed import embed
from stillroom.stages.vectors.reuse import KnownVectors, teacher_identity
from stillroom.stages.vectors.teacher_vectors import TEACHER_FILE
from stillroom.stages.vectors.texts import corpus_texts
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.storage.atomic import atomic_write_json


class VectorsSummary(TypedDict):
    """The summary in the manifest of a `vectors` artifact.

    Attributes:
        reused, encoded, resumed: texts, as `TextCounts` has them.
        teacher: whose vectors they are, as `teacher_identity` says; not of an API or a miner.
    """

    queries: int
    passages: int
    general: NotRequired[int]
    dims: int
    reused: int
    encoded: int
    resumed: int
    teacher: NotRequired[str]
    skipped: NotRequired[dict[str, dict[str, str]]]  # folder → row → text and reason


def vectors(
    *,
    section: Section,
    corpus: Artifact,
    scale: Scale,
    out: Draft,
    teacher: Artifact | None = None,
    model: str = "",
    general: bool = False,
    trusted: Sequence[str] = (),
) -> VectorsSummary:
    """Writes queries/ and passages/ as `StoredVectors`, and the teacher's contract.

    A text gets the prompt of its source, as in training. Shards that a killed run left are kept,
    and vectors that artifacts of the same teacher hold are copied. A teacher behind an API has a
    cache of its own.

    Args:
        general: also of the corpus's general texts, into general-queries/ and general-passages/.
        model: the name of another encoder, used instead of the teacher, with its own prompts.
        trusted: holds "teacher" when that may run code that comes with it.

    Raises:
        UserError: naming a text that cannot be encoded, unless such are to be skipped.
    """
    encoder = teacher if teacher is not None else find_model(model, out.store)
    api = None if teacher is None else api_encoder(teacher.path, scale.teacher_api, out.store)
    open_texts = functools.partial(
        corpus_texts, corpus, own_prompts=teacher is None, general=general
    )
    known = identity = None
    if teacher is not None and not is_api(teacher.path):
        identity = teacher_identity(teacher)
        known = KnownVectors.open(out.store, teacher, identity)
    counts = embed(
        open_texts,
        encoder,
        out.path,
        section.shard_size,
        scale.vectors,
        api=api,
        known=known,
        trust_remote_code="teacher" in trusted,
    )
    if teacher is not None:
        BaseContract.read(teacher.path).write(out.path)
        atomic_write_json(
            out.path / TEACHER_FILE, {"fingerprint": model_fingerprint(str(teacher.path))}
        )
    parts = open_texts()
    stored = {part.folder: StoredVectors(out.path / part.folder) for part in parts}
    queries, passages, *of_general = (len(part.texts) for part in parts)
    summary = VectorsSummary(
        queries=queries,
        passages=passages,
        dims=stored["passages"].dims,
        reused=counts.reused,
        encoded=counts.encoded,
        resumed=counts.resumed,
    )
    if identity is not None:
        summary["teacher"] = identity
    if general:
        summary["general"] = sum(of_general)
    skipped = {
        part.folder: {
            f"row {row}": f"{quote(part.texts[row])}: {reason}"
            for row, reason in stored[part.folder].skipped.items()
        }
        for part in parts
    }
    if any(skipped.values()):
        summary["skipped"] = skipped
    return summary

"""The stage `vectors`: an encoder's vectors of every training query and passage."""

import functools
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np

from stillroom.config.recipe import Vectors as Section
from stillroom.config.scale import Scale
from stillroom.encoders.contract import BaseContract, Role
from stillroom.encoders.model_names import find_model, model_fingerprint
from stillroom.encoders.vectors.stored import StoredVectors
from stillroom.errors import quote
from stillroom.stages.api_teacher import api_encoder, is_api
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.vectors.embed import TextsToEmbed, embed
from stillroom.stages.vectors.reuse import KnownVectors, teacher_identity
from stillroom.stages.vectors.teacher_vectors import TEACHER_FILE
from stillroom.storage.artifacts import Artifact, Draft
from stillroom.storage.atomic import atomic_write_json
from stillroom.storage.columns import Lookup


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
    data = CorpusData.open(corpus)
    no_prompts = functools.partial(Lookup[str | None].repeated, None)
    encoder = teacher if teacher is not None else find_model(model, out.store)
    api = None if teacher is None else api_encoder(teacher.path, scale.teacher_api, out.store)

    def to_embed(
        folder: str, role: Role, texts: Sequence[str], text_sources: np.ndarray
    ) -> TextsToEmbed:
        prompts = no_prompts(len(texts)) if teacher is None else data.prompts_of(role)
        return TextsToEmbed(folder, role, texts, prompts, Lookup(data.source_names, text_sources))

    parts = [
        to_embed("queries", "query", data.queries, data.pair_sources),
        to_embed("passages", "passage", data.passages, data.passage_sources),
    ]
    if general:
        roles: tuple[tuple[str, Role], ...] = (("queries", "query"), ("passages", "passage"))
        for folder, role in roles:
            if texts := data.general_texts(role):
                parts.append(TextsToEmbed(f"general-{folder}", role, texts, no_prompts(len(texts))))
    known = identity = None
    if teacher is not None and not is_api(teacher.path):
        identity = teacher_identity(teacher)
        known = KnownVectors.open(out.store, teacher, identity)
    counts = embed(
        parts,
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
    stored = {part.folder: StoredVectors(out.path / part.folder) for part in parts}
    summary = VectorsSummary(
        queries=len(data.queries),
        passages=len(data.passages),
        dims=stored["passages"].dims,
        reused=counts.reused,
        encoded=counts.encoded,
        resumed=counts.resumed,
    )
    if identity is not None:
        summary["teacher"] = identity
    if general:
        summary["general"] = len(data.general_queries) + len(data.general_passages)
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

"""The teacher's vectors of every training query and passage."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from stillroom.config.recipe import Vectors as Section
from stillroom.config.scale import Scale
from stillroom.encoders.contract import Role, Terms
from stillroom.encoders.model_names import fingerprint, model_of
from stillroom.encoders.vectors.stored import (
    StoredVectors,
)
from stillroom.stages.api_teacher import remote_of
from stillroom.stages.corpus.artifact import CorpusFiles
from stillroom.stages.vectors.embed import Part, embed
from stillroom.stages.vectors.teacher_vectors import TEACHER
from stillroom.storage.artifacts import Artifact, Draft, atomic_json

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

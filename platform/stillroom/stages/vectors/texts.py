"""Texts to embed: opened where they are used, and described window by window.

A window is neighbouring rows. The texts of a window are sorted by length, so that those of a shard
are of similar length, and a shard's texts are near each other.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.encoders.contract import Role
from stillroom.encoders.vectors.stored import text_digest
from stillroom.stages.corpus.artifact import CorpusData
from stillroom.stages.vectors.digests import text_digests
from stillroom.storage.artifacts import Artifact
from stillroom.storage.columns import Lookup

WINDOW_ROWS = 1 << 16


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


# Opens the texts of all folders, in the process that reads them. Pickled to the workers, so a
# corpus is best named by its artifact.
OpenTexts = Callable[[], Sequence[TextsToEmbed]]


@dataclass(frozen=True)
class TextWindow:
    """What must be known of a window's texts before they are encoded.

    Attributes:
        order: its rows, the shortest text first, int64.
        digests: of each row's text and prompt, uint64.
        keys: `text_digests` of the rows, by which known vectors are found; None where nobody looks.
    """

    order: np.ndarray
    digests: np.ndarray
    keys: np.ndarray | None


def windows(count: int, shard_size: int) -> list[tuple[int, int]]:
    """(first row, last row + 1) of each window; all but the last hold whole shards."""
    rows = max(1, WINDOW_ROWS // shard_size) * shard_size
    return [(start, min(start + rows, count)) for start in range(0, count, rows)]


def describe_window(
    open_texts: OpenTexts, number: int, with_keys: bool, window: tuple[int, int]
) -> TextWindow:
    """Reads the texts of a window.

    Args:
        number: of the folder among those that `open_texts` opens.
    """
    part, rows = open_texts()[number], slice(*window)
    texts, prompts = part.texts[rows], part.prompts[rows]
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    digests = (text_digest(*prompted) for prompted in zip(prompts, texts, strict=True))
    return TextWindow(
        order=window[0] + np.argsort(lengths, kind="stable"),
        digests=np.fromiter(digests, dtype=np.uint64, count=len(texts)),
        keys=text_digests(part.role, prompts, texts) if with_keys else None,
    )


def corpus_texts(corpus: Artifact, *, own_prompts: bool, general: bool) -> list[TextsToEmbed]:
    """The texts of a corpus that are embedded: queries, passages, and then the general texts.

    Args:
        own_prompts: all texts get the encoder's own prompts, not those of their sources.
        general: with the general texts.
    """
    data = CorpusData.open(corpus)
    no_prompts = functools.partial(Lookup[str | None].repeated, None)

    def to_embed(
        folder: str, role: Role, texts: Sequence[str], text_sources: np.ndarray
    ) -> TextsToEmbed:
        prompts = no_prompts(len(texts)) if own_prompts else data.prompts_of(role)
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
    return parts

"""Reads all sources into shards, on the nodes that have their files."""

import functools
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from stillroom.cluster.parallel_map import parallel_map
from stillroom.cluster.placement import Place, find_places
from stillroom.config.corpus import Corpus
from stillroom.data.readers.records import SkippedRows
from stillroom.stages.corpus.shards import PartBatch, Shard, make_groups, read_parts
from stillroom.stages.corpus.sources import SourcePart, split_source
from stillroom.stages.corpus.workspace import CleaningWorkspace, WorkFiles
from stillroom.storage.shared_folder import SharedFolder

MARKER = "marker"  # a file by which nodes show that they see the folder
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SizedPart:
    """A part of a source, with the number of the source and its bytes to read."""

    source: int
    part: SourcePart
    size: int


def split_sources(section: Corpus) -> list[SizedPart]:
    """All parts of all sources, in their order.

    Raises:
        UserError: when there is no file at one of their locations.
    """
    return [
        SizedPart(number, part, part.size_bytes)
        for number, source in enumerate(section.sources.values())
        for part in split_source(source)
    ]


def read_sources(
    files: WorkFiles, parts: Sequence[SizedPart], *, parallel: bool
) -> tuple[CleaningWorkspace, dict[int, SkippedRows]]:
    """Reads all parts into shards.

    Args:
        parallel: in tasks on all nodes that see the working files and the part's own; else in this
            process.

    Returns:
        A workspace with the shards, in which every row is kept; and by source the rows that its
        readers skipped.
    """
    place, places = Place.DRIVER, [Place.DRIVER] * len(parts)
    if parallel:
        place, places = _find_places(files.folder, [sized.part for sized in parts])
    batches = _batches(parts, places, files.sizes.characters)
    read = parallel_map(
        functools.partial(_read, files), [batch for batch, _ in batches], [p for _, p in batches]
    )
    shards: list[Shard] = []
    skipped: dict[int, SkippedRows] = defaultdict(SkippedRows)
    for (batch, _), (shards_of_batch, skipped_in_batch) in zip(batches, read, strict=True):
        shards += shards_of_batch
        skipped[batch.source].add(skipped_in_batch)
    return CleaningWorkspace(files, place, make_groups(shards, files.sizes)), skipped


def _read(files: WorkFiles, batch: PartBatch) -> tuple[list[Shard], SkippedRows]:
    return read_parts(files.folder, files.sizes, batch)


def _batches(
    parts: Sequence[SizedPart], places: Sequence[Place], max_bytes: int
) -> list[tuple[PartBatch, Place]]:
    """Joins small parts, such as documents, so that a task has some work and a shard some rows."""
    batches: list[tuple[PartBatch, Place]] = []
    pending: list[SourcePart] = []
    size = 0
    for (sized, place), following in zip_longest(
        zip(parts, places, strict=True), zip(parts[1:], places[1:], strict=True)
    ):
        pending.append(sized.part)
        size += sized.size
        joins = following is not None and (
            (following[0].source, following[0].part.kind, following[1])
            == (sized.source, sized.part.kind, place)
            and size + following[0].size <= max_bytes
        )
        if not joins:
            batch = PartBatch(len(batches), sized.source, sized.part.kind, tuple(pending))
            batches.append((batch, place))
            pending, size = [], 0
    return batches


def _find_places(folder: SharedFolder, parts: Sequence[SourcePart]) -> tuple[Place, list[Place]]:
    """Where tasks on the working files may run, and those that read each part."""
    shared = []
    if not folder.remote:
        folder.write(MARKER, b"")
        shared = [f"{folder.location}/{MARKER}"]
    local = [part.local_files for part in parts]
    place, *places = find_places(
        [shared, *(None if own is None else shared + own for own in local)]
    )
    if place is not Place.ANY_NODE:
        log.warning(
            "corpus: only this machine has the folder %s, so it is cleaned here; a root on shared "
            "storage would use all nodes",
            folder.location,
        )
        return place, places
    here = [
        own[0]
        for own, of_part in zip(local, places, strict=True)
        if own and of_part is not Place.ANY_NODE
    ]
    if here:
        more = f" and {len(here) - 1} more" if len(here) > 1 else ""
        log.info("corpus: %s%s: read on this machine, since others lack it", here[0], more)
    return place, places

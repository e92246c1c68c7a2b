"""`stillroom mine`: hard negatives for a user's own files, without a recipe."""

import functools
import json
import logging
import os
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.cluster.session import connect
from stillroom.config.languages import AUTO
from stillroom.config.recipe import Negatives
from stillroom.config.scale import Scale
from stillroom.data.cleaning.text_keys import text_key
from stillroom.data.readers.beir import read_beir
from stillroom.data.readers.files import read_pairs, read_passages
from stillroom.data.readers.records import SkippedRows
from stillroom.data.text.detection import detect_language
from stillroom.encoders.contract import Role
from stillroom.encoders.files.inputs import folder_prompts
from stillroom.encoders.model_names import find_model, locate_model, resolve_artifact_name
from stillroom.encoders.prompt_names import prompt_by_name
from stillroom.errors import UserError
from stillroom.mining.formats import FORMATS, PairTexts
from stillroom.mining.mined import MinedNegatives
from stillroom.stages.negatives.known import find_known_texts
from stillroom.stages.negatives.mine import mine
from stillroom.stages.negatives.texts import MiningTexts
from stillroom.stages.vectors.embed import embed
from stillroom.stages.vectors.texts import TextsToEmbed
from stillroom.storage.artifacts import Store
from stillroom.storage.atomic import atomic_write
from stillroom.storage.column_writer import TableWriter
from stillroom.storage.columns import Lookup, Ragged, TextColumn

log = logging.getLogger(__name__)
SHARD_SIZE = 1024  # texts encoded at once
TEXTS_FOLDER = "texts"  # in the folder of working files
READ_AT_ONCE = 4096  # texts


@dataclass(frozen=True)
class MiningInput:
    """A user's files.

    Attributes:
        passages: files of more passages to mine from.
        evaluation: folders of sets in BEIR layout; their passages never become negatives.
        language: of the texts, for BM25; `auto` detects it.
        min_score: leaves out pairs with lower scores.
    """

    pairs: Sequence[Path]
    passages: Sequence[Path] = ()
    evaluation: Sequence[Path] = ()
    language: str = AUTO
    min_score: float | None = None


@dataclass(frozen=True)
class MiningOutput:
    """The file to write, as JSONL.

    Attributes:
        format: one of `FORMATS`.
        with_scores: also writes the scores of positives and negatives.
    """

    path: Path
    format: str
    with_scores: bool = False

    def check(self) -> None:
        """
        Raises:
            UserError: when the file cannot be written.
        """
        if self.format not in FORMATS:
            problem = f"{self.format!r} is unknown"
            raise UserError("--format", problem, f"Use one of {', '.join(FORMATS)}")
        if self.path.exists():
            raise UserError(f"--out {self.path}", "exists already", "Name a new file")
        if not self.path.absolute().parent.is_dir():
            raise UserError(
                f"--out {self.path}", "its folder does not exist",
                "Create it, or name another folder",
            )  # fmt: skip

    def write(self, texts: PairTexts, mined: MinedNegatives) -> None:
        with atomic_write(self.path) as file:
            for row in FORMATS[self.format](texts, mined, self.with_scores):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def mine_files(
    source: MiningInput,
    target: MiningOutput,
    section: Negatives,
    *,
    prompt_name: str | None = None,
    seed: int,
    root: str,
    scale: Scale,
) -> dict[str, Any]:
    """Writes the pairs with their negatives; the file appears when it is complete.

    The texts lie in working files beside it; memory holds some hundred bytes a passage.

    Args:
        section: its miners are `bm25`, or models as named everywhere.
        prompt_name: of the models' prompt for queries; None: each model's own for them.
        root: of the artifacts that models may name.

    Returns:
        Counts of kept and rejected candidates, and the language that BM25 took.

    Raises:
        UserError: when a file, an option or a model is wrong, before any model is loaded.
    """
    target.check()
    store, out = Store(root), target.path
    names = [resolve_artifact_name(name, store) for name in section.miners]
    folders = {name: None if name == "bm25" else locate_model(name) for name in names}
    query_prompts = {
        name: prompt_by_name(folder_prompts(folder), prompt_name, f"--prompt-name with {name}")
        for name, folder in folders.items()
        if folder is not None and prompt_name is not None
    }
    cross_encoder = None
    if section.cross_encoder is not None:
        cross_encoder = find_model(section.cross_encoder, store)
        os.fspath(cross_encoder)  # raises where it is missing
    sets = [read_beir(folder) for folder in source.evaluation]
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as work:
        folder = Path(work)
        texts = read_texts(source, folder / TEXTS_FOLDER)
        log.info("%d pairs, %d passages", len(texts.queries), len(texts.passages))
        connect(scale)
        miners: dict[str, Path | None] = {}
        for number, (name, model) in enumerate(folders.items()):
            miners[name] = None if model is None else folder / str(number)
            if model is not None:
                _embed(folder, model, str(number), scale, query_prompts.get(name))
        language = source.language
        if language == AUTO and "bm25" in names:
            language = detect_language(texts.passages)
        open_texts = functools.partial(_open_texts, folder, language)
        known = find_known_texts(
            open_texts,
            texts.positive,
            texts.negatives,
            sets,
            include_evaluation_passages=section.include_evaluation_passages,
            folder=folder / "known",
        )
        mined = mine(
            open_texts,
            known,
            miners,
            section,
            cross_encoder=cross_encoder,
            seed=seed,
            scale=scale.negatives,
            folder=folder,
        )
        target.write(texts, mined)
    return {
        "out": str(out),
        "pairs": len(texts.queries),
        **({"language": language} if "bm25" in names else {}),
        **mined.summary(),
    }


def read_texts(source: MiningInput, folder: Path) -> PairTexts:
    """The pairs and passages of all files, as columns in the folder.

    Equal passages have one row: the first in the files.
    """
    skipped = SkippedRows()
    rows: dict[bytes, int] = {}  # digest of a passage → its row
    positive, starts, provided = array("q"), array("q", [0]), array("q")
    with TableWriter(folder, texts=["queries", "passages"], numbers={}) as table:
        passages = _Appended(table, "passages")

        def row_of(text: str) -> int:
            row = rows.setdefault(bytes.fromhex(text_key(text)), len(rows))
            if row == passages.count:
                passages.append(text)
            return row

        queries = _Appended(table, "queries")
        for path in source.pairs:
            for pair in read_pairs(path, min_score=source.min_score, skipped=skipped):
                queries.append(pair.query)
                positive.append(row_of(pair.passage))
                provided.extend(map(row_of, pair.negatives))
                starts.append(len(provided))
        for path in source.passages:
            for text in read_passages(path, skipped=skipped):
                row_of(text)
        queries.flush()
        passages.flush()
    for reason, count in skipped.counts.items():
        log.warning("left out while reading: %s: %d", reason, count)
    return PairTexts(
        TextColumn(folder, "queries"),
        TextColumn(folder, "passages"),
        np.array(positive, dtype=np.int64),
        Ragged(np.array(starts, dtype=np.int64), np.array(provided, dtype=np.int64)),
    )


class _Appended:
    """Texts that are appended one by one to a column of a table."""

    def __init__(self, table: TableWriter, column: str):
        self.table, self.column = table, column
        self.pending: list[str] = []
        self.count = 0

    def append(self, text: str) -> None:
        self.pending.append(text)
        self.count += 1
        if len(self.pending) == READ_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        self.table.append(**{self.column: pa.array(self.pending, pa.string())})
        self.pending = []


def _open_texts(folder: Path, language: str) -> MiningTexts:
    queries, passages = (
        TextColumn(folder / TEXTS_FOLDER, name) for name in ("queries", "passages")
    )
    return MiningTexts(
        queries,
        Lookup.repeated(language, len(queries)),
        passages,
        Lookup.repeated(language, len(passages)),
    )


def _embed(folder: Path, model: Path, name: str, scale: Scale, query_prompt: str | None) -> None:
    (folder / name).mkdir()
    embed(
        functools.partial(_texts_to_embed, folder, query_prompt),
        model,
        folder / name,
        SHARD_SIZE,
        scale.vectors,
    )


def _texts_to_embed(folder: Path, query_prompt: str | None) -> list[TextsToEmbed]:
    texts = _open_texts(folder, AUTO)
    roles: list[tuple[str, Role, Sequence[str], str | None]] = [
        ("queries", "query", texts.queries, query_prompt),
        ("passages", "passage", texts.passages, None),
    ]
    return [
        TextsToEmbed(name, role, column, Lookup[str | None].repeated(prompt, len(column)))
        for name, role, column, prompt in roles
    ]

"""Exports, reopened and compared with their encoder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.contract import Role
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.export.formats import FORMATS, QUANTISED_COSINE, export_encoder
from stillroom.encoders.export.runtimes import EXPORT_FILE
from stillroom.encoders.usable_vectors import require_usable
from stillroom.evaluation.encode_progress import EncodeTexts, OnTexts, encode_in_chunks
from stillroom.evaluation.fidelity import compare_encoders, texts_with_roles


def export_and_check(
    encoder: Encoder,
    format: str,
    folder: Path,
    sets: Mapping[str, EvaluationSet],
    origin: str,
    *,
    original: EncodeTexts | None = None,
    on_texts: OnTexts = lambda count: None,
) -> dict[str, Any]:
    """Exports an encoder, and compares the export with it on real texts.

    Args:
        folder: does not exist yet.
        sets: texts to calibrate int8 on and to compare.
        origin: the origin of the texts, for readers of export.json.
        original: returns the encoder's vectors, if some are known already; None: it encodes all.
        on_texts: called after every few hundred texts that the export has encoded.

    Returns:
        The content of export.json, with `check`: `origin`, `floor` and the comparison.

    Raises:
        UserError: from `export_encoder` and `compare_encoders`; the folder is then not a valid
            export.
    """
    description = export_encoder(encoder, format, folder, texts_with_roles(sets))
    kind = FORMATS[format]
    # Two libraries round differently where weights have sixteen bits.
    floor = kind.floor if encoder.contract.precision == "float32" else QUANTISED_COSINE
    encode = kind.reopen(folder)

    def reopened(texts: list[str], role: Role) -> np.ndarray:
        vectors = encode_in_chunks(lambda chunk: encode(chunk, role), texts, on_texts)
        require_usable(vectors, normalised=encoder.contract.normalise, texts=texts)
        return vectors

    check = compare_encoders(original or encoder.encode, reopened, sets, floor=floor, name=format)
    description["check"] = {"origin": origin, "floor": floor, **check}
    text = json.dumps(description, indent=1, ensure_ascii=False)
    (folder / EXPORT_FILE).write_text(text + "\n", encoding="utf-8")
    return description

"""Exports: written, opened again, and held against the encoder that they were made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.data.readers.records import EvaluationSet
from stillroom.encoders.encoder import Encoder
from stillroom.encoders.export.formats import ALIKE, FORMATS, export
from stillroom.encoders.export.runtimes import EXPORT
from stillroom.evaluation.fidelity import fidelity, roles


def exported(
    encoder: Encoder, format: str, folder: Path, sets: Mapping[str, EvaluationSet], origin: str
) -> dict[str, Any]:
    """Writes a format into a folder that is not there yet.

    Args:
        sets: real texts to calibrate int8 on and to compare.
        origin: where they are from, for whoever reads export.json.

    Returns:
        What export.json says, with `check`: `origin` and what `fidelity` found.

    Raises:
        UserError: as `export` and `fidelity` do; the folder is then no export.
    """
    told = export(encoder, format, folder, roles(sets))
    kind = FORMATS[format]
    # Two libraries round differently where weights have sixteen bits.
    floor = kind.floor if encoder.contract.precision == "float32" else ALIKE
    check = fidelity(encoder.encode, kind.reopen(folder), sets, floor=floor, name=format)
    told["check"] = {"origin": origin, "floor": floor, **check}
    text = json.dumps(told, indent=1, ensure_ascii=False)
    (folder / EXPORT).write_text(text + "\n", encoding="utf-8")
    return told

"""The corpus's general texts: gathered, apart from pairs and passages, as queries or passages."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillroom.config.corpus import GeneralTexts
from stillroom.data.cleaning.contamination_index import ContaminationIndex
from stillroom.data.general.gather import gather, is_query
from stillroom.encoders.contract import Role
from stillroom.stages.corpus.guards import Guards
from stillroom.storage.column_writer import TableWriter

TABLES: dict[Role, str] = {"query": "general-queries", "passage": "general-passages"}


def write_general_texts(
    section: GeneralTexts, index: ContaminationIndex, guards: Guards, folder: Path
) -> dict[str, Any]:
    """Writes the tables general-queries/ and general-passages/.

    Texts that match a query, an answer or a passage of any evaluation set are left out, and the
    source of one made guard as a whole, where there is another.

    Returns:
        Counts by source, lengths and the texts' identity.
    """
    used = [source for source in section.sources if source != guards.apart]
    if not (used or section.files):
        used = list(section.sources)
    gathered = gather(
        max_texts=section.general,
        sources=used,
        files=section.files,
        without_units=guards.units,
        is_tested=index.touches_many,
    )
    is_short = np.array([is_query(text) for text in gathered.texts], dtype=bool)
    for role, name in TABLES.items():
        rows = np.flatnonzero(is_short if role == "query" else ~is_short)
        texts = [gathered.texts[row] for row in rows]
        sources = [gathered.sources[row] for row in rows]
        numbers: dict[str, type] = {"length": np.int32}
        with TableWriter(folder / name, texts=["text", "source"], numbers=numbers) as table:
            table.append(
                text=pa.array(texts, pa.string()),
                source=pa.array(sources, pa.string()),
                length=[len(text) for text in texts],
            )
    apart = [source for source in section.sources if source not in used]
    return {**gathered.as_json(), "kept_apart": apart}

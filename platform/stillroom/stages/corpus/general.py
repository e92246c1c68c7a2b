"""The corpus's general texts: gathered, apart from pairs and passages, as queries or passages."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stillroom.config.corpus import GeneralTexts
from stillroom.data.cleaning.contamination_index import ContaminationIndex
from stillroom.data.general.gather import gather, is_query
from stillroom.stages.corpus.guards import Guards

TEXTS_FILE = "texts.parquet"
SCHEMA = pa.schema({"text": pa.string(), "source": pa.string(), "role": pa.string()})


def write_general_texts(
    section: GeneralTexts, index: ContaminationIndex, guards: Guards, folder: Path
) -> dict[str, Any]:
    """Writes texts.parquet, and returns counts by source, lengths and the texts' identity.

    Texts that match a query, an answer or a passage of any evaluation set are left out.
    """
    gathered = gather(
        max_texts=section.general,
        sources=section.sources,
        files=section.files,
        without_units=guards.units,
        is_tested=index.touches_many,
    )
    roles = ["query" if is_query(text) else "passage" for text in gathered.texts]
    columns = {"text": gathered.texts, "source": gathered.sources, "role": roles}
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / TEXTS_FILE, compression="zstd")
    return gathered.as_json()


def read_general_texts(folder: Path) -> dict[str, list[str]]:
    """Role → texts, in their order; none where the corpus has none."""
    if not (folder / TEXTS_FILE).exists():
        return {"query": [], "passage": []}
    table = pq.read_table(folder / TEXTS_FILE, columns=["text", "role"])
    return {
        role: table.filter(pc.equal(table["role"], role))["text"].to_pylist()
        for role in ("query", "passage")
    }

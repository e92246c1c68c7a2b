"""Predicted bytes of texts, vectors and negatives against files that the writers of them write."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from stillroom.encoders.vectors.stored import (
    DIGESTS_FILE,
    ORDER_FILE,
    POSITIONS_FILE,
    shard_path,
    write_array,
)
from stillroom.estimates.stage_sizes import (
    GIB,
    RAY,
    CorpusTexts,
    StageSize,
    corpus_size,
    negatives_size,
    training_size,
    vectors_size,
)
from stillroom.stages.corpus.writer import PAIR_NUMBERS, PASSAGE_NUMBERS
from stillroom.stages.vectors.digests import DIGEST_TYPE, SORTED_DIGESTS_FILE, SORTED_ROWS_FILE
from stillroom.storage.column_writer import TableWriter

PAIRS, NEGATIVES, PASSAGES, DIMS, PER_QUERY = 4000, 900, 5100, 24, 3
TEXTS = CorpusTexts(PAIRS, NEGATIVES, PASSAGES, query_bytes=40.0, passage_bytes=200.0)


def written(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_corpus_takes_the_bytes_of_its_columns(tmp_path):
    with TableWriter(tmp_path / "pairs", texts=["query"], numbers=PAIR_NUMBERS) as pairs:
        pairs.append(query=pa.array(["q" * 40] * PAIRS))
        for name in PAIR_NUMBERS:
            pairs.append(**{name: np.zeros(NEGATIVES if name == "negatives" else PAIRS)})
    with TableWriter(tmp_path / "passages", texts=["text"], numbers=PASSAGE_NUMBERS) as passages:
        passages.append(text=pa.array(["p" * 200] * PASSAGES))
        for name in PASSAGE_NUMBERS:
            passages.append(**{name: np.zeros(PASSAGES)})
    assert corpus_size(TEXTS, 2).stored == pytest.approx(written(tmp_path), rel=0.01)


def test_vectors_take_the_bytes_of_shards_orders_and_digests(tmp_path):
    for number, rows in enumerate((TEXTS.texts - 1000, 1000)):
        write_array(shard_path(tmp_path, number), np.zeros((rows, DIMS), dtype=np.float16))
    for name, dtype in (
        (ORDER_FILE, np.int64), (POSITIONS_FILE, np.int64), (DIGESTS_FILE, np.uint64),
        (SORTED_DIGESTS_FILE, DIGEST_TYPE), (SORTED_ROWS_FILE, np.int64),
    ):  # fmt: skip
        write_array(tmp_path / name, np.zeros(TEXTS.texts, dtype=dtype))
    size = vectors_size(TEXTS, DIMS, artifacts=1, model=0.0, actors=1)
    assert size.stored == pytest.approx(written(tmp_path), rel=0.01)


def test_negatives_take_the_bytes_of_rows_and_scores(tmp_path):
    np.save(tmp_path / "negatives.npy", np.zeros((PAIRS, PER_QUERY), dtype=np.int64))
    np.save(tmp_path / "scores.npy", np.zeros((PAIRS, PER_QUERY), dtype=np.float32))
    np.save(tmp_path / "positive_scores.npy", np.zeros(PAIRS, dtype=np.float32))
    size = negatives_size(
        TEXTS, PER_QUERY, artifacts=1, working_memory=GIB, index_memory=None, actors=1
    )
    assert size.stored == pytest.approx(written(tmp_path), rel=0.01)


def test_bytes_grow_with_the_texts_and_memory_does_not():
    ten_times = dataclasses.replace(
        TEXTS, pairs=10 * PAIRS, negatives=10 * NEGATIVES, passages=10 * PASSAGES
    )

    def sizes(texts):
        return [
            corpus_size(texts, 2),
            vectors_size(texts, DIMS, artifacts=2, model=GIB, actors=2),
            negatives_size(
                texts, PER_QUERY, artifacts=1, working_memory=GIB, index_memory=None, actors=2
            ),
        ]

    for few, many in zip(sizes(TEXTS), sizes(ten_times), strict=True):
        assert many.stored == pytest.approx(10 * few.stored)
        assert many.shared + many.local == pytest.approx(10 * (few.shared + few.local))
        assert many.total_memory == few.total_memory


def test_building_an_index_takes_memory_of_each_actor():
    options = {"artifacts": 1, "working_memory": 0.0, "actors": 2}
    plain, indexed = (
        negatives_size(TEXTS, PER_QUERY, index_memory=memory, **options).memory["actor"]
        for memory in (None, GIB)
    )
    assert indexed - plain == GIB


def test_a_node_holds_ray_the_driver_and_all_workers():
    phase = training_size("s", saved=1, trained=1000, worker=GIB, workers=3, checkpoints=2)
    assert (phase.shared, phase.local) == (2 * 12 * 1000, 0)
    of_one = phase.memory["driver"] + phase.memory["Ray Train"]
    assert phase.total_memory == RAY + of_one + 3 * phase.memory["worker"]
    assert StageSize("s", 0, 0, 0, {"task": 5.0}, {}).total_memory == RAY + 5

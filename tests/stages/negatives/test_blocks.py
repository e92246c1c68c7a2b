"""Finished blocks of mining, joined into the result with flat memory."""

import numpy as np

from stillroom.mining import mined as mined_module
from stillroom.mining.select import REASONS, SelectedNegatives
from stillroom.stages.negatives.blocks import BLOCKS_FOLDER, BlockFolder, MinedBlock
from support.peak_memory import peak_bytes


def random_block(rng, size):
    negatives = rng.integers(-1, 50, (size, 3))
    scores = np.where(negatives >= 0, rng.normal(size=(size, 3)), np.nan).astype(np.float32)
    rejected = dict.fromkeys(REASONS, int(rng.integers(0, 9)))
    positive = rng.normal(size=size).astype(np.float32)
    return MinedBlock(SelectedNegatives(negatives, scores, rejected), positive)


def test_blocks_of_any_size_are_one_result_and_its_summary_that_of_all_at_once(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(mined_module, "CHUNK", 16)
    rng = np.random.default_rng(0)
    folder, first, blocks = BlockFolder(tmp_path / BLOCKS_FOLDER), 0, []
    for size in (7, 30, 1, 12):
        blocks.append(random_block(rng, size))
        folder.write(first, blocks[-1])
        first += size
    folder.write(first + 5, random_block(rng, 4))  # behind a gap
    assert folder.finished() == 50
    mined = folder.join(tmp_path, 3, {"teacher": 1.0})
    scores = np.concatenate([block.selected.scores for block in blocks])
    negatives = np.concatenate([block.selected.negatives for block in blocks])
    positive = np.concatenate([block.positive_scores for block in blocks])
    np.testing.assert_array_equal(mined.negatives, negatives)
    np.testing.assert_array_equal(mined.scores, scores)
    np.testing.assert_array_equal(np.load(tmp_path / "positive_scores.npy"), positive)
    assert mined.rejected == {
        reason: sum(block.selected.rejected[reason] for block in blocks) for reason in REASONS
    }
    summary = mined.summary()
    assert summary["kept"] == (negatives >= 0).sum()
    assert summary["queries_without"] == (negatives < 0).all(1).sum()
    edges = np.array(summary["scores"]["edges"])
    finite = scores[np.isfinite(scores)]
    assert edges[[0, -1]].tolist() == [
        min(finite.min(), positive.min()), max(finite.max(), positive.max())
    ]  # fmt: skip
    assert summary["scores"]["negatives"] == np.histogram(finite, edges)[0].tolist()
    assert summary["scores"]["positives"] == np.histogram(positive, edges)[0].tolist()


def test_skipped_queries_get_no_negatives():
    block = random_block(np.random.default_rng(1), 4)
    skipped = block.without(np.array([False, True, False, True]))
    assert (skipped.selected.negatives[[1, 3]] == -1).all()
    assert np.isnan(skipped.selected.scores[[1, 3]]).all()
    np.testing.assert_array_equal(
        skipped.selected.negatives[[0, 2]], block.selected.negatives[[0, 2]]
    )


def test_memory_does_not_grow_with_the_queries(tmp_path, monkeypatch):
    monkeypatch.setattr(mined_module, "CHUNK", 8000)
    rng = np.random.default_rng(2)

    def peak(queries):
        out = tmp_path / str(queries)
        out.mkdir()
        folder = BlockFolder(out / BLOCKS_FOLDER)
        for first in range(0, queries, 8000):
            folder.write(first, random_block(rng, 8000))
        return peak_bytes(lambda: folder.join(out, 3, {}).summary())

    peak(8_000)
    few, many = peak(32_000), peak(320_000)
    assert many < 1.2 * few, (few, many)

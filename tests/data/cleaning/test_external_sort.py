"""Sorted runs, compared with sorting in memory."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.cleaning.external_sort import KEY_SPACE, SortedRuns, split_range

keys = st.integers(0, KEY_SPACE - 1) | st.sampled_from([0, 1, KEY_SPACE - 1, KEY_SPACE // 2])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(keys, max_size=30), max_size=5), st.integers(1, 20))
def test_ranges_of_sorted_runs_give_every_record_once_in_order(tmp_path_factory, runs, most):
    sorted_runs = SortedRuns(tmp_path_factory.mktemp("runs"))
    records, row = [], 0
    for name, run in enumerate(runs):
        hashes = np.array(run, dtype=np.uint64)
        sorted_runs.write(str(name), hashes, np.arange(row, row + len(run)))
        records += zip(run, range(row, row + len(run)), strict=True)
        row += len(run)
    read = [sorted_runs.read(part)[:2].T.tolist() for part in sorted_runs.hash_ranges(most)]
    assert [tuple(record) for part in read for record in part] == sorted(records)
    assert len(sorted_runs) == row


def test_a_run_that_is_written_again_counts_once(tmp_path):
    sorted_runs = SortedRuns(tmp_path)
    for _ in range(2):
        sorted_runs.write("one", np.array([3, 1], dtype=np.uint64), np.array([0, 1]))
    assert sorted_runs.read((0, KEY_SPACE)).tolist() == [[1, 3], [1, 0]]
    assert split_range(0, 5, 2) == [(0, 2), (2, 4), (4, 5)]

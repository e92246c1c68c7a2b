"""Sorted runs, compared with sorting in memory."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.cleaning.external_sort import (
    KEY_SPACE,
    RunWriter,
    SortedRuns,
    hash_borders,
    read_records,
    row_borders,
)
from stillroom.storage.shared_folder import SharedFolder

keys = st.integers(0, KEY_SPACE - 1) | st.sampled_from([0, 1, KEY_SPACE - 1, KEY_SPACE // 2])


def write(folder, name, borders, *columns, max_records=1000):
    writer = RunWriter(folder, name, borders, max_records)
    writer.add(*(np.array(column, dtype=np.uint64) for column in columns))
    return writer.finish()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(keys, max_size=30), max_size=5), st.integers(1, 20), st.integers(1, 20))
def test_ranges_of_sorted_runs_give_every_record_once_in_order(
    tmp_path_factory, parts, in_a_range, in_a_run
):
    folder = SharedFolder(str(tmp_path_factory.mktemp("runs")))
    borders = hash_borders(sum(map(len, parts)), in_a_range)
    records, runs = [], []
    for name, part in enumerate(parts):
        writer = RunWriter(folder, str(name), borders, in_a_run)
        for key in part:
            writer.add(np.array([key], dtype=np.uint64), np.array([len(records)]))
            records.append((key, len(records)))
        runs += writer.finish()
    read = [
        tuple(record)
        for number in range(len(borders))
        for record in read_records(folder, SortedRuns(runs).slices(number))[:2].T.tolist()
    ]
    assert read == sorted(records)
    whole = [read_records(folder, [run.whole()])[:2].T.tolist() for run in runs]
    assert sorted(tuple(record) for of_run in whole for record in of_run) == sorted(records)


def test_a_run_that_a_repeated_task_writes_again_counts_once(tmp_path):
    folder, borders = SharedFolder(str(tmp_path)), row_borders(0, 5, 2)
    assert borders.tolist() == [0, 2, 4]
    for _ in range(2):
        runs = SortedRuns(write(folder, "one", borders, [3, 1], [0, 1]))
    read = [read_records(folder, runs.slices(number))[:2].T.tolist() for number in range(3)]
    assert read == [[[1, 1]], [[3, 0]], []]


def test_ranges_may_be_empty_and_records_may_be_of_the_key_alone(tmp_path):
    folder, borders = SharedFolder(str(tmp_path)), np.array([0, 4, 4, 9], dtype=np.uint64)
    runs = SortedRuns(write(folder, "keys", borders, [9, 5, 4]))
    read = [read_records(folder, runs.slices(number))[0].tolist() for number in range(4)]
    assert read == [[], [], [4, 5], [9]]

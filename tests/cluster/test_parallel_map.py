"""Tasks on the cluster's nodes: their order, their errors, and where they may run."""

import os
import signal

import pytest

from stillroom.cluster.parallel_map import parallel_map
from stillroom.cluster.placement import (
    Place,
    _differing_files,
    file_identity,
    find_places,
)
from stillroom.errors import UserError


@pytest.fixture(autouse=True)
def _ray(ray_cluster):
    pass


def mapped(function, items, place=Place.ANY_NODE):
    return list(parallel_map(function, items, [place] * len(items)))


def test_results_come_in_the_order_of_the_items_wherever_they_were_made():
    items = list(range(9))
    places = [[*Place][number % 3] for number in items]
    results = list(parallel_map(lambda n: (n, os.getpid()), items, places))
    assert [number for number, _ in results] == items
    for (_, pid), place in zip(results, places, strict=True):
        assert (pid == os.getpid()) == (place is Place.DRIVER)
    assert mapped(str, []) == []


@pytest.mark.parametrize("place", [Place.ANY_NODE, Place.DRIVER])
def test_the_first_error_of_a_user_ends_it_and_nothing_runs_on(tmp_path, place):
    def fail(number):
        (tmp_path / str(number)).touch()
        if number == 3:
            raise UserError("row 3", "is wrong", "Correct it")

    with pytest.raises(UserError, match="row 3: is wrong"):
        mapped(fail, list(range(5000)), place)
    started = len(list(tmp_path.iterdir()))
    assert started < 5000
    assert mapped(str, [1], place) == ["1"]  # runs after all that were queued
    assert len(list(tmp_path.iterdir())) == started


def test_a_task_whose_process_is_killed_runs_again(tmp_path):
    def die_once(number):
        mark = tmp_path / str(number)
        if number == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert mapped(die_once, [1, 2, 3]) == [1, 2, 3]


def test_a_task_runs_on_any_node_if_all_nodes_have_its_files(tmp_path, monkeypatch):
    (tmp_path / "shared").write_text("x")
    files_of = [[], [str(tmp_path / "shared")], None]
    assert find_places(files_of) == [Place.ANY_NODE, Place.ANY_NODE, Place.DRIVER_NODE]
    # Ray's processes have another home, so this file is there for this process alone.
    monkeypatch.setenv("HOME", str(tmp_path))
    files_of = [["~/shared"], [str(tmp_path / "shared"), "~/shared"], [str(tmp_path / "shared")]]
    assert find_places(files_of) == [Place.DRIVER, Place.DRIVER, Place.ANY_NODE]


def test_another_file_of_the_same_name_is_not_the_same_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("here")
    here = file_identity(str(path))
    assert _differing_files({str(path): here}) == set()
    path.write_text("other")
    assert _differing_files({str(path): here}) == {str(path)}
    path.unlink()
    assert _differing_files({str(path): here}) == {str(path)}

import sys

import pytest

from stillroom.data.readers import docstrings
from stillroom.data.readers.docstrings import docstring_pairs, environment_fingerprint
from stillroom.errors import UserError

REST = "It goes on to explain in some length what happens to those who call it. " * 5
SOURCE = f'''"""Tools for the tiny thing that nobody needs.

{REST}
"""

class Weigher:
    """Weigh things on an old pair of scales.

    A Weigher, or tiny.Weigher, is slow. {REST}
    Weigh things on an old pair of scales.
    """

    def weigh_all(self):
        """Weigh everything there is, one after the other.

        weigh_all() is not weigh_all_of_it(). {REST}
        """

    def short(self):
        """Say something that is not worth a passage.

        Too short.
        """

def one_word():
    """Nothing.

    {REST}
    """
'''


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with files that are good, broken, a test, and absent."""
    files = {
        "tiny/__init__.py": SOURCE,
        "tiny/broken.py": 'def """',
        "tiny/latin.py": b'"""caf\xe9"""',
        "tiny/tests/test_it.py": SOURCE.replace("tiny thing", "test"),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    info = tmp_path / "tiny_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: Tiny.Dist\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in [*files, "tiny/gone.py"]))
    monkeypatch.syspath_prepend(str(tmp_path))
    return info


def test_the_summary_is_the_query_and_the_rest_is_the_passage(installed):
    queries = [pair.query for pair in docstring_pairs(["tiny_dist"])]
    assert queries == [
        "Tools for the tiny thing that nobody needs.",
        "Weigh things on an old pair of scales.",
        "Weigh everything there is, one after the other.",
    ]


def test_neither_the_name_nor_the_summary_is_left_in_the_passage(installed):
    _, weigher, method = docstring_pairs(["tiny-dist"])
    assert "Weigher" not in weigher.passage
    assert weigher.query not in weigher.passage
    assert "weigh_all()" not in method.passage
    assert "weigh_all_of_it" in method.passage  # the name of another function belongs to the answer
    assert "in some length" in method.passage


def test_nothing_is_imported(installed):
    list(docstring_pairs(["tiny-dist"]))
    assert "tiny.broken" not in sys.modules and "tiny_dist" not in sys.modules


def test_the_same_environment_gives_the_same_pairs(installed):
    first, second = (list(docstring_pairs(["numpy", "tiny-dist"])) for _ in range(2))
    assert first == second
    assert len(first) > 100
    assert all(len(pair.passage) >= 200 for pair in first)


def test_several_processes_give_the_same_pairs_in_the_same_order(monkeypatch):
    monkeypatch.setattr(docstrings, "PARALLEL_FROM_FILES", sys.maxsize)
    serial_pairs = list(docstring_pairs(["numpy"]))
    monkeypatch.setattr(docstrings, "PARALLEL_FROM_FILES", 0)
    assert list(docstring_pairs(["numpy"])) == serial_pairs


def test_the_fingerprint_changes_with_a_version_and_nothing_else(installed):
    before = environment_fingerprint(["tiny-dist", "numpy"])
    assert environment_fingerprint(["numpy", "Tiny.Dist"]) == before
    assert environment_fingerprint(["numpy"]) != before
    text = (installed / "METADATA").read_text()
    (installed / "METADATA").write_text(text.replace("1.0", "1.1"))
    assert environment_fingerprint(["numpy", "tiny-dist"]) != before


def test_a_package_that_is_not_installed_is_named():
    with pytest.raises(UserError, match="packages: no-such: is not installed"):
        list(docstring_pairs(["no-such"]))

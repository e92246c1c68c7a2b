"""Docstrings of a Python environment as pairs: summary line → the rest of the docstring."""

import ast
import functools
import hashlib
import importlib.metadata
import inspect
import multiprocessing
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from stillroom.data.readers.records import Pair
from stillroom.data.text.words import count_words
from stillroom.errors import UserError

OWN_PACKAGE = "stillroom"  # excluded: every version of it would give another corpus
PARALLEL_FROM_FILES = 500  # fewer are parsed before other processes have started
MAX_FILE_BYTES = 1 << 20  # larger files are generated code
SUMMARY_WORDS = range(4, 41)
MAX_PASSAGE_CHARACTERS = 1500  # more than any encoder here reads
TEST_PATH = re.compile(r"(^|/)(tests?|testing|_tests?)/|(^|/)(test_[^/]*|conftest)\.py$")
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstring_pairs(
    packages: Sequence[str] | None = None, *, min_passage_characters: int = 200
) -> Iterator[Pair]:
    """Pairs from the source files of installed distributions, always in the same order.

    Files are parsed, not imported. The summary and the documented name are removed from the
    passage; otherwise matching would be trivial.

    Args:
        packages: names of distributions; None takes all.
        min_passage_characters: skips shorter passages.

    Raises:
        UserError: when a named distribution is not installed.
    """
    distributions = [distribution for _, distribution in installed_packages(packages)]
    files = [file for distribution in distributions for file in source_files(distribution)]
    if len(files) < PARALLEL_FROM_FILES:
        for file in files:
            yield from read_docstrings(file, min_passage_characters)
        return
    # Spawned, not forked: the caller may hold threads and locks.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        parse = functools.partial(read_docstrings, min_passage_characters=min_passage_characters)
        for pairs in pool.map(parse, files, chunksize=64):
            yield from pairs


def environment_fingerprint(packages: Sequence[str] | None = None) -> str:
    """A hash of the distributions' names and versions."""
    versions = [
        f"{name} {distribution.version}" for name, distribution in installed_packages(packages)
    ]
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]


def installed_packages(
    packages: Sequence[str] | None = None,
) -> list[tuple[str, importlib.metadata.Distribution]]:
    """(normalised name, distribution), sorted; the first on the path wins, as on import.

    Args:
        packages: names of distributions; None takes all but this one.

    Raises:
        UserError: when a named distribution is not installed.
    """
    installed: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        if distribution.metadata["Name"]:
            installed.setdefault(normalise_name(distribution.metadata["Name"]), distribution)
    installed.pop(OWN_PACKAGE, None)
    if packages is None:
        return sorted(installed.items())
    for name in packages:
        if normalise_name(name) not in installed:
            raise UserError(f"packages: {name}", "is not installed", f"Run: pip install {name}")
    return sorted(
        (name, installed[name]) for name in {normalise_name(package) for package in packages}
    )


def normalise_name(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def source_files(distribution: importlib.metadata.Distribution) -> list[Path]:
    """The Python files of a distribution without its tests, sorted."""
    names = {
        file.as_posix()
        for file in distribution.files or ()
        if file.suffix == ".py" and not TEST_PATH.search(file.as_posix())
    }
    return [Path(str(distribution.locate_file(name))) for name in sorted(names)]


def read_docstrings(file: Path, min_passage_characters: int = 200) -> list[Pair]:
    """The docstrings of a source file as pairs; see `docstring_pairs`."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            return []
        source = file.read_bytes()
    except OSError:  # listed by the distribution, but absent
        return []
    if b'"""' not in source and b"'''" not in source:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # templates, Python 2
        return []
    pairs = []
    for node, name in _documented(tree, ""):
        docstring = ast.get_docstring(node, clean=False)
        if docstring and len(docstring) >= min_passage_characters:
            pair = _pair(inspect.cleandoc(docstring), name)
            if pair is not None and len(pair.passage) >= min_passage_characters:
                pairs.append(pair)
    return pairs


def _documented(node: ast.AST, parent: str) -> Iterator[tuple[Documented, str]]:
    """Modules, classes and functions with their qualified names, in the order of the file."""
    if isinstance(node, ast.Module):
        yield node, ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{parent}.{child.name}".lstrip(".")
            yield child, name
            yield from _documented(child, name)
        elif isinstance(child, ast.If | ast.Try):  # definitions that depend on a version
            yield from _documented(child, parent)


def _pair(docstring: str, name: str) -> Pair | None:
    first, _, rest = docstring.partition("\n\n")
    query = " ".join(first.split())
    if count_words(query) not in SUMMARY_WORDS:
        return None
    passage = _without_name(rest.replace(first, ""), name).strip()
    if len(passage) > MAX_PASSAGE_CHARACTERS:
        passage = passage[:MAX_PASSAGE_CHARACTERS].rsplit(None, 1)[0]
    return Pair(query, passage)


def _without_name(text: str, name: str) -> str:
    bare = name.rpartition(".")[2]
    if not bare or bare.startswith("__"):
        return text
    # `module.Class.method`, `Class.method` and `method` alike, as whole words.
    return re.sub(rf"(?<![\w.])(?:\w+\.)*{re.escape(bare)}(?!\w)", "", text)

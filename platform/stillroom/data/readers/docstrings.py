"""The documentation inside a Python environment, as pairs: summary → the rest of a docstring."""

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
from stillroom.errors import UserError

OWN = "stillroom"  # installed in another version it would make another corpus

FEW_FILES = 500  # are parsed before other processes have started

LARGEST_FILE = 1 << 20  # bytes; beyond it a file is generated

SUMMARY_WORDS = range(4, 41)

LONGEST_PASSAGE = 1500  # characters; more than any encoder here reads

TESTS = re.compile(r"(^|/)(tests?|testing|_tests?)/|(^|/)(test_[^/]*|conftest)\.py$")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstring_pairs(
    packages: Sequence[str] | None = None, *, min_passage: int = 200
) -> Iterator[Pair]:
    """Pairs from the source files of installed distributions, always in the same order.

    Nothing is imported: files are parsed. The summary, and the name of what is documented, are
    taken out of the passage, which must not give the answer away.

    Args:
        packages: names of distributions; None takes all.
        min_passage: characters, fewer of which are no passage.

    Raises:
        UserError: when a named distribution is not installed.
    """
    files = [file for _, named in _distributions(packages) for file in _sources(named)]
    if len(files) < FEW_FILES:
        for file in files:
            yield from _pairs_of(file, min_passage)
        return
    # Spawned, not forked: the caller may hold threads and locks.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        parse = functools.partial(_pairs_of, min_passage=min_passage)
        for pairs in pool.map(parse, files, chunksize=64):
            yield from pairs


def environment_fingerprint(packages: Sequence[str] | None = None) -> str:
    """A hash of the distributions' names and versions."""
    found = [f"{name} {distribution.version}" for name, distribution in _distributions(packages)]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]


def _distributions(
    packages: Sequence[str] | None,
) -> list[tuple[str, importlib.metadata.Distribution]]:
    """By normalised name, in its order; the first on the path wins, as it does on import."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        if distribution.metadata["Name"]:
            found.setdefault(_normal(distribution.metadata["Name"]), distribution)
    found.pop(OWN, None)
    if packages is None:
        return sorted(found.items())
    for name in packages:
        if _normal(name) not in found:
            raise UserError(f"packages: {name}", "is not installed", f"Run: pip install {name}")
    return sorted((name, found[name]) for name in {_normal(package) for package in packages})


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _sources(distribution: importlib.metadata.Distribution) -> list[Path]:
    names = {
        file.as_posix()
        for file in distribution.files or ()
        if file.suffix == ".py" and not TESTS.search(file.as_posix())
    }
    return [Path(str(distribution.locate_file(name))) for name in sorted(names)]


def _pairs_of(file: Path, min_passage: int) -> list[Pair]:
    try:
        if file.stat().st_size > LARGEST_FILE:
            return []
        source = file.read_bytes()
    except OSError:  # listed by the distribution, but not there
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
        if docstring and len(docstring) >= min_passage:
            pair = _pair(inspect.cleandoc(docstring), name)
            if pair is not None and len(pair.passage) >= min_passage:
                pairs.append(pair)
    return pairs


def _documented(node: ast.AST, within: str) -> Iterator[tuple[Documented, str]]:
    """Modules, classes and functions with their qualified names, in the file's order."""
    if isinstance(node, ast.Module):
        yield node, ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{within}.{child.name}".lstrip(".")
            yield child, name
            yield from _documented(child, name)
        elif isinstance(child, ast.If | ast.Try):  # definitions that depend on a version
            yield from _documented(child, within)


def _pair(docstring: str, name: str) -> Pair | None:
    first, _, rest = docstring.partition("\n\n")
    query = " ".join(first.split())
    if len(query.split()) not in SUMMARY_WORDS:
        return None
    passage = _without_name(rest.replace(first, ""), name).strip()
    if len(passage) > LONGEST_PASSAGE:
        passage = passage[:LONGEST_PASSAGE].rsplit(None, 1)[0]
    return Pair(query, passage)


def _without_name(text: str, name: str) -> str:
    bare = name.rpartition(".")[2]
    if not bare or bare.startswith("__"):
        return text
    # `module.Class.method`, `Class.method` and `method` alike, as whole words.
    return re.sub(rf"(?<![\w.])(?:\w+\.)*{re.escape(bare)}(?!\w)", "", text)

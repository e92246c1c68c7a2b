"""Every promise has tests that prove it, and the table in tests/README.md names exactly these.

A test is given to a promise by `@pytest.mark.promise("NAME")`. After a change, `make promises`
(`python tests/test_promises.py --write`) writes the table anew.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "tests" / "README.md"
BEGIN, END = "<!-- promises: `make promises` writes this table -->", "<!-- end of promises -->"
PROMISES = {
    "gradients": "Gradients of every loss are equal for 1, 2 and 4 workers at the same global "
    "batch, with and without GradCache, under every ZeRO stage that we document.",
    "resume": "A killed run resumed gives the same batch order and the same losses as an "
    "uninterrupted one.",
    "attention": "Under `bidirectional` attention the last token changes the first token's state; "
    "under `causal` it does not. Padded on either side, and packed.",
    "vectors": "The vector of a text does not depend on its neighbours in the batch, on their "
    "order, or on the path that made it (training, embedding, export, HTTP), within tolerances.",
    "pipeline": "A pipeline run twice does no work the second time; a changed field re-runs only "
    "what depends on it; a crash at any point leaves no artifact that looks whole.",
    "mining": "Mining equals brute force; no positive, duplicate of a positive, or evaluation "
    "passage is ever a negative.",
    "routing": "The router never mixes spaces, never drops an accepted request on a rolling update "
    "or the death of a replica, and answers overload with 429 or 503 and Retry-After.",
}


def marked_tests() -> dict[str, list[str]]:
    """`FILE::TEST` of every marked test, by promise."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    [name] = (ast.literal_eval(argument) for argument in mark.args)
                    test = f"{file.relative_to(ROOT)}::{node.name}"
                    assert node.name.startswith("test_"), f"{test} is no test"
                    found.setdefault(name, []).append(test)
    return found


def table() -> str:
    marked = marked_tests()
    rows = ["| Promise | Tests |", "| --- | --- |"]
    for name, promise in PROMISES.items():
        tests = "<br>".join(f"`{test}`" for test in marked.get(name, ()))
        rows.append(f"| **{name}**: {promise} | {tests} |")
    return "\n".join(rows)


def readme_parts() -> tuple[str, str, str]:
    """The README before the table, the table, and what follows."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    written, after = rest.split(END)
    return before, written.strip(), after


def test_every_promise_has_a_test_and_every_marked_test_a_promise():
    assert marked_tests().keys() == PROMISES.keys()


def test_the_readme_names_exactly_the_tests_that_are_marked():
    assert readme_parts()[1] == table(), "run `make promises`"


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], "usage: python tests/test_promises.py --write"
    start, _, rest = readme_parts()
    README.write_text(f"{start}{BEGIN}\n{table()}\n{END}{rest}", encoding="utf-8")

"""Shared by the commands: the application, common arguments, loading models, printing."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from stillroom.errors import UserError, isolate, isolate_words, without_controls
from stillroom.storage.root import ROOT_VARIABLE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distil a large text embedder into a small one on your own data, and serve both.\n\n"
    "Start with `stillroom init my.yaml`, `stillroom check my.yaml`, `stillroom run my.yaml`."
    "\n\nAny command with --debug shows the traceback of an error. Exit codes: 0 done, 1 failed, 2 "
    "wrong usage or input.",
)

runs_app = typer.Typer()
release_app = typer.Typer(no_args_is_help=True, help="Make releases of your own models.")
vectors_app = typer.Typer(no_args_is_help=True, help="Share a teacher's vectors with others.")
data_app = typer.Typer(no_args_is_help=True, help="Describe, clean or generate data.")


class SafeConsole(Console):
    """A console that texts cannot control: somebody else may have written a corpus or a model.

    Only rich's own styles become escape sequences. What is written from right to left does not turn
    what stands beside it.
    """

    _rendering = threading.local()

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        isolated: Callable[[str], str] = isolate_words
        if isinstance(renderable, Table) and renderable.box is not None:
            isolated = isolate  # each cell by itself
        is_part = getattr(self._rendering, "active", False)
        self._rendering.active = True
        try:
            for text, style, control in super().render(renderable, options):
                shown = text
                if not control and not is_part:  # at last, since widths are computed before
                    shown = isolated(without_controls(text))
                yield Segment(shown, style, control)
        finally:
            self._rendering.active = is_part


out = SafeConsole(emoji=False)  # `random:llama:` is a model, not an emoji
err = SafeConsole(stderr=True, emoji=False)

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's YAML file, such as my.yaml.")
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.field=value]...", help="Fields to override, such as seed=3."),
]

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, an artifact such as student/quickstart, a hub id, or package:MODULE/PATH.",
    ),
]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
]

Root = Annotated[
    str,
    typer.Option(envvar=ROOT_VARIABLE, help="Where artifacts live: a folder, or s3:// or gs://."),
]

TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
]

PromptName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="One of the prompts that the model's own files name."),
]

MinScore = Annotated[
    float | None,
    typer.Option(help="Leave out pairs with a lower score; for files with a score column."),
]

ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE",
        help="For a model behind an API: the environment variable that holds its key, or `none`.",
    ),
]


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Keeps stdout for the JSON document: output of libraries and Ray workers goes to stderr."""
    sys.stdout.flush()
    stdout_copy = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout_copy, 1)
        os.close(stdout_copy)


def require_lasting_root(root: str) -> str:
    """Returns `root` if it outlasts the cluster job that writes to it.

    Raises:
        UserError: for a relative path, which is in the job's working directory.
    """
    if "://" in root or Path(root).is_absolute():
        return root
    raise UserError(
        "root",
        f"{root!r} is in the job's working directory, which is deleted when the job ends",
        f"Set root (or {ROOT_VARIABLE}) to s3://BUCKET/PREFIX, or to the absolute path of a folder "
        "that all nodes share",
    )


def check_pooling(pooling: str | None, option: str) -> Any:
    """Returns a `Pooling`, or None. Raises UserError for other values of the option."""
    from stillroom.encoders.contract import Pooling

    poolings = get_args(Pooling)
    if pooling is not None and pooling not in poolings:
        raise UserError(option, f"{pooling!r} is unknown", f"Use one of {', '.join(poolings)}")
    return pooling


def load_model(
    model: str, root: str, *, trust_remote_code: bool = False, api_key_env: str | None = None
) -> Any:
    """Loads the encoder with this name: weights, an export, or an API.

    Args:
        api_key_env: the environment variable with an API's key, or `none`; None refuses APIs. An
            API's answers are cached under the root.
    """
    from stillroom.encoders.api_encoder import ApiAccess
    from stillroom.encoders.export.runtimes import ExportedEncoder, is_exported
    from stillroom.encoders.files.load import load_encoder
    from stillroom.encoders.model_names import locate_model, resolve_artifact_name
    from stillroom.openai_client.api_key import read_api_key
    from stillroom.storage.artifacts import Store

    store = Store(root)
    named = resolve_artifact_name(model, store)
    folder = locate_model(named, include_code=trust_remote_code)
    if is_exported(folder):
        return ExportedEncoder(folder)
    access = None
    if api_key_env is not None:
        key = read_api_key(None if api_key_env == "none" else api_key_env, "--api-key-env")
        access = ApiAccess(key=key, cache=store.local_folder / ".answers.sqlite")
    return load_encoder(named, trust_remote_code=trust_remote_code, access=access)


def print_json(document: Any) -> None:
    """Prints one line of JSON on stdout."""
    print(json.dumps(document))


def print_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None
) -> None:
    """Prints a table on stdout; cells may hold rich markup."""
    table = Table(*map(without_controls, header), title=title)
    for row in rows:  # without what the console would replace, since widths are computed before
        table.add_row(*map(without_controls, row))
    out.print(table)


def print_report(report: dict[str, Any]) -> None:
    """Prints the scores of report.json: a table of models, and one per model of small vectors."""
    from stillroom.reports.tables import (
        bm25_languages,
        elsewhere_table,
        score_table,
        set_notes,
        small_vector_table,
        unreliable_speeds,
        verdict,
    )

    header, *rows = score_table(report)
    print_table(header, rows)
    if elsewhere := elsewhere_table(report):
        print_table(elsewhere[0], elsewhere[1:], title="elsewhere: sets from other fields")
    notes = (unreliable_speeds(report), bm25_languages(report), *set_notes(report))
    for note in filter(None, notes):
        out.print(note, soft_wrap=True)
    for name, model in report["models"].items():
        if "vectors" in model:
            header, *rows = small_vector_table(model["vectors"])
            print_table(header, rows, title=f"{name} in small vectors")
    if (sentence := verdict(report)) is not None:
        out.print(sentence, soft_wrap=True)


def print_findings(findings: Iterable[Any], as_json: bool) -> None:
    """Prints what a preflight check found, with a fix under every problem."""
    if as_json:
        print_json({"findings": [vars(finding) for finding in findings]})
        return
    for finding in findings:
        mark = "[green]ok [/]" if finding.ok else "[red]bad[/]"
        out.print(f"{mark} {finding.what}: {finding.detail}", soft_wrap=True)
        if not finding.ok:
            out.print(f"    {finding.fix}", soft_wrap=True)

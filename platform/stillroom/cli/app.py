"""What every command shares: the application, the consoles, common arguments."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stillroom.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Distil a large text embedder into a small one, on your own data, and serve both.\n\n"
    "Add --debug to any command to see where an error came from.",
)

runs_app = typer.Typer()

app.add_typer(runs_app, name="runs", invoke_without_command=True)

data_app = typer.Typer(no_args_is_help=True, help="Look at data, clean it, have some written.")

app.add_typer(data_app, name="data")

out = Console()

err = Console(stderr=True)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's YAML file.")]

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Overrides of its fields.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]

Root = Annotated[
    str, typer.Option(envvar="STILLROOM_ROOT", help="Where artifacts live: a folder or a URI.")
]


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Keeps standard output for the document: libraries, and Ray for its workers, print there."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def lasting(root: str) -> str:
    """The root of a job's artifacts, which must outlast the job.

    Raises:
        UserError: for a folder of the job's own.
    """
    if "://" in root or Path(root).is_absolute():
        return root
    raise UserError(
        "root",
        f"{root!r} would lie in the job's own folder, which goes when the job ends",
        "Set root=s3://bucket/prefix, or the absolute path of a folder that all nodes share (or "
        "STILLROOM_ROOT)",
    )


TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python that the model brings with it.")
]

KeyVariable = Annotated[
    str | None,
    typer.Option(
        help="Ask the API that the model is, with the key in this environment variable, or none."
    ),
]


def load_model(
    model: str, root: str, *, trust_remote_code: bool = False, key_variable: str | None = None
) -> Any:
    """An embedder.

    Args:
        key_variable: lets an API be asked, whose answers are kept under the root.
    """
    from stillroom.encoders.api_encoder import Access
    from stillroom.encoders.export.runtimes import Exported, is_exported
    from stillroom.encoders.files.load import load
    from stillroom.encoders.model_names import locate, of_artifact
    from stillroom.openai_client.client import key_in
    from stillroom.storage.artifacts import Store

    store = Store(root)
    named = of_artifact(model, store)
    folder = locate(named, code=trust_remote_code)
    if is_exported(folder):
        return Exported(folder)
    access = None
    if key_variable is not None:
        key = key_in(None if key_variable == "none" else key_variable, "--key-variable")
        access = Access(key=key, cache=store.work / ".answers.sqlite")
    return load(named, trust_remote_code=trust_remote_code, access=access)


def print_report(report: dict[str, Any]) -> None:
    from stillroom.reports.render import small_table, table

    tables: dict[str | None, list[list[str]]] = {None: table(report)}
    for name, model in report["models"].items():
        if "vectors" in model:
            tables[f"{name} in small vectors"] = small_table(model["vectors"])
    for title, (header, *rows) in tables.items():
        shown = Table(*header, title=title)
        for row in rows:
            shown.add_row(*row)
        out.print(shown)

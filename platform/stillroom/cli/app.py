"""What every command shares: the application, the consoles, common arguments."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

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


def load_model(model: str, root: str) -> Any:
    from stillroom.artifacts import Store
    from stillroom.encoders.locate import locate, of_artifact
    from stillroom.encoders.runtimes import Exported, is_exported
    from stillroom.encoders.store import load

    named = of_artifact(model, Store(root))
    folder = locate(named)
    return Exported(folder) if is_exported(folder) else load(named)


def print_report(report: dict[str, Any]) -> None:
    from stillroom.measure.render import table

    header, *rows = table(report)
    shown = Table(*header, title=None)
    for row in rows:
        shown.add_row(*row)
    out.print(shown)

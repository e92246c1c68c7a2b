"""The `stillroom` command. Commands import torch and Ray only when they need them."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.logging import RichHandler

from stillroom.cli.app import app, data_app, err, release_app, runs_app, vectors_app
from stillroom.cli.data import decontaminate, describe, general, synthesize
from stillroom.cli.doctor import doctor
from stillroom.cli.export import export
from stillroom.cli.init import init
from stillroom.cli.mine import mine
from stillroom.cli.models import encode, evaluate, serve
from stillroom.cli.recipes import check, plan, run
from stillroom.cli.releases import create
from stillroom.cli.runs import prune, runs, show
from stillroom.cli.submit import submit
from stillroom.cli.vectors import import_, publish
from stillroom.cluster.library_messages import IGNORED_MESSAGES
from stillroom.errors import user_error_within
from stillroom.observability import log_context

Command = Callable[..., None]

# In the order of `--help`, which shows groups after the commands.
COMMANDS: tuple[Command, ...] = (
    init, check, plan, run, submit, evaluate, encode, mine, export, serve, doctor,
)  # fmt: skip
DATA_COMMANDS: tuple[Command, ...] = (describe, general, synthesize, decontaminate)
RELEASE_COMMANDS: tuple[Command, ...] = (create,)
RUNS_COMMANDS: tuple[Command, ...] = (show, prune)
VECTORS_COMMANDS: tuple[Command, ...] = (publish, import_)

for group, commands in (
    (app, COMMANDS),
    (data_app, DATA_COMMANDS),
    (release_app, RELEASE_COMMANDS),
    (runs_app, RUNS_COMMANDS),
    (vectors_app, VECTORS_COMMANDS),
):
    for command in commands:
        group.command(command.__name__.rstrip("_"))(command)  # `import` is a word of Python
runs_app.callback()(runs)
app.add_typer(data_app, name="data")
app.add_typer(release_app, name="release")
app.add_typer(runs_app, name="runs", invoke_without_command=True)
app.add_typer(vectors_app, name="vectors")

__all__ = ["app", "main"]


def main(*arguments: str) -> None:
    """Runs a command line (default: the arguments of this process) and exits.

    Exit codes: 0 for done, 1 for failed, 2 for wrong usage or input.
    """
    words = list(arguments or sys.argv[1:])
    if debug := "--debug" in words:
        words.remove("--debug")
    _log_to_stderr()
    _make_local_ray_private()
    try:
        app(words)  # exits by itself; with 2 for wrong usage
    except Exception as error:
        if debug:
            raise
        sys.exit(_report_error(error))


def _report_error(error: BaseException) -> int:
    """Prints an error in one line; returns the exit code."""
    if (cause := user_error_within(error)) is not None:
        _print_error(f"error: {cause}")
        return cause.code
    text = str(error).strip() or repr(error)
    _print_error(f"failed: {type(error).__name__}: {text.splitlines()[-1]}")
    if not log_context.json_lines_enabled():
        err.print("Add --debug to see the traceback.")
    return 1


def _make_local_ray_private() -> None:
    """Makes a local Ray listen on this machine only, and require a token.

    Ray reads both settings when it is imported.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    # Gives Ray's nodes the address 127.0.0.1, as on macOS and Windows.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        with contextlib.suppress(OSError):  # others must not read the token that Ray stores there
            (Path.home() / ".ray").mkdir(mode=0o700)


def _print_error(line: str) -> None:
    if log_context.json_lines_enabled():
        logging.getLogger("stillroom").error(line)
    else:
        err.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def _log_to_stderr() -> None:
    handler: logging.Handler = logging.StreamHandler()
    if log_context.json_lines_enabled():
        handler.setFormatter(log_context.JsonFormatter())
        logging.captureWarnings(True)
    elif err.is_terminal:
        handler = RichHandler(console=err, show_path=False)
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.setLevel(logging.INFO)
    log = logging.getLogger("stillroom")
    log.setLevel(logging.INFO)
    (logging.getLogger() if log_context.json_lines_enabled() else log).addHandler(handler)
    defaults = {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # our own lines show progress
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS_ALLOW_REGEX": r"^step \d",  # keep every line of training progress
        "RAY_DEDUP_LOGS_SKIP_REGEX": IGNORED_MESSAGES,  # in workers' output, which Ray prints
    }
    if log_context.json_lines_enabled() or not err.is_terminal:
        defaults["TQDM_DISABLE"] = "1"  # progress bars of libraries would garble a log
    for name, value in defaults.items():
        os.environ.setdefault(name, value)

"""The `stillroom` command: parse, call, print. Torch and Ray are imported late."""

import contextlib
import logging
import os
import sys
from pathlib import Path

from rich.logging import RichHandler

from stillroom.cli.app import app, err
from stillroom.errors import UserError
from stillroom.observability import log_context as logs

# isort: off
# isort: on


__all__ = ["app", "main"]


def main(*given: str) -> None:
    """Runs a command line, by default the process's own; exits with 0 for done, 1 for failed, 2 for
    what the user can mend."""
    words = list(given or sys.argv[1:])
    if debug := "--debug" in words:
        words.remove("--debug")
    _log_to_stderr()
    _keep_ray_at_home()
    try:
        app(words)  # which exits by itself, with 2 for bad usage
    except Exception as fault:
        if debug:
            raise
        sys.exit(_explain(fault))


def _explain(fault: BaseException) -> int:
    """Says what went wrong in one line; the code to exit with."""
    cause: BaseException | None = fault
    while cause is not None:  # Ray and its trainers wrap what their workers raised
        if isinstance(cause, UserError):
            _complain(f"error: {cause}")
            return cause.code
        cause = getattr(cause, "cause", None) or cause.__cause__
    text = str(fault).strip() or repr(fault)
    _complain(f"failed: {type(fault).__name__}: {text.splitlines()[-1]}")
    if not logs.as_json():
        err.print("Add --debug to see where.")
    return 1


def _keep_ray_at_home() -> None:
    """A Ray that we start is reached from this machine alone, and with a token. Ray reads both
    settings when it is imported."""
    if os.environ.get("RAY_ADDRESS"):
        return
    # Its nodes then have the address 127.0.0.1, as they do on macOS and Windows.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        with contextlib.suppress(OSError):  # nobody else shall read the token that Ray puts there
            (Path.home() / ".ray").mkdir(mode=0o700)


def _complain(line: str) -> None:
    if logs.as_json():
        logging.getLogger("stillroom").error(line)
    else:
        err.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def _log_to_stderr() -> None:
    handler: logging.Handler = logging.StreamHandler()
    if logs.as_json():
        handler.setFormatter(logs.JsonLines())
        logging.captureWarnings(True)
    elif err.is_terminal:
        handler = RichHandler(console=err, show_path=False)
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.setLevel(logging.INFO)
    log = logging.getLogger("stillroom")
    log.setLevel(logging.INFO)
    (logging.getLogger() if logs.as_json() else log).addHandler(handler)
    quieter = {
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # they are noise beside our own lines
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS_ALLOW_REGEX": r"^step \d",  # every line of training's progress is news
    }
    if logs.as_json() or not err.is_terminal:
        quieter["TQDM_DISABLE"] = "1"  # the bars of libraries garble a log
    for name, value in quieter.items():
        os.environ.setdefault(name, value)

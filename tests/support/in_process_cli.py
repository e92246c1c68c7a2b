"""The `stillroom` command in this process: seconds faster than a separate process.

For commands that start no Ray and end by themselves. Afterwards the process's folder, environment
and loggers are as before.
"""

import contextlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

from stillroom.cli import main

LOGGERS = (None, "stillroom", "ray", "ray.data")


def run_command(
    *words: object, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs `stillroom WORDS` and returns what `subprocess.run` with captured text would.

    Args:
        env: variables set on top of this process's environment.
    """
    command = [str(word) for word in words]
    before, ray_before = Path.cwd(), _ray_runs()
    with (
        mock.patch.dict(os.environ, env or {}),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        _restored_loggers(),
        _captured(1, "stdout") as out,
        _captured(2, "stderr") as err,
    ):
        os.chdir(cwd)
        code = 0
        try:
            main(*command)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            os.chdir(before)
    if not ray_before and _ray_runs():
        sys.modules["ray"].shutdown()
        raise AssertionError(f"{' '.join(command)} starts Ray: it needs a process of its own")
    return subprocess.CompletedProcess(command, code, out[0], err[0])


def _ray_runs() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextlib.contextmanager
def _captured(descriptor: int, name: str) -> Iterator[list[str]]:
    """Yields a list that holds the text at the end. The descriptor itself is redirected too, as
    commands move it to keep libraries' output out of a JSON document."""
    texts: list[str] = []
    original = os.dup(descriptor)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            with (
                open(descriptor, "w", encoding="utf-8", closefd=False) as stream,
                mock.patch.object(sys, name, stream),
            ):
                yield texts
        finally:
            os.dup2(original, descriptor)
            os.close(original)
            file.seek(0)
            texts.append(file.read().decode())


@contextlib.contextmanager
def _restored_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    states = [(logger, logger.level, logger.propagate, [*logger.handlers]) for logger in loggers]
    try:
        yield
    finally:
        for logger, level, propagate, handlers in states:
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers[:] = handlers

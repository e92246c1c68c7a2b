"""What happens in a run, written as it happens, so that of a run that was killed all is known.

ROOT/.runs/ID/ has a JSON file for each event, named by its time; alive.json, written anew every few
seconds while the run lives; and log.jsonl, the lines of the run's driver and of its workers. Any
process of a run may write events: each is a file of its own, whole or absent.
"""

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pyarrow import fs

from stillroom.errors import UserError
from stillroom.observability.log_context import JsonLines, as_json, telling, told
from stillroom.storage.artifacts import Store, atomic_json

log = logging.getLogger(__name__)

FOLDER = ".runs"

ALIVE, LOG = "alive.json", "log.jsonl"

ALIVE_S = 20.0  # between two signs of life

LOOK_S = 0.5  # between two looks at how much memory the driver holds

EVENT = re.compile(r"\d{17}-[0-9a-f]{6}\.json")

WORKERS = "stillroom-workers"  # the logger of lines that Ray brings; not below ours, which prints

Event = dict[str, Any]  # "at" in seconds since 1970, "event", and what belongs to it


def note(store: Store, event: str, **fields: Any) -> None:
    """Writes an event of the run that this process works for, if it works for one.

    A run goes on without its journal: what cannot be written is told in the log.
    """
    if "run" not in told():
        return
    at = time.time()
    name = f"{int(at * 1e6):017d}-{uuid.uuid4().hex[:6]}.json"
    _write(store, f"{told()['run']}/{name}", {"at": at, "event": event, **fields})


@contextmanager
def journal(store: Store, about: Mapping[str, Any]) -> Iterator["Journal"]:
    """Around a run. One that finds everything made leaves nothing.

    Args:
        about: what is told of the run as a whole.
    """
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    kept = Journal(store, run, about)
    with telling(run=run):
        try:
            yield kept
        except BaseException as fault:
            kept.end("failed" if isinstance(fault, Exception) else "stopped", fault)
            raise
        kept.end("done", None)


class Journal:
    """A run's driver's hand in its journal."""

    def __init__(self, store: Store, run: str, about: Mapping[str, Any]):
        self.store, self.run, self.about = store, run, about
        self.began = time.time()
        self._before: list[str] = []  # artifacts that were there already, until something is made
        self._process = psutil.Process()
        self._peak = 0  # bytes that the driver has held since the stage began
        self._over = threading.Event()
        self._watch: threading.Thread | None = None
        self._lines: logging.Handler | None = None

    @property
    def begun(self) -> bool:
        return self._watch is not None

    def reused(self, ref: str) -> None:
        """An artifact was there already."""
        if self.begun:
            note(self.store, "reused", ref=ref)
        else:
            self._before.append(ref)

    @contextmanager
    def stage(self, ref: str) -> Iterator[dict[str, Any]]:
        """Around a stage at work; what is put into the dict is told with its end."""
        if not self.begun:
            self._begin()
        note(self.store, "stage begins", ref=ref)
        self._peak, ends = self._process.memory_info().rss, dict[str, Any]()
        with telling(stage=ref):
            try:
                yield ends
            except BaseException as fault:
                note(self.store, "stage fails", ref=ref, error=_in_a_line(fault))
                raise
        note(self.store, "stage ends", ref=ref, **{"memory_gib": self._peak / 2**30} | ends)

    def end(self, outcome: str, fault: BaseException | None) -> None:
        if self._watch is None or self._lines is None:
            return
        self._over.set()
        self._watch.join()
        note(self.store, "run ends", outcome=outcome, error=_in_a_line(fault))
        for name in ("stillroom", WORKERS):
            logging.getLogger(name).removeHandler(self._lines)
        self._lines.close()
        self._bring_lines()

    def _begin(self) -> None:
        note(self.store, "run begins", began=self.began, **self.about)
        for ref in self._before:
            note(self.store, "reused", ref=ref)
        file = self._file()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._lines = logging.FileHandler(file, encoding="utf-8")
        except OSError as fault:
            log.warning("the run's log cannot be kept: %s", fault)
            self._lines = logging.NullHandler()
        self._lines.setFormatter(JsonLines())
        for name in ("stillroom", WORKERS):
            logging.getLogger(name).addHandler(self._lines)
        workers = logging.getLogger(WORKERS)
        workers.setLevel(logging.INFO)
        workers.propagate = as_json()  # else Ray prints them itself
        self._watch = threading.Thread(target=self._live, name="journal", daemon=True)
        self._watch.start()
        log.info("run %s: `stillroom runs show %s` tells how it went", self.run, self.run)

    def _live(self) -> None:
        due = 0.0
        while True:
            self._peak = max(self._peak, self._process.memory_info().rss)
            if time.monotonic() >= due:
                due = time.monotonic() + ALIVE_S
                _write(self.store, f"{self.run}/{ALIVE}", {"at": time.time()})
                self._bring_lines()
            if self._over.wait(LOOK_S):
                return

    def _file(self) -> Path:
        return self.store.work / FOLDER / self.run / LOG

    def _bring_lines(self) -> None:
        """The lines so far, to a root that is elsewhere."""
        if not self.store.local:
            there = f"{self.store.base}/{FOLDER}/{self.run}/{LOG}"
            try:
                fs.copy_files(str(self._file()), there, fs.LocalFileSystem(), self.store.fs)
            except OSError as fault:
                log.warning("the run's log is on this machine alone, %s: %s", self._file(), fault)


def runs(store: Store) -> list[str]:
    """Ids of the runs under a root that made anything or tried to, newest first."""
    found = store.fs.get_file_info(fs.FileSelector(f"{store.base}/{FOLDER}", allow_not_found=True))
    return sorted((i.base_name for i in found if i.type == fs.FileType.Directory), reverse=True)


def read(store: Store, run: str) -> tuple[list[Event], float | None]:
    """A run's events in order, and when it gave its last sign of life; there may be none."""
    selector = fs.FileSelector(f"{store.base}/{FOLDER}/{run}", allow_not_found=True)
    names = [info.base_name for info in store.fs.get_file_info(selector)]
    events = [_read(store, f"{run}/{name}") for name in sorted(names) if EVENT.fullmatch(name)]
    alive = _read(store, f"{run}/{ALIVE}")["at"] if ALIVE in names else None
    return events, alive


def find(store: Store, named: str) -> str:
    """A run by its id, by that of the job that it was, or by an artifact that it made or tried to.

    Raises:
        UserError: when there is none; it lists the newest.
    """
    known = runs(store)
    if named in known:
        return named
    for run in known:
        events, _ = read(store, run)
        for event in events:
            if event.get("job") == named or (
                event["event"].startswith("stage") and event.get("ref") == named
            ):
                return run
    raise UserError(
        named,
        f"is no run under {store.root}, and no job's or artifact's name that one there had; the "
        f"newest are {', '.join(known[:5]) or 'none'}",
        "Name one of these, or another --root",
    )


def _in_a_line(fault: BaseException | None) -> str | None:
    return None if fault is None else " ".join(f"{type(fault).__name__}: {fault}".split())[:2000]


def _write(store: Store, path: str, content: Event) -> None:
    try:
        if store.local:
            file = store.work / FOLDER / path
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_json(file, content)
        else:
            with store.fs.open_output_stream(f"{store.base}/{FOLDER}/{path}") as stream:
                stream.write(json.dumps(content).encode())
    except OSError as fault:
        log.warning("the run's journal lacks %s: %s", path, fault)


def _read(store: Store, path: str) -> Event:
    with store.fs.open_input_stream(f"{store.base}/{FOLDER}/{path}") as stream:
        return dict(json.loads(stream.read()))

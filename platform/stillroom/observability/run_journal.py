"""A run's events, written as they happen, so that the journal of a killed run is complete.

ROOT/.runs/ID/ has a JSON file for each event, named by its time; alive.json, rewritten every few
seconds while the run lives; and log.jsonl, the lines of the run's driver and its workers. Any
process of a run may write events: each event is a separate file, complete or absent.
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

from stillroom.errors import UserError, one_line, user_error_within
from stillroom.observability.log_context import (
    JsonFormatter,
    current_fields,
    json_lines_enabled,
    log_fields,
)
from stillroom.storage.artifacts import Store
from stillroom.storage.atomic import atomic_write_json

log = logging.getLogger(__name__)
RUNS_FOLDER = ".runs"
HEARTBEAT_FILE, LOG_FILE = "alive.json", "log.jsonl"
HEARTBEAT_S = 20.0  # between two heartbeats
MEMORY_POLL_S = 0.5  # between two readings of the driver's memory
EVENT_FILE = re.compile(r"\d{17}-[0-9a-f]{6}\.json")

# The logger of lines that Ray forwards from workers; not a child of `stillroom`, which prints.
WORKER_LOGGER = "stillroom-workers"

Event = dict[str, Any]  # "at" in seconds since 1970, "event", and the event's own fields


def record_event(store: Store, event: str, **fields: Any) -> None:
    """Writes an event of this process's run; does nothing outside a run.

    If the journal cannot be written, the failure is logged and the run continues.
    """
    if "run" not in current_fields():
        return
    at = time.time()
    name = f"{int(at * 1e6):017d}-{uuid.uuid4().hex[:6]}.json"
    _write(store, f"{current_fields()['run']}/{name}", {"at": at, "event": event, **fields})


@contextmanager
def open_journal(store: Store, about: Mapping[str, Any]) -> Iterator["RunJournal"]:
    """A journal for the run inside the block. A run that makes nothing leaves no journal.

    Args:
        about: fields that describe the run as a whole.
    """
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    journal = RunJournal(store, run, about)
    with log_fields(run=run):
        try:
            yield journal
        except BaseException as error:
            journal.end("failed" if isinstance(error, Exception) else "stopped", error)
            raise
        journal.end("done", None)


class RunJournal:
    """Writes a run's events, heartbeats and log; used by the driver only.

    Nothing is written before the first stage starts.
    """

    def __init__(self, store: Store, run: str, about: Mapping[str, Any]):
        self.store, self.run, self.about = store, run, about
        self.started_at = time.time()
        self._reused_before_start: list[str] = []  # artifacts
        self._process = psutil.Process()
        self._peak_bytes = 0  # of the driver's memory since the stage started
        self._stop_heartbeat = threading.Event()
        self._heartbeat: threading.Thread | None = None
        self._log_handler: logging.Handler | None = None

    @property
    def started(self) -> bool:
        """Whether a stage has started."""
        return self._heartbeat is not None

    def reused(self, ref: str) -> None:
        """Records that an artifact existed already."""
        if self.started:
            record_event(self.store, "reused", ref=ref)
        else:
            self._reused_before_start.append(ref)

    @contextmanager
    def stage(self, ref: str) -> Iterator[dict[str, Any]]:
        """Records the stage inside the block; its end event has the fields of the dict."""
        if not self.started:
            self._start()
        record_event(self.store, "stage begins", ref=ref)
        self._peak_bytes = self._process.memory_info().rss
        fields: dict[str, Any] = {}
        with log_fields(stage=ref):
            try:
                yield fields
            except BaseException as error:
                record_event(self.store, "stage fails", ref=ref, error=_error_line(error))
                raise
        memory = {"memory_gib": self._peak_bytes / 2**30}
        record_event(self.store, "stage ends", ref=ref, **memory | fields)

    def end(self, outcome: str, error: BaseException | None) -> None:
        """Ends the journal, with `done`, `failed` or `stopped`."""
        if self._heartbeat is None or self._log_handler is None:
            return
        self._stop_heartbeat.set()
        self._heartbeat.join()
        record_event(self.store, "run ends", outcome=outcome, error=_error_line(error))
        for name in ("stillroom", WORKER_LOGGER):
            logging.getLogger(name).removeHandler(self._log_handler)
        self._log_handler.close()
        self._upload_log()

    def _start(self) -> None:
        record_event(self.store, "run begins", began=self.started_at, **self.about)
        for ref in self._reused_before_start:
            record_event(self.store, "reused", ref=ref)
        self._log_handler = self._open_log()
        self._log_handler.setFormatter(JsonFormatter())
        for name in ("stillroom", WORKER_LOGGER):
            logging.getLogger(name).addHandler(self._log_handler)
        workers = logging.getLogger(WORKER_LOGGER)
        workers.setLevel(logging.INFO)
        workers.propagate = json_lines_enabled()  # otherwise Ray prints them itself
        self._heartbeat = threading.Thread(target=self._beat, name="journal", daemon=True)
        self._heartbeat.start()
        log.info("run %s: see its timeline with `stillroom runs show %s`", self.run, self.run)

    def _open_log(self) -> logging.Handler:
        file = self._log_path()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return logging.FileHandler(file, encoding="utf-8")
        except OSError as error:
            log.warning("the run's log cannot be written: %s", error)
            return logging.NullHandler()

    def _beat(self) -> None:
        """The heartbeat thread: writes heartbeats, uploads the log, follows the driver's memory."""
        due = 0.0
        while True:
            self._peak_bytes = max(self._peak_bytes, self._process.memory_info().rss)
            if time.monotonic() >= due:
                due = time.monotonic() + HEARTBEAT_S
                _write(self.store, f"{self.run}/{HEARTBEAT_FILE}", {"at": time.time()})
                self._upload_log()
            if self._stop_heartbeat.wait(MEMORY_POLL_S):
                return

    def _log_path(self) -> Path:
        return self.store.local_folder / RUNS_FOLDER / self.run / LOG_FILE

    def _upload_log(self) -> None:
        """Copies the log so far to a remote root."""
        if self.store.local:
            return
        remote = f"{self.store.base}/{RUNS_FOLDER}/{self.run}/{LOG_FILE}"
        try:
            fs.copy_files(str(self._log_path()), remote, fs.LocalFileSystem(), self.store.fs)
        except OSError as error:
            log.warning("the run's log is only on this machine, %s: %s", self._log_path(), error)


def list_runs(store: Store) -> list[str]:
    """Ids of the runs under a root in which a stage started, newest first."""
    selector = fs.FileSelector(f"{store.base}/{RUNS_FOLDER}", allow_not_found=True)
    infos = store.fs.get_file_info(selector)
    return sorted((i.base_name for i in infos if i.type == fs.FileType.Directory), reverse=True)


def read_events(store: Store, run: str) -> tuple[list[Event], float | None]:
    """A run's events in order, and the time of its last heartbeat, None without one."""
    selector = fs.FileSelector(f"{store.base}/{RUNS_FOLDER}/{run}", allow_not_found=True)
    names = [info.base_name for info in store.fs.get_file_info(selector)]
    events = [_read(store, f"{run}/{name}") for name in sorted(names) if EVENT_FILE.fullmatch(name)]
    heartbeat = _read(store, f"{run}/{HEARTBEAT_FILE}")["at"] if HEARTBEAT_FILE in names else None
    return events, heartbeat


def find_run(store: Store, name: str) -> str:
    """The newest run with this id, of this job, or with a stage of this artifact.

    Raises:
        UserError: when there is none; it lists the newest.
    """
    known = list_runs(store)
    if name in known:
        return name
    for run in known:
        events, _ = read_events(store, run)
        for event in events:
            is_stage = event["event"].startswith("stage")
            if event.get("job") == name or (is_stage and event.get("ref") == name):
                return run
    raise UserError(
        name,
        f"is no run, job or artifact of a run under {store.root}; the newest runs are "
        f"{', '.join(known[:5]) or 'none'}",
        "Name one of these, or another --root",
    )


def _error_line(error: BaseException | None) -> str | None:
    if error is None:
        return None
    error = user_error_within(error) or error
    return one_line(f"{type(error).__name__}: {error}", 2000)


def _write(store: Store, path: str, content: Event) -> None:
    try:
        if store.local:
            file = store.local_folder / RUNS_FOLDER / path
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(file, content)
        else:
            with store.fs.open_output_stream(f"{store.base}/{RUNS_FOLDER}/{path}") as stream:
                stream.write(json.dumps(content).encode())
    except OSError as error:
        log.warning("cannot write %s of the run's journal: %s", path, error)


def _read(store: Store, path: str) -> Event:
    with store.fs.open_input_stream(f"{store.base}/{RUNS_FOLDER}/{path}") as stream:
        return dict(json.loads(stream.read()))

"""A cache of responses on disk: no answer is paid for twice."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path


class ResponseCache:
    """Responses by key, in a SQLite file that several processes may use at once.

    A response is on disk when `put` returns.
    """

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Without SQLite's write-ahead log: it needs shared memory, and the file may be on NFS.
        self.db = sqlite3.connect(file, timeout=60, isolation_level=None)
        self.db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, content TEXT)")

    def get(self, key: str) -> str | None:
        """The response, or None."""
        row = self.db.execute("SELECT content FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, content: str) -> None:
        """Stores a response; an earlier one of the same key stays."""
        self.put_all({key: content})

    def put_all(self, contents: Mapping[str, str]) -> None:
        """Stores several responses, all of them or none."""
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", contents.items())
        self.db.execute("COMMIT")

"""Every answer that was paid for, in one SQLite file that all runs of a folder share.

An answer lies under its cache key (`agents.client.base.cache_key`): whatever could change it changes the key.
A row is written as soon as its answer arrives and is on the disk before anybody acts on it. Several processes
may use one file at a time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from agents.client.base import Usage
from agents.errors import StoreError

SCHEMA_VERSION = 2
PATIENCE = 60.0
"""Seconds that connections wait for each other's writes."""

_CREATE = """
CREATE TABLE IF NOT EXISTS responses (
    cache_key TEXT PRIMARY KEY,
    answer TEXT NOT NULL,           -- what was read out of it, JSON
    text TEXT NOT NULL,             -- as it came
    finish TEXT NOT NULL,
    prompt INTEGER NOT NULL, cached INTEGER NOT NULL, image INTEGER NOT NULL, completion INTEGER NOT NULL,
    seconds REAL NOT NULL,
    run TEXT NOT NULL,              -- who paid
    post TEXT NOT NULL, role TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL,
    model TEXT NOT NULL,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_by_run ON responses (run);
"""


class Note(NamedTuple):
    """For whom an answer was paid; kept beside it, not part of its cache key."""

    run: str  # who paid: the resolved path of a run's folder
    post: str  # id
    role: str  # as in `Judgment`, like `step`
    step: int
    model: str  # who answered


class CachedAnswer(NamedTuple):
    """One stored answer."""

    answer: Mapping[str, Any]  # what was read out of it, as JSON values; opaque to the cache
    text: str  # as it came from the server
    finish: str  # why it ended
    usage: Usage  # its tokens
    seconds: float  # it took


class ResponseCache:
    """The file, opened.

    Raises:
        StoreError: It cannot be opened, is no cache, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._explained("opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # judgments arrive on the event loop's thread, the store is made on the caller's
            self._connection = sqlite3.connect(
                path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
            )
            switch_to_write_ahead(self._connection)
            # each answer is on the disk before it counts: a power cut loses nothing that was paid for
            self._connection.execute("PRAGMA synchronous = FULL")
            self._check_version()
            self._connection.executescript(_CREATE)

    def get(self, key: str) -> CachedAnswer | None:
        """Return the answer under a cache key, or None."""
        with self._explained("read"):
            row = self._connection.execute(
                "SELECT answer, text, finish, prompt, cached, image, completion, seconds FROM responses"
                " WHERE cache_key = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        return CachedAnswer(json.loads(row[0]), row[1], row[2], Usage(*row[3:7]), row[7])

    def put(self, key: str, cached: CachedAnswer, note: Note, attempt: int) -> None:
        """Keep an answer. The first one under a key stays: a second was paid by another process.

        Keys keep their order: an answer read back is written to a run's files byte for byte like a fresh one.
        """
        values = (
            key, json.dumps(cached.answer), cached.text, cached.finish, *cached.usage,
            cached.seconds, note.run, note.post, note.role, note.step, attempt, note.model,
        )  # fmt: skip
        with self._explained("written"):
            self._connection.execute(
                "INSERT OR IGNORE INTO responses (cache_key, answer, text, finish, prompt, cached, image,"
                " completion, seconds, run, post, role, step, attempt, model)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )

    def spent(self, run: str) -> Usage:
        """Return the tokens that a run has paid for, in all its starts."""
        with self._explained("read"):
            row = self._connection.execute(
                "SELECT COALESCE(SUM(prompt), 0), COALESCE(SUM(cached), 0), COALESCE(SUM(image), 0),"
                " COALESCE(SUM(completion), 0) FROM responses WHERE run = ?",
                (run,),
            ).fetchone()
        return Usage(*row)

    def close(self) -> None:
        """Close the file; safe to repeat."""
        self._connection.close()

    def _check_version(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} is a cache of version {version}; this program reads version {SCHEMA_VERSION}: "
                "use the program that wrote it, or name another file"
            )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"the answers in {self.path} cannot be {what} ({error}); expected a SQLite file of this"
                " program on a disk with room: make room, or name another file"
            ) from error


def switch_to_write_ahead(connection: sqlite3.Connection) -> None:
    """Put a file into WAL mode.

    While one process switches a new file, SQLite tells the others at once that it is locked, whatever timeout
    they opened it with: so they are asked to wait here.

    Raises:
        sqlite3.OperationalError: It stays locked, or cannot be switched.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return

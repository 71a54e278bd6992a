"""The file behind the ledger of reviews: its tables, and how it is opened, changed and read in one piece."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agents.write_ahead import switch_to_write_ahead
from selftrain.errors import LedgerError, SelftrainError

FORMAT = "selftrain-review-1"
SCHEMA_VERSION = 1

_CREATE = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (name TEXT UNIQUE NOT NULL, address TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE posts (
    batch TEXT NOT NULL REFERENCES batches (name),
    post_id TEXT NOT NULL,
    machine_label TEXT NOT NULL,
    error REAL,
    inclusion REAL NOT NULL,
    part TEXT NOT NULL,
    place INTEGER UNIQUE,             -- in the order of review; NULL: not drawn
    doubled INTEGER NOT NULL,
    open INTEGER NOT NULL,            -- reviews that nobody holds or has made
    UNIQUE (batch, post_id)
);
CREATE UNIQUE INDEX posts_reviewed_once ON posts (post_id) WHERE place IS NOT NULL;
CREATE INDEX posts_open ON posts (place) WHERE open > 0;
CREATE TABLE reviews (
    post_id TEXT NOT NULL,
    slot INTEGER NOT NULL CHECK (slot IN (0, 1)),
    reviewer TEXT NOT NULL,
    label TEXT,                       -- NULL: handed out, not decided
    decided REAL,
    expires REAL,                     -- of the lease; NULL once decided
    UNIQUE (post_id, slot),
    UNIQUE (post_id, reviewer),
    CHECK ((label IS NULL) = (decided IS NULL) AND (label IS NULL) = (expires IS NOT NULL))
);
CREATE INDEX reviews_held ON reviews (expires) WHERE label IS NULL;
CREATE UNIQUE INDEX reviews_one_held ON reviews (reviewer) WHERE label IS NULL;
CREATE INDEX reviews_by_reviewer ON reviews (reviewer, decided);
CREATE TABLE skips (
    post_id TEXT NOT NULL, reviewer TEXT NOT NULL, skipped REAL NOT NULL, PRIMARY KEY (post_id, reviewer)
) WITHOUT ROWID;
CREATE TABLE log (                    -- what was done and taken back, for whoever asks later
    number INTEGER PRIMARY KEY, at REAL NOT NULL, reviewer TEXT NOT NULL, post_id TEXT NOT NULL,
    action TEXT NOT NULL, label TEXT
);
"""


def connect(path: Path) -> sqlite3.Connection:
    """A connection that waits for others' changes; its own are on the disk before they return."""
    # a server answers from several threads; whoever shares a ledger among them locks around it
    connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    switch_to_write_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def create(connection: sqlite3.Connection, path: Path, settings: Mapping[str, Any]) -> None:
    """Make the tables in an empty file, or check that they were made with these settings.

    Raises:
        LedgerError: They were made with others, or the file holds something else.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version:
        check_version(connection, path)
        found = read_settings(connection)
        differing = sorted(key for key in settings if found.get(key) != settings[key])
        if differing:
            told = ", ".join(f"{key} {found.get(key)!r}, now {settings[key]!r}" for key in differing)
            raise LedgerError(f"{path} holds a review with other settings ({told}): name another file")
        return
    if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise LedgerError(f"{path} is a database of something else: name another file")
    for statement in _CREATE.split(";\n"):  # executescript would commit first, and others see half a file
        connection.execute(statement)
    connection.executemany(
        "INSERT INTO settings (name, value) VALUES (?, ?)",
        [(name, json.dumps(value)) for name, value in settings.items()],
    )
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that another version wrote.

    Raises:
        LedgerError: With both versions.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} has schema version {version}; this program reads version {SCHEMA_VERSION}: use the"
            " program that wrote it, or name another file"
        )


def read_settings(connection: sqlite3.Connection) -> dict[str, Any]:
    """What the ledger was created with."""
    return {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM settings")}


_ALLOWED = "allowed/"


def allowances(connection: sqlite3.Connection) -> dict[str, int]:
    """Purpose -> posts that were allowed for it beyond the budget of creation."""
    found = read_settings(connection)
    return {name.removeprefix(_ALLOWED): n for name, n in found.items() if name.startswith(_ALLOWED)}


def allow(connection: sqlite3.Connection, purpose: str, posts: int) -> None:
    """Set what is allowed for a purpose."""
    _set(connection, _ALLOWED + purpose, posts)


_SUSPICION = "likeliest_first/"


def mark_likeliest_first(connection: sqlite3.Connection, batch: str) -> None:
    """Keep that a batch's posts are handed out by falling probability of an error, not at random."""
    _set(connection, _SUSPICION + batch, True)


def is_likeliest_first(connection: sqlite3.Connection, batch: str) -> bool:
    """Whether `mark_likeliest_first` was called for the batch."""
    return _SUSPICION + batch in read_settings(connection)


def _set(connection: sqlite3.Connection, name: str, value: object) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, json.dumps(value))
    )


@contextmanager
def changing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One change, all of it or nothing; others wait."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Several queries about one state of the file."""
    connection.execute("BEGIN")
    try:
        yield connection
    finally:
        connection.execute("COMMIT")


@contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """SQLite's errors in words; ours pass.

    Raises:
        LedgerError: The file cannot be read or written.
    """
    try:
        yield
    except SelftrainError:
        raise
    except (sqlite3.Error, OSError, ValueError) as error:
        raise LedgerError(
            f"the reviews in {path} cannot be {what} ({error}); expected a SQLite file of this program on a"
            " disk with room: make room, or name another file"
        ) from error

"""Every answer that was paid for, in one SQLite file that all runs of a folder share.

An answer lies under its cache key (`agents.client.base.cache_keys`): whatever changes it on purpose changes
the key. Only answers that can be used are kept; of the others stands what they cost. A row is on the disk
before anybody acts on its answer: `Keeper` writes those that arrive meanwhile in one transaction, in a thread
and through a connection of their own, because each waits for the disk once. It carries a digest: one that was
damaged since is no answer. Several processes may use one file at a time; those of several machines share a
PostgreSQL database instead, see `postgres_cache`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from agents.client.base import Usage
from agents.errors import StoreError, TokenCapError

SCHEMA_VERSION = 3
APPLICATION_ID = 0x5E1F7A11
"""Tells the file from other programs' SQLite files, in which nothing is written."""
PATIENCE = 60.0
"""Seconds that connections wait for each other's writes."""

_DAMAGED = "it is damaged, or no file of this program: take it from a copy, or move it away to buy anew"
_REMEDIES = {
    "database is locked": (
        f"another process has held the file for {PATIENCE:g} s: let it end, or end it, and give the same"
        " command again, it goes on"
    ),
    "malformed": _DAMAGED,
    "not a database": _DAMAGED,
}
"""What SQLite says -> what to do, where that is no disk without room."""

logger = logging.getLogger(__name__)

_COST = """
    run TEXT NOT NULL,              -- who paid
    post TEXT NOT NULL, role TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL,
    model TEXT NOT NULL,
    recorded TEXT NOT NULL,         -- server, context, encoder: not part of the key
    prompt INTEGER NOT NULL, cached INTEGER NOT NULL, image INTEGER NOT NULL, completion INTEGER NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    created TEXT NOT NULL DEFAULT (CAST(CURRENT_TIMESTAMP AS TEXT))
"""
TABLES = (
    f"""CREATE TABLE responses (
    cache_key TEXT PRIMARY KEY,
    answer TEXT NOT NULL,           -- what was read out of it, JSON
    text TEXT NOT NULL,             -- as it came
    finish TEXT NOT NULL,
    digest TEXT NOT NULL,           -- of the key, the answer and what it cost
    {_COST})""",
    f"CREATE TABLE unusable (fault TEXT NOT NULL, {_COST})",
    "CREATE INDEX responses_by_run ON responses (run)",
)
"""In words that SQLite and PostgreSQL both know."""
_COST_COLUMNS = "run, post, role, step, attempt, model, recorded, prompt, cached, image, completion, seconds"
_DIGEST = 4  # its place among the values of an answer's row; what it cost comes behind it
_SUM = "SELECT COALESCE(SUM(prompt), 0), COALESCE(SUM(cached), 0), COALESCE(SUM(image), 0),"
_SUM += " COALESCE(SUM(completion), 0) FROM"


class Note(NamedTuple):
    """For whom an answer was paid; kept beside it, not part of its cache key."""

    run: str  # who paid: the resolved path of a run's folder
    post: str  # id
    role: str  # as in `Judgment`, like `step`
    step: int
    model: str  # who answered
    attempt: int = 0  # which try it was
    recorded: str = ""  # server with its version, context length, encoder of the pictures


class CachedAnswer(NamedTuple):
    """One stored answer."""

    answer: Mapping[str, Any]  # what was read out of it, as JSON values; opaque to the cache
    text: str  # as it came from the server
    finish: str  # why it ended
    usage: Usage  # its tokens
    seconds: float  # it took


class Row(NamedTuple):
    """What is to be written."""

    into: str  # the table and its columns
    values: tuple[object, ...]  # of the columns
    key: str = ""  # the cache key of what was asked


class ResponseCache:
    """The file, opened.

    Raises:
        StoreError: It cannot be opened, is no cache, or was written by a newer version.
    """

    _value = "?"  # stands for one in a statement
    _faults: tuple[type[Exception], ...] = (sqlite3.Error, OSError, ValueError, OverflowError)
    _remedy = "expected a SQLite file of this program on a disk with room: make room, or name another file"
    _writer: Any
    _reader: Any

    def __init__(self, path: Path | str) -> None:
        self.path: Path | str = path
        self._writing = threading.Lock()
        with self._explained("opened"):
            self._open()

    def _open(self) -> None:
        path = Path(self.path)
        if path.exists() and not path.is_file():
            raise StoreError(f"{path} is no file: name a SQLite file of this program, or a new one")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = self._connect()
        try:
            self._begin()
        except BaseException:
            self._writer.close()  # it would hold the file locked
            raise
        switch_to_write_ahead(self._writer)
        # each answer is on the disk before it counts: a power cut loses nothing that was paid for
        self._writer.execute("PRAGMA synchronous = FULL")
        self._reader = self._connect()

    def _connect(self) -> Any:  # noqa: ANN401 -- SQLite's or PostgreSQL's
        # answers arrive on the event loop's thread and are written by another; the store is made on a third
        return sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)

    def find(self, several: Sequence[Sequence[str]]) -> list[tuple[str, CachedAnswer] | None]:
        """Return for each of several lists of cache keys the first that has an answer, with it, or None.

        The file is asked once. An answer that was damaged in it is taken away, and is none.
        """
        keys = [key for one in several for key in one]
        with self._explained("read"):
            rows = self._reader.execute(
                "SELECT cache_key, answer, text, finish, prompt, cached, image, completion, seconds, digest"
                f" FROM responses WHERE cache_key IN ({self._values(len(keys))})",
                keys,
            ).fetchall()
        kept: dict[str, CachedAnswer] = {}
        for key, *row, digest in rows:
            if (found := _sound(key, row, digest)) is not None:
                kept[key] = found
            else:
                self.discard(key, "damaged in the file")
        return [next(((key, kept[key]) for key in one if key in kept), None) for one in several]

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows, all or none of them; they are on the disk when this returns. From any thread.

        The first answer under a key stays: a second was paid by another process.
        """
        with self._explained("written"), self._transaction() as connection:
            self._insert(connection, rows)

    def _insert(self, connection: Any, rows: Sequence[Row]) -> None:  # noqa: ANN401
        for into, values, key in rows:
            written = connection.execute(
                f"INSERT INTO {into} VALUES ({self._values(len(values))}) ON CONFLICT DO NOTHING", values
            )
            if not written.rowcount:  # an answer is there already
                self._charge_twice(connection, key, values)

    def _charge_twice(self, connection: Any, key: str, values: tuple[object, ...]) -> None:  # noqa: ANN401
        """Note what a second answer under a key cost; the same one, written again, costs nothing."""
        (kept,) = connection.execute(
            f"SELECT digest FROM responses WHERE cache_key = {self._value}", (key,)
        ).fetchone()
        if kept != values[_DIGEST]:
            cost = ("another process had it already", *values[_DIGEST + 1 :])
            connection.execute(
                f"INSERT INTO unusable (fault, {_COST_COLUMNS}) VALUES ({self._values(len(cost))})", cost
            )

    def discard(self, key: str, fault: str) -> None:
        """Take away an answer that cannot be used after all; what it cost stays noted."""
        logger.warning("an answer in %s cannot be used and is asked for again: %s", self.path, fault)
        with self._explained("written"), self._transaction() as connection:
            connection.execute(
                f"INSERT INTO unusable (fault, {_COST_COLUMNS}) SELECT {self._value}, {_COST_COLUMNS}"
                f" FROM responses WHERE cache_key = {self._value}",
                (fault, key),
            )
            connection.execute(f"DELETE FROM responses WHERE cache_key = {self._value}", (key,))

    def spent(self, run: str) -> Usage:
        """Return the tokens that a run has paid for, in all its starts."""
        with self._explained("read"):
            usable, unusable = (
                Usage(*self._reader.execute(f"{_SUM} {table} WHERE run = {self._value}", (run,)).fetchone())
                for table in ("responses", "unusable")
            )
        return usable.plus(unusable)

    def dearest(self, run: str) -> int | None:
        """Return the tokens of the largest prompt that a run has paid for; None: it has paid for none."""
        with self._explained("read"):
            found = [
                self._reader.execute(
                    f"SELECT MAX(prompt) FROM {table} WHERE run = {self._value}", (run,)
                ).fetchone()[0]
                for table in ("responses", "unusable")
            ]
        return max((one for one in found if one is not None), default=None)

    def close(self) -> None:
        """Close the store; safe to repeat."""
        self._reader.close()
        self._writer.close()

    def _values(self, count: int) -> str:
        return ", ".join([self._value] * count)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._writing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        """Make the tables of a new file; see that another is ours before anything is written into it."""
        self._writer.execute("BEGIN IMMEDIATE")
        (owner,) = self._writer.execute("PRAGMA application_id").fetchone()
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        (things,) = self._writer.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if (owner, version, things) == (0, 0, 0):
            responses, *others = TABLES
            for statement in (f"{responses} WITHOUT ROWID", *others):
                self._writer.execute(statement)
            self._writer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._writer.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif owner != APPLICATION_ID and (version, things) != (2, 2):
            raise StoreError(
                f"{self.path} is a SQLite file of another program, in which nothing is written: name another"
            )
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} is a cache of version {version}; this program reads version {SCHEMA_VERSION}: "
                "use the program that wrote it, or name another file"
            )
        elif not is_made_by(self._writer, TABLES):
            raise StoreError(
                f"{self.path} holds other tables than this program makes; nothing is written: name another"
            )
        self._writer.execute("COMMIT")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._faults as error:
            if isinstance(error, StoreError):
                raise
            told = (remedy for words, remedy in _REMEDIES.items() if words in str(error))
            remedy = next(told, self._remedy)
            raise StoreError(f"the answers in {self.path} cannot be {what} ({error}); {remedy}") from error


_Found: TypeAlias = "asyncio.Future[tuple[str, CachedAnswer] | None]"
_MOST_AT_ONCE = 200  # questions that the file is asked at a time, each of a few keys


class Keeper:
    """The answers of one event loop, looked up and written in groups: each group costs what one would."""

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache
        self._thread = ThreadPoolExecutor(1, "answers")
        self._asked: list[tuple[Sequence[str], _Found]] = []
        self._rows: list[tuple[Row, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def find(self, keys: Sequence[str]) -> tuple[str, CachedAnswer] | None:
        """Return the first of the keys that has an answer, with it, or None; all ask at once who ask now."""
        loop = asyncio.get_running_loop()
        found: _Found = loop.create_future()
        self._asked.append((keys, found))
        if len(self._asked) == 1:
            loop.call_soon(self._look_up)
        return await found

    def _look_up(self) -> None:
        asked, self._asked = self._asked, []
        for begin in range(0, len(asked), _MOST_AT_ONCE):
            some = [(keys, found) for keys, found in asked[begin : begin + _MOST_AT_ONCE] if not found.done()]
            try:
                answers = self._cache.find([keys for keys, _ in some])
            except StoreError as error:
                for _, found in some:
                    found.set_exception(error)
                continue
            for (_, found), answer in zip(some, answers, strict=True):
                found.set_result(answer)

    async def keep(self, row: Row) -> None:
        """Return once `row` is on the disk.

        Raises:
            StoreError: It cannot be written.
        """
        written = asyncio.get_running_loop().create_future()
        self._rows.append((row, written))
        if self._task is None:
            self._task = asyncio.create_task(self._write_groups())
        try:
            await written
        except asyncio.CancelledError:
            # the loop may end before the next group begins; what came is paid for
            if (row, written) in self._rows:
                self._rows.remove((row, written))
                self._cache.write([row])
            raise

    async def _write_groups(self) -> None:
        try:
            while self._rows:
                group, self._rows = self._rows, []
                errors = await self._in_thread([row for row, _ in group])
                for (_, written), error in zip(group, errors, strict=True):
                    if written.done():
                        continue  # whoever waited was cancelled; the answer is kept all the same
                    if error is None:
                        written.set_result(None)
                    else:
                        written.set_exception(error)
        finally:
            self._task = None
            if self._rows:  # the loop ends; what came is paid for
                self._write([row for row, _ in self._rows])

    async def _in_thread(self, rows: Sequence[Row]) -> list[StoreError | None]:
        writing = self._thread.submit(self._write, rows)
        try:
            return await asyncio.wrap_future(writing)
        except asyncio.CancelledError:
            # the loop ends, and the file may be closed next; what came is paid for
            if writing.cancelled():  # before it began
                self._write(rows)
            else:
                wait([writing])
            raise

    def _write(self, rows: Sequence[Row]) -> list[StoreError | None]:
        """Return for each row why it could not be written, or None."""
        try:
            self._cache.write(rows)
        except StoreError as error:
            if len(rows) == 1:
                return [error]
            return [each for row in rows for each in self._write([row])]  # one bad row takes no other along
        return [None] * len(rows)


def kept_row(key: str, cached: CachedAnswer, note: Note) -> Row:
    """Return the row of an answer under a cache key.

    Keys keep their order: an answer read back is written to a run's files byte for byte like a fresh one.
    """
    seconds = float(cached.seconds)  # as the column gives it back: the digest is of what is read
    row = (
        json.dumps(cached.answer),
        _storable(cached.text),
        _storable(cached.finish),
        *cached.usage,
        seconds,
    )
    values = (key, *row[:3], _digest(key, row), *_cost(note, cached.usage, seconds))
    return Row(f"responses (cache_key, answer, text, finish, digest, {_COST_COLUMNS})", values, key)


def unusable_row(fault: str, usage: Usage, seconds: float, note: Note, key: str = "") -> Row:
    """Return the row that notes what an unusable answer cost, and why; it is no answer to anything."""
    return Row(f"unusable (fault, {_COST_COLUMNS})", (_storable(fault), *_cost(note, usage, seconds)), key)


def refuse_above(cap: int, spent: int, expected: int, held: int) -> None:
    """Refuse a call that may cost more than a cap leaves; all in tokens.

    Raises:
        TokenCapError: What is spent, what calls under way may cost (`expected`) and what this one may
            (`held`) are more than the cap.
    """
    if spent + expected + held > cap:
        raise TokenCapError(
            f"{spent:,} tokens of at most {cap:,} are spent, {expected:,} more are"
            f" under way, and the next call may take {held:,}: raise the token cap to go on; what was"
            " paid for is kept"
        )


def _cost(note: Note, usage: Usage, seconds: float) -> tuple[object, ...]:
    return (
        note.run, note.post, note.role, note.step, note.attempt, note.model, note.recorded, *usage, seconds,
    )  # fmt: skip


def _digest(key: str, row: Sequence[object]) -> str:
    """Return SHA-256, in hex, of a key and what lies under it."""
    return hashlib.sha256(json.dumps([key, *row]).encode()).hexdigest()


def _sound(key: str, row: Sequence[Any], digest: object) -> CachedAnswer | None:
    """Return what lies under a key; None where it is not what was written, or could not have been."""
    with suppress(TypeError, ValueError, RecursionError):
        answer, text, finish, *usage, seconds = row
        if digest == _digest(key, row) and all(isinstance(tokens, int) for tokens in usage):
            return CachedAnswer(json.loads(answer), text, finish, Usage(*usage), float(seconds))
    return None


def _storable(text: str) -> str:
    """Return text that every database keeps: PostgreSQL has no NUL, none has half a surrogate pair."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def is_made_by(connection: sqlite3.Connection, statements: Sequence[str]) -> bool:
    """Tell whether a file holds what these statements make and nothing else.

    Views, triggers and checks of a stranger's run with whatever is asked of the file.
    """
    found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {_plain(sql) for (sql,) in found} == {_plain(sql) for sql in statements}


def _plain(sql: str) -> str:
    return " ".join(re.sub(r"--.*|\bWITHOUT ROWID\b|\bIF NOT EXISTS\b", "", sql).split())


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

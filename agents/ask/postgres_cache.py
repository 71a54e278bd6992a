"""The answers of many machines in one PostgreSQL database, and who is buying which of them at the moment.

Whoever is about to buy an answer claims its key first; another process that wants it waits for the answer
instead. A claim ends with the transaction that writes the answer, or when its process lets go of it or dies:
the server holds a lock for every connected process, and claims of a process without one count for nothing.
Each holds back the tokens that its call may cost: a cap holds over all processes that pay for one run.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from agents.ask.cache import (
    PATIENCE,
    SCHEMA_VERSION,
    TABLES,
    ResponseCache,
    Row,
    refuse_above,
)
from agents.errors import StoreError, TokenCapError

_SCHEMA = f"selftrain_{SCHEMA_VERSION}"
# first halves of the keys of advisory locks, which are the whole database's
_HOLDING, _CLAIMING, _CREATING = 0x5E1F7A11, 0x5E1F7A12, 0x5E1F7A13
_SETTINGS = (
    f"SET search_path TO {_SCHEMA}",
    # a machine that vanished without a word is noticed within a minute: its claims end
    *(
        f"SET tcp_keepalives_{name} = {value}"
        for name, value in (("idle", 30), ("interval", 10), ("count", 3))
    ),
)
_CLAIMS = """CREATE TABLE claims (
    cache_key TEXT PRIMARY KEY,
    run TEXT NOT NULL,              -- who will pay
    holder BIGINT NOT NULL,         -- the process
    held INTEGER NOT NULL           -- tokens that the call may cost; 0 where there is no cap
)"""
_FORGET_THE_DEAD = f"""DELETE FROM claims WHERE holder NOT IN (
    SELECT objid::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND classid = {_HOLDING} AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)"""
# DO UPDATE: one's own, where a connection was lost before it told that the claim was made
_CLAIM = """INSERT INTO claims SELECT unnest(%s::text[]), %s, %s, 0
    ON CONFLICT (cache_key) DO UPDATE SET held = 0 WHERE claims.holder = EXCLUDED.holder
    RETURNING cache_key"""
# one statement, one moment: what is moved from claims to answers meanwhile counts once
_STANDING = """SELECT
    (SELECT COALESCE(SUM(prompt + completion), 0) FROM responses WHERE run = %(run)s)
    + (SELECT COALESCE(SUM(prompt + completion), 0) FROM unusable WHERE run = %(run)s),
    (SELECT COALESCE(SUM(held), 0) FROM claims WHERE run = %(run)s),
    GREATEST((SELECT MAX(prompt) FROM responses WHERE run = %(run)s),
             (SELECT MAX(prompt) FROM unusable WHERE run = %(run)s), 0)"""

P = ParamSpec("P")
T = TypeVar("T")


def _outliving(
    method: Callable[Concatenate[PostgresCache, P], T],
) -> Callable[Concatenate[PostgresCache, P], T]:
    """Connect again where the connection was lost, a minute long; each method may be repeated."""

    def repeated(self: PostgresCache, /, *args: P.args, **kwargs: P.kwargs) -> T:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return method(self, *args, **kwargs)
            except StoreError:
                if not self.lost() or time.monotonic() > until:
                    raise
                self.open_again()

    return repeated


class PostgresCache(ResponseCache):
    """The database, opened; see `ResponseCache`. Its tables stand in a schema of their own.

    Args:
        url: ``postgresql://USER@HOST/DATABASE``, without a password: libpq finds it in ~/.pgpass. The
            connection is the server's own: a pool that shares connections out by transaction loses locks.

    Raises:
        StoreError: It cannot be reached, or no tables can be made there; psycopg is not installed.
    """

    _value = "%s"
    _remedy = (
        "expected a PostgreSQL server that this machine reaches, whose user may make a schema in the"
        " database: see that it runs, and that user and password (~/.pgpass) are right"
    )

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise StoreError("psycopg is not installed: pip install 'selftrain[postgres]'") from error
        self._faults = (psycopg.Error, *self._faults)
        self._holder = secrets.randbits(31)
        super().__init__(url)

    def _open(self) -> None:
        self._writer = self._connect()
        try:
            self._begin()
            self._reader = self._connect()
        except BaseException:
            self._writer.close()
            raise

    def _connect(self) -> Any:  # noqa: ANN401
        import psycopg

        connection = psycopg.connect(
            str(self.path), autocommit=True, connect_timeout=10, application_name="selftrain",
            prepare_threshold=None,  # lists of keys are of any length
        )  # fmt: skip
        for setting in _SETTINGS:
            connection.execute(setting)
        return connection

    def _begin(self) -> None:
        with self._writer.transaction():
            self._writer.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_CREATING,))
            (there,) = self._writer.execute(f"SELECT to_regclass('{_SCHEMA}.claims')").fetchone()
            for statement in () if there else (f"CREATE SCHEMA {_SCHEMA}", *TABLES, _CLAIMS):
                self._writer.execute(statement)
        # as long as this connection lasts; a lost one's lock may be in the way until the server notices
        self._writer.execute("SELECT pg_advisory_lock(%s, %s)", (_HOLDING, self._holder))

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._writing, self._writer.transaction():
            yield self._writer

    def lost(self) -> bool:
        """Return whether a connection ended without having been closed."""
        return bool(self._writer.broken or self._reader.broken)

    def open_again(self) -> None:
        """Connect anew; where that fails for now, the next use says so."""
        with self._writing:
            if not self.lost():  # another thread was first
                return
            try:
                connections = self._writer, self._reader
                self._open()
            except self._faults:
                time.sleep(1)
            else:
                for connection in connections:
                    connection.close()

    find = _outliving(ResponseCache.find)
    discard = _outliving(ResponseCache.discard)
    spent = _outliving(ResponseCache.spent)
    dearest = _outliving(ResponseCache.dearest)

    @_outliving
    def write(self, rows: Sequence[Row]) -> None:
        """See `ResponseCache.write`; claims to what is written end in the same moment."""
        with self._explained("written"), self._transaction() as connection:
            self._insert(connection, rows)
            self._forget(connection, [row.key for row in rows])

    @_outliving
    def claim(
        self, run: str, cap: int | None, wanted: Mapping[str, int]
    ) -> dict[str, bool | TokenCapError | StoreError]:
        """Claim keys, each with the most tokens of its answer.

        Returns:
            For each whether it is ours to buy, or the error where the cap leaves too little. Not ours:
            another process is buying it, or has bought it.
        """
        with self._explained("written"), self._transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s, 0)", (_CLAIMING,))
            connection.execute(_FORGET_THE_DEAD)
            made = connection.execute(_CLAIM, (list(wanted), run, self._holder)).fetchall()
            # looked for when the claims stand: an answer and the end of a claim to it come together
            there = connection.execute(
                "SELECT cache_key FROM responses WHERE cache_key = ANY(%s)", (list(wanted),)
            ).fetchall()
            ours = {key for (key,) in made} - {key for (key,) in there}
            outcomes: dict[str, bool | TokenCapError | StoreError] = {key: key in ours for key in wanted}
            if cap is not None and ours:
                outcomes |= _hold_back(
                    connection, run, cap, {key: wanted[key] for key in wanted if key in ours}
                )
            self._forget(connection, [key for (key,) in made if outcomes[key] is not True])
        return outcomes

    @_outliving
    def release(self, keys: Sequence[str]) -> None:
        """Let go of claims; what was not claimed is let be."""
        with self._explained("written"), self._transaction() as connection:
            self._forget(connection, keys)

    def _forget(self, connection: Any, keys: Sequence[str]) -> None:  # noqa: ANN401
        connection.execute(
            "DELETE FROM claims WHERE holder = %s AND cache_key = ANY(%s)", (self._holder, list(keys))
        )


def _hold_back(
    connection: Any,  # noqa: ANN401
    run: str,
    cap: int,
    wanted: Mapping[str, int],
) -> dict[str, TokenCapError]:
    """Hold back what calls may cost, one after the other; return errors of those that the cap refuses."""
    refused: dict[str, TokenCapError] = {}
    spent, expected, dearest = connection.execute(_STANDING, {"run": run}).fetchone()
    for key, answer_tokens in wanted.items():
        held = dearest + answer_tokens
        try:
            refuse_above(cap, spent, expected, held)
        except TokenCapError as error:
            refused[key] = error
            continue
        expected += held
        connection.execute("UPDATE claims SET held = %s WHERE cache_key = %s", (held, key))
    return refused


class Claims:
    """What one event loop claims for one run, in groups: each costs what one claim would."""

    def __init__(self, cache: PostgresCache, run: str, cap: int | None) -> None:
        self._cache, self._run, self._cap = cache, run, cap
        self._wanted: list[tuple[str, int, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def claim(self, key: str, answer_tokens: int) -> bool:
        """Return whether the answer is ours to buy; see `PostgresCache.claim`.

        Raises:
            TokenCapError: The cap leaves too little.
            StoreError: Nothing can be claimed.
        """
        claimed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._wanted.append((key, answer_tokens, claimed))
        if self._task is None:
            self._task = asyncio.create_task(self._claim_groups())
        try:
            return await claimed
        except asyncio.CancelledError:
            if claimed.done() and not claimed.cancelled():  # in the moment before
                self.release(key)
            raise

    def release(self, key: str) -> None:
        """Let go of a claim: nothing was bought."""
        self._cache.release([key])

    async def _claim_groups(self) -> None:
        try:
            while self._wanted:
                group, self._wanted = self._wanted, []
                wanted = {key: answer_tokens for key, answer_tokens, _ in group}
                try:
                    outcomes = await asyncio.to_thread(self._cache.claim, self._run, self._cap, wanted)
                except StoreError as error:
                    outcomes = dict.fromkeys(wanted, error)
                except asyncio.CancelledError:  # the loop ends
                    self._cache.release(list(wanted))
                    raise
                for key, _, claimed in group:
                    self._tell(key, claimed, outcomes[key])
        finally:
            self._task = None

    def _tell(
        self, key: str, claimed: asyncio.Future[bool], outcome: bool | TokenCapError | StoreError
    ) -> None:
        if claimed.done():  # whoever asked was cancelled
            if outcome is True:
                self.release(key)
        elif isinstance(outcome, Exception):
            claimed.set_exception(outcome)
        else:
            claimed.set_result(outcome)

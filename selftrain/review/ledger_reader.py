"""What a ledger of reviews holds, and how it is read: `selftrain.review.ledger` changes it.

One SQLite file that any number of processes share. `FORMAT` stands in it, `PRAGMA user_version` is its
schema's version.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from agents.ask.cache import is_made_by, switch_to_write_ahead
from agents.trust import cohen_kappa
from selftrain._util.printable import shorten
from selftrain._util.types import Json
from selftrain.errors import LedgerError, SelftrainError

FORMAT = "selftrain-review-1"
SCHEMA_VERSION = 2
LEDGER = "review.sqlite"
"""Its name in a run folder."""
UNSURE = "(unsure)"
"""The decision of a reviewer who cannot tell; never the name of a class."""

# ---- what goes in and what comes out, in plain values --------------------------------------------------


class ReviewItem(NamedTuple):
    """A post with a machine label, as it was when the sample was drawn."""

    post_id: str
    machine_label: str  # a class name
    # e, the estimated probability that it is wrong, in [0, 1]; None where no criticizer had one
    error: float | None
    inclusion: float  # pi, the probability with which the post was drawn, in [0, 1]
    part: str = ""  # what estimates are wanted for: a round, a source


class Assignment(NamedTuple):
    """A post handed out to one reviewer."""

    item: ReviewItem
    batch: str  # it was added with
    place: int  # in the order of all posts to review, from 0
    second: bool  # whether this is the second review of a doubled post
    expires: float  # when it goes back if nothing is decided, seconds since 1970


class Review(NamedTuple):
    """One reviewer's decision on one post."""

    post_id: str
    slot: int  # 0 for the review that the budget pays, 1 for the second one of a doubled post
    reviewer: str  # who
    label: str  # a class name, or `UNSURE`
    decided: float  # seconds since 1970


class Decision(NamedTuple):
    """What was decided on a post."""

    post_id: str
    label: str | None  # a class name: that of the first review that has one. None: every reviewer was unsure
    contested: bool  # two reviews with different labels; the first counts, somebody should look again
    reviews: tuple[Review, ...]  # one, or two of a doubled post


class ReviewProgress(NamedTuple):
    """How far a review is, in posts."""

    budget: int  # most posts that may ever be reviewed
    entered: int  # posts in the ledger to be reviewed, <= budget
    reviewed: int  # posts with a decision, unsure included: the budget spent, <= entered
    doubled: int  # posts that two people review
    second: int  # second reviews made, <= doubled; they cost no budget
    unsure: int  # decisions, first or second, of reviewers who could not tell
    held: int  # posts that somebody is looking at now

    @property
    def left(self) -> int:
        """Budget not spent yet."""
        return self.budget - self.reviewed

    @property
    def finished(self) -> bool:
        """Whether every post that entered is reviewed; second reviews may be open."""
        return self.reviewed == self.entered


class Agreement(NamedTuple):
    """How far two reviewers agree."""

    posts: int  # doubled posts on which both gave a label
    agreed: int  # of them, those with the same label
    kappa: float | None  # Cohen's kappa; None below two posts, or where nobody used a second class


def decision_of(reviews: Sequence[Review]) -> Decision:
    """Return the decision that the reviews of one post make, the first review first."""
    labels = [review.label for review in reviews if review.label != UNSURE]
    return Decision(reviews[0].post_id, labels[0] if labels else None, len(set(labels)) > 1, tuple(reviews))


def agreement_of(decisions: Iterable[Decision]) -> Agreement:
    """Return the agreement over the posts that two people labelled; who was unsure does not count."""
    pairs = [tuple(review.label for review in one.reviews) for one in decisions if len(one.reviews) == 2]
    pairs = [pair for pair in pairs if UNSURE not in pair]
    return Agreement(len(pairs), sum(a == b for a, b in pairs), cohen_kappa(pairs))


# ---- the file -----------------------------------------------------------------------------------------

CREATE = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (name TEXT UNIQUE NOT NULL, digest TEXT NOT NULL, created REAL NOT NULL);
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
CREATE_MAKERS = """
CREATE TABLE IF NOT EXISTS makers (   -- in which browser, as a digest, a decision on the page was made
    post_id TEXT NOT NULL, reviewer TEXT NOT NULL, browser TEXT NOT NULL, PRIMARY KEY (post_id, reviewer)
) WITHOUT ROWID
"""
"""Made with the first such decision: no ledger needs it to be read."""


ALLOWED, LIKELIEST_FIRST = "allowed/", "likeliest_first/"
"""Beginnings of settings that are made later: posts allowed for a purpose; batches that are handed out by
falling probability of an error, not at random."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a connection that waits for others' changes; its own are on the disk before they return.

    In a folder that cannot be written (an archive, somebody else's run) it reads alone.
    """
    # a server answers from several threads; whoever shares a ledger among them locks around it
    opened = partial(sqlite3.connect, timeout=60, isolation_level=None, check_same_thread=False)
    if path.exists() and not all(os.access(one, os.W_OK) for one in (path, path.parent)):
        # else SQLite makes files beside it, to read too; where somebody writes they are there
        how = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        return opened(f"{path.absolute().as_uri()}?{how}", uri=True)
    connection = opened(path)
    switch_to_write_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def is_begun(path: Path) -> bool:
    """Return whether a ledger is there; what a process leaves that dies while it creates one is none."""
    if not path.is_file():
        return False
    with explained(path, "opened"), closing(connect(path)) as connection:
        return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is not None


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that another version or program wrote."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} has schema version {version}; this program reads version {SCHEMA_VERSION}: use the"
            " program that wrote it, or name another file"
        )
    made = CREATE.strip().removesuffix(";").split(";\n")
    if not is_made_by(connection, made) and not is_made_by(connection, [*made, CREATE_MAKERS]):
        raise LedgerError(f"{path} holds other tables than this program makes: name another file")


def read_settings(connection: sqlite3.Connection) -> Json:
    """Read what the ledger was created with, and what was set since."""
    return {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM settings")}


def allowances(connection: sqlite3.Connection) -> dict[str, int]:
    """Return purpose -> posts that were allowed for it beyond the budget of creation."""
    found = read_settings(connection)
    allowed = {name.removeprefix(ALLOWED): n for name, n in found.items() if name.startswith(ALLOWED)}
    return msgspec.convert(allowed, dict[str, int])


@contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Put SQLite's errors into words; ours pass."""
    try:
        yield
    except SelftrainError:
        raise
    except (sqlite3.Error, OSError, ValueError, RecursionError) as error:
        raise LedgerError(
            f"the reviews in {path} cannot be {what} ({error}); expected a SQLite file of this program on a"
            " disk with room: make room, or name another file"
        ) from error


# ---- reading ------------------------------------------------------------------------------------------


class LedgerSettings(NamedTuple):
    """What a ledger is created with."""

    classes: tuple[str, ...]  # the task's class names, two or more
    budget: int  # most posts that may ever be reviewed, >= 0; more may be allowed later
    double_annotation_rate: float  # share of them that two people review, in [0, 1]
    lease_seconds: float  # how long a reviewer keeps a post without deciding, > 0
    seed: int  # chooses the doubled posts

    def to_json(self) -> Json:
        """Return a record of JSON values."""
        return {"format": FORMAT, **self._asdict(), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LedgerSettings:
        """Return the settings of a record that may hold more; ValueError: it holds others."""
        return msgspec.convert([record.get(name) for name in cls._fields], cls)


class LedgerReader:
    """A ledger that is there, to read. Not for several threads at once: open one for each, or lock around it.

    Its settings are attributes, see `LedgerSettings`; `base_budget` is the budget that it was created with.

    Raises:
        LedgerError: No ledger there, one of another version, or a file that cannot be used; as every method.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock
        if not is_begun(self.path):
            raise LedgerError(
                f"{self.path} is not there: expected a ledger of reviews; `selftrain review serve` of its"
                " folder, with --budget, begins one"
            )
        with explained(self.path, "opened"):
            self._connection = connect(self.path)
            check_version(self._connection, self.path)
            record = read_settings(self._connection)
            if record.get("format") != FORMAT:
                raise LedgerError(
                    f"{self.path} has format {shorten(record.get('format'))}; expected {FORMAT!r}"
                )
            settings = LedgerSettings.from_json(record)
        self.classes, self.base_budget, self.double_annotation_rate, self.lease_seconds, self.seed = settings

    @property
    def budget(self) -> int:
        """Most posts that may ever be reviewed: as created, and what was allowed since."""
        with explained(self.path, "read"):
            return self.base_budget + sum(allowances(self._connection).values())

    def allowed(self, purpose: str) -> int:
        """Return how many posts `allow` has allowed for this purpose."""
        with explained(self.path, "read"):
            return allowances(self._connection).get(purpose, 0)

    def batches(self) -> list[str]:
        """Return their names, in the order in which they were added."""
        return [name for (name,) in self._rows("SELECT name FROM batches ORDER BY rowid")]

    def likeliest_first(self, batch: str) -> bool:
        """Return whether the posts of a batch are handed out by falling e, not at random."""
        return bool(self._rows("SELECT 1 FROM settings WHERE name = ?", LIKELIEST_FIRST + batch))

    def population(self, batch: str) -> list[ReviewItem]:
        """Return all posts of a batch, to be reviewed or not, as they were added."""
        columns = "post_id, machine_label, error, inclusion, part"
        rows = self._rows(f"SELECT {columns} FROM posts WHERE batch = ? ORDER BY rowid", batch)
        with explained(self.path, "read"):
            return msgspec.convert(rows, list[ReviewItem])

    def drawn(self, batch: str) -> list[str]:
        """Return ids of the posts of a batch that are to be reviewed, in the order of review."""
        drawn = "SELECT post_id FROM posts WHERE batch = ? AND place IS NOT NULL ORDER BY place"
        return [post_id for (post_id,) in self._rows(drawn, batch)]

    def all_drawn(self) -> dict[str, tuple[str, ReviewItem]]:
        """Return the id of every post to review -> its batch and the post, in the order of review."""
        columns = "batch, post_id, machine_label, error, inclusion, part"
        rows = self._rows(f"SELECT {columns} FROM posts WHERE place IS NOT NULL ORDER BY place")
        with explained(self.path, "read"):
            return {row[1]: (row[0], msgspec.convert(row[1:], ReviewItem)) for row in rows}

    def waiting(self) -> list[str]:
        """Return ids of the posts that lack a review, the second of doubled ones included, in order."""
        rows = self._rows(
            "SELECT post_id FROM posts p WHERE place IS NOT NULL AND (open > 0 OR EXISTS"
            " (SELECT 1 FROM reviews r WHERE r.post_id = p.post_id AND r.label IS NULL)) ORDER BY place"
        )
        return [post_id for (post_id,) in rows]

    def progress(self) -> ReviewProgress:
        """Return how far the review is."""
        # one statement: one state of the file. Leases that have run out hold nothing
        ((entered, doubled, reviewed, reviews, unsure, held),) = self._rows(
            "SELECT COUNT(*), COALESCE(SUM(doubled), 0),"
            " (SELECT COUNT(DISTINCT post_id) FROM reviews WHERE label IS NOT NULL),"
            " (SELECT COUNT(*) FROM reviews WHERE label IS NOT NULL),"
            " (SELECT COUNT(*) FROM reviews WHERE label = ?),"
            " (SELECT COUNT(*) FROM reviews WHERE label IS NULL AND expires > ?)"
            " FROM posts WHERE place IS NOT NULL",
            UNSURE,
            self._clock(),
        )
        return ReviewProgress(self.budget, entered, reviewed, doubled, reviews - reviewed, unsure, held)

    def decisions(self) -> list[Decision]:
        """Return what was decided on each reviewed post, in the order in which posts are handed out."""
        rows = self._rows(
            "SELECT r.post_id, r.slot, r.reviewer, r.label, r.decided FROM reviews r"
            " JOIN posts p ON p.post_id = r.post_id AND p.place IS NOT NULL"
            " WHERE r.label IS NOT NULL ORDER BY p.place, r.slot"
        )
        by_post: dict[str, list[Review]] = {}
        for row in rows:
            by_post.setdefault(row[0], []).append(Review(*row))
        return [decision_of(reviews) for reviews in by_post.values()]

    def latest(self, reviewer: str) -> Review | None:
        """Return the decision that the reviewer made last, whatever a clock that was set back says of it."""
        rows = self._rows(
            "SELECT r.post_id, r.slot, r.reviewer, r.label, r.decided FROM log l"
            " JOIN reviews r ON r.post_id = l.post_id AND r.reviewer = l.reviewer AND r.label IS NOT NULL"
            " WHERE l.reviewer = ? AND l.action IN ('decide', 'import') ORDER BY l.number DESC LIMIT 1",
            reviewer,
        )
        return Review(*rows[0]) if rows else None

    def close(self) -> None:
        """Close the file; safe to repeat."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, query: str, *values: object) -> list[Any]:
        with explained(self.path, "read"):
            return self._connection.execute(query, values).fetchall()

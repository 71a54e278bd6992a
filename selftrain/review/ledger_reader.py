"""What a ledger of reviews holds, and how it is read: `selftrain.review.ledger` changes it.

One SQLite file that any number of processes share. `FORMAT` stands in it, `PRAGMA user_version` is its
schema's version.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from agents.ask.cache import switch_to_write_ahead
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
    """A post with a machine label, as it was when the sample was drawn.

    Attributes:
        post_id: The post.
        machine_label: A class name.
        error: e, the estimated probability that it is wrong, in [0, 1]; None where no criticizer had one.
        inclusion: pi, the probability with which the post was drawn, in [0, 1].
        part: Of what figures are wanted for: a round, a source.
    """

    post_id: str
    machine_label: str
    error: float | None
    inclusion: float
    part: str = ""


class Assignment(NamedTuple):
    """A post handed out to one reviewer.

    Attributes:
        item: The post.
        batch: It was added with.
        place: In the order of all posts to review, from 0.
        second: Whether this is the second review of a doubled post.
        expires: When it goes back if nothing is decided, seconds since 1970.
    """

    item: ReviewItem
    batch: str
    place: int
    second: bool
    expires: float


class Review(NamedTuple):
    """One reviewer's decision on one post.

    Attributes:
        post_id: The post.
        slot: 0 for the review that the budget pays, 1 for the second one of a doubled post.
        reviewer: Who.
        label: A class name, or `UNSURE`.
        decided: Seconds since 1970.
    """

    post_id: str
    slot: int
    reviewer: str
    label: str
    decided: float


class Decision(NamedTuple):
    """What was decided on a post.

    Attributes:
        post_id: The post.
        label: A class name: that of the first review that has one. None: every reviewer was unsure.
        contested: Two reviews with different labels; the first counts, somebody should look again.
        reviews: One, or two of a doubled post.
    """

    post_id: str
    label: str | None
    contested: bool
    reviews: tuple[Review, ...]


class ReviewProgress(NamedTuple):
    """How far a review is, in posts.

    Attributes:
        budget: Most posts that may ever be reviewed.
        entered: Posts in the ledger to be reviewed, <= budget.
        reviewed: Posts with a decision, unsure included: the budget spent, <= entered.
        doubled: Posts that two people review.
        second: Second reviews made, <= doubled; they cost no budget.
        unsure: Decisions, first or second, of reviewers who could not tell.
        held: Posts that somebody is looking at now.
    """

    budget: int
    entered: int
    reviewed: int
    doubled: int
    second: int
    unsure: int
    held: int

    @property
    def left(self) -> int:
        """Budget not spent yet."""
        return self.budget - self.reviewed

    @property
    def finished(self) -> bool:
        """Whether every post that entered is reviewed; second reviews may be open."""
        return self.reviewed == self.entered


class Agreement(NamedTuple):
    """How far two reviewers agree.

    Attributes:
        posts: Doubled posts on which both gave a label.
        agreed: Of them, those with the same label.
        kappa: Cohen's kappa; None below two posts, or where nobody used a second class.
    """

    posts: int
    agreed: int
    kappa: float | None


def decision_of(reviews: Sequence[Review]) -> Decision:
    """The decision that the reviews of one post make, the first review first."""
    labels = [review.label for review in reviews if review.label != UNSURE]
    return Decision(reviews[0].post_id, labels[0] if labels else None, len(set(labels)) > 1, tuple(reviews))


def agreement_of(decisions: Iterable[Decision]) -> Agreement:
    """Agreement over the posts that two people labelled; who was unsure does not count."""
    pairs = [
        (one.reviews[0].label, one.reviews[1].label)
        for one in decisions
        if len(one.reviews) == 2 and UNSURE not in {review.label for review in one.reviews}
    ]
    return Agreement(len(pairs), sum(a == b for a, b in pairs), cohen_kappa(pairs))


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """(observed - expected) / (1 - expected) agreement, Cohen (1960); None where it is not defined."""
    if len(pairs) < 2:
        return None
    labels = {label for pair in pairs for label in pair}
    observed = sum(a == b for a, b in pairs) / len(pairs)
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    expected = sum(first.count(label) * second.count(label) for label in labels) / len(pairs) ** 2
    return None if expected == 1.0 else (observed - expected) / (1.0 - expected)


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


def connect(path: Path) -> sqlite3.Connection:
    """A connection that waits for others' changes; its own are on the disk before they return."""
    # a server answers from several threads; whoever shares a ledger among them locks around it
    connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    switch_to_write_ahead(connection)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


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


ALLOWED, LIKELIEST_FIRST = "allowed/", "likeliest_first/"
"""Beginnings of settings that are made later: posts allowed for a purpose; batches that are handed out by
falling probability of an error, not at random."""


def allowances(connection: sqlite3.Connection) -> dict[str, int]:
    """Purpose -> posts that were allowed for it beyond the budget of creation."""
    found = read_settings(connection)
    return {name.removeprefix(ALLOWED): n for name, n in found.items() if name.startswith(ALLOWED)}


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


# ---- reading ------------------------------------------------------------------------------------------


class LedgerSettings(NamedTuple):
    """What a ledger is created with; see `LedgerReader`."""

    classes: tuple[str, ...]
    budget: int
    double_annotation_rate: float
    lease_seconds: float
    seed: int

    def to_json(self) -> Json:
        """A record of JSON values."""
        return {"format": FORMAT, **self._asdict(), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LedgerSettings:
        """The settings of a record."""
        return cls(
            tuple(record["classes"]), record["budget"], record["double_annotation_rate"],
            record["lease_seconds"], record["seed"],
        )  # fmt: skip


class LedgerReader:
    """A ledger that is there, to read. Not for several threads at once: open one for each, or lock around it.

    Args:
        path: A file that `ReviewLedger.create` made.
        clock: Seconds since 1970; tests move it.

    Raises:
        LedgerError: No ledger there, one of another version, or a file that cannot be used.

    Attributes:
        classes: The task's class names.
        base_budget: Most posts that may ever be reviewed, as the ledger was created; see `budget`.
        double_annotation_rate: Share of them that two people review.
        lease_seconds: How long a reviewer keeps a post without deciding.
        seed: Chooses the doubled posts.
    """

    def __init__(self, path: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock
        if not self.path.is_file():
            raise LedgerError(f"{self.path} is not there: expected a ledger of reviews; create one first")
        with explained(self.path, "opened"):
            self._connection = connect(self.path)
            check_version(self._connection, self.path)
            record = read_settings(self._connection)
        if record.get("format") != FORMAT:
            raise LedgerError(f"{self.path} has format {record.get('format')!r}; expected {FORMAT!r}")
        settings = LedgerSettings.from_json(record)
        self.classes, self.base_budget = settings.classes, settings.budget
        self.double_annotation_rate = settings.double_annotation_rate
        self.lease_seconds, self.seed = settings.lease_seconds, settings.seed

    @property
    def budget(self) -> int:
        """Most posts that may ever be reviewed: as created, and what was allowed since."""
        with explained(self.path, "read"):
            return self.base_budget + sum(allowances(self._connection).values())

    def allowed(self, purpose: str) -> int:
        """Posts that `allow` has allowed for this purpose."""
        with explained(self.path, "read"):
            return allowances(self._connection).get(purpose, 0)

    def batches(self) -> list[str]:
        """Names, in the order in which they were added."""
        with explained(self.path, "read"):
            rows = self._connection.execute("SELECT name FROM batches ORDER BY rowid").fetchall()
        return [row[0] for row in rows]

    def likeliest_first(self, batch: str) -> bool:
        """Whether the posts of a batch are handed out by suspicion, not at random."""
        with explained(self.path, "read"):
            return LIKELIEST_FIRST + batch in read_settings(self._connection)

    def population(self, batch: str) -> list[ReviewItem]:
        """All posts of a batch, to be reviewed or not, as they were added."""
        with explained(self.path, "read"):
            rows = self._connection.execute(
                "SELECT post_id, machine_label, error, inclusion, part FROM posts WHERE batch = ?"
                " ORDER BY rowid",
                (batch,),
            ).fetchall()
        return [ReviewItem(*row) for row in rows]

    def drawn(self, batch: str) -> list[str]:
        """Ids of the posts of a batch that are to be reviewed, in the order in which they are handed out."""
        with explained(self.path, "read"):
            rows = self._connection.execute(
                "SELECT post_id FROM posts WHERE batch = ? AND place IS NOT NULL ORDER BY place", (batch,)
            ).fetchall()
        return [row[0] for row in rows]

    def waiting(self) -> list[str]:
        """Ids of the posts that lack a review, the second of doubled ones included, in order of review."""
        with explained(self.path, "read"):
            rows = self._connection.execute(
                "SELECT post_id FROM posts p WHERE place IS NOT NULL AND (open > 0 OR EXISTS"
                " (SELECT 1 FROM reviews r WHERE r.post_id = p.post_id AND r.label IS NULL)) ORDER BY place"
            ).fetchall()
        return [row[0] for row in rows]

    def progress(self) -> ReviewProgress:
        """How far the review is."""
        with explained(self.path, "read"), reading(self._connection) as connection:
            entered, doubled = connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(doubled), 0) FROM posts WHERE place IS NOT NULL"
            ).fetchone()
            reviewed, reviews, unsure = connection.execute(
                "SELECT COUNT(DISTINCT post_id), COUNT(*), COALESCE(SUM(label = ?), 0) FROM reviews"
                " WHERE label IS NOT NULL",
                (UNSURE,),
            ).fetchone()
            # leases that have run out hold nothing
            (held,) = connection.execute(
                "SELECT COUNT(*) FROM reviews WHERE label IS NULL AND expires > ?", (self._clock(),)
            ).fetchone()
        return ReviewProgress(self.budget, entered, reviewed, doubled, reviews - reviewed, unsure, held)

    def decisions(self) -> list[Decision]:
        """What was decided on each reviewed post, in the order in which posts are handed out."""
        with explained(self.path, "read"):
            rows = self._connection.execute(
                "SELECT r.post_id, r.slot, r.reviewer, r.label, r.decided FROM reviews r"
                " JOIN posts p ON p.post_id = r.post_id AND p.place IS NOT NULL"
                " WHERE r.label IS NOT NULL ORDER BY p.place, r.slot"
            ).fetchall()
        by_post: dict[str, list[Review]] = {}
        for row in rows:
            by_post.setdefault(row[0], []).append(Review(*row))
        return [decision_of(reviews) for reviews in by_post.values()]

    def agreement(self) -> Agreement:
        """How far two people agree, over the doubled posts that both have labelled."""
        return agreement_of(self.decisions())

    def close(self) -> None:
        """Close the file; safe to repeat."""
        self._connection.close()

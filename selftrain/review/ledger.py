"""The human budget's ledger: which posts people review, who has which, and what they decided.

Every change is one transaction, on the disk before the call returns. A post is handed out under a lease, to
one reviewer at a time; a lease that runs out returns the post. A share of the posts is reviewed a second
time, by somebody else, to see how far people agree.

The budget is the number of posts that may ever be reviewed, and it is held when posts enter the ledger: more
than that are refused, and nothing outside the ledger is handed out. Second reviews cost time but no budget;
`ReviewProgress` counts them apart. The digest of a batch is the SHA-256, in hex, of its posts and their order
as JSON without spaces.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.data.values import odd_signs
from selftrain.errors import BudgetError, DecisionError, LedgerError
from selftrain.review.ledger_reader import (
    ALLOWED,
    CREATE,
    CREATE_MAKERS,
    LEDGER,
    LIKELIEST_FIRST,
    SCHEMA_VERSION,
    UNSURE,
    Assignment,
    LedgerReader,
    LedgerSettings,
    ReviewItem,
    allowances,
    check_version,
    connect,
    explained,
    is_begun,
    read_settings,
)
from selftrain.store.run_dir import RunFolder

LEASE_SECONDS = 900.0


# ---- decisions that were made elsewhere ----------------------------------------------------------------


class OutsideDecision(NamedTuple):
    """One decision from outside."""

    line: int  # where it stands in its file, for messages
    post_id: str
    label: str  # a class name, or `UNSURE`
    reviewer: str  # who decided
    batch: str = ""  # the batch of the post by the file; "" where it names none


class Refusal(NamedTuple):
    """A line that was not taken, and why."""

    line: int
    post_id: str
    reason: str


class ImportedReviews(NamedTuple):
    """What became of a file. Lines are counted from 1: of a table its lines, else its items."""

    taken: int  # reviews that the ledger holds now and did not before
    known: int  # reviews that it held before: the same file again
    empty: int  # lines without a review
    refused: tuple[Refusal, ...]  # by line
    nothing: bool  # whether nothing was taken because something was refused, as was asked for


class ReviewLedger(LedgerReader):
    """An open ledger, to read and to change; arguments, attributes and errors are those of `LedgerReader`.

    A reviewer without a name is a `DecisionError` everywhere.
    """

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        classes: Sequence[str],
        budget: int,
        double_annotation_rate: float = 0.0,
        lease_seconds: float = LEASE_SECONDS,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> ReviewLedger:
        """Create an empty ledger of `LedgerSettings`; or open the one that is there, made with the same ones.

        Raises:
            BudgetError: A setting outside its range.
            LedgerError: A ledger with other settings is there, or the file cannot be written.
        """
        settings = LedgerSettings(
            tuple(classes), int(budget), float(double_annotation_rate), float(lease_seconds), int(seed)
        )
        _check_settings(settings)
        path = Path(path)
        with explained(path, "created"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(connect(path)) as connection, changing(connection, clock) as change:
                _create(change, connection, path, settings.to_json())
        return cls(path, clock=clock)

    # ---- what is reviewed -----------------------------------------------------------------------------

    def allow(self, purpose: str, posts: int) -> None:
        """Allow so many posts beyond the budget of creation; the same purpose again replaces the number.

        Raises:
            BudgetError: Fewer than 0, or fewer in all than are in the ledger already.
        """
        with self._change() as change:
            others = sum((allowances(self._connection) | {purpose: 0}).values())
            entered, budget = change.entered(), self.base_budget + others + posts
            if posts < 0 or budget < entered:
                raise BudgetError(
                    f"{posts:,} posts allowed for {purpose!r} would make a budget of {budget:,}:"
                    f" {entered:,} are in the ledger already"
                )
            change.set_value(ALLOWED + purpose, posts)

    def add(
        self, batch: str, items: Sequence[ReviewItem], order: Sequence[str], *, likeliest_first: bool = False
    ) -> None:
        """Put a batch of posts into the ledger, those of them in `order` to be reviewed.

        All posts that the sample was drawn from are kept, not the sample alone: estimates need them. The same
        batch again changes nothing, so that whoever was killed may simply repeat the call. `likeliest_first`
        says that the order is by falling e, not at random: no estimate of a part then.

        Raises:
            BudgetError: More posts than the budget has left, an id twice or unknown, a post of `order` with
                inclusion 0 or that an earlier batch sent to review, a label that is no class.
            LedgerError: A batch of that name with other posts is there.
        """
        check_batch(items, order, self.classes)
        material = json.dumps([[list(item) for item in items], list(order)], separators=(",", ":"))
        digest = hashlib.sha256(material.encode()).hexdigest()
        with self._change() as change:
            known = change.execute("SELECT digest FROM batches WHERE name = ?", (batch,)).fetchone()
            if known is not None and known[0] == digest:
                return
            if known is not None:
                raise LedgerError(
                    f"{self.path} holds a batch {batch!r} of other posts (digest {known[0][:12]}, now"
                    f" {digest[:12]}): give the new one another name"
                )
            change.check_room(order, self.budget)
            change.execute("INSERT INTO batches VALUES (?, ?, ?)", (batch, digest, change.now))
            if likeliest_first:
                change.set_value(LIKELIEST_FIRST + batch, True)
            (begin,) = change.execute("SELECT COALESCE(MAX(place) + 1, 0) FROM posts").fetchone()
            places = {post_id: begin + number for number, post_id in enumerate(order)}
            # which posts two people review: drawn by the seed, the same in any process
            chosen = random.Random(f"{self.seed}/{batch}")
            doubled = set(chosen.sample(sorted(order), round(self.double_annotation_rate * len(order))))
            change.executemany(
                "INSERT INTO posts (batch, post_id, machine_label, error, inclusion, part, place, doubled,"
                " open) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (batch, *item, places.get(item.post_id), twice, (item.post_id in places) + twice)
                    for item in items
                    for twice in [int(item.post_id in doubled)]
                ],
            )

    # ---- for whoever shows posts to reviewers ---------------------------------------------------------

    def next_post(self, reviewer: str) -> Assignment | None:
        """Hand out the post that `reviewer` should look at now, until the lease runs out; None: none is open.

        Who holds a post gets the same one again, its lease renewed: a page may be reloaded. Posts that the
        reviewer skipped come again when nothing else is left.
        """
        with self._change(reviewer) as change:
            expires = change.now + self.lease_seconds
            slot = change.execute(
                "UPDATE reviews SET expires = ? WHERE reviewer = ? AND label IS NULL RETURNING post_id, slot",
                (expires, reviewer),
            ).fetchone()
            if slot is None:
                change.give_back("expires <= ?", change.now)
                slot = change.take_free(reviewer, expires)
            return None if slot is None else change.assignment(slot[0], slot[1], expires)

    def decide(self, reviewer: str, post_id: str, label: str, *, browser: str = "") -> None:
        """Keep a decision: a class name, or `UNSURE` of a reviewer who cannot tell. Either spends the budget.

        The same decision again is no error, so that a page may repeat a request whose answer was lost. A
        decision that comes after the lease ran out counts as long as nobody else was given the post. Where
        it names its `browser`, `undo` knows it again.

        Raises:
            DecisionError: An unknown label, a post that is not this reviewer's, or another decision of theirs
                on it, which `undo` would have to take back first.
        """
        if label not in (*self.classes, UNSURE):
            raise DecisionError(f"label {label!r} for {post_id!r}: expected one of {[*self.classes, UNSURE]}")
        with self._change(reviewer) as change:
            row = change.review_of(post_id, reviewer)
            if row is None:
                raise DecisionError(
                    f"post {post_id!r} is not with {reviewer!r}: its lease ran out and it went to somebody"
                    " else, or it was never handed out; ask for the next post"
                )
            if row[0] not in (None, label):
                raise DecisionError(
                    f"{reviewer!r} has decided {row[0]!r} on post {post_id!r}, now {label!r}: undo that first"
                )
            if row[0] is None:
                change.settle(reviewer, post_id, label)
                change.log("decide", reviewer, post_id, label)
                if browser:
                    change.execute(CREATE_MAKERS)
                    made = "INSERT OR REPLACE INTO makers VALUES (?, ?, ?)"
                    change.execute(made, (post_id, reviewer, browser))

    def skip(self, reviewer: str, post_id: str) -> None:
        """Give a post back undecided; others may take it, this reviewer sees it last. Spends nothing."""
        with self._change(reviewer) as change:
            if not change.give_back("post_id = ? AND reviewer = ?", post_id, reviewer):
                raise DecisionError(f"post {post_id!r} is not open with {reviewer!r}: nothing to skip")
            skipped = "INSERT OR REPLACE INTO skips VALUES (?, ?, ?)"
            change.execute(skipped, (post_id, reviewer, change.now))
            change.log("skip", reviewer, post_id)

    def undo(self, reviewer: str, *, browser: str = "") -> Assignment | None:
        """Take this reviewer's latest decision back: the post is theirs again; None when there is none.

        A post that they hold undecided goes back to the others.

        Raises:
            DecisionError: A `browser` is named, and the decision was not made in it: anybody can type a name.
        """
        with self._change(reviewer) as change:
            latest = self.latest(reviewer)
            if latest is None:
                return None
            post_id, slot, _, label, _ = latest
            if browser and not change.made_in(browser, post_id, reviewer):
                raise DecisionError(
                    f"the decision of {reviewer!r} on post {post_id!r} was not made in this browser: it can"
                    " be taken back where it was made"
                )
            expires = change.now + self.lease_seconds
            change.give_back("reviewer = ?", reviewer)
            change.execute(
                "UPDATE reviews SET label = NULL, decided = NULL, expires = ? WHERE post_id = ? AND slot = ?",
                (expires, post_id, slot),
            )
            change.log("undo", reviewer, post_id, label)
            return change.assignment(post_id, slot, expires)

    def release(self, reviewer: str) -> None:
        """Give back what `reviewer` holds undecided, as when they leave; nothing held is no error."""
        with self._change(reviewer) as change:
            change.give_back("reviewer = ?", reviewer)

    def import_decisions(
        self,
        decisions: Sequence[OutsideDecision],
        *,
        refused: Sequence[Refusal] = (),
        empty: int = 0,
        all_or_nothing: bool = False,
    ) -> ImportedReviews:
        """Take decisions that were made elsewhere, all in one change; what a page could not do is refused.

        `refused` and `empty` are lines that hold no decision.
        """
        with self._change() as change:
            change.execute("SAVEPOINT decisions")
            taken, known, more = change.import_decisions(decisions, self.classes)
            found = ImportedReviews(taken, known, empty, tuple(sorted((*refused, *more))), nothing=False)
            if all_or_nothing and found.refused:
                change.execute("ROLLBACK TO decisions")
                found = found._replace(taken=0, nothing=True)
        return found

    @contextmanager
    def _change(self, reviewer: str = "somebody") -> Iterator[Transaction]:
        """Make one transaction, on the disk when it ends; SQLite's errors in words."""
        if not reviewer.strip():
            raise DecisionError("a reviewer without a name: expected one, so that nobody sees a post twice")
        with explained(self.path, "written"), changing(self._connection, self._clock) as change:
            yield change


@contextmanager
def changing(connection: sqlite3.Connection, clock: Callable[[], float]) -> Iterator[Transaction]:
    """Make one change, all of it or nothing, at the time when it is its turn; others wait."""
    with connection:  # commits, or rolls back
        connection.execute("BEGIN IMMEDIATE")
        yield Transaction(connection, clock())


@contextmanager
def opened_ledger(folder: RunFolder) -> Iterator[ReviewLedger | None]:
    """Open the run's ledger of reviews; None where it has none."""
    path = folder.path / LEDGER
    if not is_begun(path):
        yield None
        return
    with ReviewLedger(path) as ledger:
        yield ledger


# ---- one change -----------------------------------------------------------------------------------------


class Transaction:
    """One change of a ledger, made `now`: all of it or nothing, while others wait."""

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self.execute, self.executemany, self.now = connection.execute, connection.executemany, now

    def set_value(self, name: str, value: object) -> None:
        """Set one of the ledger's settings."""
        put = "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)"
        self.execute(put, (name, json.dumps(value)))

    def entered(self) -> int:
        """Count the posts that are to be reviewed."""
        (entered,) = self.execute("SELECT COUNT(*) FROM posts WHERE place IS NOT NULL").fetchone()
        return int(entered)

    def check_room(self, order: Sequence[str], budget: int) -> None:
        """Refuse posts beyond the budget, and those that are to be reviewed already."""
        entered = self.entered()
        if entered + len(order) > budget:
            raise BudgetError(
                f"{len(order):,} more posts to review, {entered:,} are in the ledger and the budget is"
                f" {budget:,}: expected at most {budget - entered:,}; draw a smaller sample"
            )
        asked = "SELECT 1 FROM posts WHERE post_id = ? AND place IS NOT NULL"
        again = [post_id for post_id in order if self.execute(asked, (post_id,)).fetchone()]
        if again:
            raise BudgetError(
                f"{len(again)} posts are in the ledger for review already, the first is {again[0]!r}:"
                " expected posts that nobody was asked about; leave them out of the new sample"
            )

    def give_back(self, which: str, *values: object) -> int:
        """Give the undecided posts that a condition on `reviews` picks out back to all; count them."""
        rows = self.execute(
            f"DELETE FROM reviews WHERE label IS NULL AND {which} RETURNING post_id", values
        ).fetchall()
        self.executemany("UPDATE posts SET open = open + 1 WHERE post_id = ? AND place IS NOT NULL", rows)
        return len(rows)

    def take_free(self, reviewer: str, expires: float) -> tuple[str, int] | None:
        """Lease the first post in order that has a review open and that this reviewer has not had.

        Posts that they skipped come last, the longest ago first; None when nothing is open for them.
        """
        for query in (_FRESH, _SKIPPED):
            row = self.execute(query, {"who": reviewer}).fetchone()
            if row is not None:
                return row[0], self.take(row[0], reviewer, expires=expires)
        return None

    def take(
        self, post_id: str, reviewer: str, *, label: str | None = None, expires: float | None = None
    ) -> int:
        """Give a reviewer a free review of a post, decided where there is a label: the first (slot 0), or the
        second of a doubled one (1)."""
        taken = self.execute("SELECT slot FROM reviews WHERE post_id = ?", (post_id,)).fetchall()
        slot = 1 if (0,) in taken else 0
        decided = None if label is None else self.now
        self.execute(
            "INSERT INTO reviews (post_id, slot, reviewer, label, decided, expires) VALUES (?,?,?,?,?,?)",
            (post_id, slot, reviewer, label, decided, expires),
        )
        less = "UPDATE posts SET open = open - 1 WHERE post_id = ? AND place IS NOT NULL"
        self.execute(less, (post_id,))
        return slot

    def assignment(self, post_id: str, slot: int, expires: float) -> Assignment:
        """Return what a reviewer is handed."""
        *item, batch, place = self.execute(
            "SELECT post_id, machine_label, error, inclusion, part, batch, place FROM posts"
            " WHERE post_id = ? AND place IS NOT NULL",
            (post_id,),
        ).fetchone()
        return Assignment(ReviewItem(*item), batch, place, slot == 1, expires)

    def review_of(self, post_id: str, reviewer: str) -> tuple[str | None] | None:
        """Return this reviewer's label of a post, None in it while undecided; None: it is not theirs."""
        query = "SELECT label FROM reviews WHERE post_id = ? AND reviewer = ?"
        row: tuple[str | None] | None = self.execute(query, (post_id, reviewer)).fetchone()
        return row

    def made_in(self, browser: str, post_id: str, reviewer: str) -> bool:
        """Return whether a decision was made on the page, in that browser."""
        self.execute(CREATE_MAKERS)
        query = "SELECT 1 FROM makers WHERE post_id = ? AND reviewer = ? AND browser = ?"
        return self.execute(query, (post_id, reviewer, browser)).fetchone() is not None

    def settle(self, reviewer: str, post_id: str, label: str) -> None:
        """Decide a review that the reviewer holds."""
        self.execute(
            "UPDATE reviews SET label = ?, decided = ?, expires = NULL WHERE post_id = ? AND reviewer = ?",
            (label, self.now, post_id, reviewer),
        )

    def log(self, action: str, reviewer: str, post_id: str, label: str | None = None) -> None:
        """Write down what was done."""
        self.execute(
            "INSERT INTO log (at, reviewer, post_id, action, label) VALUES (?, ?, ?, ?, ?)",
            (self.now, reviewer, post_id, action, label),
        )

    # ---- decisions from elsewhere ---------------------------------------------------------------------

    def import_decisions(
        self, decisions: Sequence[OutsideDecision], classes: Sequence[str]
    ) -> tuple[int, int, list[Refusal]]:
        """Take decisions one by one; return how many are new and how many known, and what is refused."""
        self.give_back("expires <= ?", self.now)
        taken, known, refused = 0, 0, list[Refusal]()
        lines: dict[tuple[str, str], int] = {}
        for one in decisions:
            key = (one.post_id, one.reviewer)
            row = self.review_of(*key)
            standing, reason = row[0] if row else None, None
            if key in lines:
                reason = f"repeats line {lines[key]}"
                if standing != one.label:
                    reason = (
                        f"contradicts line {lines[key]}: {one.reviewer!r} says {standing!r} there and"
                        f" {one.label!r} here"
                    )
            elif standing is not None and standing == one.label:
                known += 1
            elif (reason := self._why_not(one, standing, classes)) is None:
                taken += 1
                if row is None:
                    self.take(*key, label=one.label)
                else:  # the reviewer holds the post
                    self.settle(one.reviewer, one.post_id, one.label)
                self.log("import", one.reviewer, one.post_id, one.label)
            if reason is None:
                lines[key] = one.line
            else:
                refused.append(Refusal(one.line, one.post_id, reason))
        return taken, known, refused

    def _why_not(self, one: OutsideDecision, standing: str | None, classes: Sequence[str]) -> str | None:
        """Return why a decision cannot be taken, or None."""
        if not one.reviewer.strip():
            return "names no reviewer: give one"
        if one.label not in (*classes, UNSURE):
            return f"label {one.label!r}{odd_signs(one.label, classes)}: expected one of {[*classes, UNSURE]}"
        if standing is not None:
            return f"{one.reviewer!r} has decided {standing!r} before, now {one.label!r}: undo that first"
        return self._no_room(one)

    def _no_room(self, one: OutsideDecision) -> str | None:
        """Return why the post has no review left for a decision, or None."""
        row = self.execute(
            "SELECT batch, place, open, doubled FROM posts WHERE post_id = ? ORDER BY place IS NULL",
            (one.post_id,),
        ).fetchone()
        if row is None:
            return "is no post of this ledger"
        batch, place, free, doubled = row
        if place is None:
            return f"was not drawn for review (batch {batch!r}): it would be spent over the budget"
        if one.batch and one.batch != batch:
            return f"is of batch {batch!r}, the file says {one.batch!r}: a file of another review?"
        if free or self.review_of(one.post_id, one.reviewer) is not None:
            return None
        query = "SELECT reviewer, label FROM reviews WHERE post_id = ?"
        rows = self.execute(query, (one.post_id,)).fetchall()
        holding = [reviewer for reviewer, label in rows if label is None]
        if holding:
            return f"is with {holding[0]!r} now: import again when that review is made or its lease ran out"
        who = " and ".join(repr(reviewer) for reviewer, _ in rows)
        more = "a third review" if doubled else "one more"
        return f"was reviewed by {who}: {more} would be spent over the budget"


_OPEN = (
    "SELECT p.post_id FROM posts p {join} WHERE p.open > 0 AND p.place IS NOT NULL"
    " AND NOT EXISTS (SELECT 1 FROM reviews r WHERE r.post_id = p.post_id AND r.reviewer = :who)"
)
_FRESH = _OPEN.format(join="") + (
    " AND NOT EXISTS (SELECT 1 FROM skips s WHERE s.post_id = p.post_id AND s.reviewer = :who)"
    " ORDER BY p.place LIMIT 1"
)
_SKIPPED = _OPEN.format(join="JOIN skips s ON s.post_id = p.post_id AND s.reviewer = :who") + (
    " ORDER BY s.skipped, p.place LIMIT 1"
)


def _check_settings(given: LedgerSettings) -> None:
    classes, budget, rate, lease, _ = given
    if len(set(classes)) < 2 or len(set(classes)) < len(classes) or UNSURE in classes:
        raise BudgetError(
            f"classes {list(classes)}: expected two or more different names, none of them {UNSURE!r}"
        )
    if budget < 0 or not 0.0 <= rate <= 1.0 or not lease > 0:
        raise BudgetError(
            f"budget {budget}, double annotation rate {rate}, lease of {lease} s: expected a budget >= 0, a"
            " share in [0, 1] and a lease > 0"
        )


def _create(change: Transaction, connection: sqlite3.Connection, path: Path, settings: Json) -> None:
    """Make the tables in an empty file, or check that they were made with these settings."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version:
        check_version(connection, path)
        found = read_settings(connection)
        differing = sorted(key for key in settings if found.get(key) != settings[key])
        if differing:
            differ = ", ".join(f"{key} {found.get(key)!r}, now {settings[key]!r}" for key in differing)
            raise LedgerError(f"{path} holds a review with other settings ({differ}): name another file")
        return
    if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise LedgerError(f"{path} is a database of something else: name another file")
    for statement in CREATE.split(";\n"):  # executescript would commit first, and others see half a file
        connection.execute(statement)
    for name, value in settings.items():
        change.set_value(name, value)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check_batch(items: Sequence[ReviewItem], order: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse what is no sample of a population, with a BudgetError."""
    by_id = {item.post_id: item for item in items}
    if len(by_id) < len(items) or len(set(order)) < len(order):
        raise BudgetError(
            f"{len(items)} posts with {len(by_id)} ids, {len(order)} to review with {len(set(order))}:"
            " expected every id once"
        )
    for item in items:
        if item.machine_label not in classes:
            raise BudgetError(
                f"post {item.post_id!r} has the machine label {item.machine_label!r}: expected one of"
                f" {list(classes)}"
            )
        shares = [item.inclusion, 0.0 if item.error is None else item.error]
        if not all(0.0 <= share <= 1.0 for share in shares):
            raise BudgetError(
                f"post {item.post_id!r} has inclusion {item.inclusion} and error {item.error}: expected"
                " both in [0, 1]"
            )
    never = [post_id for post_id in order if post_id not in by_id or by_id[post_id].inclusion == 0.0]
    if never:
        raise BudgetError(
            f"{len(never)} posts to review that are not in the batch, or have inclusion 0; the first is"
            f" {never[0]!r}: expected a sample of the batch"
        )

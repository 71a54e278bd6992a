"""The human budget's ledger: which posts people review, who has which, and what they decided.

One SQLite file that any number of processes share; every change is one transaction, on the disk before the
call returns. A post is handed out under a lease, to one reviewer at a time; a lease that runs out returns the
post. A share of the posts is doubled: reviewed a second time, by somebody else, to see how far people agree.

The budget is the number of posts that may ever be reviewed, and it is held when posts enter the ledger: more
than that are refused, and nothing outside the ledger is handed out. Second reviews of doubled posts cost time
but no budget; `Progress` counts them apart.

Formats: `schema.FORMAT` stands in the file, `PRAGMA user_version` is its schema's version. The address of a
batch is the SHA-256, in hex, of its entries and its order as JSON without spaces.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from selftrain.errors import BudgetError, DecisionError, LedgerError
from selftrain.review import assign as queue
from selftrain.review.import_decisions import Entered, Outside, enter
from selftrain.review.items import UNSURE, Entry, Leased, check_batch
from selftrain.review.ledger_schema import (
    FORMAT,
    allow,
    allowances,
    changing,
    connect,
    create,
    explained,
    mark_likeliest_first,
)
from selftrain.review.open_ledger import OpenLedger

LEDGER = "review.sqlite"
"""Its name in a run folder."""
LEASE_SECONDS = 900.0


class ReviewLedger(OpenLedger):
    """An open ledger, to read and to change; arguments, attributes and errors are those of `OpenLedger`."""

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        classes: Sequence[str],
        budget: int,
        doubled_share: float = 0.0,
        lease_seconds: float = LEASE_SECONDS,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> ReviewLedger:
        """A new, empty ledger; or the one that is there, when it was made with the same settings.

        Args:
            path: The file; its folder is made if need be.
            classes: The task's class names, two or more.
            budget: Most posts that may ever be reviewed, >= 0.
            doubled_share: Share of the posts that two people review, in [0, 1].
            lease_seconds: How long a reviewer keeps a post without deciding, > 0.
            seed: Chooses the doubled posts.
            clock: As above.

        Raises:
            BudgetError: A setting outside its range.
            LedgerError: A ledger with other settings is there, or the file cannot be written.
        """
        if len(set(classes)) < 2 or len(set(classes)) < len(classes) or UNSURE in classes:
            raise BudgetError(
                f"classes {list(classes)}: expected two or more different names, none of them {UNSURE!r}"
            )
        if budget < 0 or not 0.0 <= doubled_share <= 1.0 or not lease_seconds > 0:
            raise BudgetError(
                f"budget {budget}, doubled share {doubled_share}, lease of {lease_seconds} s: expected a"
                " budget >= 0, a share in [0, 1] and a lease > 0"
            )
        settings = {
            "format": FORMAT, "classes": list(classes), "budget": int(budget),
            "doubled_share": float(doubled_share), "lease_seconds": float(lease_seconds), "seed": int(seed),
        }  # fmt: skip
        path = Path(path)
        with explained(path, "created"):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = connect(path)
            try:
                with changing(connection):
                    create(connection, path, settings)
            finally:
                connection.close()
        return cls(path, clock=clock)

    # ---- what is reviewed -----------------------------------------------------------------------------

    def allow(self, purpose: str, posts: int) -> None:
        """Allow so many posts beyond the budget of creation; the same purpose again replaces the number.

        That makes it safe to repeat for whoever was killed.

        Raises:
            BudgetError: Fewer than 0, or fewer in all than are in the ledger already.
            LedgerError: The file cannot be written.
        """
        with explained(self.path, "written"), changing(self._connection) as connection:
            others = sum(n for name, n in allowances(connection).items() if name != purpose)
            (entered,) = connection.execute("SELECT COUNT(*) FROM posts WHERE place IS NOT NULL").fetchone()
            if posts < 0 or self.base_budget + others + posts < entered:
                raise BudgetError(
                    f"{posts:,} posts allowed for {purpose!r} would make a budget of"
                    f" {self.base_budget + others + posts:,}: {entered:,} are in the ledger already"
                )
            allow(connection, purpose, posts)

    def add(
        self, batch: str, entries: Sequence[Entry], order: Sequence[str], *, likeliest_first: bool = False
    ) -> None:
        """Put a batch of posts into the ledger, those of them in `order` to be reviewed.

        All posts that the sample was drawn from are kept, not the sample alone: estimates need them. The same
        batch again changes nothing, so that whoever was killed may simply repeat the call.

        Args:
            batch: Its name, for instance a round's.
            entries: The posts that the sample was drawn from, once each.
            order: Ids of the posts to review, in the order in which they are handed out.
            likeliest_first: Whether that order is by suspicion, not at random: no estimate of a part then.

        Raises:
            BudgetError: More posts than the budget has left, an id twice or unknown, a post of `order` with
                inclusion 0 or that an earlier batch sent to review, a label that is no class.
            LedgerError: A batch of that name with other posts is there, or the file cannot be written.
        """
        check_batch(entries, order, self.classes)
        material = json.dumps([[list(entry) for entry in entries], list(order)], separators=(",", ":"))
        address = hashlib.sha256(material.encode()).hexdigest()
        with explained(self.path, "written"), changing(self._connection) as connection:
            known = connection.execute("SELECT address FROM batches WHERE name = ?", (batch,)).fetchone()
            if known is not None and known[0] == address:
                return
            if known is not None:
                raise LedgerError(
                    f"{self.path} holds a batch {batch!r} of other posts (address {known[0][:12]}, now"
                    f" {address[:12]}): give the new one another name"
                )
            queue.check_room(connection, order, self.budget)
            connection.execute("INSERT INTO batches VALUES (?, ?, ?)", (batch, address, self._clock()))
            if likeliest_first:
                mark_likeliest_first(connection, batch)
            (begin,) = connection.execute("SELECT COALESCE(MAX(place) + 1, 0) FROM posts").fetchone()
            places = {post_id: begin + number for number, post_id in enumerate(order)}
            doubled = self._doubled(batch, order)
            connection.executemany(
                "INSERT INTO posts (batch, post_id, machine_label, error, inclusion, part, place, doubled,"
                " open) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (batch, *entry, places.get(entry.post_id), twice, (entry.post_id in places) + twice)
                    for entry in entries
                    for twice in [int(entry.post_id in doubled)]
                ],
            )

    # ---- for whoever shows posts to reviewers ---------------------------------------------------------

    def next_post(self, reviewer: str) -> Leased | None:
        """The post that `reviewer` should look at now, theirs until the lease runs out; None: none is open.

        Who holds a post gets the same one again, its lease renewed: a page may be reloaded. Posts that the
        reviewer skipped come again when nothing else is left.

        Raises:
            DecisionError: A reviewer without a name.
            LedgerError: The file cannot be written.
        """
        _check_reviewer(reviewer)
        now = self._clock()
        expires = now + self.lease_seconds
        with explained(self.path, "written"), changing(self._connection) as connection:
            return queue.hand_out(connection, reviewer, now, expires)

    def decide(self, reviewer: str, post_id: str, label: str) -> None:
        """Keep a decision: a class name, or `UNSURE` of a reviewer who cannot tell. Either spends the budget.

        The same decision again is no error, so that a page may repeat a request whose answer was lost. A
        decision that comes after the lease ran out counts as long as nobody else was given the post.

        Raises:
            DecisionError: An unknown label, a post that is not this reviewer's, or another decision of theirs
                on it, which `undo` would have to take back first.
            LedgerError: The file cannot be written.
        """
        _check_reviewer(reviewer)
        if label not in (*self.classes, UNSURE):
            raise DecisionError(f"label {label!r} for {post_id!r}: expected one of {[*self.classes, UNSURE]}")
        with explained(self.path, "written"), changing(self._connection) as connection:
            queue.decide(connection, reviewer, post_id, label, self._clock())

    def skip(self, reviewer: str, post_id: str) -> None:
        """Give a post back undecided; others may take it, this reviewer sees it again last. Spends nothing.

        Raises:
            DecisionError: The post is not with this reviewer, or they have decided on it.
            LedgerError: The file cannot be written.
        """
        _check_reviewer(reviewer)
        with explained(self.path, "written"), changing(self._connection) as connection:
            queue.skip(connection, reviewer, post_id, self._clock())

    def enter(
        self, decisions: Sequence[Outside], *, all_or_nothing: bool = False, dry: bool = False
    ) -> Entered:
        """Take decisions that were made elsewhere, all in one change; see `import_decisions`.

        Args:
            decisions: In the order of their file.
            all_or_nothing: Take none where one is refused.
            dry: Take none; say what would be refused.

        Raises:
            LedgerError: The file cannot be written.
        """
        now = self._clock()
        with explained(self.path, "written"), changing(self._connection) as connection:
            connection.execute("SAVEPOINT decisions")
            entered = enter(connection, decisions, self.classes, now)
            if dry or (entered.refused and all_or_nothing):
                connection.execute("ROLLBACK TO decisions")
                entered = entered._replace(taken=())
        return entered

    def undo(self, reviewer: str) -> Leased | None:
        """Take this reviewer's latest decision back: the post is theirs again; None when there is none.

        A post that they hold undecided goes back to the others.

        Raises:
            DecisionError: A reviewer without a name.
            LedgerError: The file cannot be written.
        """
        _check_reviewer(reviewer)
        now = self._clock()
        expires = now + self.lease_seconds
        with explained(self.path, "written"), changing(self._connection) as connection:
            return queue.take_back(connection, reviewer, now, expires)

    def release(self, reviewer: str) -> None:
        """Give back what `reviewer` holds undecided, as when they leave; nothing held is no error.

        Raises:
            LedgerError: The file cannot be written.
        """
        with explained(self.path, "written"), changing(self._connection) as connection:
            queue.give_back(connection, "reviewer = ?", reviewer)

    def _doubled(self, batch: str, order: Sequence[str]) -> frozenset[str]:
        """Which posts two people review, drawn by the seed; the same in any process."""
        chosen = random.Random(f"{self.seed}/{batch}")
        return frozenset(chosen.sample(sorted(order), round(self.doubled_share * len(order))))


def _check_reviewer(reviewer: str) -> None:
    if not reviewer.strip():
        raise DecisionError("a reviewer without a name: expected one, so that nobody sees a post twice")

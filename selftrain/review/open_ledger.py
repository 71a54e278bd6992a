"""What a ledger of reviews says, without changing it: `selftrain.review.ledger` is the whole of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from selftrain.errors import LedgerError
from selftrain.review import stats as tally
from selftrain.review.items import Agreement, Decision, Entry, Progress, agreement_of
from selftrain.review.ledger_schema import (
    FORMAT,
    allowances,
    check_version,
    connect,
    explained,
    is_likeliest_first,
    read_settings,
    reading,
)


class OpenLedger:
    """A ledger that is there, to read. Not for several threads at once: open one for each, or lock around it.

    Args:
        path: A file that `ReviewLedger.create` made.
        clock: Seconds since 1970; tests move it.

    Raises:
        LedgerError: No ledger there, one of another version, or a file that cannot be used.

    Attributes:
        classes: The task's class names.
        base_budget: Most posts that may ever be reviewed, as the ledger was created; see `budget`.
        doubled_share: Share of them that two people review.
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
            settings = read_settings(self._connection)
        if settings.get("format") != FORMAT:
            raise LedgerError(f"{self.path} has format {settings.get('format')!r}; expected {FORMAT!r}")
        self.classes: tuple[str, ...] = tuple(settings["classes"])
        self.base_budget: int = settings["budget"]
        self.doubled_share: float = settings["doubled_share"]
        self.lease_seconds: float = settings["lease_seconds"]
        self.seed: int = settings["seed"]

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
            return is_likeliest_first(self._connection, batch)

    def population(self, batch: str) -> list[Entry]:
        """All posts of a batch, to be reviewed or not, as they were added."""
        with explained(self.path, "read"):
            return tally.population(self._connection, batch)

    def drawn(self, batch: str) -> list[str]:
        """Ids of the posts of a batch that are to be reviewed, in the order in which they are handed out."""
        with explained(self.path, "read"):
            return tally.drawn(self._connection, batch)

    def waiting(self) -> list[str]:
        """Ids of the posts that lack a review, the second of doubled ones included, in order of review."""
        with explained(self.path, "read"):
            return tally.waiting(self._connection)

    def progress(self) -> Progress:
        """How far the review is."""
        with explained(self.path, "read"), reading(self._connection) as connection:
            counted = tally.counts(connection, self._clock())
        return Progress(self.budget, *counted)

    def decisions(self) -> list[Decision]:
        """What was decided on each reviewed post, in the order in which posts are handed out."""
        with explained(self.path, "read"):
            return tally.decisions(self._connection)

    def agreement(self) -> Agreement:
        """How far two people agree, over the doubled posts that both have labelled."""
        return agreement_of(self.decisions())

    def close(self) -> None:
        """Close the file; safe to repeat."""
        self._connection.close()

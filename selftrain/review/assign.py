"""Who gets which post: the queries behind the ledger, all inside a transaction of its."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

from selftrain.errors import BudgetError, DecisionError
from selftrain.review.items import Entry, Leased


class Place(NamedTuple):
    """One review of one post: the first (slot 0), or the second of a doubled one."""

    post_id: str
    slot: int


def check_room(connection: sqlite3.Connection, order: Sequence[str], budget: int) -> None:
    """Refuse posts beyond the budget, and those that are to be reviewed already.

    Raises:
        BudgetError: With the counts.
    """
    (entered,) = connection.execute("SELECT COUNT(*) FROM posts WHERE place IS NOT NULL").fetchone()
    if entered + len(order) > budget:
        raise BudgetError(
            f"{len(order):,} more posts to review, {entered:,} are in the ledger and the budget is"
            f" {budget:,}: expected at most {budget - entered:,}; draw a smaller sample"
        )
    asked = "SELECT 1 FROM posts WHERE post_id = ? AND place IS NOT NULL"
    again = [post_id for post_id in order if connection.execute(asked, (post_id,)).fetchone()]
    if again:
        raise BudgetError(
            f"{len(again)} posts are in the ledger for review already, the first is {again[0]!r}: expected"
            " posts that nobody was asked about; leave them out of the new sample"
        )


def held_by(connection: sqlite3.Connection, reviewer: str) -> Place | None:
    """What a reviewer holds undecided, its lease run out or not."""
    row = connection.execute(
        "SELECT post_id, slot FROM reviews WHERE reviewer = ? AND label IS NULL", (reviewer,)
    ).fetchone()
    return None if row is None else Place(*row)


def give_back(connection: sqlite3.Connection, which: str, *values: Any) -> int:  # noqa: ANN401 -- SQL values
    """Return the undecided posts that a condition on `reviews` picks out; how many there were."""
    rows = connection.execute(
        f"DELETE FROM reviews WHERE label IS NULL AND {which} RETURNING post_id", values
    ).fetchall()
    connection.executemany("UPDATE posts SET open = open + 1 WHERE post_id = ? AND place IS NOT NULL", rows)
    return len(rows)


_OPEN = (
    "SELECT p.post_id FROM posts p {join} WHERE p.open > 0"
    " AND NOT EXISTS (SELECT 1 FROM reviews r WHERE r.post_id = p.post_id AND r.reviewer = :who)"
)
_FRESH = _OPEN.format(join="") + (
    " AND NOT EXISTS (SELECT 1 FROM skips s WHERE s.post_id = p.post_id AND s.reviewer = :who)"
    " ORDER BY p.place LIMIT 1"
)
_SKIPPED = _OPEN.format(join="JOIN skips s ON s.post_id = p.post_id AND s.reviewer = :who") + (
    " ORDER BY s.skipped, p.place LIMIT 1"
)


def take_free(connection: sqlite3.Connection, reviewer: str, expires: float) -> Place | None:
    """Lease the first post in order that has a review open and that this reviewer has not had.

    Posts that they skipped come last, the longest ago first; None when nothing is open for them.
    """
    for query in (_FRESH, _SKIPPED):
        row = connection.execute(query, {"who": reviewer}).fetchone()
        if row is not None:
            break
    else:
        return None
    taken = connection.execute("SELECT slot FROM reviews WHERE post_id = ?", row).fetchall()
    place = Place(row[0], 1 if (0,) in taken else 0)
    connection.execute(
        "INSERT INTO reviews (post_id, slot, reviewer, expires) VALUES (?, ?, ?, ?)",
        (*place, reviewer, expires),
    )
    connection.execute("UPDATE posts SET open = open - 1 WHERE post_id = ? AND place IS NOT NULL", row)
    return place


def leased(connection: sqlite3.Connection, place: Place, expires: float) -> Leased:
    """What a reviewer is handed."""
    *entry, batch, number = connection.execute(
        "SELECT post_id, machine_label, error, inclusion, part, batch, place FROM posts"
        " WHERE post_id = ? AND place IS NOT NULL",
        (place.post_id,),
    ).fetchone()
    return Leased(Entry(*entry), batch, number, place.slot == 1, expires)


def hand_out(connection: sqlite3.Connection, reviewer: str, now: float, expires: float) -> Leased | None:
    """What a reviewer looks at next: what they hold, its lease renewed, or a free post."""
    place = held_by(connection, reviewer)
    if place is not None:
        connection.execute("UPDATE reviews SET expires = ? WHERE post_id = ? AND slot = ?", (expires, *place))
    else:
        give_back(connection, "expires <= ?", now)
        place = take_free(connection, reviewer, expires)
    return None if place is None else leased(connection, place, expires)


def decide(connection: sqlite3.Connection, reviewer: str, post_id: str, label: str, now: float) -> None:
    """Keep a decision; the same one again is no error.

    Raises:
        DecisionError: The post is not this reviewer's, or they decided otherwise.
    """
    row = connection.execute(
        "SELECT label FROM reviews WHERE post_id = ? AND reviewer = ?", (post_id, reviewer)
    ).fetchone()
    if row is None:
        raise DecisionError(
            f"post {post_id!r} is not with {reviewer!r}: its lease ran out and it went to somebody"
            " else, or it was never handed out; ask for the next post"
        )
    if row[0] == label:
        return
    if row[0] is not None:
        raise DecisionError(
            f"{reviewer!r} has decided {row[0]!r} on post {post_id!r}, now {label!r}: undo that first"
        )
    connection.execute(
        "UPDATE reviews SET label = ?, decided = ?, expires = NULL WHERE post_id = ? AND reviewer = ?",
        (label, now, post_id, reviewer),
    )
    log(connection, now, "decide", reviewer, post_id, label=label)


def skip(connection: sqlite3.Connection, reviewer: str, post_id: str, now: float) -> None:
    """Give a post back undecided, to be seen again last.

    Raises:
        DecisionError: The post is not open with this reviewer.
    """
    if not give_back(connection, "post_id = ? AND reviewer = ?", post_id, reviewer):
        raise DecisionError(f"post {post_id!r} is not open with {reviewer!r}: nothing to skip")
    connection.execute("INSERT OR REPLACE INTO skips VALUES (?, ?, ?)", (post_id, reviewer, now))
    log(connection, now, "skip", reviewer, post_id)


def take_back(connection: sqlite3.Connection, reviewer: str, now: float, expires: float) -> Leased | None:
    """The reviewer's latest decision undone, its post theirs again; None where there is none."""
    row = connection.execute(
        "SELECT post_id, slot, label FROM reviews WHERE reviewer = ? AND label IS NOT NULL"
        " ORDER BY decided DESC, rowid DESC LIMIT 1",
        (reviewer,),
    ).fetchone()
    if row is None:
        return None
    place = Place(row[0], row[1])
    give_back(connection, "reviewer = ?", reviewer)
    connection.execute(
        "UPDATE reviews SET label = NULL, decided = NULL, expires = ? WHERE post_id = ? AND slot = ?",
        (expires, *place),
    )
    log(connection, now, "undo", reviewer, place.post_id, label=row[2])
    return leased(connection, place, expires)


def log(
    connection: sqlite3.Connection,
    at: float,
    action: str,
    reviewer: str,
    post_id: str,
    *,
    label: str | None = None,
) -> None:
    """Note what was done."""
    connection.execute(
        "INSERT INTO log (at, reviewer, post_id, action, label) VALUES (?, ?, ?, ?, ?)",
        (at, reviewer, post_id, action, label),
    )

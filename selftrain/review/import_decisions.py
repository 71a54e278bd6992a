"""Decisions that were made elsewhere, in a labelling tool or a table, on their way into the ledger.

Each is held against the ledger as if its reviewer had been handed the post there: it spends the same budget,
and what a page could not have done is refused, with the reason.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from selftrain.review import assign as queue
from selftrain.review.items import UNSURE


class Outside(NamedTuple):
    """One decision from outside.

    Attributes:
        line: Where it stands in its file, for messages.
        post_id: The post.
        label: A class name, or `UNSURE`.
        reviewer: Who decided.
        batch: The batch that the file says the post is of; "" where it says none.
    """

    line: int
    post_id: str
    label: str
    reviewer: str
    batch: str = ""


class Refusal(NamedTuple):
    """A line that was not taken, and why."""

    line: int
    post_id: str
    reason: str


class Entered(NamedTuple):
    """What became of decisions from outside.

    Attributes:
        taken: Lines that the ledger holds now and did not before.
        known: Lines that it held before: the same file again.
        refused: The others.
    """

    taken: tuple[int, ...]
    known: tuple[int, ...]
    refused: tuple[Refusal, ...]


def enter(
    connection: sqlite3.Connection, decisions: Sequence[Outside], classes: Sequence[str], now: float
) -> Entered:
    """Take what can be taken, inside a transaction of the ledger's."""
    queue.give_back(connection, "expires <= ?", now)
    taken, known, refused = list[int](), list[int](), list[Refusal]()
    lines: dict[tuple[str, str], int] = {}
    for one in decisions:
        key = (one.post_id, one.reviewer)
        if key in lines:
            refused.append(_refusal(one, _repeats(connection, one, lines[key])))
            continue
        standing = _label_of(connection, one)
        if standing is not None and standing == one.label:
            lines[key] = one.line
            known.append(one.line)
            continue
        reason = _why_not(connection, one, standing, classes)
        if reason is not None:
            refused.append(_refusal(one, reason))
            continue
        lines[key] = one.line
        taken.append(one.line)
        _decide(connection, one, now)
    return Entered(tuple(taken), tuple(known), tuple(refused))


def _refusal(one: Outside, reason: str) -> Refusal:
    return Refusal(one.line, one.post_id, reason)


def _repeats(connection: sqlite3.Connection, one: Outside, line: int) -> str:
    label = _label_of(connection, one)
    if label == one.label:
        return f"repeats line {line}"
    return f"contradicts line {line}: {one.reviewer!r} says {label!r} there and {one.label!r} here"


def _label_of(connection: sqlite3.Connection, one: Outside) -> str | None:
    """What this reviewer has decided on the post."""
    row = connection.execute(
        "SELECT label FROM reviews WHERE post_id = ? AND reviewer = ?", (one.post_id, one.reviewer)
    ).fetchone()
    return None if row is None else row[0]


def _why_not(
    connection: sqlite3.Connection, one: Outside, standing: str | None, classes: Sequence[str]
) -> str | None:
    """Why a decision cannot be taken, or None."""
    if not one.reviewer.strip():
        return "names no reviewer: give one"
    if one.label not in (*classes, UNSURE):
        return f"label {one.label!r}: expected one of {[*classes, UNSURE]}"
    if standing is not None:
        return f"{one.reviewer!r} has decided {standing!r} before, now {one.label!r}: undo that first"
    return _no_room(connection, one)


def _no_room(connection: sqlite3.Connection, one: Outside) -> str | None:
    """Why the post has no review left for this decision, or None."""
    row = connection.execute(
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
    if free or _holds(connection, one):
        return None
    return _spent(connection, one.post_id, 1 + doubled)


def _spent(connection: sqlite3.Connection, post_id: str, reviews: int) -> str:
    rows = connection.execute("SELECT reviewer, label FROM reviews WHERE post_id = ?", (post_id,)).fetchall()
    holding = [reviewer for reviewer, label in rows if label is None]
    if holding:
        return f"is with {holding[0]!r} now: import again when that review is made or its lease ran out"
    who = " and ".join(repr(reviewer) for reviewer, _ in rows)
    more = "one more" if reviews == 1 else "a third review"
    return f"was reviewed by {who}: {more} would be spent over the budget"


def _holds(connection: sqlite3.Connection, one: Outside) -> bool:
    return (
        connection.execute(
            "SELECT 1 FROM reviews WHERE post_id = ? AND reviewer = ? AND label IS NULL",
            (one.post_id, one.reviewer),
        ).fetchone()
        is not None
    )


def _decide(connection: sqlite3.Connection, one: Outside, now: float) -> None:
    """Take the free review of a post, or the one that this reviewer holds, and decide it."""
    if _holds(connection, one):
        connection.execute(
            "UPDATE reviews SET label = ?, decided = ?, expires = NULL WHERE post_id = ? AND reviewer = ?",
            (one.label, now, one.post_id, one.reviewer),
        )
    else:
        slots = connection.execute("SELECT slot FROM reviews WHERE post_id = ?", (one.post_id,)).fetchall()
        connection.execute(
            "INSERT INTO reviews (post_id, slot, reviewer, label, decided) VALUES (?, ?, ?, ?, ?)",
            (one.post_id, 1 if (0,) in slots else 0, one.reviewer, one.label, now),
        )
        connection.execute(
            "UPDATE posts SET open = open - 1 WHERE post_id = ? AND place IS NOT NULL", (one.post_id,)
        )
    queue.log(connection, now, "import", one.reviewer, one.post_id, label=one.label)

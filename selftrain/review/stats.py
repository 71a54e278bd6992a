"""What stands in the ledger: posts, who waits for whom, what was decided. Queries that change nothing."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from selftrain.review.items import UNSURE, Decision, Entry, Review, decision_of


class Counts(NamedTuple):
    """Reviews in numbers; `reviews.Progress` says what each is."""

    entered: int
    reviewed: int
    doubled: int
    second_reviews: int
    unsure: int
    held: int


def population(connection: sqlite3.Connection, batch: str) -> list[Entry]:
    """All posts of a batch, as they were added."""
    rows = connection.execute(
        "SELECT post_id, machine_label, error, inclusion, part FROM posts WHERE batch = ? ORDER BY rowid",
        (batch,),
    ).fetchall()
    return [Entry(*row) for row in rows]


def drawn(connection: sqlite3.Connection, batch: str) -> list[str]:
    """Ids of the posts of a batch that are to be reviewed, in order."""
    rows = connection.execute(
        "SELECT post_id FROM posts WHERE batch = ? AND place IS NOT NULL ORDER BY place", (batch,)
    ).fetchall()
    return [row[0] for row in rows]


def waiting(connection: sqlite3.Connection) -> list[str]:
    """Ids of the posts that lack a review, the second of doubled ones included, in order."""
    rows = connection.execute(
        "SELECT post_id FROM posts p WHERE place IS NOT NULL AND (open > 0 OR EXISTS"
        " (SELECT 1 FROM reviews r WHERE r.post_id = p.post_id AND r.label IS NULL)) ORDER BY place"
    ).fetchall()
    return [row[0] for row in rows]


def counts(connection: sqlite3.Connection, now: float) -> Counts:
    """How far the review is; leases that ran out before `now` hold nothing."""
    entered, doubled = connection.execute(
        "SELECT COUNT(*), COALESCE(SUM(doubled), 0) FROM posts WHERE place IS NOT NULL"
    ).fetchone()
    reviewed, reviews, unsure = connection.execute(
        "SELECT COUNT(DISTINCT post_id), COUNT(*), COALESCE(SUM(label = ?), 0) FROM reviews"
        " WHERE label IS NOT NULL",
        (UNSURE,),
    ).fetchone()
    (held,) = connection.execute(
        "SELECT COUNT(*) FROM reviews WHERE label IS NULL AND expires > ?", (now,)
    ).fetchone()
    return Counts(entered, reviewed, doubled, reviews - reviewed, unsure, held)


def decisions(connection: sqlite3.Connection) -> list[Decision]:
    """What was decided on each reviewed post, in order of review."""
    rows = connection.execute(
        "SELECT r.post_id, r.slot, r.reviewer, r.label, r.decided FROM reviews r"
        " JOIN posts p ON p.post_id = r.post_id AND p.place IS NOT NULL"
        " WHERE r.label IS NOT NULL ORDER BY p.place, r.slot"
    ).fetchall()
    by_post: dict[str, list[Review]] = {}
    for row in rows:
        by_post.setdefault(row[0], []).append(Review(*row))
    return [decision_of(reviews) for reviews in by_post.values()]

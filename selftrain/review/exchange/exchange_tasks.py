"""What is to be reviewed, as another tool needs it: post, pictures, and what machines said of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from selftrain._util.types import Json
from selftrain.errors import ExchangeError
from selftrain.review.audit import is_audit
from selftrain.review.labelling import annotations_of
from selftrain.store.run_dir import RunFolder


class Opinion(NamedTuple):
    """A machine's last word: who, the label or None, its probability or None, and why."""

    who: str
    label: str | None
    probability: float | None
    why: str


class Task(NamedTuple):
    """One post that waits for a review.

    Attributes:
        post_id: As in the ledger.
        batch: Of the ledger.
        place: In the order of this file, from 0.
        text: May be empty.
        images: Absolute paths.
        names: The same, relative to the manifest.
        audit: Whether a pseudo-label is audited, instead of a divergent post.
        opinions: The classifier's first; empty where they are hidden.
    """

    post_id: str
    batch: str
    place: int
    text: str
    images: tuple[Path, ...]
    names: tuple[str, ...]
    audit: bool
    opinions: tuple[Opinion, ...]


class Tasks(NamedTuple):
    """All that waits, and the classes to choose from."""

    tasks: tuple[Task, ...]
    classes: tuple[str, ...]


def gather_tasks(folder: RunFolder, *, hide_opinions: bool = False, everything: bool = False) -> Tasks:
    """The posts of a run that lack a review, in the order in which they are handed out.

    Args:
        folder: The run.
        hide_opinions: Leave out what classifier and agents said: reviewers who read it lean towards it.
        everything: Posts that are reviewed already too.

    Raises:
        RunStateError: No run folder, or a damaged one.
        LedgerError: The run has no ledger, or it cannot be read.
        ExchangeError: A post's row is gone from the run's manifests: there is nothing to show.
    """
    from selftrain.data.run_posts import find_posts
    from selftrain.review.ledger import LEDGER
    from selftrain.review.open_ledger import OpenLedger

    folder.recipe()  # no run folder: said before anything else
    ledger = OpenLedger(folder.path / LEDGER)
    try:
        batch_of = {post_id: batch for batch in ledger.batches() for post_id in ledger.drawn(batch)}
        chosen = list(batch_of) if everything else ledger.waiting()
        classes = ledger.classes
    finally:
        ledger.close()
    posts = find_posts(folder, chosen)
    gone = [post_id for post_id in chosen if post_id not in posts or posts[post_id].reason]
    if gone:
        reason = posts[gone[0]].reason if gone[0] in posts else "no row of that id"
        raise ExchangeError(
            f"{len(gone)} of {len(chosen)} posts to review are not in the run's manifests as they were, the"
            f" first is {gone[0]!r} ({reason}): put the manifest and its pictures back"
        )
    opinions = {} if hide_opinions else _opinions(folder)
    tasks = (
        Task(
            post_id,
            batch_of[post_id],
            place,
            posts[post_id].text,
            posts[post_id].images,
            posts[post_id].names,
            is_audit(batch_of[post_id]),
            opinions.get(post_id, ()),
        )
        for place, post_id in enumerate(chosen)
    )
    return Tasks(tuple(tasks), classes)


def _opinions(folder: RunFolder) -> dict[str, tuple[Opinion, ...]]:
    from selftrain.review.requests import verdicts_now

    now = verdicts_now(folder)
    labelled = {
        post_id: (Opinion("annotator", row["label"], row["probability"], row["rationale"]),)
        for post_id, row in annotations_of(folder).items()
    }
    return labelled | {post_id: _said(one.verdict) for post_id, one in (now.divergent | now.accepted).items()}


def _said(verdict: Json) -> tuple[Opinion, ...]:
    classifier = Opinion("classifier", verdict["classifier_label"], verdict["classifier_probability"], "")
    last: dict[str, Opinion] = {}
    for one in sorted(verdict["judgments"], key=lambda judgment: int(judgment["step"])):
        last[one["agent"]] = Opinion(one["agent"], one["label"], one["probability"], one["rationale"])
    return (classifier, *last.values())

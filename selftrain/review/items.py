"""What goes into a review and what comes out of it, in plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from selftrain.errors import BudgetError

UNSURE = "(unsure)"
"""The decision of a reviewer who cannot tell; never the name of a class."""


class Entry(NamedTuple):
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


class Leased(NamedTuple):
    """A post handed out to one reviewer.

    Attributes:
        entry: The post.
        batch: It was added with.
        place: In the order of all posts to review, from 0.
        second: Whether this is the second review of a doubled post.
        expires: When it goes back if nothing is decided, seconds since 1970.
    """

    entry: Entry
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


class Progress(NamedTuple):
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


def check_batch(entries: Sequence[Entry], order: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse what is no sample of a population.

    Raises:
        BudgetError: An id twice or unknown, a label that is no class, a share outside [0, 1], a post to
            review that could not have been drawn.
    """
    by_id = {entry.post_id: entry for entry in entries}
    if len(by_id) < len(entries) or len(set(order)) < len(order):
        raise BudgetError(
            f"{len(entries)} posts with {len(by_id)} ids, {len(order)} to review with {len(set(order))}:"
            " expected every id once"
        )
    for entry in entries:
        if entry.machine_label not in classes:
            raise BudgetError(
                f"post {entry.post_id!r} has the machine label {entry.machine_label!r}: expected one of"
                f" {list(classes)}"
            )
        shares = [entry.inclusion, 0.0 if entry.error is None else entry.error]
        if not all(0.0 <= share <= 1.0 for share in shares):
            raise BudgetError(
                f"post {entry.post_id!r} has inclusion {entry.inclusion} and error {entry.error}: expected"
                " both in [0, 1]"
            )
    never = [post_id for post_id in order if post_id not in by_id or by_id[post_id].inclusion == 0.0]
    if never:
        raise BudgetError(
            f"{len(never)} posts to review that are not in the batch, or have inclusion 0; the first is"
            f" {never[0]!r}: expected a sample of the batch"
        )

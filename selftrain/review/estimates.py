"""From a ledger of reviews to what learns from it and what a run's pages show: arrays and estimates.

Each batch is about the posts that it was drawn from, and of no others: an audit of the pseudo-labels that
stood when it was drawn, any other of the divergent posts, whose machine label is what classifier and agents
together would have given them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from selftrain._util.types import BoolArray, FloatArray, Json
from selftrain.act.budget import filled
from selftrain.act.error_estimate import ErrorEstimate, label_error, label_error_by, realised
from selftrain.errors import EstimateError
from selftrain.review.ledger import opened_ledger
from selftrain.review.ledger_reader import LedgerReader
from selftrain.review.sampling import is_audit
from selftrain.rounds import finished_rounds
from selftrain.store.run_dir import RunFolder


class BatchOutcome(NamedTuple):
    """One batch of a ledger, all its posts [N], as the ACT loss and the estimates take them."""

    post_ids: tuple[str, ...]  # in the order of the batch
    machine: tuple[str, ...]  # machine labels, class names
    # human labels where one was given, else None; of a contested post the first
    human: tuple[str | None, ...]
    errors: FloatArray  # e; a missing one as `budget.filled` fills it
    inclusion: FloatArray  # pi
    reviewed: BoolArray  # delta: whether there is a human label. A reviewer who was unsure gives none
    parts: tuple[str, ...]  # what estimates are wanted for
    # posts are handed out by falling e, and some are open: those that were looked at are no random part of
    # the sample
    partial: bool = False

    @property
    def wrong(self) -> BoolArray:
        """[N], True where a human label differs from the machine's."""
        pairs = zip(self.human, self.machine, strict=True)
        return np.array([human is not None and human != machine for human, machine in pairs], dtype=bool)

    @property
    def chances(self) -> FloatArray:
        """[N], the chances of a human label.

        Answers that are missing by chance make each of the others count for more; under the threshold rule
        nobody else had a chance, and the loss is the one on mixed labels as it is.
        """
        certain = bool((self.inclusion == 0).any())
        return self.inclusion if certain else realised(self.inclusion, self.reviewed)

    @property
    def labels(self) -> tuple[str, ...]:
        """The mixed labels: human where there is one, machine elsewhere."""
        pairs = zip(self.human, self.machine, strict=True)
        return tuple(machine if human is None else human for human, machine in pairs)


def outcome(ledger: LedgerReader, batch: str) -> BatchOutcome:
    """Return what a batch has come to so far."""
    items, drawn = ledger.population(batch), frozenset(ledger.drawn(batch))
    decided = {decision.post_id: decision.label for decision in ledger.decisions()}
    # a post of this batch may have been reviewed with another one: that is no draw of this sample
    human = tuple(decided.get(one.post_id) if one.post_id in drawn else None for one in items)
    return BatchOutcome(
        tuple(one.post_id for one in items),
        tuple(one.machine_label for one in items),
        human,
        filled([one.error for one in items]),
        np.array([one.inclusion for one in items]),
        np.array([label is not None for label in human], dtype=bool),
        tuple(one.part for one in items),
        not drawn <= decided.keys() and ledger.likeliest_first(batch),
    )


class LabelErrors(NamedTuple):
    """How wrong the machine labels of a batch are: all, by machine label, by part where parts are named."""

    all: ErrorEstimate
    by_class: dict[str, ErrorEstimate]
    by_part: dict[str, ErrorEstimate]

    def to_json(self) -> Json:
        """Return a record of JSON values."""
        return {
            "all": self.all.to_json(),
            "after_correction": self.all.after_correction().to_json(),
            "by_class": {name: one.to_json() for name, one in self.by_class.items()},
            "by_part": {name: one.to_json() for name, one in self.by_part.items()},
        }


def label_errors(found: BatchOutcome) -> LabelErrors:
    """Estimate how wrong the labels of a batch are, see `selftrain.act.error_estimate`.

    Raises:
        EstimateError: Nobody has reviewed anything yet, the sample was drawn by threshold alone, or it was
            looked at in part, the likeliest errors first.
    """
    if not found.reviewed.any():
        raise EstimateError(f"none of {len(found.post_ids)} posts has a human label yet: review some first")
    if found.partial:
        raise EstimateError(
            f"{int(found.reviewed.sum()):,} have a human label, the likeliest errors of the sample, which"
            " are handed out first: they say nothing of the others. Finish the review; next time, draw with"
            " --order sampled"
        )
    arrays = (found.errors, found.inclusion, found.reviewed, found.wrong)
    parts = label_error_by(found.parts, *arrays) if any(found.parts) else {}
    return LabelErrors(label_error(*arrays), label_error_by(found.machine, *arrays), parts)


class ReviewedBatch(NamedTuple):
    """How far the review of one batch is, and what it says of the machine's labels."""

    name: str  # in the ledger
    audit: bool  # whether pseudo-labels were reviewed, instead of divergent posts
    posts: int  # that it was drawn from
    # posts sent to review: `answered` with a label, `unsure` where no reviewer could tell, the others open
    drawn: int
    answered: int
    unsure: int
    # share of wrong machine labels among `posts`; None where it cannot be estimated, see `why`
    errors: LabelErrors | None
    why: str  # why there is no estimate
    # the same among all labels of the grown dataset as it stood then, those that people gave taken as right;
    # None where it is not known
    grown: ErrorEstimate | None = None

    @property
    def open(self) -> int:
        """Posts without a decision."""
        return self.drawn - self.answered - self.unsure


def batches_of(ledger: LedgerReader) -> list[ReviewedBatch]:
    """Return the batches of a ledger, in the order in which they were drawn."""
    decisions = {one.post_id: one.label for one in ledger.decisions()}
    found = []
    for name in ledger.batches():
        drawn, errors, why = ledger.drawn(name), None, ""
        labels = [decisions[post_id] for post_id in drawn if post_id in decisions]
        try:
            errors = label_errors(outcome(ledger, name))
        except EstimateError as error:
            why = str(error)
        unsure = labels.count(None)
        counts = (len(ledger.population(name)), len(drawn), len(labels) - unsure, unsure)
        found.append(ReviewedBatch(name, is_audit(name), *counts, errors, why))
    return found


def reviewed_batches(folder: RunFolder) -> list[ReviewedBatch]:
    """Return the batches of a run's reviews with at least one decision."""
    with opened_ledger(folder) as ledger:
        batches = [] if ledger is None else batches_of(ledger)
    return [
        one._replace(grown=_of_grown(folder, one.name, one.errors.all) if one.audit and one.errors else None)
        for one in batches
        if one.answered + one.unsure
    ]


def _of_grown(folder: RunFolder, name: str, error: ErrorEstimate) -> ErrorEstimate | None:
    """Spread the estimate over all labels of the grown dataset after the round that the audit names."""
    after = re.fullmatch(r".* after round ([0-9]+)", name)
    rounds = finished_rounds(folder)
    if after is None or int(after[1]) >= len(rounds):
        return None
    grown = rounds[int(after[1])].grown
    share = error.posts / grown
    return error._replace(
        value=error.value * share, low=error.low * share, high=error.high * share, posts=grown
    )


def newest_estimate(batches: list[ReviewedBatch]) -> str | None:
    """Tell the newest audit, or else the newest batch of divergent posts, in one line; None without any."""
    known = [one for one in batches if one.errors is not None]
    for one in ([one for one in known if one.audit] or known)[-1:]:
        assert one.errors is not None
        what = "pseudo-labels" if one.audit else "divergent posts' labels, had the machines decided"
        share = one.errors.all.interval.per_cent()
        reviewed = f"{one.answered:,} of {one.posts:,} reviewed"
        return f"wrong {what}: {share} [95 % interval], {one.name}: {reviewed}"
    return None

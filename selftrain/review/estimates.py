"""From a ledger of reviews to what learns from it and what is said of it: arrays, estimates, figures."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from selftrain._util.types import BoolArray, FloatArray
from selftrain.act.budget import filled
from selftrain.act.estimate import ErrorEstimate, label_error, label_error_by
from selftrain.errors import EstimateError
from selftrain.review.open_ledger import OpenLedger


class Outcome(NamedTuple):
    """One batch of a ledger, all its posts [N], as the ACT loss and the estimates take them.

    Attributes:
        post_ids: In the order of the batch.
        machine: Machine labels, class names.
        human: Human labels where one was given, else None; of a contested post the first.
        errors: e; a missing one as `budget.filled` says.
        inclusion: pi.
        reviewed: delta: whether there is a human label. A reviewer who was unsure gives none.
        parts: Of what figures are wanted for.
        partial: Posts are handed out by falling e, and some are open: those that were looked at are no random
            part of the sample.
    """

    post_ids: tuple[str, ...]
    machine: tuple[str, ...]
    human: tuple[str | None, ...]
    errors: FloatArray
    inclusion: FloatArray
    reviewed: BoolArray
    parts: tuple[str, ...]
    partial: bool = False

    @property
    def wrong(self) -> BoolArray:
        """[N], True where a human label differs from the machine's."""
        pairs = zip(self.human, self.machine, strict=True)
        return np.array([human is not None and human != machine for human, machine in pairs], dtype=bool)

    @property
    def labels(self) -> tuple[str, ...]:
        """The mixed labels: human where there is one, machine elsewhere."""
        pairs = zip(self.human, self.machine, strict=True)
        return tuple(machine if human is None else human for human, machine in pairs)


def outcome(ledger: OpenLedger, batch: str) -> Outcome:
    """What a batch has come to so far.

    Raises:
        LedgerError: The file cannot be read.
    """
    entries = ledger.population(batch)
    decided = {decision.post_id: decision.label for decision in ledger.decisions()}
    # a post of this batch may have been reviewed with another one: that is no draw of this sample
    drawn = ledger.drawn(batch)
    own = frozenset(drawn)
    human = tuple(decided.get(e.post_id) if e.post_id in own else None for e in entries)
    some_open = any(post_id not in decided for post_id in drawn)
    return Outcome(
        tuple(e.post_id for e in entries),
        tuple(e.machine_label for e in entries),
        human,
        filled([e.error for e in entries]),
        np.array([e.inclusion for e in entries]),
        np.array([label is not None for label in human], dtype=bool),
        tuple(e.part for e in entries),
        some_open and ledger.likeliest_first(batch),
    )


class LabelErrors(NamedTuple):
    """How wrong the machine labels of a batch are: all, by machine label, by part where parts are named."""

    all: ErrorEstimate
    by_class: dict[str, ErrorEstimate]
    by_part: dict[str, ErrorEstimate]

    def to_json(self) -> dict[str, Any]:
        """A record of JSON values."""
        return {
            "all": self.all.to_json(),
            "after_correction": self.all.after_correction().to_json(),
            "by_class": {name: one.to_json() for name, one in self.by_class.items()},
            "by_part": {name: one.to_json() for name, one in self.by_part.items()},
        }


def label_errors(found: Outcome) -> LabelErrors:
    """The estimates of `selftrain.act.estimate` for a batch.

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
    parts = label_error_by(*arrays, found.parts) if any(found.parts) else {}
    return LabelErrors(label_error(*arrays), label_error_by(*arrays, found.machine), parts)

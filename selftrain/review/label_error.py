"""What the reviews of a run say of its labels: one estimate for every batch that was reviewed.

Each batch speaks of the posts that it was drawn from, and of no others: an audit of the pseudo-labels that
stood when it was drawn, any other of the divergent posts, whose machine label is what classifier and agents
together would have given them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from selftrain.act.error_estimate import ErrorEstimate
from selftrain.errors import EstimateError
from selftrain.review.audit import is_audit
from selftrain.review.estimates import LabelErrors, label_errors, outcome
from selftrain.review.reviewers import opened_ledger
from selftrain.rounds import finished_rounds
from selftrain.store.run_dir import RunFolder


class ReviewedBatch(NamedTuple):
    """One batch with at least one decision.

    Attributes:
        name: In the ledger.
        audit: Whether pseudo-labels were reviewed, instead of divergent posts.
        posts: That it was drawn from.
        drawn: Posts sent to review: `answered` with a label, `unsure` where no reviewer could tell, the
            others open.
        errors: Share of wrong machine labels among `posts`; None where it cannot be estimated, see `why`.
        grown: The same among all labels of the grown dataset as it stood then, those that people gave taken
            as right; None where it cannot be told.
        why: Why there is no estimate.
    """

    name: str
    audit: bool
    posts: int
    drawn: int
    answered: int
    unsure: int
    errors: LabelErrors | None
    grown: ErrorEstimate | None
    why: str

    @property
    def open(self) -> int:
        """Posts without a decision."""
        return self.drawn - self.answered - self.unsure


def reviewed_batches(folder: RunFolder) -> list[ReviewedBatch]:
    """Batches of a run's reviews, in the order in which they were drawn; empty where nobody has decided.

    Raises:
        LedgerError: The ledger cannot be read.
        RunStateError: The folder is damaged.
    """
    with opened_ledger(folder) as ledger:
        if ledger is None:
            return []
        decisions = {one.post_id: one.label for one in ledger.decisions()}
        found = []
        for name in ledger.batches():
            drawn = ledger.drawn(name)
            labels = [decisions[post_id] for post_id in drawn if post_id in decisions]
            if not labels:
                continue
            errors, why = None, ""
            try:
                errors = label_errors(outcome(ledger, name))
            except EstimateError as error:
                why = str(error)
            audit = is_audit(name)
            grown = _of_grown(folder, name, errors.all) if audit and errors is not None else None
            posts, unsure = len(ledger.population(name)), labels.count(None)
            found.append(
                ReviewedBatch(
                    name, audit, posts, len(drawn), len(labels) - unsure, unsure, errors, grown, why
                )
            )
    return found


def _of_grown(folder: RunFolder, name: str, error: ErrorEstimate) -> ErrorEstimate | None:
    """The estimate spread over all labels of the grown dataset after the round that the audit names."""
    after = re.fullmatch(r".* after round ([0-9]+)", name)
    rounds = finished_rounds(folder)
    if after is None or int(after[1]) >= len(rounds):
        return None
    grown = rounds[int(after[1])].grown
    share = error.posts / grown
    return error._replace(
        value=error.value * share, low=error.low * share, high=error.high * share, posts=grown
    )


def told(batches: list[ReviewedBatch]) -> str | None:
    """The newest audit, or else the newest batch of divergent posts, in one line; None without any."""
    known = [one for one in batches if one.errors is not None]
    chosen = ([one for one in known if one.audit] or known)[-1:]
    for one in chosen:
        assert one.errors is not None
        what = "pseudo-labels" if one.audit else "divergent posts' labels, had the machines decided"
        return (
            f"wrong {what}: {percent(one.errors.all)} [95 % interval], {one.name}: {one.answered:,} of"
            f" {one.posts:,} reviewed"
        )
    return None


def percent(error: ErrorEstimate) -> str:
    """Value and interval in per cent."""
    return f"{100 * error.shown:.1f} % [{100 * error.low:.1f}, {100 * error.high:.1f}]"

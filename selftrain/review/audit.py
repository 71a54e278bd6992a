"""How wrong are the pseudo-labels? A sample of them for people to look at, beside what the loop sends.

The divergent posts that the loop sends to review say nothing of the pseudo-labels: those are the posts that
everybody agreed on. An audit draws from these, each with a known probability, so that the error of them all
can be estimated without bias. It has a budget of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from selftrain.errors import BudgetError
from selftrain.store.run_dir import RunFolder

if TYPE_CHECKING:
    from selftrain.act.budget import Rule
    from selftrain.review.requests import Requested

AUDIT = "audit"
"""Names of batches that audit pseudo-labels begin so."""
FLOOR = 0.2


def is_audit(batch: str) -> bool:
    """Return whether a batch was drawn from the pseudo-labels: an audit, or reviewed `--among accepted`."""
    return batch.startswith(AUDIT) or batch == "accepted"


def audit_name(folder: RunFolder) -> str:
    """Of an audit of the pseudo-labels that stand now."""
    return f"{AUDIT} after round {len(folder.finished_rounds()) - 1}"


def request_audit(
    folder: RunFolder,
    *,
    budget: int,
    rule: Rule = "exponential",
    floor: float = FLOOR,
    doubled_share: float = 0.0,
    seed: int = 0,
) -> Requested:
    """Draw a sample of the pseudo-labels that stand, and put it into the run's ledger, made if need be.

    Safe to repeat: after the same round, the audit that is there is left as it is. Posts that people were
    asked about before are not drawn again, and the estimate leaves them out.

    Args:
        folder: The run.
        budget: B, posts to review beside all that the ledger's budget allows.
        rule, floor: See `selftrain.act.budget.inclusion`; threshold needs a floor.
        doubled_share, seed: Of a new ledger; one that is there keeps its own.

    Raises:
        RunStateError: No run folder, or a damaged one.
        BudgetError: More than there are pseudo-labels, fewer than 1, threshold without a floor.
        LedgerError: The ledger cannot be read or written.
    """
    from selftrain.review.ledger import LEDGER, ReviewLedger
    from selftrain.review.requests import class_names, request_reviews, verdicts_now

    if rule == "threshold" and floor == 0.0:
        raise BudgetError(
            "an audit by threshold without a floor: expected every pseudo-label to have a chance of review,"
            " or nothing can be estimated; give a floor, or another rule"
        )
    batch, path = audit_name(folder), folder.path / LEDGER
    if path.exists():
        ledger = ReviewLedger(path)
    else:  # the loop, should it ever ask people here, has a budget of its own
        _check(folder, budget, len(verdicts_now(folder).accepted))
        ledger = ReviewLedger.create(
            path, classes=class_names(folder), budget=0, doubled_share=doubled_share, seed=seed
        )
    try:
        if batch not in ledger.batches():
            asked = {post_id for name in ledger.batches() for post_id in ledger.drawn(name)}
            _check(folder, budget, sum(one not in asked for one in verdicts_now(folder).accepted))
            ledger.allow(batch, budget)
        base, share, draws = ledger.base_budget, ledger.doubled_share, ledger.seed
    finally:
        ledger.close()
    return request_reviews(
        folder, budget=base, batch=batch, sample=budget, rule=rule, floor=floor, doubled_share=share,
        seed=draws, among="accepted",
    )  # fmt: skip


def _check(folder: RunFolder, budget: int, posts: int) -> None:
    if not 1 <= budget <= posts:
        raise BudgetError(
            f"an audit of {budget:,} of the {posts:,} pseudo-labels of {folder.path} that nobody was asked"
            f" about: expected a whole number from 1 to {posts:,}"
        )

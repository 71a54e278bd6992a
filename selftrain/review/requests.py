"""From a run to posts that people should look at: a sample of the divergent set goes into the run's ledger.

Which posts are divergent now, and which pseudo-labels stand, follows from the finished rounds. How likely a
label is wrong is estimated from what classifier and agents said last, see `selftrain.review.disagreement`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from selftrain._util.types import Json
from selftrain.errors import BudgetError, RunStateError
from selftrain.store.run_dir import RunFolder

if TYPE_CHECKING:
    from selftrain.act.budget import Rule
    from selftrain.review.disagreement import Suspicion
    from selftrain.review.sampling import Order

Among = Literal["divergent", "accepted"]
Estimator = Callable[[str, Sequence[Mapping[str, Any]], "Sequence[Suspicion]"], "Sequence[float | None]"]
"""From a batch's name, the last verdicts on its posts and their labels to how likely each label is wrong."""


class Said(NamedTuple):
    """The last verdict on a post, as verdicts.jsonl has it, and the round that gave it."""

    round: int
    verdict: Json


class Verdicts(NamedTuple):
    """Where the finished rounds leave the posts that were judged, by id, in the order of their first verdict.

    Attributes:
        divergent: Found divergent in any round, kept or rolled back, and not accepted since.
        accepted: Pseudo-labels that stand.
    """

    divergent: dict[str, Said]
    accepted: dict[str, Said]


class Requested(NamedTuple):
    """A batch that waits for reviewers.

    Attributes:
        ledger: The file.
        batch: Its name there.
        posts: Posts that the sample was drawn from.
        drawn: Ids of the posts to review, in the order in which they are handed out.
        new: False when the batch was in the ledger already, and nothing was changed.
    """

    ledger: Path
    batch: str
    posts: int
    drawn: tuple[str, ...]
    new: bool


def verdicts_now(folder: RunFolder) -> Verdicts:
    """What the last word on every judged post is.

    A rolled back round accepts nothing and returns nothing, but who disagreed in it disagreed.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
    folder.recipe()  # no run folder: said before anything else
    last, accepted, divergent = dict[str, Said](), set[str](), set[str]()
    for figures in folder.finished_rounds():
        kept = bool(figures["kept"])
        returned = set(figures.get("returned", ())) if kept else set()
        accepted -= returned
        divergent |= returned
        for verdict in folder.verdicts(int(figures["round"])):
            post_id = str(verdict["post_id"])
            last[post_id] = Said(int(figures["round"]), verdict)
            if not verdict["consistent"]:
                divergent.add(post_id)
            elif kept:
                accepted.add(post_id)
                divergent.discard(post_id)
    divergent -= accepted
    return Verdicts(
        {post_id: said for post_id, said in last.items() if post_id in divergent},
        {post_id: said for post_id, said in last.items() if post_id in accepted},
    )


def class_names(folder: RunFolder) -> tuple[str, ...]:
    """The task's classes, the positive one first; those of a labelling in its task's order.

    Raises:
        RunStateError: The folder does not name them.
    """
    folder.recipe()  # no run folder: said before anything else
    classes = folder.environment().get("classes")
    if isinstance(classes, dict) and isinstance(classes.get("all"), list):
        return tuple(map(str, classes["all"]))
    if not isinstance(classes, dict) or not {"positive", "negative"} <= classes.keys():
        raise RunStateError(f"{folder.path}/environment.json names no classes: the run folder is damaged")
    return str(classes["positive"]), str(classes["negative"])


def request_reviews(
    folder: RunFolder,
    *,
    budget: int,
    batch: str,
    sample: int | None = None,
    rule: Rule = "exponential",
    floor: float = 0.0,
    doubled_share: float = 0.0,
    seed: int = 0,
    among: Among = "divergent",
    order: Order = "sampled",
    estimator: Estimator | None = None,
) -> Requested:
    """Draw a sample of a run's posts and put it into the run's ledger, which is made if need be.

    A batch of that name in the ledger is left as it is: whoever was killed may simply repeat the call, even
    after further rounds. Posts that were sent to review earlier are not drawn again.

    Args:
        folder: The run.
        budget: B of the whole ledger: most posts of the run that may ever be reviewed.
        batch: The sample's name, for instance "round 3".
        sample: Posts of this batch; None: all that the budget has left.
        rule, floor: See `selftrain.act.budget.inclusion`.
        doubled_share: Share of the posts that two people review.
        seed: Of the draws; every batch has its own.
        among: The divergent posts, or the pseudo-labels that stand.
        order: How posts are handed out: as sampled, which is at random, or the most likely wrong ones first.
            Only the first is right for an estimate while the review is under way.
        estimator: Says how likely each label is wrong; None: the disagreement of classifier and agents does.
            A post that it has no estimate for counts with the mean of the others.

    Raises:
        RunStateError: No run folder, or a damaged one.
        BudgetError: A budget or sample of 0 or below, more than there are posts or than the budget has left,
            a rule or share that is none, no posts at all.
        LedgerError: The ledger was made with other settings, or cannot be read or written.
    """
    from selftrain.review.ledger import LEDGER, ReviewLedger
    from selftrain.review.sampling import entries_of, sample_of

    path, own_seed = folder.path / LEDGER, _seed(seed, batch)
    classes = class_names(folder)
    known = _known(path) if path.exists() else {}
    if batch not in known:
        verdicts = verdicts_now(folder)
        earlier = {post_id for drawn in known.values() for post_id in drawn}
        candidates: dict[str, Said] = getattr(verdicts, among)
        chosen = {post_id: said for post_id, said in candidates.items() if post_id not in earlier}
        count = budget - len(earlier) if sample is None else sample
        _check(folder, len(chosen), count, among, again=bool(earlier))
        labels = _pseudo_labels(chosen) if among == "accepted" else None
        suspected = _suspected(chosen, classes, labels, batch, estimator)
    ledger = ReviewLedger.create(path, classes=classes, budget=budget, doubled_share=doubled_share, seed=seed)
    try:
        if batch not in known:
            parts = [f"round {said.round}" for said in chosen.values()]
            entries = entries_of(suspected, parts, count=count, rule=rule, floor=floor, seed=own_seed)
            drawn_ids = sample_of(entries, own_seed, order)
            ledger.add(batch, entries, drawn_ids, likeliest_first=order == "uncertain")
        posts, drawn = len(ledger.population(batch)), tuple(ledger.drawn(batch))
    finally:
        ledger.close()
    return Requested(path, batch, posts, drawn, batch not in known)


def _known(path: Path) -> dict[str, list[str]]:
    """Batch -> the posts that it sent to review."""
    from selftrain.review.open_ledger import OpenLedger

    ledger = OpenLedger(path)
    try:
        return {batch: ledger.drawn(batch) for batch in ledger.batches()}
    finally:
        ledger.close()


def _suspected(
    chosen: Mapping[str, Said],
    classes: Sequence[str],
    labels: Mapping[str, str] | None,
    batch: str,
    estimator: Estimator | None,
) -> list[Suspicion]:
    """How likely each post's label is wrong: by disagreement, or by the estimator where there is one."""
    from selftrain.act.budget import filled
    from selftrain.review.disagreement import suspicions

    verdicts = [said.verdict for said in chosen.values()]
    suspected = suspicions(verdicts, classes, labels=labels)
    if estimator is None:
        return suspected
    errors = filled(estimator(batch, verdicts, suspected))
    return [one._replace(error=float(error)) for one, error in zip(suspected, errors, strict=True)]


def _pseudo_labels(chosen: Mapping[str, Said]) -> dict[str, str]:
    """Post id -> the label that classifier and agents agreed on."""
    return {post_id: str(said.verdict["classifier_label"]) for post_id, said in chosen.items()}


def _check(folder: RunFolder, posts: int, count: int, among: Among, *, again: bool) -> None:
    what = "divergent posts" if among == "divergent" else "pseudo-labels"
    more = " that nobody was asked about" if again else ""
    if not posts:
        raise BudgetError(
            f"{folder.path} has no {what}{more}: nothing to review. Rounds from 1 on give some; `selftrain"
            f" show {folder.path}` lists them"
        )
    if not 1 <= count <= posts:
        raise BudgetError(
            f"a budget of {count:,} for {posts:,} {what}{more}: expected a whole number from 1 to {posts:,}"
        )


def _seed(seed: int, batch: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{batch}".encode()).digest()[:8], "big")

"""From a run to posts that people should look at: samples of its divergent posts, and of its pseudo-labels.

Which posts are disputed now, and which pseudo-labels stand, follows from the finished rounds, see
`selftrain.state`. How likely a label is wrong is estimated by a criticizer, or by what is known of the post:
e = 1 - q(label) where the run decides by a posterior q. Else every voice, classifier and agents by what they
gave last, spreads probability over the classes, the label is the class with the largest mean, and

    e = 1 - mean over the voices of the probability that each gives the label.

All of one mind and sure: e near 0. Reviewer and User against each other, or nobody sure: e near one half.

The divergent posts say nothing of the pseudo-labels: those are the posts that everybody agreed on. An audit
draws from these, each with a known probability and on a budget of its own, so that the error of them all can
be estimated without bias.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agents.judgment import Verdict
from selftrain._util.choices import Among, Order, Rule
from selftrain.act.budget import filled, inclusion, systematic_sample
from selftrain.errors import BudgetError
from selftrain.review.ledger import ReviewLedger, opened_ledger
from selftrain.review.ledger_reader import LEDGER, ReviewItem
from selftrain.rounds import replay
from selftrain.state import LastVerdict
from selftrain.store.run_dir import RunFolder

AUDIT = "audit"
"""Names of batches that audit pseudo-labels begin so."""
FLOOR = 0.2
"""Of an audit's budget, spread evenly."""


class MachineLabel(NamedTuple):
    """A post's machine label and the probability that it is wrong, in [0, 1]."""

    post_id: str
    label: str
    error: float


Estimator = Callable[[str, Sequence[Verdict], Sequence[MachineLabel]], Sequence[float | None]]
"""From a batch's name, the last verdicts on its posts and their labels to how likely each label is wrong."""


class Requested(NamedTuple):
    """A batch that waits for reviewers."""

    ledger: Path  # the file
    batch: str  # its name there
    posts: int  # posts that the sample was drawn from
    drawn: tuple[str, ...]  # ids of the posts to review, in the order in which they are handed out
    new: bool  # false when the batch was in the ledger already, and nothing was changed


# ---- how likely is each label wrong? -------------------------------------------------------------------


def error_estimates(
    verdicts: Iterable[Verdict], classes: Sequence[str], *, labels: Mapping[str, str] | None = None
) -> list[MachineLabel]:
    """Estimate how likely the machines' labels of some posts are wrong, by what the verdicts on them say.

    Asked about is the most probable label, or the one that `labels` has for a post id, a pseudo-label, say.

    Raises:
        BudgetError: A verdict that names an unknown class.
    """
    found = []
    for verdict in verdicts:
        probs = _probs(verdict, classes)
        label = (labels or {}).get(verdict.post_id) or max(classes, key=lambda name: probs[name])
        if label not in probs:
            raise BudgetError(
                f"post {verdict.post_id!r} bears the label {label!r}: expected one of {list(classes)}"
            )
        found.append(MachineLabel(verdict.post_id, label, min(max(1.0 - probs[label], 0.0), 1.0)))
    return found


def _probs(verdict: Verdict, classes: Sequence[str]) -> Mapping[str, float]:
    """Return class -> its posterior, or the mean over the voices; agents count by their last judgment."""
    if verdict.posterior is not None:
        return verdict.posterior.probs
    voices = [_voice(verdict.classifier_label, verdict.classifier_probability, {}, classes)]
    for *_, last in verdict.by_agent().values():
        voices.append(_voice(last.label, last.probability, last.details.get("probabilities"), classes))
    return {name: sum(voice[name] for voice in voices) / len(voices) for name in classes}


def _voice(
    label: str | None, probability: float | None, stated: Mapping[str, float] | None, classes: Sequence[str]
) -> dict[str, float]:
    """Return class -> probability of one voice, adding up to 1.

    What it does not give its label it gives the others evenly, unless it states what each gets; a label
    without a probability gets all, and no label gives every class the same.
    """
    if label is None:
        return dict.fromkeys(classes, 1.0 / len(classes))
    if label not in classes:
        raise BudgetError(f"a verdict names the class {label!r}: expected one of {list(classes)}")
    if stated and set(stated) == set(classes):
        return {name: float(stated[name]) for name in classes}
    given = 1.0 if probability is None else float(probability)
    rest = (1.0 - given) / (len(classes) - 1)
    return {name: given if name == label else rest for name in classes}


class SampleSettings(NamedTuple):
    """How posts are drawn for review; see `selftrain.act.budget.inclusion`."""

    budget: int
    rule: Rule = "exponential"
    floor: float = 0.1
    double_annotation_rate: float = 0.0
    seed: int = 0


def add_sample(
    ledger: ReviewLedger,
    batch: str,
    labels: Sequence[MachineLabel],
    parts: Sequence[str],
    drawing: SampleSettings,
    *,
    order: Order = "sampled",
) -> list[str]:
    """Draw `drawing.budget` posts and put them into the ledger, with all that they were drawn from.

    Returns the ids of the sample, in the order of review.
    """
    rule, floor, seed = drawing.rule, drawing.floor, drawing.seed
    pi = inclusion([one.error for one in labels], drawing.budget, rule=rule, floor=floor, seed=seed)
    items = [
        ReviewItem(*one, float(chance), part) for one, chance, part in zip(labels, pi, parts, strict=True)
    ]
    drawn = [items[place] for place in systematic_sample(pi, seed)]
    if order == "uncertain":
        drawn.sort(key=lambda one: -(one.error or 0.0))
    ids = [one.post_id for one in drawn]
    ledger.add(batch, items, ids, likeliest_first=order == "uncertain")
    return ids


def verdicts_among(folder: RunFolder, among: Among) -> dict[str, LastVerdict]:
    """Return the last verdict on each disputed post, or on each pseudo-label that stands, by post id."""
    folder.recipe()  # no run folder: said before anything else
    state, _ = replay(folder)
    return state.last_verdicts_on(state.disputed if among == "divergent" else state.accepted.keys())


def request_reviews(
    folder: RunFolder,
    *,
    budget: int,
    batch: str,
    sample: int | None = None,
    rule: Rule = "exponential",
    floor: float = 0.0,
    double_annotation_rate: float = 0.0,
    seed: int = 0,
    among: Among = "divergent",
    order: Order = "sampled",
    estimator: Estimator | None = None,
    beside: bool = False,
) -> Requested:
    """Draw a sample of a run's posts and put it into the run's ledger, which is made if need be.

    A batch of that name in the ledger is left as it is: whoever was killed may simply repeat the call, even
    after further rounds. Posts that were sent to review earlier are not drawn again.

    Args:
        budget: B of the whole ledger: most posts of the run that may ever be reviewed.
        sample: Posts of this batch; None: all that the budget has left.
        seed: Of the draws; every batch has its own.
        order: Only "sampled" is right for an estimate while the review is under way.
        estimator: Says how likely each label is wrong; None: the disagreement of classifier and agents does.
            A post that it has no estimate for counts with the mean of the others.
        beside: Whether this sample is paid for beside `budget`.

    Raises:
        BudgetError: A budget or sample of 0 or below, more than there are posts or than the budget has left,
            a rule or share that is none, no posts at all.
    """
    chosen, asked = _unasked(folder, batch, among)
    if chosen is not None:  # whatever is refused leaves no ledger behind
        count = budget - asked if sample is None else sample
        _check_count(folder, len(chosen), count, among, again=asked > 0)
        verdicts = [last.verdict for last in chosen.values()]
        accepted = {one.post_id: one.label for one in verdicts} if among == "accepted" else None
        labels = error_estimates(verdicts, folder.class_names(), labels=accepted)
        if estimator is not None:
            errors = filled(estimator(batch, verdicts, labels))
            labels = [one._replace(error=float(error)) for one, error in zip(labels, errors, strict=True)]
    with ReviewLedger.create(
        folder.path / LEDGER, classes=folder.class_names(), budget=budget,
        double_annotation_rate=double_annotation_rate, seed=seed,
    ) as ledger:  # fmt: skip
        if chosen is not None:
            if beside:
                ledger.allow(batch, count)
            parts = [f"round {last.round}" for last in chosen.values()]
            own = int.from_bytes(hashlib.sha256(f"{seed}/{batch}".encode()).digest()[:8], "big")
            drawing = SampleSettings(count, rule, floor, double_annotation_rate, own)
            add_sample(ledger, batch, labels, parts, drawing, order=order)
        posts, drawn = len(ledger.population(batch)), tuple(ledger.drawn(batch))
        return Requested(ledger.path, batch, posts, drawn, new=chosen is not None)


def _unasked(folder: RunFolder, batch: str, among: Among) -> tuple[dict[str, LastVerdict] | None, int]:
    """Return the posts that a batch may be drawn from, None where it is there; how many were asked about."""
    with opened_ledger(folder) as ledger:
        asked = {} if ledger is None else ledger.all_drawn()
        if ledger is not None and batch in ledger.batches():
            return None, len(asked)
    judged = verdicts_among(folder, among)
    return {post_id: last for post_id, last in judged.items() if post_id not in asked}, len(asked)


def _check_count(folder: RunFolder, posts: int, count: int, among: Among, *, again: bool) -> None:
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


def is_audit(batch: str) -> bool:
    """Return whether a batch was drawn from the pseudo-labels: an audit, or reviewed `--among accepted`."""
    return batch.startswith(AUDIT) or batch == "accepted"


def request_audit(
    folder: RunFolder,
    *,
    budget: int,
    rule: Rule = "exponential",
    floor: float = FLOOR,
    double_annotation_rate: float = 0.0,
    seed: int = 0,
) -> Requested:
    """Draw a sample of the pseudo-labels that stand, and put it into the run's ledger, made if need be.

    Safe to repeat: after the same round, the audit that is there is left as it is. Posts that people were
    asked about before are not drawn again, and the estimate leaves them out. The budget is beside all that
    the ledger's allows; a ledger that is there keeps its own seed and share of second reviews.

    Raises:
        BudgetError: More than there are pseudo-labels, fewer than 1, threshold without a floor.
    """
    if rule == "threshold" and floor == 0.0:
        raise BudgetError(
            "an audit by threshold without a floor: expected every pseudo-label to have a chance of review,"
            " or nothing can be estimated; give a floor, or another rule"
        )
    # a new ledger has no budget but the audit's: the loop, should it ever ask people here, has one of its own
    base = 0
    with opened_ledger(folder) as ledger:
        if ledger is not None:
            base, seed = ledger.base_budget, ledger.seed
            double_annotation_rate = ledger.double_annotation_rate
    return request_reviews(
        folder, budget=base, batch=f"{AUDIT} after round {folder.finished() - 1}", sample=budget, rule=rule,
        floor=floor, double_annotation_rate=double_annotation_rate, seed=seed, among="accepted", beside=True,
    )  # fmt: skip

"""From a run to posts that people should look at: samples of its divergent posts, and of its pseudo-labels.

Which posts are disputed now, and which pseudo-labels stand, follows from the finished rounds, see
`selftrain.state`. How likely a label is wrong is estimated by a criticizer, or from what classifier and
agents said last: every voice spreads probability over the classes, the label is the class with the largest
mean, and

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
from typing import Literal, NamedTuple

from agents.judgment import Judgment, Verdict
from selftrain.act.budget import Rule, filled, inclusion, systematic_sample
from selftrain.errors import BudgetError
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, LedgerReader, ReviewItem
from selftrain.rounds import replay
from selftrain.state import LastVerdict
from selftrain.store.run_dir import RunFolder

Order = Literal["sampled", "uncertain"]
Among = Literal["divergent", "accepted"]
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


# ---- how likely is each label wrong? -------------------------------------------------------------------


def error_estimates(
    verdicts: Iterable[Verdict], classes: Sequence[str], *, labels: Mapping[str, str] | None = None
) -> list[MachineLabel]:
    """How likely the machines' labels of some posts are wrong, by what the verdicts on them say.

    A voice that names a class with a probability gives the rest to the others evenly, unless it states what
    each gets; one that names a class without a probability gives it all. An abstention or a failed judgment
    says nothing: every class gets the same. Agents count by their last judgment, the classifier as one voice.

    Args:
        verdicts: One a post.
        classes: The task's class names, two or more.
        labels: Post id -> the label whose error is asked for (a pseudo-label, say); by default the one that
            the voices give together.

    Raises:
        BudgetError: A verdict that names an unknown class.
    """
    return [_error_estimate(verdict, tuple(classes), labels or {}) for verdict in verdicts]


def _error_estimate(verdict: Verdict, classes: tuple[str, ...], labels: Mapping[str, str]) -> MachineLabel:
    said = _one(verdict.classifier_label, verdict.classifier_probability, {}, classes)
    voices = [said, *(_voice(judgments[-1], classes) for judgments in verdict.by_agent().values())]
    means = {name: sum(voice[name] for voice in voices) / len(voices) for name in classes}
    label = labels.get(verdict.post_id) or max(classes, key=lambda name: means[name])
    if label not in means:
        raise BudgetError(
            f"post {verdict.post_id!r} bears the label {label!r}: expected one of {list(classes)}"
        )
    return MachineLabel(verdict.post_id, label, min(max(1.0 - means[label], 0.0), 1.0))


def _voice(judgment: Judgment, classes: tuple[str, ...]) -> dict[str, float]:
    if judgment.label is None:
        return dict.fromkeys(classes, 1.0 / len(classes))
    stated = judgment.details.get("probabilities") or {}
    return _one(judgment.label, judgment.probability, stated, classes)


def _one(
    label: str, probability: float | None, stated: Mapping[str, float], classes: tuple[str, ...]
) -> dict[str, float]:
    """Class -> probability of one voice, adding up to 1."""
    if label not in classes:
        raise BudgetError(f"a verdict names the class {label!r}: expected one of {list(classes)}")
    if set(stated) == set(classes):
        return {name: float(stated[name]) for name in classes}
    given = 1.0 if probability is None else float(probability)
    rest = (1.0 - given) / (len(classes) - 1)
    return {name: given if name == label else rest for name in classes}


# ---- samples ------------------------------------------------------------------------------------------


def review_items(
    suspected: Sequence[MachineLabel],
    parts: Sequence[str],
    *,
    count: int,
    rule: Rule,
    floor: float,
    seed: int,
) -> list[ReviewItem]:
    """The posts as the ledger takes them: how likely each is wrong, and how likely it is drawn.

    Raises:
        BudgetError: As `selftrain.act.budget.inclusion`.
    """
    pi = inclusion([one.error for one in suspected], count, rule=rule, floor=floor, seed=seed)
    return [
        ReviewItem(one.post_id, one.label, one.error, float(chance), part)
        for one, chance, part in zip(suspected, pi, parts, strict=True)
    ]


def sample_of(items: Sequence[ReviewItem], seed: int, order: Order = "sampled") -> list[str]:
    """Ids of the sample, in the order of review."""
    drawn = [items[place] for place in systematic_sample([one.inclusion for one in items], seed)]
    if order == "uncertain":
        drawn.sort(key=lambda one: -(one.error or 0.0))
    return [one.post_id for one in drawn]


def verdicts_among(folder: RunFolder, among: Among) -> dict[str, LastVerdict]:
    """The last verdict on each disputed post, or on each pseudo-label that stands, by post id.

    Raises:
        RunStateError: No run folder, or a damaged one.
    """
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
        double_annotation_rate: Share of the posts that two people review.
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
    path, own_seed = folder.path / LEDGER, _seed(seed, batch)
    classes = folder.class_names()
    known = _known(path) if path.exists() else {}
    if batch not in known:
        earlier = {post_id for drawn in known.values() for post_id in drawn}
        judged = verdicts_among(folder, among)
        chosen = {post_id: last for post_id, last in judged.items() if post_id not in earlier}
        count = budget - len(earlier) if sample is None else sample
        _check(folder, len(chosen), count, among, again=bool(earlier))
        labels = _pseudo_labels(chosen) if among == "accepted" else None
        suspected = _suspected(chosen, classes, labels, batch, estimator)
    ledger = ReviewLedger.create(
        path, classes=classes, budget=budget, double_annotation_rate=double_annotation_rate, seed=seed
    )
    try:
        if batch not in known:
            parts = [f"round {last.round}" for last in chosen.values()]
            items = review_items(suspected, parts, count=count, rule=rule, floor=floor, seed=own_seed)
            drawn_ids = sample_of(items, own_seed, order)
            ledger.add(batch, items, drawn_ids, likeliest_first=order == "uncertain")
        posts, drawn = len(ledger.population(batch)), tuple(ledger.drawn(batch))
    finally:
        ledger.close()
    return Requested(path, batch, posts, drawn, batch not in known)


def is_audit(batch: str) -> bool:
    """Return whether a batch was drawn from the pseudo-labels: an audit, or reviewed `--among accepted`."""
    return batch.startswith(AUDIT) or batch == "accepted"


def audit_name(folder: RunFolder) -> str:
    """Of an audit of the pseudo-labels that stand now."""
    return f"{AUDIT} after round {folder.finished() - 1}"


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
    asked about before are not drawn again, and the estimate leaves them out.

    Args:
        folder: The run.
        budget: B, posts to review beside all that the ledger's budget allows.
        rule, floor: See `selftrain.act.budget.inclusion`; threshold needs a floor.
        double_annotation_rate, seed: Of a new ledger; one that is there keeps its own.

    Raises:
        RunStateError: No run folder, or a damaged one.
        BudgetError: More than there are pseudo-labels, fewer than 1, threshold without a floor.
        LedgerError: The ledger cannot be read or written.
    """
    if rule == "threshold" and floor == 0.0:
        raise BudgetError(
            "an audit by threshold without a floor: expected every pseudo-label to have a chance of review,"
            " or nothing can be estimated; give a floor, or another rule"
        )
    batch, path = audit_name(folder), folder.path / LEDGER
    if path.exists():
        ledger = ReviewLedger(path)
    else:  # the loop, should it ever ask people here, has a budget of its own
        _check_audit(folder, budget, len(verdicts_among(folder, "accepted")))
        ledger = ReviewLedger.create(
            path,
            classes=folder.class_names(),
            budget=0,
            double_annotation_rate=double_annotation_rate,
            seed=seed,
        )
    try:
        if batch not in ledger.batches():
            asked = {post_id for name in ledger.batches() for post_id in ledger.drawn(name)}
            _check_audit(folder, budget, sum(one not in asked for one in verdicts_among(folder, "accepted")))
            ledger.allow(batch, budget)
        base, share, draws = ledger.base_budget, ledger.double_annotation_rate, ledger.seed
    finally:
        ledger.close()
    return request_reviews(
        folder, budget=base, batch=batch, sample=budget, rule=rule, floor=floor, double_annotation_rate=share,
        seed=draws, among="accepted",
    )  # fmt: skip


def _check_audit(folder: RunFolder, budget: int, posts: int) -> None:
    if not 1 <= budget <= posts:
        raise BudgetError(
            f"an audit of {budget:,} of the {posts:,} pseudo-labels of {folder.path} that nobody was asked"
            f" about: expected a whole number from 1 to {posts:,}"
        )


def _known(path: Path) -> dict[str, list[str]]:
    """Batch -> the posts that it sent to review."""
    ledger = LedgerReader(path)
    try:
        return {batch: ledger.drawn(batch) for batch in ledger.batches()}
    finally:
        ledger.close()


def _suspected(
    chosen: Mapping[str, LastVerdict],
    classes: Sequence[str],
    labels: Mapping[str, str] | None,
    batch: str,
    estimator: Estimator | None,
) -> list[MachineLabel]:
    """How likely each post's label is wrong: by disagreement, or by the estimator where there is one."""
    verdicts = [last.verdict for last in chosen.values()]
    suspected = error_estimates(verdicts, classes, labels=labels)
    if estimator is None:
        return suspected
    errors = filled(estimator(batch, verdicts, suspected))
    return [one._replace(error=float(error)) for one, error in zip(suspected, errors, strict=True)]


def _pseudo_labels(chosen: Mapping[str, LastVerdict]) -> dict[str, str]:
    """Post id -> the label that classifier and agents agreed on."""
    return {post_id: last.verdict.classifier_label for post_id, last in chosen.items()}


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

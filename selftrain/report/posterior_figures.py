"""What a run's posterior came to: how many posts it labels, whom it follows, how far it can be taken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from agents.judgment import Posterior, Verdict
from agents.trust import AgentReliability, reliability
from selftrain._util.types import Json
from selftrain.report.post_history import JudgedPosts
from selftrain.rounds import RoundResult
from selftrain.state import LoopState

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class ThresholdRow(NamedTuple):
    """The posts whose most probable class has at least probability `at`, and the share of right ones of them.

    `right` is None where no truth is known.
    """

    at: float
    posts: int
    right: float | None


class PartyShare(NamedTuple):
    """What a party adds to the log-odds of the posts' labels."""

    party: str
    mean: float  # its share without its sign, in nats: how much it moves
    against: float  # share of the posts where it speaks against the label, in [0, 1]


class RevisedRound(NamedTuple):
    """What a round thought better of: posts of earlier rounds, against their verdicts before it."""

    round: int
    kept: bool
    posts: int  # judged anew
    moved: float  # mean change of the probability of the label that they had
    flipped: int  # posts with another label now; where the truth is known, `better` and `worse` of them
    better: int
    worse: int
    gained: int  # posts that have become consistent, and that are so no more
    lost: int


class PosteriorFigures(NamedTuple):
    """The posterior of a run, as it stands after its finished rounds."""

    posts: int  # judged posts that have one
    learned: int  # those that reach `threshold`
    threshold: float
    weight: float  # how much each counts in training beside a labelled post, in [0, 1]
    overruled: int  # posts whose label is another than the classifier's
    thresholds: Sequence[ThresholdRow]
    parties: Sequence[PartyShare]
    revisions: Sequence[RevisedRound]
    known: int  # posts whose truth is known; `calibration` is of these, None without any
    calibration: AgentReliability | None

    def __str__(self) -> str:
        return (
            f"{self.learned:,} of {self.posts:,} judged posts learned, from {self.threshold:.2f} on;"
            f" weight {self.weight:.2f}"
        )

    def to_json(self) -> Json:
        """Return the figures that one line holds, as JSON values."""
        names = ("posts", "learned", "threshold", "weight", "overruled")
        ece = self.calibration.ece if self.calibration else None
        return {name: getattr(self, name) for name in names} | {"ece": ece}


def gather_posterior(
    state: LoopState, rounds: Sequence[RoundResult], judged: JudgedPosts
) -> PosteriorFigures | None:
    """Sum up the posteriors of a run; None where it decides by another rule, or has judged nothing yet.

    `state` is that after `rounds`; what is judged may hold a further round, which does not count yet.
    """
    last = {post_id: one for post_id, one in state.last_verdicts.items() if one.verdict.posterior is not None}
    if not last:
        return None
    verdicts = {post_id: one.verdict for post_id, one in last.items()}
    found = {post_id: one.posterior for post_id, one in verdicts.items() if one.posterior is not None}
    known = [post_id for post_id in found if post_id in judged.truth]
    newest = found[max(last, key=lambda post_id: last[post_id].round)]
    return PosteriorFigures(
        posts=len(found),
        learned=sum(one.consistent for one in verdicts.values()),
        threshold=newest.threshold,
        weight=newest.weight if state.evidence_weight is None else state.evidence_weight,
        overruled=sum(one.label != one.classifier_label for one in verdicts.values()),
        thresholds=[_reaching(at, found, judged.truth) for at in THRESHOLDS],
        parties=list(_shares(list(found.values()))),
        revisions=list(_revisions(rounds, judged)),
        known=len(known),
        calibration=reliability([judged.truth[one] for one in known], [found[one] for one in known]),
    )


def _reaching(at: float, found: Mapping[str, Posterior], truth: Mapping[str, str]) -> ThresholdRow:
    chosen = {post_id: one.label for post_id, one in found.items() if one.probability >= at}
    right = [truth[post_id] == label for post_id, label in chosen.items() if post_id in truth]
    return ThresholdRow(at, len(chosen), fmean(right) if right else None)


def _shares(found: Sequence[Posterior]) -> Iterator[PartyShare]:
    added: dict[str, list[float]] = defaultdict(list)
    for one in found:
        for party, value in one.log_odds.items():
            added[party].append(value)
    for party, values in added.items():
        yield PartyShare(party, fmean(map(abs, values)), fmean(value < 0 for value in values))


def _revisions(rounds: Sequence[RoundResult], judged: JudgedPosts) -> Iterator[RevisedRound]:
    """Yield what each round revised; one that was rolled back leaves the verdicts before it standing."""
    before: dict[str, Verdict] = {}
    for one, (_, verdicts, revised) in zip(rounds, judged.rounds, strict=False):
        pairs = [(before[new.post_id], new) for new in revised if new.post_id in before]
        if pairs:
            flipped = [(old, new) for old, new in pairs if old.label != new.label]
            moved = [
                abs(old.posterior.probs[old.label] - new.posterior.probs[old.label])
                for old, new in pairs
                if old.posterior is not None and new.posterior is not None
            ]
            yield RevisedRound(
                one.number, one.kept, len(pairs),
                moved=fmean(moved) if moved else 0.0,
                flipped=len(flipped),
                better=sum(judged.truth.get(new.post_id) == new.label for _, new in flipped),
                worse=sum(judged.truth.get(old.post_id) == old.label for old, _ in flipped),
                gained=sum(new.consistent and not old.consistent for old, new in pairs),
                lost=sum(old.consistent and not new.consistent for old, new in pairs),
            )  # fmt: skip
        before |= {each.post_id: each for each in (*verdicts, *(revised if one.kept else ()))}

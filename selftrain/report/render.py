"""The page's data, drawn: which charts a report has, and the report as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from selftrain.report.run_page import COST, FinalSplit, RunPage
from selftrain.report.status import score
from selftrain.review.estimates import percent
from selftrain.rounds import CandidateSets, RoundResult, SetCounts
from selftrain.web import charts
from selftrain.web.html import render_page

# part of the loss in metrics.json -> what it is
LOSS_PARTS = {
    "loss": "total", "pn": "labelled posts", "soft": "agreed posts", "unlabelled": "divergent posts",
}  # fmt: skip
COST_NAMES = {
    "calls": "calls", "stored": "from the store", "failed": "failed", "prompt": "prompt tokens",
    "cached": "of them cached", "image": "of them images", "completion": "completion tokens",
    "seconds": "seconds",
}  # fmt: skip


class Charts(NamedTuple):
    """The SVGs of a report; None where the run has no figures for one.

    Attributes:
        curve: Validation over the rounds, for wide and narrow pages.
        consistent, divergent: Sizes by class.
        training: What each round was trained on.
        loss_rounds, loss_epochs: (chart, its series), at the end of each round, and in the best one.
        precision: Of candidates, consistent and divergent sets.
        agents: Role -> calibration.
        precision_recall, reliability: The best model.
        histogram: (chart, split): where its scores lie.
    """

    curve: tuple[Markup, Markup] | None
    consistent: Markup | None
    divergent: Markup | None
    training: Markup | None
    loss_rounds: tuple[Markup, Sequence[str]] | None
    loss_epochs: tuple[Markup, Sequence[str]] | None
    precision: Markup | None
    agents: Mapping[str, Markup]
    precision_recall: Markup | None
    reliability: Markup | None
    histogram: tuple[Markup, str] | None


def render(page: RunPage) -> str:
    """Return the page as HTML."""
    values = page._asdict() | {"charts": draw(page), "cost_names": COST_NAMES, "cost_columns": COST}
    values["error_percent"] = percent
    scripts = ("page.js", "table.js", "verdicts.js") if page.verdicts else ()
    return render_page("report.html.j2", values, folder=Path(__file__).parent, scripts=scripts).html


def draw(page: RunPage) -> Charts:
    """Draw all charts that the page's figures allow."""
    rounds = page.rounds
    verified = [row for row in rounds if row.number]
    best = None if page.summary is None else rounds[page.summary.best_round]
    return Charts(
        curve=_curve(rounds),
        consistent=_set(verified, "consistent", page),
        divergent=_set(verified, "divergent", page),
        training=_training(rounds),
        loss_rounds=_loss_by_round(rounds),
        loss_epochs=None if best is None else _loss_by_epoch(best),
        precision=_precision(verified) if page.truth_known else None,
        agents={
            part.role: charts.reliability_chart(
                [[charts.ReliabilityDot(one.confidence, one.accuracy, one.count) for one in known.bins]],
                f"agent-{number}",
                f"How often agent {number} was right, by the probability it gave",
            )
            for number, part in enumerate(page.agents.parts, 1)
            if part.measured is not None and (known := part.measured.trust.reliability) is not None
        },
        precision_recall=_precision_recall(page.final),
        reliability=_reliability(page.final),
        histogram=_histogram(page.final),
    )


def _curve(rounds: Sequence[RoundResult]) -> tuple[Markup, Markup] | None:
    if not rounds:
        return None
    points = [charts.RoundPoint(r.number, r.kept, *score(r)) for r in rounds]
    return (
        charts.rounds_curve(points, "curve-wide", charts.WIDE),
        charts.rounds_curve(points, "curve-narrow", charts.NARROW),
    )


def _set(rounds: Sequence[RoundResult], which: str, page: RunPage) -> Markup | None:
    if not rounds:
        return None
    classes = (page.task.positive, page.task.negative)
    counts: list[SetCounts] = [getattr(row.sets, which) for row in rounds]
    parts = [[one.by_class.get(name, 0) for one in counts] for name in classes]
    sums = ", ".join(f"round {row.number} {getattr(row.sets, which).posts}" for row in rounds[-20:])
    return charts.stacked_bars(
        [row.number for row in rounds], parts, [row.kept for row in rounds], which,
        f"Posts of the {which} set by round, by the classifier's class: {sums}",
    )  # fmt: skip


def _training(rounds: Sequence[RoundResult]) -> Markup | None:
    if not rounds:
        return None
    learned = [row.training for row in rounds]
    parts = [
        [one.positive + one.negative for one in learned],
        [one.agreed_positive + one.agreed_negative for one in learned],
        [one.divergent for one in learned],
    ]
    return charts.stacked_bars(
        [row.number for row in rounds], parts, [row.kept for row in rounds], "training",
        "Posts that each round was trained on: labelled, agreed and divergent",
    )  # fmt: skip


def _loss_by_round(rounds: Sequence[RoundResult]) -> tuple[Markup, Sequence[str]] | None:
    known = [row for row in rounds if row.curve]
    series = _loss_series([row.curve[-1].loss for row in known])
    if not series:
        return None
    what = "Parts of the loss at the end of each round's training"
    return charts.lines([row.number for row in known], series, "loss-rounds", what), list(series)


def _loss_by_epoch(best: RoundResult) -> tuple[Markup, Sequence[str]] | None:
    series = _loss_series([one.loss for one in best.curve])
    if not series or len(best.curve) < 2:
        return None
    what = f"Parts of the loss over the epochs of round {best.number}"
    across = [float(one.epoch) for one in best.curve]
    chart = charts.lines(across, series, "loss-epochs", what, marker="")
    return chart, list(series)


def _loss_series(losses: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Return what it is called -> a value for each, for the parts that occur."""
    return {
        called: [one.get(part) for one in losses]
        for part, called in LOSS_PARTS.items()
        if any(one.get(part) is not None for one in losses)
    }


def _precision(rounds: Sequence[RoundResult]) -> Markup:
    series = {name: [getattr(row.sets, name).precision for row in rounds] for name in CandidateSets._fields}
    what = "Share of right classifier labels by round, among candidates, consistent and divergent posts"
    return charts.lines([row.number for row in rounds], series, "precision", what, share=True)


def _precision_recall(final: Sequence[FinalSplit]) -> Markup | None:
    found = [one.precision_recall for one in final if one.precision_recall is not None]
    curves = [(one.recall, one.precision) for one in found]
    what = "Precision by recall of the best model"
    return charts.precision_recall_chart(curves, "precision-recall", what) if curves else None


def _reliability(final: Sequence[FinalSplit]) -> Markup | None:
    found = [one.reliability for one in final if one.reliability is not None]
    diagrams = [
        [charts.ReliabilityDot(one.confidence, one.accuracy, one.posts) for one in diagram.bins]
        for diagram in found
    ]
    what = "Share of positive posts by the probability that the best model gave"
    return charts.reliability_chart(diagrams, "reliability", what) if diagrams else None


def _histogram(final: Sequence[FinalSplit]) -> tuple[Markup, str] | None:
    """Draw the scores of the test split, where there is one: the model was chosen on validation."""
    for split in reversed(final):
        if split.histogram is not None:
            what = f"Posts of each class by the probability that the best model gave, {split.name}"
            return charts.histogram_chart(*split.histogram, "histogram", what), split.name
    return None

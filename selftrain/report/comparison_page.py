"""Runs side by side as one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from selftrain.models.intervals import METRICS
from selftrain.report.compare import Comparison
from selftrain.store import atomic
from selftrain.web import charts
from selftrain.web.html import render_page

METRIC_NAMES = {
    "macro_f1": "macro-F1", "accuracy": "accuracy", "precision": "precision", "recall": "recall",
}  # fmt: skip


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Render the page into `out`.

    Raises:
        StorageError: The disk is full or refuses; an older file is as it was.
    """
    atomic.write_text(out, render_comparison(comparison))


def render_comparison(comparison: Comparison) -> str:
    """The page as HTML; it needs no script."""
    runs = [
        [charts.RoundPoint(number, kept, found.validation, found.test) for number, kept, found in run.rounds]
        for run in comparison.runs
    ]
    longest = max(len(points) for points in runs)
    values = comparison._asdict() | {
        "curve": (
            charts.runs_curve(runs, "curve-wide", charts.WIDE),
            charts.runs_curve(runs, "curve-narrow", charts.NARROW),
        ),
        "intervals": _intervals(comparison),
        "metrics": [(name, METRIC_NAMES[name]) for name in METRICS],
        "longest": longest,
    }
    return render_page("comparison.html.j2", values, folder=Path(__file__).parent).html


def _intervals(comparison: Comparison) -> Mapping[str, Markup]:
    """Split -> macro-F1 of every run with its interval."""
    return {
        split: charts.intervals_chart(
            [run.estimates[split]["macro_f1"] for run in comparison.runs],
            f"intervals-{split}",
            f"Macro-F1 on {split} of each run, with its interval",
        )
        for split in comparison.splits
    }

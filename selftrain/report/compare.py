"""Compare runs: what their recipes differ in, their curves, their final figures; as data and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from selftrain._util.toml_sections import flatten
from selftrain._util.types import Interval, Json
from selftrain.models.intervals import METRICS, counts_of, difference, estimates
from selftrain.report.status import Score, Summary, score, summarise
from selftrain.rounds import Cost, RoundResult, SplitMetrics, finished_rounds, total_cost
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import Scored, read_scores
from selftrain.web import charts
from selftrain.web.html import render_page

SPLITS = ("validation", "test")
MACRO_F1 = "macro_f1"
METRIC_NAMES = {
    MACRO_F1: "macro-F1", "accuracy": "accuracy", "precision": "precision", "recall": "recall",
}  # fmt: skip


class Side(NamedTuple):
    """One run.

    Attributes:
        name: Unique among the runs compared.
        task, posts: The task's name, and the digest of who is in which split with which label.
        simulated: Whether its agents' answers were drawn from the labels.
        rounds: (number, kept, score) of each finished round.
        summary: Its figures in short.
        estimates: Split -> metric -> value and 95 % interval, of the best model.
        points: Split -> figure without an interval ("auc", "brier") -> value or None.
        scores: Split -> scores of the best model; empty when its round kept none.
        cost: Of all rounds; None where nobody was called.
    """

    name: str
    task: str
    posts: str
    simulated: bool
    rounds: Sequence[tuple[int, bool, Score]]
    summary: Summary
    estimates: Mapping[str, Mapping[str, Interval]]
    points: Mapping[str, Mapping[str, float | None]]
    scores: Mapping[str, Scored]
    cost: Cost | None


class Comparison(NamedTuple):
    """All runs.

    Attributes:
        runs: In the order given.
        recipe: (section.key, value in each run), of the keys that are not the same in all.
        splits: Those that every run was measured on.
        gains: Split -> macro-F1 of each run minus the first's, paired; None for the first, and where the
            posts or the scores to compare by are missing.
        same_task, same_posts: Whether figures may be compared at all, and post by post.
    """

    runs: Sequence[Side]
    recipe: Sequence[tuple[str, Sequence[object]]]
    splits: Sequence[str]
    gains: Mapping[str, Sequence[Interval | None]]
    same_task: bool
    same_posts: bool


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Read the runs.

    Raises:
        RunStateError: No run folder, no finished round, or a damaged one.
    """
    runs = [_side(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    splits = [split for split in SPLITS if all(split in run.estimates for run in runs)]
    return Comparison(
        runs=runs,
        recipe=_differences([flatten(folder.recipe()) for folder in folders]),
        splits=splits,
        gains={split: [_gain(runs[0], run, split) for run in runs] for split in splits},
        same_task=len({run.task for run in runs}) == 1,
        same_posts=len({run.posts for run in runs}) == 1,
    )


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """Return the folders' names, or their paths where two have the same name."""
    short = [folder.path.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder.path) for folder in folders]


def _side(folder: RunFolder, name: str) -> Side:
    folder.recipe()
    best = folder.best_round()  # says what to do when no round is finished
    environment, rounds = folder.environment(), finished_rounds(folder)
    positive, negative = folder.class_names()
    splits = _splits(rounds[best])
    cost = total_cost(rounds)
    return Side(
        name=name,
        task=environment.task,
        posts=environment.identity.get("posts", ""),
        simulated=environment.simulated,
        rounds=[(one.number, one.kept, score(one)) for one in rounds],
        summary=summarise(rounds),
        estimates={split: estimates(counts_of(one)) for split, one in splits.items()},
        points={split: {"auc": one.auc, "brier": one.brier} for split, one in splits.items()},
        scores=read_scores(folder.round_path(best), positive=positive, negative=negative) or {},
        cost=cost if cost.calls else None,
    )


def _splits(one: RoundResult) -> dict[str, SplitMetrics]:
    return {"validation": one.validation} | ({"test": one.test} if one.test else {})


def _gain(first: Side, run: Side, split: str) -> Interval | None:
    if run is first or split not in first.scores or split not in run.scores:
        return None
    return difference(first.scores[split], run.scores[split])


def _differences(recipes: Sequence[Json]) -> list[tuple[str, list[object]]]:
    """List keys in the order of the recipes; a key that a run does not have is None there."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = [(key, [recipe.get(key) for recipe in recipes]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def to_json(comparison: Comparison) -> Json:
    """Return the comparison as JSON values, without the scores."""
    return {
        "same_task": comparison.same_task,
        "same_posts": comparison.same_posts,
        "recipe": {key: list(values) for key, values in comparison.recipe},
        "runs": [
            {
                "name": run.name, "task": run.task, "simulated": run.simulated,
                "rounds": [
                    {"round": number, "kept": kept, **found._asdict()} for number, kept, found in run.rounds
                ],
                "summary": run.summary._asdict() | {
                    "labels_alone": run.summary.labels_alone._asdict(), "best": run.summary.best._asdict()
                },
                "cost": {"calls": run.cost.calls, "tokens": run.cost.tokens} if run.cost else None,
                "final": {
                    split: {name: one._asdict() for name, one in found.items()} | dict(run.points[split])
                    for split, found in run.estimates.items()
                },
                "gain": {
                    split: None if (one := gains[place]) is None else one._asdict()
                    for split, gains in comparison.gains.items()
                },
            }
            for place, run in enumerate(comparison.runs)
        ],
    }  # fmt: skip


# ---- the page ---------------------------------------------------------------------------------------


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write the page of a comparison to `out`.

    Raises:
        StorageError: The disk is full or refuses; an older file is as it was.
    """
    atomic.write_text(out, render_comparison(comparison))


def render_comparison(comparison: Comparison) -> str:
    """Return the page as HTML; it needs no script."""
    runs = [
        [charts.RoundPoint(number, kept, found.validation, found.test) for number, kept, found in run.rounds]
        for run in comparison.runs
    ]
    longest = max(len(points) for points in runs)
    values = comparison._asdict() | {
        "curve": charts.runs_curve(runs),
        "intervals": _intervals(comparison),
        "metrics": [(name, METRIC_NAMES[name]) for name in METRICS],
        "longest": longest,
    }
    return render_page("comparison.html.j2", values, folder=Path(__file__).parent).html


def _intervals(comparison: Comparison) -> Mapping[str, Markup]:
    """Draw for each split macro-F1 of every run with its interval."""
    return {
        split: charts.intervals_chart(
            [run.estimates[split][MACRO_F1] for run in comparison.runs],
            f"intervals-{split}",
            f"Macro-F1 on {split} of each run, with its interval",
        )
        for split in comparison.splits
    }

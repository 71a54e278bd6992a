"""Compare runs: what their recipes differ in, their curves, their final figures; as data and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from selftrain._util.toml_sections import flatten
from selftrain._util.types import Interval, Json
from selftrain.models.metrics import METRICS, counts_of, difference, estimates
from selftrain.report.post_history import JudgedPosts
from selftrain.report.posterior_figures import PosteriorFigures, gather_posterior
from selftrain.report.status import Summary, score, summarise
from selftrain.rounds import Cost, RoundResult, SplitMetrics, replay, total_cost
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import Scored, numbered, read_scores
from selftrain.web import charts
from selftrain.web.html import render_page

SPLITS = ("validation", "test")
MACRO_F1 = "macro_f1"


class Side(NamedTuple):
    """One run, under a name that no other has."""

    name: str
    task: str
    posts: str  # digest of who is in which split with which label
    simulated: bool  # whether its agents' answers were drawn from the labels
    rounds: Sequence[RoundResult]  # all finished ones; `summary` has their figures in short
    summary: Summary
    splits: Mapping[str, SplitMetrics]  # split -> metrics of the best model; each with its 95 % interval
    estimates: Mapping[str, Mapping[str, Interval]]
    scores: Mapping[str, Scored]  # split -> scores of the best model; empty when its round kept none
    cost: Cost | None  # of all rounds; None where nobody was called
    posterior: PosteriorFigures | None  # what it came to; None where the run decides by another rule


class Comparison(NamedTuple):
    """All runs."""

    runs: Sequence[Side]  # in the order given
    # (section.key, value in each run), of the keys that are not the same in all
    recipe: Sequence[tuple[str, Sequence[object]]]
    splits: Sequence[str]  # those that every run was measured on
    # split -> macro-F1 of each run minus the first's, paired; None for the first, and where the posts or the
    # scores to compare by are missing
    gains: Mapping[str, Sequence[Interval | None]]
    same_task: bool  # whether figures may be compared at all, and post by post
    same_posts: bool


def compare(folders: Sequence[RunFolder]) -> Comparison:
    """Read the runs."""
    names = [folder.path.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder.path) for folder in folders]
    runs = [_side(folder, name) for folder, name in zip(folders, names, strict=True)]
    splits = [split for split in SPLITS if all(split in run.splits for run in runs)]
    return Comparison(
        runs=runs,
        recipe=_differences([flatten(folder.recipe()) for folder in folders]),
        splits=splits,
        gains={split: [_gain(runs[0], run, split) for run in runs] for split in splits},
        same_task=len({run.task for run in runs}) == 1,
        same_posts=len({run.posts for run in runs}) == 1,
    )


def _side(folder: RunFolder, name: str) -> Side:
    folder.recipe()
    best = folder.best_round()  # says what to do when no round is finished
    environment, (state, rounds) = folder.environment(), replay(folder)
    measured = {"validation": rounds[best].validation, "test": rounds[best].test}
    splits = {split: one for split, one in measured.items() if one is not None}
    cost = total_cost(rounds)
    return Side(
        name=name,
        task=environment.task,
        posts=environment.identity.get("posts", ""),
        simulated=environment.simulated,
        rounds=rounds,
        summary=summarise(rounds),
        splits=splits,
        estimates={split: estimates(counts_of(one)) for split, one in splits.items()},
        scores=read_scores(folder.round_path(best), numbered(folder.class_names())) or {},
        cost=cost if cost.calls else None,
        posterior=gather_posterior(state, rounds, JudgedPosts(folder, range(len(rounds)))),
    )


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
                    {"round": one.number, "kept": one.kept, **score(one)._asdict()} for one in run.rounds
                ],
                "summary": run.summary.to_json(),
                "cost": {"calls": run.cost.calls, "tokens": run.cost.tokens} if run.cost else None,
                "posterior": run.posterior.to_json() if run.posterior else None,
                "final": {
                    split: {name: value._asdict() for name, value in run.estimates[split].items()}
                    | {"auc": one.auc, "brier": one.brier}
                    for split, one in run.splits.items()
                },
                "gain": {
                    split: one._asdict() if (one := gains[place]) else None
                    for split, gains in comparison.gains.items()
                },
            }
            for place, run in enumerate(comparison.runs)
        ],
    }  # fmt: skip


def render_comparison(comparison: Comparison) -> str:
    """Return the page as HTML; it needs no script."""
    points = [
        [charts.RoundPoint(r.number, r.kept, *score(r)[:2]) for r in run.rounds] for run in comparison.runs
    ]
    values = comparison._asdict() | {
        "curve": charts.runs_curve(points),
        "intervals": {
            split: charts.intervals_chart(
                [run.estimates[split][MACRO_F1] for run in comparison.runs],
                f"intervals-{split}",
                f"Macro-F1 on {split} of each run, with its interval",
            )
            for split in comparison.splits
        },
        "metrics": [(name, "macro-F1" if name == MACRO_F1 else name) for name in METRICS],
        "longest": max(map(len, points)),
    }
    return render_page("comparison.html.j2", values, folder=Path(__file__).parent).html

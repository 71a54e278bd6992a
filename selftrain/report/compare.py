"""Runs side by side, as plain data: what their recipes differ in, their curves, their final figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from selftrain._util.types import Json
from selftrain.models.intervals import Estimate, counts_of, difference, estimates
from selftrain.report.status import Score, Summary, score, summarise
from selftrain.rounds import Cost, RoundResult, SplitMetrics, finished_rounds, total_cost
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import Scored, read_scores

SPLITS = ("validation", "test")


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
    estimates: Mapping[str, Mapping[str, Estimate]]
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
    gains: Mapping[str, Sequence[Estimate | None]]
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
        recipe=_differences([_flat(folder.recipe()) for folder in folders]),
        splits=splits,
        gains={split: [_gain(runs[0], run, split) for run in runs] for split in splits},
        same_task=len({run.task for run in runs}) == 1,
        same_posts=len({run.posts for run in runs}) == 1,
    )


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """The folders' names; their paths where two have the same name."""
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


def _gain(first: Side, run: Side, split: str) -> Estimate | None:
    if run is first or split not in first.scores or split not in run.scores:
        return None
    return difference(first.scores[split], run.scores[split])


def _flat(recipe: Mapping[str, Any]) -> Json:
    flat: Json = {}
    for section, value in recipe.items():
        if isinstance(value, dict):
            flat |= {f"{section}.{key}": item for key, item in value.items()}
        else:
            flat[section] = value
    return flat


def _differences(recipes: Sequence[Json]) -> list[tuple[str, list[object]]]:
    """Keys in the order of the recipes; a key that a run does not have is None there."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = [(key, [recipe.get(key) for recipe in recipes]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def to_json(comparison: Comparison) -> Json:
    """The comparison as JSON values, without the scores."""
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

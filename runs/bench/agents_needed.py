"""`python -m runs.bench agents_needed`: how good agents must be, how independent, and what else it takes.

Agents are simulated; posts, labels and features are real. Every line is one run of the loop under the
posterior rule: one round on the posts that the classifier is least sure of, its gain over its own round 0,
which is the labels alone. Splits are those of the study of judges. A study that was stopped goes on.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from runs.bench.judges import JudgedSet, Trial, find_sets, open_trial
from runs.bench.shown import svg
from runs.bench.study import Figure, Figures, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STUDY = "agents_needed"
ACCURACIES = (0.55, 0.65, 0.75, 0.85, 0.9)
SOME = (0.65, 0.85)
FOLDS = 3
"""Parts in which labels are left out: fewer than usual, for more worlds in the same time."""


class World(NamedTuple):
    """What is simulated.

    Attributes:
        accuracy, shared, agents: Of the agents: see `agents.simulated.SimulatedAgent`; how many there are.
        labels: Labelled posts.
        asked: Most posts that agents are asked about.
        pool: Most posts of the pool.
    """

    accuracy: float
    shared: float = 0.7
    agents: int = 2
    labels: int = 100
    asked: int = 500
    pool: int = 1900

    @property
    def name(self) -> str:
        """As figures are kept under."""
        return f"accuracy={self.accuracy} shared={self.shared} agents={self.agents} pool={self.pool}"


SHARES = (0.0, 0.7, 1.0)
VARIANTS = {
    "as on the left": World(0),
    "one agent": World(0, agents=1),
    "150 posts asked": World(0, asked=150),
    "whole pool asked": World(0, asked=1900),
    "pool of 500": World(0, pool=500),
    "50 labels": World(0, labels=50),
}
"""What differs from two agents, 100 labels and 500 posts asked of some 1,900."""


def worlds() -> Iterator[World]:
    """Yield all that is measured, what tells most first."""
    yield from (World(accuracy, shared) for shared in SHARES for accuracy in ACCURACIES)
    for variant in VARIANTS.values():
        if variant != World(0):
            yield from (variant._replace(accuracy=accuracy) for accuracy in SOME)
    yield World(1.0, asked=1900)  # all labels of the pool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the study of judges' sets")
    parser.add_argument("--sets", default="hatebiasnet,tweeteval_hate", help="by commas (default: two)")
    parser.add_argument("--seeds", type=numbers, default="0,1", help="as 0..9, or by commas (default: 0,1)")
    parser.add_argument("--worlds", type=int, help="so many, those that tell most (default: all)")
    parser.add_argument("--svg", type=Path, help="draw them here")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Measure what --json does not hold yet, print the table, draw the figure where asked to."""
    from backbones import load_backbone

    backbone = load_backbone("minilm_efficientnet")
    sets, chosen = list(find_sets(args.data, args.sets)), list(worlds())[: args.worlds]
    for seed in args.seeds:
        for judged in sets:
            for labels in (100, 50):
                wanted = [one for one in chosen if one.labels == labels]
                missing = [one for one in wanted if not _there(figures, judged, one, seed)]
                if missing:
                    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as folder:
                        trial = open_trial(
                            judged, backbone, Path(folder), n=labels, seed=seed, validation=0.0
                        )
                        for world in missing:
                            _measure(figures, trial, world)
    print("\n".join(table(figures)))
    if args.svg is not None:
        draw(figures, args.svg)
        print(args.svg)


def _there(figures: Figures, judged: JudgedSet, world: World, seed: int) -> bool:
    return figures.has(
        STUDY, world.name, world.labels, seed, dataset=judged.name, asked=str(world.asked)
    )  # fmt: skip


def _measure(figures: Figures, trial: Trial, world: World) -> None:
    from runs.bench.loop_study import loop_rounds
    from selftrain.config import load_recipe

    pool = np.random.RandomState(trial.seed).permutation(trial.corpus.pool)[: world.pool]
    prepared = trial.prepared._replace(corpus=replace(trial.corpus, pool=np.sort(pool)))
    asked = min(world.asked, len(pool))
    recipe = load_recipe(trial.recipe, [
        "agents.kind=simulated", "agents.files=[]", f"agents.accuracy={world.accuracy}",
        f"agents.shared={world.shared}", f"agents.count={world.agents}", "verification.rule=posterior",
        "selection.kind=uncertain", f"selection.k={asked}", "rounds.max=1", f"verification.folds={FOLDS}",
    ])  # fmt: skip
    first, last = loop_rounds(recipe, prepared, trial.folder / "run")
    best = last if last.kept else first
    assert first.test is not None
    assert best.test is not None
    values = {
        "macro_f1": best.test.macro_f1,
        "gain_macro_f1": 100 * (best.test.macro_f1 - first.test.macro_f1),
        "gain_auc": 100 * ((best.test.auc or 0.5) - (first.test.auc or 0.5)),
        "seconds": first.seconds + last.seconds,
    }
    key = (STUDY, trial.judged.name, world.name, world.labels, trial.seed)
    figures.add([Figure(*key, *item, str(world.asked)) for item in values.items()])
    told = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    print(f"{trial.judged.name} seed={trial.seed} n={world.labels} {world.name}: {told}", flush=True)


# ---- what is shown --------------------------------------------------------------------------------------


def gains(figures: Figures, world: World, metric: str) -> list[float]:
    """Return the gains of all sets and seeds, in points."""
    wanted = (world.name, world.labels, str(world.asked), metric)
    return [f.value for f in figures.figures if (f.method, f.n, f.asked, f.metric) == wanted]


def table(figures: Figures) -> Iterator[str]:
    """Yield a line a world: mean gain ± its standard error, in points of macro-F1 and of AUC."""
    for world in worlds():
        cells = []
        for metric in ("gain_macro_f1", "gain_auc"):
            found = gains(figures, world, metric)
            error = f" ± {stdev(found) / len(found) ** 0.5:.1f}" if len(found) > 1 else ""
            cells.append(f"{fmean(found):+.1f}{error}" if found else "-")
        yield f"n={world.labels:<4} asked={world.asked:<5} {world.name:<48} {cells[0]:<14} {cells[1]}"


def draw(figures: Figures, file: Path) -> None:
    """Draw gain by accuracy: on the left by what the agents share, on the right by everything else."""
    with svg(file, STUDY) as subplots:
        shown, axes = subplots(2, 2, figsize=(9, 6.4), sharex=True, sharey="row")
        for (left, right), metric, label in zip(
            axes, ("gain_macro_f1", "gain_auc"), ("macro-F1", "AUC"), strict=True
        ):
            for shared in SHARES:
                _line(left, figures, [World(one, shared) for one in ACCURACIES], metric, f"shared {shared:g}")
            for name, variant in VARIANTS.items():
                _line(right, figures, [variant._replace(accuracy=one) for one in SOME], metric, name)
            left.set_ylabel(f"test {label}, points gained")
            for axis in (left, right):
                axis.axhline(0, color="0.6", linewidth=0.8)
                axis.grid(color="0.92")
        axes[0][0].set_title("two agents, 100 labels, 500 posts asked", fontsize=9)
        axes[0][1].set_title("shared 0.7, and one thing otherwise", fontsize=9)
        for axis in axes[0]:
            axis.legend(frameon=False, fontsize=8)
        for axis in axes[1]:
            axis.set_xlabel("accuracy of each agent")
        shown.tight_layout()


def _line(axis: Axes, figures: Figures, line: Sequence[World], metric: str, name: str) -> None:
    means = [(one.accuracy, fmean(found)) for one in line if (found := gains(figures, one, metric))]
    if means:
        axis.plot(*zip(*means, strict=True), marker="o", markersize=3.5, linewidth=1.4, label=name)

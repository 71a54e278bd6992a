"""`python -m runs.bench frontier`: what a euro buys, as labels by people and as answers of models.

Nothing is measured: the figures of the study `judges` are read, and priced. A point is a number of labels and
of posts that models were asked about; it is on the frontier where nothing cheaper is as good.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from runs.bench.judges import values_of
from runs.bench.shown import short, svg, table_head, table_line
from runs.bench.study import Figures
from selftrain.errors import DataError

ALONE, AGENTS, OURS = "labels_only_head", "agents_alone", "ours"
LABEL, CALL = 0.10, 0.001
"""Euros: half a minute of somebody's time at 12 euros an hour; 1,000 tokens read and 100 written at prices of
.6 and 4 euros a million, as models of some 70 billion weights are let at."""
TOKENS = 1_100
"""Read and written in a call, at that price."""
LEVEL = 0.005
"""Macro-F1 by which something may be below what it is called as good as."""


class Point(NamedTuple):
    """Labels and calls, and what they bring.

    Attributes:
        n: Labels by people.
        asked: Posts that models are asked about, as the study calls it; empty: none.
        calls: Answers that took, mean over sets and seeds.
        seconds: Of computing, features and answers given; median over sets and seeds.
        macro_f1: On test, mean over sets and seeds.
    """

    n: int
    asked: str
    calls: float
    seconds: float
    macro_f1: float

    @property
    def told(self) -> str:
        """What was bought, in words."""
        posts = {"": "", "all": ", the whole pool asked"}.get(self.asked, f", {self.asked} posts asked")
        return f"{self.n or 'no'} labels{posts}"

    def price(self, label: float, call: float) -> float:
        """Return the euros that it costs."""
        return self.n * label + self.calls * call

    def cells(self, label: float, call: float) -> list[str]:
        """Return calls, tokens, seconds and euros, as they are shown."""
        numbers = f"{self.calls:,.0f}", f"{self.calls * TOKENS / 1e6:.1f}", f"{self.seconds:.1f}"
        return [*numbers, f"{self.price(label, call):.2f}"]


HEAD = ["calls", "million tokens", "seconds", "euros", "macro-F1"]


def points(figures: Figures, sets: Sequence[str]) -> list[Point]:
    """Return every point that was measured, on the sets and seeds that all of them share."""
    kinds = sorted({(f.n, f.asked, f.method) for f in figures.figures if f.method in (ALONE, AGENTS, OURS)})
    get = partial(values_of, figures, sets)
    found = {
        (n, asked, method): get(method, n=n, asked=asked, metric="macro_f1")
        for n, asked, method in kinds
        if asked or method == ALONE
    }
    shared = set.intersection(*map(set, found.values()))
    made = []
    # to agents alone it is the same how many labels there were
    least = min((n for n, _, method in kinds if method == AGENTS), default=0)
    for (n, asked, method), values in found.items():
        if method == AGENTS and n > least:
            continue
        calls = get(method, n=n, asked=asked, metric="calls") if asked else dict.fromkeys(shared, 0.0)
        seconds = get(method, n=n, asked=asked, metric="seconds")
        calls_of, seconds_of, scores = ([one[key] for key in shared] for one in (calls, seconds, values))
        labels = 0 if method == AGENTS else n
        made.append(Point(labels, asked, fmean(calls_of), median(seconds_of), fmean(scores)))
    return made


def frontier(found: Sequence[Point], label: float, call: float) -> list[Point]:
    """Return the points that nothing cheaper reaches, the cheapest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda one: (one.price(label, call), -one.macro_f1)):
        if not best or point.macro_f1 > best[-1].macro_f1:
            best.append(point)
    return best


def lines(figures: Figures, sets: Sequence[str], label: float = LABEL, call: float = CALL) -> Iterator[str]:
    """Yield a table: what is bought, its price, what it brings; bold where it is on the frontier."""
    found = points(figures, sets)
    best = frontier(found, label, call)
    yield from table_head("", *HEAD)
    for point in sorted(found, key=lambda one: one.price(label, call)):
        value = short(point.macro_f1, 3)
        shown = f"**{value}**" if point in best else value
        yield table_line(point.told, *point.cells(label, call), shown)


def same_gain(
    figures: Figures, sets: Sequence[str], label: float = LABEL, call: float = CALL
) -> Iterator[str]:
    """Yield a table: labels by people, and the cheapest with models, and of models alone, as good as they."""
    found = points(figures, sets)
    both, models = [one for one in found if one.n and one.asked], [one for one in found if not one.n]
    yield from table_head("as good as", "bought", *HEAD)
    for goal in sorted(one for one in found if not one.asked):
        yield _bought(goal.told, goal, label, call)
        for chosen in (both, models):
            reach = [one for one in chosen if one.macro_f1 >= goal.macro_f1 - LEVEL]
            for one in sorted(reach, key=lambda one: one.price(label, call))[:1]:
                yield _bought("", one, label, call)


def _bought(goal: str, point: Point, label: float, call: float) -> str:
    return table_line(goal, point.told, *point.cells(label, call), short(point.macro_f1, 3))


def draw(figures: Figures, sets: Sequence[str], file: Path, label: float = LABEL, call: float = CALL) -> None:
    """Draw macro-F1 over money: people alone, and people with models."""
    from matplotlib.ticker import LogLocator, ScalarFormatter

    found = points(figures, sets)
    with svg(file, "frontier") as subplots:
        _, axes = subplots(figsize=(7, 3.6), layout="constrained")
        for n in sorted({point.n for point in found if point.asked}):
            line = sorted((p for p in found if p.n == n), key=lambda p: p.calls)
            told = f"{n} labels, then models" if n else "models alone"
            axes.plot(*_places(line, label, call), marker="o" if n else "^", label=told)
        alone = sorted(point for point in found if not point.asked)
        axes.plot(*_places(alone, label, call), marker="s", color="#444444", label="labels by people alone")
        best = frontier(found, label, call)
        axes.step(*_places(best, label, call), where="post", color="#bbbbbb", zorder=0, label="frontier")
        axes.set_xscale("log", subs=[])
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel(f"euros, at {label:g} a label and {call:g} a call")
        axes.set_ylabel("test macro-F1, mean of four sets")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def _places(line: Sequence[Point], label: float, call: float) -> tuple[list[float], list[float]]:
    return [point.price(label, call) for point in line], [point.macro_f1 for point in line]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--label", type=float, default=LABEL, help=f"euros a label (default: {LABEL:g})")
    parser.add_argument("--call", type=float, default=CALL, help=f"euros a call (default: {CALL:g})")
    parser.add_argument("--plot", type=Path, help="draw it into this SVG file")


def run(args: argparse.Namespace, figures: Figures) -> None:
    """Print the table at these prices.

    Raises:
        DataError: The file has no figures of ours.
    """
    sets = sorted({figure.dataset for figure in figures.figures if figure.method == OURS})
    if not sets:
        raise DataError(
            f"--json {args.json} has no figure of {OURS!r}: expected the file of the study `judges`"
        )
    print("\n".join(lines(figures, sets, args.label, args.call)))
    print("\n".join(["", *same_gain(figures, sets, args.label, args.call)]))
    if args.plot is not None:
        draw(figures, sets, args.plot, args.label, args.call)

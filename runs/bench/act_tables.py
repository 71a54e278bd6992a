"""What the figures of the ACT study say together: gaps to human labels, and which rule is ahead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import fmean, stdev

from runs.bench.study import Figures

GAP = 2.0
"""Points that a way of using a budget may stay below human labels."""

Cell = dict[int, float]
"""Seed -> points of macro-F1 below human labels."""


def gap_lines(figures: Figures) -> Iterator[str]:
    """Points that each way stays below all human labels, mean ± sd over the seeds, paired by seed."""
    for method, gaps in _gaps(figures):
        if len(gaps) > 1 and not method.endswith(" human"):
            told = f"{fmean(gaps.values()):+.2f} ± {stdev(gaps.values()):.2f} points of macro-F1"
            yield f"{method:<48} {told} below human labels"


def mean_lines(figures: Figures) -> Iterator[str]:
    """Of each data set: points below human labels, mean over heads, calibrated critics, and seeds."""
    for (dataset, way), values in sorted(means_of_ways(figures).items()):
        mean = f"{fmean(values):.1f} points below human labels"
        yield f"{dataset:<20} {way:<18} {mean}, {len(values)} trainings"


def means_of_ways(figures: Figures) -> dict[tuple[str, str], list[float]]:
    """Return (data set and errors, way) -> points below human labels, of every head, critic and seed."""
    found: dict[tuple[str, str], list[float]] = {}
    for method, gaps in _gaps(figures):
        named = _METHOD.fullmatch(method)
        if named is not None and not named[5]:
            found.setdefault((named[1] + named[2], named[6]), []).extend(gaps.values())
        elif method.endswith(" machine"):
            dataset = re.sub(" (mlp|linear) machine$", "", method)
            found.setdefault((dataset, "machine"), []).extend(gaps.values())
    return {key: values for key, values in found.items() if values}


def order_lines(figures: Figures) -> Iterator[str]:
    """Of each kind of annotator and criticizer: rules against each other, over all cells and their seeds.

    A cell is a data set, a head and an AUC; a difference is of one seed, both rules on the same labels.
    """
    kinds: dict[tuple[str, str], dict[str, dict[str, Cell]]] = {}
    for method, gaps in _gaps(figures):
        found = _METHOD.fullmatch(method)
        if found is not None:
            name, errors, head, auc, manner, rule = found.groups()
            kind = kinds.setdefault((errors.strip() or "spread", manner.strip() or "calibrated"), {})
            kind.setdefault(rule, {})[f"{name} {head} {auc}"] = gaps
    for (errors, manner), rules in kinds.items():
        yield f"errors {errors}, criticizer {manner}"
        for one, other in _COMPARED:
            if one in rules and other in rules:
                yield f"  {one} over {other}: {_ahead(rules[one], rules[other])}"
        for rule, cells in rules.items():
            close = sum(fmean(cell.values()) < GAP for cell in cells.values())
            yield f"  {rule}: under {GAP:g} points below human labels in {close} of {len(cells)} cells"


_METHOD = re.compile(
    r"(\w+)( systematic|) (mlp|linear) (auc=[.\d]+)( timid|)"
    r" ((?:normalised|exponential|threshold) (?:ACT|mixed))"
)
_COMPARED = (
    ("exponential ACT", "normalised ACT"), ("exponential mixed", "normalised mixed"),
    ("threshold ACT", "normalised ACT"), ("threshold ACT", "exponential ACT"),
)  # fmt: skip


def _gaps(figures: Figures) -> Iterator[tuple[str, Cell]]:
    known = [f for f in figures.figures if f.study == "act" and f.metric == "macro_f1"]
    for dataset, method, n in dict.fromkeys((f.dataset, f.method, f.n) for f in known):
        head = "linear" if " linear " in method else "mlp"
        human = figures.values(f"{dataset} {head} human", n, "macro_f1")
        values = figures.values(method, n, "macro_f1")
        yield method, {seed: 100 * (human[seed] - v) for seed, v in values.items() if seed in human}


def _ahead(one: dict[str, Cell], other: dict[str, Cell]) -> str:
    pairs = {
        cell: [other[cell][seed] - gap for seed, gap in gaps.items() if seed in other[cell]]
        for cell, gaps in one.items()
        if cell in other
    }
    all_of_them = [difference for cell in pairs.values() for difference in cell]
    if len(all_of_them) < 2:
        return "too few seeds"
    error = stdev(all_of_them) / len(all_of_them) ** 0.5
    cells = sum(fmean(cell) > 0 for cell in pairs.values() if cell)
    mean = f"{fmean(all_of_them):+.2f} points, standard error {error:.2f}"
    return f"{mean}, ahead in {cells} of {len(pairs)} cells"

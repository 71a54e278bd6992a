"""`python -m runs.bench.compare NEW.jsonl`: what is more than a tenth worse than the committed figures.

What counts are ratios within one run, shares, memory and sizes. What is a tenth slower by the clock is told
too, as "slower", and counts for nothing: seconds are of a machine and of its hour.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from runs.bench.study import Figure, Figures
from selftrain.errors import DataError

COMMITTED = Path(__file__).parents[2] / "docs" / "benchmarks"
WORSE = 0.1
SPREAD = re.compile(r"(.*\b|.*_)sd\b")
BETTER_LOW = re.compile(
    r"(time|size) ratio|.*_mb\b|grown_mb_|elements$|generations_per_|.* over after a tenth$"
)
BETTER_HIGH = re.compile(r"ratio\b|throughput ratio|cached_share$|posts_per_second over ")
SLOWER_HIGH = re.compile(r".*seconds|p50$|p99$|health$")
SLOWER_LOW = re.compile(r".*_per_second$")
OF_TIMES = re.compile(r"now over before|.* over calm$")
"""Methods whose figures are ratios of two times of one run."""
BESIDE = ("scale", "posts_per_second", "in process")
"""A study, its metric, and the method by which the others are divided, seed by seed."""

Key = tuple[str, str, int, str]
"""Data set, method, n and metric."""


class Kind(NamedTuple):
    """Of a metric: whether low is better, and whether it counts on another machine."""

    low: bool
    counts: bool


class Change(NamedTuple):
    """What was measured of one key before and now, and by which share it is worse; below 0 it is better."""

    key: Key
    before: float
    now: float
    worse: float
    counts: bool

    @property
    def told(self) -> str:
        """What it is called."""
        if self.worse > WORSE:
            return "WORSE" if self.counts else "slower"
        return "better" if self.worse < -WORSE else "as before"


def compare(before: Figures, now: Figures) -> Iterator[Change]:
    """Yield what both have, means over what was repeated, the worst that counts first.

    Raises:
        DataError: They have nothing in common that is compared.
    """
    old, new = _means(before), _means(now)
    changes = [_change(key, old[key], new[key]) for key in old.keys() & new.keys()]
    if not changes:
        raise DataError(
            f"no figure of {now.file} is one of {before.file} too: expected ratios, shares, memory or seconds"
            " of the same data set, method and n"
        )
    yield from sorted(changes, key=lambda one: (not one.counts, -one.worse, one.key))


def _open(file: Path) -> Figures:
    if not file.exists():
        raise DataError(f"{file} is not there: expected figures of a study")
    return Figures(file)


def _means(figures: Figures) -> dict[Key, float]:
    """Return the means over seeds; of a seed that was measured again the last counts."""
    found: dict[Key, dict[tuple[int, str], float]] = defaultdict(dict)
    for one in (*figures.figures, *_beside(figures)):
        if _kind(one.method, one.metric) is not None:
            found[one.dataset, one.method, one.n, one.metric][one.seed, one.asked] = one.value
    return {key: fmean(values.values()) for key, values in found.items()}


def _beside(figures: Figures) -> Iterator[Figure]:
    study, metric, reference = BESIDE
    chosen = [one for one in figures.figures if (one.study, one.metric) == (study, metric)]
    base = {(one.dataset, one.n, one.seed): one.value for one in chosen if one.method == reference}
    for one in chosen:
        if one.method != reference and (other := base.get((one.dataset, one.n, one.seed))):
            yield one._replace(metric=f"{metric} over {reference}", value=one.value / other)


def _kind(method: str, metric: str) -> Kind | None:
    """Return None for what is not compared."""
    if SPREAD.match(metric):
        return None
    of_times = bool(OF_TIMES.match(method))
    if of_times or BETTER_LOW.match(metric) or BETTER_HIGH.match(metric):
        return Kind(low=of_times or not BETTER_HIGH.match(metric), counts=True)
    if SLOWER_HIGH.match(metric) or SLOWER_LOW.match(metric):
        return Kind(low=not SLOWER_LOW.match(metric), counts=False)
    return None


def _change(key: Key, before: float, now: float) -> Change:
    kind = _kind(key[1], key[3])
    assert kind is not None, "only such keys have means"
    # of nothing there is no tenth
    ratio = now / before if before else math.inf if now else 1.0
    return Change(key, before, now, ratio - 1 if kind.low else 1 - ratio, kind.counts)


def main() -> int:
    """Print what counts, and what is slower; return 1 if anything is worse that counts, 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m runs.bench.compare", description=__doc__)
    parser.add_argument("new", type=Path, help="figures of a study, as its --json writes them")
    parser.add_argument("--against", type=Path, help="(default: the committed file of the same name)")
    args = parser.parse_args()
    old = args.against or COMMITTED / args.new.name
    worse = False
    try:
        for one in compare(_open(old), _open(args.new)):
            worse |= one.told == "WORSE"
            if one.counts or one.told == "slower":
                name = ", ".join(map(str, one.key))
                print(f"{one.told:<9} {name:<60} {one.before:.4g} -> {one.now:.4g} ({-one.worse:+.0%})")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())

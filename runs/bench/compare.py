"""`python -m runs.bench.compare NEW.jsonl`: what is more than a tenth worse than the committed figures.

Compared are ratios within one run, shares and memory. Seconds are not: they are of a machine and of its hour.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from runs.bench.study import Figures
from selftrain.errors import DataError

COMMITTED = Path(__file__).parents[2] / "docs" / "benchmarks"
WORSE = 0.1
BETTER_HIGH = ("ratio", "throughput ratio", "cached_share")
BETTER_LOW = (
    "time ratio, words", "time ratio, one picture", "time ratio, sixteen frames", "peak_rss_mb", "page_mb",
)  # fmt: skip
OVER_CALM = "attacked over calm"
"""Of the study of `serve`: its ratio is of two p99."""

Key = tuple[str, str, int, str]
"""Data set, method, n and metric."""


class Change(NamedTuple):
    """What was measured of one key before and now, and by which share it is worse; below 0 it is better."""

    key: Key
    before: float
    now: float
    worse: float


def compare(before: Figures, now: Figures) -> Iterator[Change]:
    """Yield what both have, means over what was repeated, the worst first.

    Raises:
        DataError: They have nothing in common that is compared.
    """
    old, new = _means(before), _means(now)
    changes = [
        Change(key, old[key], new[key], _worse(key, old[key], new[key])) for key in old.keys() & new.keys()
    ]
    if not changes:
        metrics = ", ".join((*BETTER_HIGH, *BETTER_LOW))
        raise DataError(f"no figure of {now.file} is one of {before.file} too: expected some of {metrics}")
    yield from sorted(changes, key=lambda one: (-one.worse, one.key))


def _open(file: Path) -> Figures:
    if not file.exists():
        raise DataError(f"{file} is not there: expected figures of a study")
    return Figures(file)


def _means(figures: Figures) -> dict[Key, float]:
    found: dict[Key, list[float]] = defaultdict(list)
    for one in figures.figures:
        if one.metric in BETTER_HIGH or _low_is_better(one.method, one.metric):
            found[one.dataset, one.method, one.n, one.metric].append(one.value)
    return {key: fmean(values) for key, values in found.items()}


def _low_is_better(method: str, metric: str) -> bool:
    return metric in BETTER_LOW or (method == OVER_CALM and metric == "p99")


def _worse(key: Key, before: float, now: float) -> float:
    _, method, _, metric = key
    return now / before - 1 if _low_is_better(method, metric) else 1 - now / before


def main() -> int:
    """Print every change; return 1 if one is more than a tenth worse, 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m runs.bench.compare", description=__doc__)
    parser.add_argument("new", type=Path, help="figures of a study, as its --json writes them")
    parser.add_argument("--against", type=Path, help="(default: the committed file of the same name)")
    args = parser.parse_args()
    old = args.against or COMMITTED / args.new.name
    worst = 0.0
    try:
        for key, before, now, worse in compare(_open(old), _open(args.new)):
            worst = max(worst, worse)
            told = "WORSE" if worse > WORSE else "better" if worse < -WORSE else "as before"
            print(f"{told:<9} {', '.join(map(str, key)):<60} {before:.4g} -> {now:.4g} ({-worse:+.0%})")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(worst > WORSE)


if __name__ == "__main__":
    sys.exit(main())

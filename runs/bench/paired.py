"""Methods side by side on the same sets and seeds: means, and differences with 95 % intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import combinations
from statistics import fmean, stdev

import numpy as np

from selftrain._util.types import BoolArray, FloatArray, IntArray, Interval

Values = Mapping[tuple[str, int], float]
"""(set, seed) -> value of one metric by one method."""

RESAMPLES = 4000


def by_set(values: Values) -> dict[str, dict[int, float]]:
    """Return set -> seed -> value."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for (name, seed), value in values.items():
        found[name][seed] = value
    return dict(found)


def points_over(values: Values, reference: Values) -> Values:
    """Return the differences in points (1/100), where both were measured."""
    both = values.keys() & reference.keys()
    return {key: 100 * (values[key] - reference[key]) for key in sorted(both)}


def t_interval(drawn: Sequence[float]) -> Interval:
    """Return the mean with Student's interval; from one value alone, nothing is known of its spread."""
    from scipy.stats import t

    mean = fmean(drawn)
    if len(drawn) < 2:
        return Interval(mean, float("-inf"), float("inf"))
    half = float(t.ppf(0.975, len(drawn) - 1)) * stdev(drawn) / len(drawn) ** 0.5
    return Interval(mean, mean - half, mean + half)


def t_over_seeds(differences: Values) -> Interval:
    """Return the mean over the sets with Student's interval over the seeds that all sets have.

    It says how sure the figure is for these sets; `bootstrap` says what other sets of their kind might bring.
    Of sets without a seed in common, as in a study that is under way, nothing is known of the spread.
    """
    sets = by_set(differences)
    shared = set.intersection(*(set(one) for one in sets.values()))
    if not shared:
        return t_interval([fmean(fmean(one.values()) for one in sets.values())])
    return t_interval([fmean(one[seed] for one in sets.values()) for seed in sorted(shared)])


def bootstrap(differences: Values) -> Interval:
    """Return the mean over the sets with the middle 95 % of its values on sets and seeds drawn anew."""
    groups = [np.array(list(one.values())) for one in by_set(differences).values()]
    random = np.random.default_rng(0)
    # seeds are drawn within each set first, then sets among these means: [RESAMPLES, sets]
    means = np.stack([random.choice(one, (RESAMPLES, len(one))).mean(1) for one in groups], axis=1)
    drawn = random.integers(0, len(groups), (RESAMPLES, len(groups)))
    low, high = np.quantile(np.take_along_axis(means, drawn, axis=1).mean(1), [0.025, 0.975])
    return Interval(fmean(float(one.mean()) for one in groups), float(low), float(high))


def over_posts(
    truth: BoolArray, scores: FloatArray, reference: FloatArray, resamples: int = 1000
) -> dict[str, Interval]:
    """Return by how much a model's `threshold_metrics` are above another's on the same posts [B].

    Posts are drawn anew within each answer, the same for both models.
    """
    from selftrain.models.metrics import percentile_interval, threshold_metrics

    def gained(places: IntArray) -> dict[str, float]:
        ours, theirs = (threshold_metrics(truth[places], one[places]) for one in (scores, reference))
        return {metric: ours[metric] - theirs[metric] for metric in ours}

    random = np.random.default_rng(0)
    groups = np.flatnonzero(truth), np.flatnonzero(~truth)
    drawn = [
        gained(np.concatenate([random.choice(group, len(group)) for group in groups]))
        for _ in range(resamples)
    ]
    values = gained(np.arange(len(truth)))
    return {
        metric: percentile_interval(value, [one[metric] for one in drawn]) for metric, value in values.items()
    }


def means_table(measured: Mapping[str, Mapping[str, Values]], sets: Sequence[str]) -> Iterator[str]:
    """Yield a line a method: the first metric by set and in the mean, then the means of the others.

    Args:
        measured: Method -> metric -> values; the same metrics of all.
        sets: Columns.
    """
    first, *others = next(iter(measured.values()))
    width = max(map(len, measured))
    names = [*(_short(name) for name in sets), "mean", *others]
    yield f"{first:<{width}} " + " ".join(f"{name:>10}" for name in names)
    for method, metrics in measured.items():
        groups = by_set(metrics[first])
        columns = [fmean(groups[name].values()) if name in groups else None for name in sets]
        means = [_mean_of_sets(metrics[metric]) for metric in (first, *others)]
        yield f"{method:<{width}} " + " ".join(_cell(value) for value in [*columns, *means])


def differences_table(measured: Mapping[str, Values], reference: str, sets: Sequence[str]) -> Iterator[str]:
    """Yield a line a method: its points over the reference by set, and in the mean by both intervals."""
    width = max(map(len, measured))
    names = [*(_short(name) for name in sets), "mean: t over seeds", "bootstrap over sets"]
    yield f"{'':<{width}} " + " ".join(f"{name:>21}" for name in names)
    for method, values in measured.items():
        differences = points_over(values, measured[reference])
        if method == reference or not differences:
            continue
        groups = by_set(differences)
        columns = [t_interval(list(groups[name].values())) if name in groups else None for name in sets]
        yield f"{method:<{width}} " + " ".join(
            f"{_interval(one):>21}" for one in (*columns, t_over_seeds(differences), bootstrap(differences))
        )


def halves_table(measured: Mapping[str, Values], reference: Values, sets: Sequence[str]) -> Iterator[str]:
    """Yield a line a half of the sets: which method wins there, and what it brings on the other half.

    Sets and seeds that one of the methods lacks are left out.

    Args:
        measured: Method -> values, two methods at least.
        reference: What the winner is compared with too.
        sets: All of them.
    """
    shared = set.intersection(*map(set, (*measured.values(), reference)))
    yield "chosen on; the winner, points ahead of the next | on the other half: ahead of the next | of the"
    yield "reference (t over seeds) | the winner"
    for half in combinations(sets, len(sets) // 2):
        here, there = ({key for key in shared if (key[0] in half) is within} for within in (True, False))
        first, second = _ranked(measured, here)[:2]
        ahead, elsewhere = (
            t_over_seeds(points_over(_only(measured[first], keys), measured[second]))
            for keys in (here, there)
        )
        over = t_over_seeds(points_over(_only(measured[first], there), reference))
        yield (
            f"{' + '.join(half):<32} {first}, {ahead.value:+.1f} | {_interval(elsewhere)} | {_interval(over)}"
            f" | {_ranked(measured, there)[0]}"
        )


def _ranked(measured: Mapping[str, Values], keys: Set[tuple[str, int]]) -> list[str]:
    """Return the methods by their mean over the sets, the best first."""
    return sorted(measured, key=lambda name: _mean_of_sets(_only(measured[name], keys)) or 0.0, reverse=True)


def _only(values: Values, keys: Set[tuple[str, int]]) -> Values:
    return {key: values[key] for key in sorted(keys)}


def _mean_of_sets(values: Values) -> float | None:
    groups = by_set(values)
    return fmean(fmean(one.values()) for one in groups.values()) if groups else None


def _short(name: str) -> str:
    return name if len(name) <= 10 else name[:9] + "~"


def _cell(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:>10.4f}" if abs(value) < 10 else f"{value:>10.1f}"


def _interval(found: Interval | None) -> str:
    return "-" if found is None else f"{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"

"""The model of what posts cost: its sums, and how its tables are made of repeats."""

from __future__ import annotations

import pytest

from agents.offline.offline_agent import MOST_OF_POOL
from runs.bench import cost
from runs.bench.__main__ import STUDIES
from runs.bench.cost import Rates, Sizes
from runs.bench.study import Figure, Figures

RATES = Rates(row=0.001, words=0.01, picture=0.1, pooled=0.002, fixed=5.0)


def test_the_parts_add_up():
    assert RATES.predicting(1000) == pytest.approx(11.0)
    assert RATES.predicting(1000, pictures=10) == pytest.approx(12.0)
    assert RATES.running(1000, worded=900, pictures=20) == pytest.approx(5.0 + 2.0 + 9.0 + 2.0)


def test_the_line_goes_through_pools_beyond_what_agents_read_whole():
    few, some = Sizes(500, 5000, 1000, 200_000, 400).line
    read = [len(range(0, pool, 1 + pool // MOST_OF_POOL)) for pool in (few, some, 200_000)]
    assert max(read) < 1.1 * min(read)
    assert some < 200_000 / 2


def figures(*repeats):
    """Of (rates, predicted, measured) of each repeat."""
    made = Figures(None)
    for seed, (rates, predicted, measured) in enumerate(repeats):
        found = [("model", 500, *item) for item in rates._asdict().items()]
        found += [
            ("predict, words", 5000, "predicted", predicted),
            ("predict, words", 5000, "measured", measured),
        ]
        made.add([Figure("cost", "drawn", method, n, seed, what, value) for method, n, what, value in found])
    return made


def test_the_table_has_medians_and_every_repeat():
    made = figures((RATES, 10.0, 20.0), (RATES, 30.0, 24.0), (RATES, 24.0, 24.0))
    assert list(cost.wholes(made))[2:] == ["| predict, words | 5,000 | 24 | 24 | 1.00 (0.50, 1.00, 1.25) |"]


def test_the_hours_are_of_the_median_rates():
    others = [RATES._replace(words=value) for value in (0.02, 0.5)]
    made = figures(*((one, 1.0, 1.0) for one in (RATES, *others)))
    assert cost.model_of(made) == RATES._replace(words=0.02)
    assert list(cost.hours(made, 3.6e6))[3] == "| `predict`: words encoded and scored | 0.02 | 20 |"


def test_a_floor_is_two_operations_a_weight_and_token():
    _, _, words, _ = cost.floors(1e8)
    assert words == f"| 160 words | 440 | {1e8 * 440 * 2 * 8.05e9 / 757e12 / 3600:,.0f} |"


def test_the_study_is_listed():
    assert "cost" in STUDIES

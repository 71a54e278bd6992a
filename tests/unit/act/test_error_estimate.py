"""The error estimate: unbiased, with an interval that covers, against closed forms and simulated reviews."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runs.bench.act_simulation import simulated_estimates, simulated_population
from selftrain.act.budget import inclusion, systematic_sample
from selftrain.act.error_estimate import Z, label_error, label_error_by
from selftrain.errors import EstimateError


def review(pi, seed):
    reviewed = np.zeros(len(pi), dtype=bool)
    reviewed[systematic_sample(pi, seed)] = True
    return reviewed


def test_the_value_is_the_formula():
    e, pi = np.array([0.1, 0.2, 0.6, 0.3]), np.array([0.25, 0.5, 0.75, 0.5])
    reviewed, wrong = np.array([True, False, True, False]), np.array([True, True, False, False])
    by_hand = (0.1 + 0.2 + 0.6 + 0.3 + (1 - 0.1) / 0.25 + (0 - 0.6) / 0.75) / 4
    found = label_error(e, pi, reviewed, wrong)
    assert found.value == pytest.approx(by_hand)
    assert found[3:] == (4, 2, 1)


@pytest.mark.parametrize(("n", "total", "found", "off"), [(40, 200, 6, 5e-4), (18_000, 20_000, 1_800, 2e-5)])
def test_a_plain_sample_has_wilsons_interval_for_a_finite_population(n, total, found, off):
    reviewed = np.arange(total) < n
    wrong = np.arange(total) < found
    estimate = label_error(np.full(total, 0.2), np.full(total, n / total), reviewed, wrong)
    share, scale = found / n, Z * Z * (1 - n / total) / n
    centre = (share + scale / 2) / (1 + scale)
    half = math.sqrt(share * (1 - share) * scale + scale * scale / 4) / (1 + scale)
    assert estimate.value == pytest.approx(share)
    assert estimate.low == pytest.approx(centre - half, abs=off)
    assert estimate.high == pytest.approx(centre + half, abs=off)


@pytest.mark.parametrize("miscalibrated", [False, True])
@pytest.mark.parametrize("rule", ["normalised", "exponential"])
def test_the_value_is_unbiased_whatever_the_estimates_are_worth(rule, miscalibrated):
    wrong, e = simulated_population(300, rate=0.1, auc=0.75, seed=1)
    e = np.clip(3 * e, 0, 0.99) if miscalibrated else e
    pi = inclusion(e, 60, rule=rule, floor=0.2)
    values = np.array([label_error(e, pi, review(pi, seed), wrong).value for seed in range(400)])
    assert values.mean() == pytest.approx(wrong.mean(), abs=3.5 * values.std() / 20)
    assert abs(e.mean() - wrong.mean()) < 0.02 or miscalibrated  # the criticizer alone would be off then


@pytest.mark.parametrize(
    ("rate", "auc", "rule"),
    [(0.01, 0.75, "normalised"), (0.05, 0.85, "exponential"), (0.3, 0.75, "exponential")],
)
def test_the_interval_covers_the_truth(rate, auc, rule):
    """300 reviews: a true coverage of 95 % stays above 91 % all but once in a thousand times."""
    found = simulated_estimates(
        posts=600, budget=80, rate=rate, auc=auc, rule=rule, floor=0.1, reviews=300, seed=3
    )
    covered = np.mean([one.estimate.low <= one.truth <= one.estimate.high for one in found])
    assert 0.91 <= covered <= 0.99


def test_no_error_found_leaves_an_interval_that_is_not_a_point():
    e = np.full(1000, 0.02)
    pi = np.full(1000, 0.1)
    estimate = label_error(e, pi, np.arange(1000) < 100, np.zeros(1000, dtype=bool))
    assert estimate.value == pytest.approx(0.0, abs=1e-12)
    assert estimate.low == 0
    assert 0.02 < estimate.high < 0.06  # the rule of three says .03


def test_what_was_reviewed_bounds_the_interval():
    """Eight of ten were reviewed, two were wrong: between 2 and 4 of 10."""
    pi = np.full(10, 0.8)
    estimate = label_error(np.full(10, 0.5), pi, np.arange(10) < 8, np.arange(10) < 2)
    assert estimate.low >= 0.2
    assert estimate.high <= 0.4
    assert estimate.after_correction().low >= 0
    assert estimate.after_correction().high == pytest.approx(estimate.high - 0.2)


def test_when_all_are_reviewed_nothing_is_uncertain():
    wrong = np.arange(20) < 3
    estimate = label_error(np.linspace(0, 1, 20), np.ones(20), np.ones(20, dtype=bool), wrong)
    assert estimate[:3] == pytest.approx((0.15, 0.15, 0.15))


def test_a_review_under_way_counts_as_a_smaller_sample():
    wrong, e = simulated_population(400, rate=0.2, auc=0.75, seed=2)
    pi = inclusion(e, 100, rule="normalised", floor=0.2)
    values, widths = [], []
    for seed in range(300):
        half = np.zeros(400, dtype=bool)
        half[systematic_sample(pi, seed)[:50]] = True
        estimate = label_error(e, pi, half, wrong)
        values.append(estimate.value)
        widths.append(estimate.high - estimate.low)
    assert np.mean(values) == pytest.approx(wrong.mean(), abs=3.5 * np.std(values) / math.sqrt(300))
    whole = label_error(e, pi, review(pi, 0), wrong)
    assert np.mean(widths) > 1.2 * (whole.high - whole.low)


def test_groups_are_parts_of_the_whole():
    wrong, e = simulated_population(600, rate=0.2, auc=0.75, seed=4)
    wrong[:300] &= np.arange(300) % 3 == 0  # the first half is wrong a third as often
    names = ["early"] * 300 + ["late"] * 300
    pi = inclusion(e, 150, rule="normalised", floor=0.2)
    totals = {"early": [], "late": []}
    for seed in range(200):
        reviewed = review(pi, seed)
        parts = label_error_by(names, e, pi, reviewed, wrong)
        whole = label_error(e, pi, reviewed, wrong)
        assert sum(one.value * one.posts for one in parts.values()) == pytest.approx(whole.value * 600)
        assert sum(one.reviewed for one in parts.values()) == 150
        for name, one in parts.items():
            totals[name].append(one)
    for name, part in (("early", wrong[:300]), ("late", wrong[300:])):
        values = [one.value for one in totals[name]]
        assert np.mean(values) == pytest.approx(part.mean(), abs=3.5 * np.std(values) / math.sqrt(200))
        covered = np.mean([one.low <= part.mean() <= one.high for one in totals[name]])
        assert covered >= 0.9


def test_a_value_out_of_range_is_shown_within_its_interval():
    # one post nearly sure to be wrong was right, with a small chance of being looked at
    estimate = label_error(
        [0.9, 0.1, 0.1, 0.1], [0.1, 0.3, 0.3, 0.3], [True, False, False, False], [False] * 4
    )
    assert estimate.value < 0
    assert 0 <= estimate.low <= estimate.shown <= estimate.high <= 1
    assert set(estimate.to_json()) == {"value", "low", "high", "posts", "reviewed", "wrong"}


@pytest.mark.parametrize(
    ("e", "pi", "reviewed", "said"),
    [
        ([0.5, 0.5], [1.0, 0.0], [True, False], "threshold"),
        ([0.5, 0.5], [1.0, 1.5], [True, False], r"outside \(0, 1\]"),
        ([0.5, 0.5], [1.0, float("nan")], [True, False], r"outside \(0, 1\]"),
        ([0.5, 0.5], [0.5, 0.5], [False, False], "0 reviewed"),
        ([0.5, 0.5], [0.5, 0.5], [True, True], "sum to 1"),
        ([0.5, 0.5], [0.5, 0.5, 0.5], [True, False], "shapes"),
    ],
)
def test_what_cannot_be_estimated_is_refused(e, pi, reviewed, said):
    with pytest.raises(EstimateError, match=said):
        label_error(e, pi, reviewed, [False] * 2)


def test_a_group_without_posts_is_refused():
    with pytest.raises(EstimateError, match="0 posts asked about"):
        label_error([0.5], [1.0], [True], [False], members=[False])


@pytest.mark.parametrize(
    ("errors", "inclusion", "wrong"),
    [([0.9] * 4 + [0.5], [0.24] * 4 + [0.04], False), ([0.1] * 4 + [0.5], [0.24] * 4 + [0.04], True)],
)
def test_an_estimate_that_chance_threw_out_of_its_range_claims_no_certainty(errors, inclusion, wrong):
    reviewed = [False] * 4 + [True]
    found = label_error(errors, inclusion, reviewed, [wrong] * 5)
    assert not 0 <= found.value <= 1  # unbiased, as it comes
    assert 0 <= found.low <= found.shown <= found.high <= 1
    assert found.high - found.low > 0.2, "one of five posts was looked at"
    left = found.after_correction()
    assert 0 <= left.low <= left.shown <= left.high <= 1

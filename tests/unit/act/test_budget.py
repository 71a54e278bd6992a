"""Who is reviewed: probabilities that sum to the budget, and samples that keep what the probabilities say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selftrain.act.budget import (
    exponential,
    filled,
    inclusion,
    normalised,
    systematic_sample,
    threshold,
    with_floor,
)
from selftrain.errors import BudgetError

RULES = ("normalised", "exponential", "threshold")
NAN = float("nan")


@st.composite
def estimates_and_budget(draw):
    errors = draw(st.lists(st.floats(0, 1, allow_subnormal=True), min_size=1, max_size=60))
    return np.array(errors), draw(st.integers(0, len(errors)))


# ---------------------------------------------------------------- the rules


@pytest.mark.parametrize("rule", RULES)
@given(case=estimates_and_budget(), floor=st.sampled_from([0.0, 0.1, 1.0]))
@settings(max_examples=150, deadline=None)
def test_probabilities_sum_to_the_budget_and_follow_the_estimates(rule, case, floor):
    errors, budget = case
    pi = inclusion(errors, budget, rule=rule, floor=floor)
    assert pi.sum() == pytest.approx(budget, abs=1e-9 * max(budget, 1))
    assert ((pi >= 0) & (pi <= 1)).all()
    order = np.lexsort((pi, errors))  # equal ones by what they got: under a threshold that is a draw
    assert (np.diff(pi[order]) >= -1e-9).all()  # who is likelier wrong is likelier reviewed


def test_normalised_is_proportional_until_the_cap_then_shares_out_the_rest():
    assert normalised([0.1, 0.2, 0.3, 0.4], 1) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # 3 x .9/1.2 is above 1, the two left share 2 equally: again above the cap
    assert normalised([0.9, 0.1, 0.1, 0.1], 3) == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3])
    # .8 and .4 are capped one after the other: 2 x .8/1.5 > 1, then 1 x .4/.7 = .571
    assert normalised([0.8, 0.4, 0.2, 0.1], 2) == pytest.approx([1, 4 / 7, 2 / 7, 1 / 7])
    # twice: after the first cap the second goes over too
    assert normalised([0.9, 0.6, 0.1, 0.1], 3) == pytest.approx([1, 1, 0.5, 0.5])


def test_normalised_spends_on_posts_without_suspicion_only_what_is_left_over():
    assert normalised([0.5, 0.5, 0.0, 0.0, 0.0], 3) == pytest.approx([1, 1, 1 / 3, 1 / 3, 1 / 3])
    assert normalised([0.0] * 4, 1) == pytest.approx([0.25] * 4)
    assert normalised([5e-324, 0.0], 1) == pytest.approx([1, 0])


def test_exponential_is_a_sigmoid_of_the_estimates():
    errors = np.array([0.05, 0.2, 0.5, 0.9])
    pi = exponential(errors, 2, steepness=6.0)
    log_odds = np.log(pi / (1 - pi))
    assert np.diff(log_odds) == pytest.approx(6.0 * np.diff(errors))
    assert pi.sum() == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("steepness", [1e-6, 10.0, 1e5])
def test_exponential_solves_extreme_steepness(steepness):
    errors = np.linspace(0, 1, 101)
    pi = exponential(errors, 7, steepness)
    assert pi.sum() == pytest.approx(7, abs=1e-9)
    if steepness > 1e3:
        assert pi == pytest.approx(threshold(errors, 7), abs=1e-6)
    if steepness < 1e-3:
        assert pi == pytest.approx(np.full(101, 7 / 101), abs=1e-6)


def test_threshold_takes_the_largest_and_breaks_ties_by_the_seed():
    assert threshold([0.1, 0.9, 0.5, 0.9], 2).tolist() == [0, 1, 0, 1]
    drawn = {tuple(threshold([0.5] * 6, 2, seed)) for seed in range(40)}
    assert len(drawn) > 5
    assert threshold([0.5] * 6, 2, 3).tolist() == threshold([0.5] * 6, 2, 3).tolist()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_equal_estimates(rule, value):
    pi = inclusion([value] * 10, 4, rule=rule)
    assert sorted(pi) == pytest.approx([0] * 6 + [1] * 4 if rule == "threshold" else [0.4] * 10)


@pytest.mark.parametrize("rule", RULES)
def test_the_whole_budget_and_none_of_it(rule):
    assert inclusion([0.1, 0.0, 0.9], 3, rule=rule).tolist() == [1, 1, 1]
    assert inclusion([0.1, 0.0, 0.9], 0, rule=rule).tolist() == [0, 0, 0]
    assert inclusion([], 0, rule=rule).tolist() == []


def test_the_floor_gives_everybody_a_chance():
    assert with_floor(np.array([1.0, 1.0, 0.0, 0.0]), 2, 0.2) == pytest.approx([0.9, 0.9, 0.1, 0.1])


@pytest.mark.parametrize(
    ("errors", "budget", "options"),
    [
        ([0.1, 0.2], 3, {}),
        ([0.1, 0.2], -1, {}),
        ([0.1, 0.2], 1.5, {}),
        ([0.1, 0.2], True, {}),
        ([0.1, NAN], 1, {}),
        ([0.1, 1.2], 1, {}),
        ([0.1, -0.2], 1, {}),
        ([[0.1, 0.2]], 1, {}),
        ([0.1, 0.2], 1, {"rule": "loudest"}),
        ([0.1, 0.2], 1, {"steepness": 0}),
        ([0.1, 0.2], 1, {"steepness": math.inf}),
        ([0.1, 0.2], 1, {"floor": 1.1}),
        ([0.1, 0.2], 1, {"floor": NAN}),
    ],
)
def test_what_cannot_be_spent_is_refused(errors, budget, options):
    with pytest.raises(BudgetError):
        inclusion(errors, budget, **options)


def test_a_missing_estimate_is_the_mean_of_the_others():
    assert filled([0.2, None, 0.6]) == pytest.approx([0.2, 0.4, 0.6])
    assert filled([None, None]).tolist() == [1, 1]
    with pytest.raises(BudgetError):
        filled([0.2, NAN])


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("rule", RULES)
def test_a_sample_holds_exactly_the_budget_and_each_post_as_often_as_it_claims(rule):
    rng = np.random.default_rng(7)
    errors, budget, draws = rng.beta(0.5, 1.5, 60), 17, 4000
    pi = inclusion(errors, budget, rule=rule, floor=0.05)
    counts = np.zeros(60)
    for seed in range(draws):
        sample = systematic_sample(pi, seed)
        assert len(sample) == budget
        assert len(set(sample.tolist())) == budget
        counts[sample] += 1
    error = np.sqrt(pi * (1 - pi) / draws)
    deviation = np.abs(counts / draws - pi) / np.maximum(error, 1e-12)
    assert deviation[error > 0].max() < 4.2
    # all 60 together: a chi-square of about 60, its standard deviation about 11
    assert (deviation[error > 0] ** 2).sum() < 60 + 5 * 11
    assert (counts[pi == 1] == draws).all()


@given(case=estimates_and_budget(), rule=st.sampled_from(RULES), seed=st.integers(0, 10))
@settings(max_examples=200, deadline=None)
def test_any_probabilities_give_exactly_the_budget(case, rule, seed):
    errors, budget = case
    pi = inclusion(errors, budget, rule=rule)
    sample = systematic_sample(pi, seed)
    assert len(set(sample.tolist())) == len(sample) == budget
    assert (pi[sample] > 0).all()


def test_any_beginning_of_a_sample_is_a_chance_part_of_it():
    """Sure posts do not come first: whoever stops half way has reviewed each with half its probability."""
    pi, draws = np.array([1.0, 1.0, 0.5, 0.5, 0.5, 0.5]), 4000
    first = np.zeros(6)
    for seed in range(draws):
        first[systematic_sample(pi, seed)[:2]] += 1
    assert first / draws == pytest.approx(pi / 2, abs=0.035)


def test_a_sample_is_the_seeds():
    pi = inclusion(np.linspace(0, 1, 50), 10)
    assert systematic_sample(pi, 3).tolist() == systematic_sample(pi, 3).tolist()
    assert systematic_sample(pi, 3).tolist() != systematic_sample(pi, 4).tolist()


@pytest.mark.parametrize("pi", [[0.5, 0.4], [1.5, 0.5], [-0.5, 0.5, 1.0], [NAN, 1.0]])
def test_probabilities_that_are_no_budget_are_refused(pi):
    with pytest.raises(BudgetError):
        systematic_sample(pi, 0)

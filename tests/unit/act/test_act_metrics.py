"""AQG, ABS, gaps and macro-F1 against worked examples and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from runs.bench.annotation_quality import accuracy, aqg, chance_abs, gaps
from selftrain.act.annotation_quality import abs_score, aqg_curve
from selftrain.errors import BudgetError
from selftrain.models.metrics import macro_f1

TRUTH = np.array([0, 1, 2, 0])
MACHINE = np.array([0, 2, 2, 1])  # the second and the last are wrong
WRONG = TRUTH != MACHINE


def test_aqg_is_what_reviewing_the_most_suspicious_adds():
    errors = [0.1, 0.9, 0.5, 0.3]
    assert aqg_curve(WRONG, errors) == pytest.approx([0, 0.25, 0.25, 0.5, 0.5])
    assert [aqg(TRUTH, MACHINE, errors, b) for b in range(5)] == pytest.approx([0, 0.25, 0.25, 0.5, 0.5])
    f1 = [aqg(TRUTH, MACHINE, errors, budget, quality=macro_f1) for budget in (0, 4)]
    assert f1 == pytest.approx([0, 1 - macro_f1(TRUTH, MACHINE)])


def test_equal_estimates_bring_the_mean_of_all_orders():
    assert aqg_curve(WRONG, [0.5] * 4) == pytest.approx([0, 0.125, 0.25, 0.375, 0.5])
    drawn = [aqg(TRUTH, MACHINE, [0.5] * 4, 1, seed=seed) for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.125, abs=0.025)


def test_abs_of_perfect_chance_and_worst():
    assert abs_score(WRONG, [0.1, 0.9, 0.2, 0.8]) == pytest.approx(1)
    # areas: perfect .125 + .375 + .5 + .5, chance .5 x 4 / 2, worst .125 + .375
    assert abs_score(WRONG, [0.5] * 4) == pytest.approx(1.0 / 1.5)
    assert chance_abs(WRONG) == pytest.approx(1.0 / 1.5)
    assert abs_score(WRONG, [0.9, 0.1, 0.8, 0.2]) == pytest.approx(0.5 / 1.5)
    assert abs_score([False, False], [0.1, 0.9]) is None
    assert chance_abs([False, False]) is None


@given(
    st.lists(st.booleans(), min_size=2, max_size=40).filter(any),
    st.integers(0, 10),
    st.sampled_from([1, 3, 100]),
)
@settings(max_examples=80, deadline=None)
def test_curves_rise_to_all_errors_and_abs_stays_in_range(wrong, seed, grades):
    errors = np.random.default_rng(seed).integers(0, grades + 1, len(wrong)) / grades
    curve = aqg_curve(wrong, errors)
    assert curve[0] == 0
    assert curve[-1] == pytest.approx(np.mean(wrong))
    assert (np.diff(curve) >= 0).all()
    assert 0 < abs_score(wrong, errors) <= 1 + 1e-12


@given(st.integers(2, 5), st.integers(1, 60), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_macro_f1_is_scikit_learns(classes, n, seed):
    rng = np.random.default_rng(seed)
    truth, labels = rng.integers(0, classes, n), rng.integers(0, classes, n)
    assert macro_f1(truth, labels) == pytest.approx(f1_score(truth, labels, average="macro"))


def test_gaps_and_accuracy():
    assert gaps(0.8, 0.7, 0.79) == pytest.approx((0.1, 0.01))
    assert accuracy(TRUTH, MACHINE) == 0.5


@pytest.mark.parametrize(
    ("truth", "errors", "budget"),
    [(TRUTH, [0.5] * 3, 1), (TRUTH[:3], [0.5] * 4, 1), (TRUTH, [0.5] * 4, 5), (TRUTH, [1.5] * 4, 1)],
)
def test_what_does_not_fit_is_refused(truth, errors, budget):
    with pytest.raises(BudgetError):
        aqg(truth, MACHINE, errors, budget)

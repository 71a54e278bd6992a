"""Thresholds against scikit-learn and a plain search; intervals against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from serving_helpers import validation_of
from sklearn.metrics import precision_recall_curve

from selftrain.errors import RecipeError, ServingError
from selftrain.models.metrics import clopper_pearson
from selftrain.models.operating_points import Goal, find_threshold, point_at

# few distinct values, so that ties are the rule
SCORED = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=1, max_size=40)


def naive(labels, probs, precision):
    """Every value that occurs, as a threshold: (threshold, precision, recall) of the highest recall."""
    found = None
    for threshold in sorted(set(probs), reverse=True):
        passing = [label for label, value in zip(labels, probs, strict=True) if value >= threshold]
        reached = sum(passing) / len(passing)
        if reached >= precision:
            found = (threshold, reached, sum(passing) / sum(labels))
    return found


@settings(deadline=None)  # a loaded machine is no fault
@given(SCORED, st.sampled_from([0.1, 0.5, 2 / 3, 0.7, 0.8, 1.0]))
def test_the_threshold_is_that_of_a_search_and_of_scikit_learn(scored, precision):
    labels, probs = [one[0] for one in scored], [one[1] / 7 for one in scored]
    scores = validation_of(labels, probs)
    expected = naive(labels, probs, precision) if any(labels) else None
    if expected is None:
        with pytest.raises(ServingError):
            find_threshold(scores, Goal("precision", precision))
        return
    point = find_threshold(scores, Goal("precision", precision))
    assert (point.precision.value, point.recall.value) == pytest.approx(expected[1:])
    assert (point.posts, point.positives) == (len(labels), sum(labels))
    precisions, recalls, thresholds = precision_recall_curve(labels, probs)
    reached = np.flatnonzero(precisions[:-1] >= precision)
    lowest = thresholds[reached].min()
    next_lower = max((one for one in probs if one < lowest), default=0)
    assert point.threshold == pytest.approx(max(lowest - 1e-6, (lowest + next_lower) / 2), abs=1e-12)
    assert point.recall.value == pytest.approx(recalls[:-1][reached].max())


def test_posts_of_equal_probability_pass_together():
    # the two at .6 cannot be told apart: precision 1 is reached above them alone
    scores = validation_of([1, 1, 0, 1, 0], [0.9, 0.6, 0.6, 0.4, 0.1])
    assert find_threshold(scores, Goal("precision", 1.0)).threshold == pytest.approx(0.9 - 1e-6)
    point = find_threshold(scores, Goal("precision", 0.75))
    assert (point.threshold, point.precision.value, point.recall.value) == (0.4 - 1e-6, 0.75, 1.0)


def test_posts_scored_anew_stay_on_their_side():
    scores = validation_of([1, 1, 0, 1, 0], [0.9, 0.6, 0.6, 0.4, 0.1])
    threshold = find_threshold(scores, Goal("precision", 0.75)).threshold
    for shift in (-5e-7, 5e-7):
        assert ((scores.probs + shift >= threshold) == (scores.probs >= threshold)).all()


def test_no_threshold_is_an_error_with_the_best_there_is():
    # precision 2/3 at .8 (recall 2/3) and at .2 too (recall 1): the second is named
    scores = validation_of([0, 1, 1, 0, 1, 1], [0.8, 0.8, 0.8, 0.5, 0.2, 0.2])
    with pytest.raises(ServingError, match=r"precision 0.9 on the 6 .* is 0.667 at recall 1.000 .*0.199999"):
        find_threshold(scores, Goal("precision", 0.9))


def test_without_positives_nothing_can_be_measured():
    with pytest.raises(ServingError, match="none of the 2 validation posts is positive"):
        find_threshold(validation_of([0, 0], [0.1, 0.9]), Goal("precision", 0.5))


@pytest.mark.parametrize(("part", "whole"), [(0, 5), (5, 5), (1, 1), (7, 20), (199, 200)])
def test_the_interval_is_where_the_binomial_tails_hold_2_5_percent(part, whole):
    value, low, high = clopper_pearson(part, whole)
    assert value == part / whole
    assert low <= value <= high
    # at the lower end so many hits or more have probability 2.5 %, at the upper end so few or less
    assert (low == 0) if part == 0 else binom.sf(part - 1, whole, low) == pytest.approx(0.025)
    assert (high == 1) if part == whole else binom.cdf(part, whole, high) == pytest.approx(0.025)


# ---- recall, F1, and what is asked for ------------------------------------------------------------------


def every_threshold(labels, probs):
    """(threshold, precision, recall) of every value that occurs, from the highest down."""
    for threshold in sorted(set(probs), reverse=True):
        passing = [label for label, value in zip(labels, probs, strict=True) if value >= threshold]
        yield threshold, sum(passing) / len(passing), sum(passing) / sum(labels)


@settings(deadline=None)
@given(SCORED.filter(lambda scored: any(label for label, _ in scored)), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_a_recall_is_reached_with_the_best_precision_and_f1_is_the_best_there_is(scored, recall):
    labels, probs = [one[0] for one in scored], [one[1] / 7 for one in scored]
    scores, all_of_them = validation_of(labels, probs), list(every_threshold(labels, probs))
    point = find_threshold(scores, Goal("recall", recall))
    assert point.recall.value >= recall - 1e-9
    assert point.precision.value == pytest.approx(max(p for _, p, r in all_of_them if r >= recall - 1e-9))
    point = find_threshold(scores, Goal("f1"))
    best = max(2 * p * r / (p + r + 1e-12) for _, p, r in all_of_them)
    reached = point.precision.value, point.recall.value
    assert 2 * reached[0] * reached[1] / (sum(reached) + 1e-12) == pytest.approx(best)
    assert point == point_at(scores, point.threshold)


def test_of_thresholds_with_the_best_f1_the_lowest_is_taken():
    """One of one and of three is 2/4, two of five 4/8: 1e-12 apart as they are computed."""
    labels = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    scores = validation_of(labels, [one / 11 for one in range(11, 0, -1)])
    assert find_threshold(scores, Goal("f1")).threshold == pytest.approx(7 / 11 - 1e-6)


def test_a_threshold_that_nothing_passes_has_no_precision():
    point = point_at(validation_of([1, 0], [0.4, 0.2]), 0.9)
    assert (point.precision, point.recall.value) == ((0.0, 0.0, 1.0), 0.0)


@pytest.mark.parametrize("text", ["likeliest", "f1", "macro_f1", "precision 0.8", "recall 1"])
def test_what_is_asked_for_is_read_as_it_was_written(text):
    assert str(Goal.parse(text)) == text
    assert Goal.parse(f" {text.replace(' ', '  ')} ") == Goal.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "best",
        "precision",
        "precision 80",
        "recall 0",
        "recall x",
        "f1 .5",
        "precision .8 .9",
        "recall nan",
    ],
)
def test_what_is_no_goal_is_refused(text):
    with pytest.raises(
        RecipeError, match=r"is no rule for an answer; expected one of 'likeliest', .*'precision 0.8'"
    ):
        Goal.parse(text)

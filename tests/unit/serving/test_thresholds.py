"""Thresholds against scikit-learn and a plain search; intervals against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from serving_helpers import validation_of
from sklearn.metrics import precision_recall_curve

from selftrain.errors import ServingError
from selftrain.models.metrics import clopper_pearson
from selftrain.serving.thresholds import lowest_threshold

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
            lowest_threshold(scores, precision)
        return
    point = lowest_threshold(scores, precision)
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
    assert lowest_threshold(scores, 1.0).threshold == pytest.approx(0.9 - 1e-6)
    point = lowest_threshold(scores, 0.75)
    assert (point.threshold, point.precision.value, point.recall.value) == (0.4 - 1e-6, 0.75, 1.0)


def test_posts_scored_anew_stay_on_their_side():
    scores = validation_of([1, 1, 0, 1, 0], [0.9, 0.6, 0.6, 0.4, 0.1])
    threshold = lowest_threshold(scores, 0.75).threshold
    for shift in (-5e-7, 5e-7):
        assert ((scores.probs + shift >= threshold) == (scores.probs >= threshold)).all()


def test_no_threshold_is_an_error_with_the_best_there_is():
    # precision 2/3 at .8 (recall 2/3) and at .2 too (recall 1): the second is named
    scores = validation_of([0, 1, 1, 0, 1, 1], [0.8, 0.8, 0.8, 0.5, 0.2, 0.2])
    with pytest.raises(ServingError, match=r"precision 0.9 on the 6 .* is 0.667 at recall 1.000 .*0.199999"):
        lowest_threshold(scores, 0.9)


def test_without_positives_nothing_can_be_measured():
    with pytest.raises(ServingError, match="none of the 2 validation posts is positive"):
        lowest_threshold(validation_of([0, 0], [0.1, 0.9]), 0.5)


@pytest.mark.parametrize(("part", "whole"), [(0, 5), (5, 5), (1, 1), (7, 20), (199, 200)])
def test_the_interval_is_where_the_binomial_tails_hold_2_5_percent(part, whole):
    value, low, high = clopper_pearson(part, whole)
    assert value == part / whole
    assert low <= value <= high
    # at the lower end so many hits or more have probability 2.5 %, at the upper end so few or less
    assert (low == 0) if part == 0 else binom.sf(part - 1, whole, low) == pytest.approx(0.025)
    assert (high == 1) if part == whole else binom.cdf(part, whole, high) == pytest.approx(0.025)

"""The papers' figures, against scikit-learn and against definitions spelled out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

from selftrain.models.metrics import accuracy_and_f1, curve, threshold_intervals, threshold_metrics


def case(seed, count=60, ties=8):
    generator = np.random.default_rng(seed)
    truth = generator.random(count) < 0.4
    truth[:2] = True, False
    return truth, generator.integers(0, ties + 1, count) / ties


@given(st.integers(0, 5000), st.sampled_from([3, 8, 1000]))
def test_the_curve_is_scikit_learns(seed, ties):
    truth, scores = case(seed, ties=ties)
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    ours = curve(truth, scores)
    theirs = {t: (p, r) for t, p, r in zip(thresholds, precision, recall, strict=False)}
    assert sorted(ours.thresholds) == sorted(theirs)
    for t, p, r in zip(*ours, strict=True):
        assert (p, r) == pytest.approx(theirs[t])


@settings(deadline=None)  # the first case imports scikit-learn
@given(st.integers(0, 5000))
def test_figures_by_definition(seed):
    truth, scores = case(seed)
    found = threshold_metrics(truth, scores)
    assert found["f1"] == pytest.approx(f1_score(truth, scores > 0.5, zero_division=0))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, scores > 0.5, average="macro", zero_division=0))
    assert found["auc"] == roc_auc_score(truth, scores)
    chosen = [scores >= t for t in np.unique(scores)]
    rates = [((c & truth).sum() / c.sum(), (c & truth).sum() / truth.sum()) for c in chosen]
    for precision in (0.6, 0.65, 0.7, 0.75, 0.8):
        reached = [r for p, r in rates if p >= precision]
        assert found[f"recall_at_precision_{round(precision * 100)}"] == pytest.approx(
            max(reached, default=0)
        )
    assert found["precision_at_recall_50"] == pytest.approx(max(p for p, r in rates if r >= 0.5))


def test_a_worked_example():
    truth = np.array([1, 1, 0, 1, 0], bool)
    found = threshold_metrics(truth, np.array([0.9, 0.8, 0.7, 0.6, 0.1]))
    assert found["recall_at_precision_80"] == pytest.approx(2 / 3)  # the two at the top
    assert found["recall_at_precision_75"] == 1.0  # three of four
    assert found["precision_at_recall_50"] == 1.0
    assert found["f1"] == pytest.approx(2 * 3 / (3 + 4))


def test_intervals_cover_and_shrink():
    generator = np.random.default_rng(0)
    widths = []
    for count in (60, 960):
        truth = generator.random(count) < 0.4
        scores = np.clip(0.3 * truth + generator.random(count) * 0.7, 0, 1)
        found = threshold_intervals(truth, scores, 200)
        assert all(one.low <= one.value <= one.high or one.high - one.low < 0.5 for one in found.values())
        widths.append(found["auc"].high - found["auc"].low)
    assert widths[1] < 0.4 * widths[0]
    assert threshold_intervals(*case(1), 50) == threshold_intervals(*case(1), 50)


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_one_answer_alone_is_refused(truth):
    with pytest.raises(ValueError, match=r"posts have the answer looked for|none of the posts has"):
        threshold_metrics(np.array(truth), np.array([0.1, 0.9]))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="a score is no number"):
        threshold_metrics(np.array([True, False]), np.array([0.1, np.nan]))


@settings(deadline=None)  # the first case imports scikit-learn
@given(st.integers(0, 5000))
def test_many_answers(seed):
    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(0, 4, 30), generator.integers(0, 4, 30)
    found = accuracy_and_f1(truth, predicted)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["accuracy"] == pytest.approx((truth == predicted).mean())

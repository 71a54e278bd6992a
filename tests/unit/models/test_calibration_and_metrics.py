"""Calibration recovers what it should and no more; metrics are those of scikit-learn."""

import numpy as np
import pytest
from class_helpers import both
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sk

from selftrain._util.numeric import sigmoid
from selftrain.models import calibration
from selftrain.models.calibration import Calibration, fit_calibration, fit_temperature
from selftrain.models.metrics import evaluate, macro_f1


@pytest.mark.parametrize(("slope", "offset", "size"), [(1.7, -0.6, 1.5), (0.4, 0.9, 3.0), (0.02, 0.5, 100.0)])
def test_a_known_slope_and_offset_are_recovered_on_many_posts(slope, offset, size):
    random = np.random.default_rng(3)
    logits = (size * random.normal(size=40_000)).astype(np.float32)
    labels = (random.random(40_000) < sigmoid(slope * logits + np.float32(offset))).astype(np.int8)
    found = fit_calibration(both(logits), labels)
    assert found.slope == pytest.approx(slope, rel=0.05)
    assert found.offsets == (0, pytest.approx(offset, abs=0.05))


def test_it_stays_near_identity_with_few_posts_even_if_they_separate(monkeypatch):
    logits, labels = np.array([-2, -1, -3, 2, 1, 3], np.float32), np.array([0, 0, 0, 1, 1, 1], np.int8)
    found = fit_calibration(both(logits), labels)
    assert 0.7 < found.slope < 2.0
    assert abs(found.offsets[1]) < 0.3
    monkeypatch.setattr(calibration, "PRIOR_POSTS", 0.0)
    assert fit_calibration(both(logits), labels).slope > 10  # what the prior holds back


@pytest.mark.parametrize("count", [8, 300])
def test_it_minimises_what_it_says(count):
    """No slope and offset nearby give less than the ones found."""
    random = np.random.default_rng(0)
    logits = random.normal(size=count).astype(np.float32)
    labels = (random.random(count) < sigmoid(2 * logits + 1)).astype(np.int8)
    found = fit_calibration(both(logits), labels)

    def cost(slope, offset):
        margin = np.where(labels == 1, 1, -1) * (slope * logits.astype(float) + offset)
        prior = calibration.PRIOR_POSTS / 8 * (np.log(slope) ** 2 + offset**2)
        return np.logaddexp(0, -margin).sum() + prior

    for ds, do in [(1.02, 0), (0.98, 0), (1, 0.02), (1, -0.02)]:
        assert cost(found.slope * ds, found.offsets[1] + do) > cost(found.slope, found.offsets[1])


@pytest.mark.parametrize(
    ("fit", "classes"), [(fit_calibration, 2), (fit_calibration, 3), (fit_temperature, 3)]
)
def test_logits_far_too_small_are_enlarged(fit, classes):
    """The pull towards slope 1 makes a valley there, in which they would stay as they are."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 400)
    logits = 0.0025 * (random.normal(size=(400, classes)) + 2 * np.eye(classes)[labels])
    assert fit(logits.astype(np.float32), labels).slope > 10


def drawn_classes(count, *, slope=0.6, offsets=(0.8, -0.5, -0.3), size=2.0):
    """Logits of three classes, and labels that are as probable as slope and offsets make them."""
    random = np.random.default_rng(5)
    logits = (size * random.normal(size=(count, 3))).astype(np.float32)
    probs = calibration.probabilities(slope * logits + np.array(offsets))
    return logits, (probs.cumsum(1) < random.random(count)[:, None]).sum(1)


def test_an_offset_for_each_of_several_classes_is_recovered():
    found = fit_calibration(*drawn_classes(40_000))
    assert found.slope == pytest.approx(0.6, rel=0.05)
    assert found.offsets == pytest.approx((0.8, -0.5, -0.3), abs=0.05)
    few = fit_calibration(*drawn_classes(6))
    assert 0.5 < few.slope < 2
    assert max(map(abs, few.offsets)) < 0.5


def test_predicted_shares_of_several_classes_are_the_true_ones():
    logits, labels = drawn_classes(4000)
    shares = np.bincount(labels) / len(labels)
    raw, found = logits, fit_calibration(logits, labels)(logits)
    assert abs(calibration.probabilities(raw).mean(0) - shares).max() > 0.1
    np.testing.assert_allclose(calibration.probabilities(found).mean(0), shares, atol=0.002)


@pytest.mark.parametrize("count", [12, 300])
def test_of_several_classes_nothing_nearby_is_better(count):
    logits, labels = drawn_classes(count)
    found = fit_calibration(logits, labels)

    def cost(slope, offsets):
        probs = calibration.probabilities(slope * logits.astype(float) + offsets)
        pull = calibration.PRIOR_POSTS / 8 * (np.log(slope) ** 2 + np.square(offsets).sum())
        return pull - np.log(probs[np.arange(count), labels]).sum()

    best, here = cost(found.slope, np.array(found.offsets)), np.array(found.offsets)
    moved = [
        (1.03, np.zeros(3)),
        (0.97, np.zeros(3)),
        *((1, step) for step in np.vstack([np.eye(3), -np.eye(3)]) * 0.03),
    ]
    assert all(cost(found.slope * slope, here + step) > best for slope, step in moved)


@given(
    arrays.arrays(np.float32, st.integers(4, 40), elements=st.floats(-50, 50, width=32)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_order_of_posts_never_changes(logits, seed):
    labels = np.random.default_rng(seed).integers(0, 2, len(logits)).astype(np.int8)
    labels[:2] = (0, 1)
    found = fit_calibration(both(logits), labels)
    assert found.slope > 0
    assert np.isfinite([found.slope, *found.offsets]).all()
    assert (np.diff(found(both(np.sort(logits)))[:, 1]) >= 0).all()


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0, 0]])
def test_one_class_alone_is_refused(labels):
    with pytest.raises(ValueError, match=f"{len(labels)} validation posts of one class"):
        fit_calibration(np.zeros((len(labels), 2), np.float32), np.array(labels, np.int8))


def test_probabilities_do_not_overflow():
    with np.errstate(all="raise"):
        found = sigmoid(np.array([-1e30, -1, 0, 1, 1e30], np.float32))
    np.testing.assert_allclose(found, [0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1], atol=1e-7)


def test_a_calibration_is_slope_times_logit_plus_offset():
    found = Calibration(2.0, (0.0, -1.0))(both([1, 0]))
    assert found.tolist() == [[0.0, 1.0], [0.0, -1.0]]
    assert found.dtype == np.float32


CASES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([-3.0, -0.5, 0.0, 0.25, 2.0])), min_size=1, max_size=40
)


@given(CASES)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_metrics_equal_scikit_learns(cases):
    labels = np.array([label for label, _ in cases], np.int8)
    logits = np.array([logit for _, logit in cases], np.float32)
    predicted = (logits > 0).astype(np.int8)
    found = evaluate(labels, both(logits))
    expected = {
        "posts": len(cases),
        "macro_f1": sk.f1_score(labels, predicted, average="macro", zero_division=0),
        "accuracy": sk.accuracy_score(labels, predicted),
        "precision": sk.precision_score(labels, predicted, zero_division=0),
        "recall": sk.recall_score(labels, predicted, zero_division=0),
        "brier": np.mean((1 / (1 + np.exp(-logits.astype(float))) - labels) ** 2),
    }
    if len(set(labels.tolist())) == 2:
        expected["auc"] = sk.roc_auc_score(labels, logits)
    figures = {k: v for k, v in found._asdict().items() if v is not None}
    assert figures.pop("confusion") == sk.confusion_matrix(labels, predicted, labels=[0, 1]).tolist()
    assert figures == pytest.approx(expected)


def test_macro_f1_of_nothing_is_zero():
    empty = np.empty(0, np.int8)
    assert macro_f1(empty, empty) == 0.0

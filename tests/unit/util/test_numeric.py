"""What is made of logits [B, K], against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from selftrain._util.numeric import class_columns, decide, decide_shown, log_odds, log_probs, sigmoid


@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from([1.0, 40.0]))
@settings(max_examples=50, deadline=None)
def test_log_odds_and_log_probabilities_are_those_of_the_softmax(seed, classes, size):
    logits = (size * np.random.default_rng(seed).normal(size=(9, classes))).astype(np.float32)
    expected = log_softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(log_probs(logits), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sigmoid(log_odds(logits)).sum(1), 1, atol=1e-9)
    assert decide(logits).tolist() == expected.argmax(1).tolist()


def test_of_two_classes_the_second_stands_for_both_to_the_bit():
    z = np.random.default_rng(0).normal(size=50).astype(np.float32)
    found = log_odds(np.stack([np.zeros_like(z), z], axis=1))
    assert (found == np.stack([-z, z], axis=1)).all()
    assert class_columns(2).tolist() == [1]
    assert class_columns(4).tolist() == [0, 1, 2, 3]


def test_of_equals_the_first_is_decided_on():
    assert decide(np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)).tolist() == [0, 0]


def test_the_positive_class_first_or_last_makes_no_other_decision():
    numbered = np.random.default_rng(0).integers(-1, 2, (200, 3)).astype(np.float32)  # ties among them
    for cut in (None, (0.0, 1.0, -1.0)):
        shown, turned = np.roll(numbered, 1, axis=1), None if cut is None else (cut[-1], *cut[:-1])
        assert (decide_shown(shown, turned) == (decide(numbered, cut) + 1) % 3).all()


def test_huge_logits_do_not_overflow():
    with np.errstate(over="raise", invalid="raise"):
        found = log_odds(np.array([[0, 1e30, -1e30]], np.float32))
    assert found[0, 1] == pytest.approx(1e30)

"""The prior of a selected set: on simulated shifts, at its bounds, and where it knows nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from losses import PriorEstimateError, SettingError, estimate_prior


def simulated(share, training_prior, *, size=20_000, distance=1.5, seed=0):
    """Exactly calibrated probabilities of posts x ~ N(+-distance/2, 1), `share` of them positive."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size) + np.where(rng.random(size) < share, distance / 2, -distance / 2)
    odds = training_prior / (1 - training_prior) * np.exp(distance * x)
    return odds / (1 + odds)


@pytest.mark.parametrize("training_prior", [0.2, 0.5])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.8])
def test_a_simulated_shift_is_found(share, training_prior):
    probabilities = simulated(share, training_prior)
    found = estimate_prior(probabilities, training_prior)
    assert found == pytest.approx(share, abs=0.02)
    if abs(share - training_prior) > 0.1:
        # the plain mean of the probabilities stays nearer to the old prior
        assert abs(found - share) < abs(probabilities.mean() - share)


def test_the_estimate_maximises_the_likelihood():
    probabilities = simulated(0.3, 0.5, size=400, seed=3)
    grid = np.linspace(0.05, 0.95, 9001)[:, None]
    likelihood = np.log(grid * probabilities / 0.5 + (1 - grid) * (1 - probabilities) / 0.5).sum(axis=1)
    assert estimate_prior(probabilities, 0.5) == pytest.approx(float(grid[likelihood.argmax(), 0]), abs=2e-4)


@pytest.mark.parametrize(
    ("probability", "expected"), [(0.0, 0.05), (1.0, 0.95), (0.001, 0.05), (0.999, 0.95)]
)
def test_an_extreme_estimate_is_cut(probability, expected):
    assert estimate_prior([probability] * 30, 0.5) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_that_say_nothing_leave_the_training_prior(dtype):
    assert estimate_prior(torch.full((50,), 0.3, dtype=dtype), 0.3) == pytest.approx(0.3, abs=1e-6)


def test_tensors_arrays_and_lists_give_the_same():
    probabilities = simulated(0.3, 0.5, size=200)
    expected = estimate_prior(probabilities, 0.5)
    assert estimate_prior(torch.tensor(probabilities, requires_grad=True), 0.5) == expected
    assert estimate_prior(probabilities.tolist(), 0.5) == expected


@pytest.mark.parametrize("training_prior", [0.0, 1.0, -0.2, float("nan")])
def test_a_training_prior_out_of_range_is_refused(training_prior):
    with pytest.raises(SettingError, match="training_prior is"):
        estimate_prior([0.5], training_prior)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([], "0 probabilities: expected at least one"),
        ([0.5, 1.5, -3.0], "2 of 3 probabilities lie outside .* the first is 1.5"),
        ([float("nan")], "the first is nan"),
    ],
)
def test_probabilities_that_are_none_are_refused(probabilities, message):
    with pytest.raises(PriorEstimateError, match=message):
        estimate_prior(probabilities, 0.5)


def test_both_columns_of_a_classifier_are_no_probabilities_of_one_class():
    with pytest.raises(PriorEstimateError, match=r"shape \(2, 2\): expected \[M\], P\(positive\)"):
        estimate_prior([[0.2, 0.8], [0.6, 0.4]], 0.5)


@pytest.mark.parametrize("wrong", ["0.5", None, True])
def test_a_training_prior_that_is_no_number_is_refused(wrong):
    with pytest.raises(SettingError, match=r"training_prior is .*: expected a number strictly"):
        estimate_prior([0.5], wrong)


@pytest.mark.filterwarnings("error")
def test_arrays_that_torch_reads_only_as_copies_are_read():
    array = np.array([0.2, 0.6, 0.7])
    expected = estimate_prior(array.tolist(), 0.5)
    array.setflags(write=False)
    assert estimate_prior(array, 0.5) == expected
    assert estimate_prior(array[::-1], 0.5) == pytest.approx(expected, abs=1e-9)

"""The loss of process supervision, against a reference that spells every term out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from losses.base import BatchError, SettingError
from losses.process import process_loss


def reference(logits, targets, weights, counts):
    """Sum over questions and posts of -w / n * sum_k t_k log p_k, in plain Python."""
    total = 0.0
    for scores, wanted, weight, count in zip(logits, targets, weights, counts, strict=True):
        for row, target in zip(scores.tolist(), wanted.tolist(), strict=True):
            largest = max(row)
            log_sum = largest + math.log(sum(math.exp(z - largest) for z in row))
            total -= weight / count * sum(t * (z - log_sum) for z, t in zip(row, target, strict=True))
    return total


def batch(seed, posts=5, sizes=(2, 3, 4), missing=0.4):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(posts, k, generator=generator, dtype=torch.float64) for k in sizes]
    targets = [torch.rand(posts, k, generator=generator) for k in sizes]
    targets = [one / one.sum(1, keepdim=True) for one in targets]
    gone = [torch.rand(posts, generator=generator) < missing for _ in sizes[:-1]]
    for one, rows in zip(targets, gone, strict=False):
        one[rows] = 0.0
    return logits, targets


def counts_of(targets):
    return [max(int((one.sum(1) > 0.5).sum()), 1) for one in targets]


@given(
    st.integers(0, 10_000), st.tuples(*[st.floats(0.0, 3.0) for _ in range(3)]).filter(lambda w: sum(w) > 0.1)
)
def test_it_is_the_weighted_sum_of_mean_cross_entropies(seed, weights):
    logits, targets = batch(seed)
    output = process_loss(logits, targets, weights)
    expected = reference(logits, targets, weights, counts_of(targets))
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    assert output.known.tolist() == [float((one.sum(1) > 0.5).sum()) for one in targets]
    for q in range(3):
        alone = reference(logits[q : q + 1], targets[q : q + 1], [1.0], counts_of(targets[q : q + 1]))
        assert output.parts[q].item() == pytest.approx(alone, abs=1e-5)


def test_golden_value():
    """Two questions of two answers: -log sigmoid(2) for the one post that answers, and ln 2 for the final."""
    logits = [torch.tensor([[1.0, -1.0], [3.0, 0.0]]), torch.zeros(2, 2)]
    targets = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.3, 0.7]])]
    output = process_loss(logits, targets, [0.5, 1.0])
    assert output.loss.item() == pytest.approx(0.5 * 0.126928 + 0.693147, abs=1e-6)


def test_a_missing_answer_gives_its_head_no_gradient_and_an_unanswered_question_one_of_zero():
    logits = [torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)]
    targets = [torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), torch.zeros(3, 2), torch.eye(2)[[0, 1, 0]]]
    output = process_loss(logits, targets)
    output.loss.backward()
    assert logits[0].grad[1].abs().sum() == 0
    assert logits[0].grad[0].abs().sum() > 0
    assert logits[1].grad is not None
    assert logits[1].grad.abs().sum() == 0
    assert (output.parts[1].item(), output.known[1].item()) == (0.0, 0.0)


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_parts_of_a_batch_add_up_to_the_whole(seed, cut):
    logits, targets = batch(seed)
    whole = process_loss(logits, targets, [1.0, 2.0, 0.5])
    counts = [float(one) for one in whole.known]
    pieces = [
        process_loss([z[s] for z in logits], [t[s] for t in targets], [1.0, 2.0, 0.5], denominators=counts)
        for s in (slice(0, cut), slice(cut, None))
    ]
    assert sum(one.loss.item() for one in pieces) == pytest.approx(whole.loss.item(), abs=1e-5)
    assert torch.allclose(pieces[0].parts + pieces[1].parts, whole.parts, atol=1e-5)


def test_the_gradient_is_that_of_the_value():
    logits, targets = batch(3)
    given_logits = [one.clone().requires_grad_(True) for one in logits]
    process_loss(given_logits, targets, [1.0, 2.0, 0.5]).loss.backward()
    step = 1e-3
    for q, one in enumerate(logits):
        for place in [(0, 0), (2, 1), (4, 0)]:
            moved = [[z.clone() for z in logits] for _ in range(2)]
            moved[0][q][place] += step
            moved[1][q][place] -= step
            values = [reference(m, targets, [1.0, 2.0, 0.5], counts_of(targets)) for m in moved]
            slope = (values[0] - values[1]) / (2 * step)
            assert given_logits[q].grad[place].item() == pytest.approx(slope, abs=1e-4)
        assert one.shape == given_logits[q].grad.shape


def test_signed_targets_give_the_unbiased_loss_of_a_reviewed_post():
    """t_m + (t_h - t_m) / pi: cross-entropy is linear in its target, so this is l_m + (l_h - l_m) / pi."""
    logits = [torch.tensor([[0.3, -0.7]])]
    machine, human, pi = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.25
    l_m, l_h = (process_loss(logits, [one]).loss.item() for one in (machine, human))
    mixed = process_loss(logits, [machine + (human - machine) / pi], signed=True).loss.item()
    assert mixed == pytest.approx(l_m + (l_h - l_m) / pi, abs=1e-5)
    with pytest.raises(BatchError, match="expected a distribution"):
        process_loss(logits, [machine + (human - machine) / pi])


@pytest.mark.parametrize(
    ("weights", "denominators"),
    [
        ([1.0], None),
        ([-1.0, 1, 1], None),
        ([0, 0, 0], None),
        ([math.nan, 1, 1], None),
        (None, [1.0]),
        (None, [1, math.inf, 1]),
    ],
)
def test_settings_that_cannot_be(weights, denominators):
    logits, targets = batch(0)
    with pytest.raises(SettingError, match="expected"):
        process_loss(logits, targets, weights, denominators=denominators)


@pytest.mark.parametrize("spoil", ["shape", "posts", "sum", "negative", "nan", "none"])
def test_batches_that_cannot_be(spoil):
    logits, targets = batch(0, missing=0.0)
    match spoil:
        case "shape":
            targets[1] = targets[1][:, :2]
        case "posts":
            logits[2], targets[2] = logits[2][:3], targets[2][:3]
        case "sum":
            targets[0][2] *= 2
        case "negative":
            targets[0][2] = torch.tensor([1.5, -0.5])
        case "nan":
            targets[0][2] = math.nan
        case _:
            logits, targets = [], []
    with pytest.raises(BatchError, match="expected"):
        process_loss(logits, targets)

"""The loss of process supervision, against a reference that spells every term out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from losses.base import BatchError, SettingError
from losses.process import answer_sums, process_loss


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


def posts_of(targets):
    return [len(one) for one in targets]


@given(
    st.integers(0, 10_000), st.tuples(*[st.floats(0.0, 3.0) for _ in range(3)]).filter(lambda w: sum(w) > 0.1)
)
def test_it_is_the_weighted_sum_of_cross_entropies_over_the_posts(seed, weights):
    logits, targets = batch(seed)
    output = process_loss(logits, targets, weights)
    expected = reference(logits, targets, weights, posts_of(targets))
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    assert output.known.tolist() == [float((one.sum(1) > 0.5).sum()) for one in targets]
    for q in range(3):
        alone = reference(logits[q : q + 1], targets[q : q + 1], [1.0], [max(output.known[q].item(), 1)])
        assert output.parts[q].item() == pytest.approx(alone, abs=1e-5)


def test_golden_value():
    """Two questions of two answers: -log sigmoid(2) for one of two posts, and ln 2 for the final."""
    logits = [torch.tensor([[1.0, -1.0], [3.0, 0.0]]), torch.zeros(2, 2)]
    targets = [torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.3, 0.7]])]
    output = process_loss(logits, targets, [0.5, 1.0])
    assert output.loss.item() == pytest.approx(0.5 * 0.126928 / 2 + 0.693147, abs=1e-6)


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
    counts = [float(len(one)) for one in targets]
    pieces = [
        process_loss([z[s] for z in logits], [t[s] for t in targets], [1.0, 2.0, 0.5], denominators=counts)
        for s in (slice(0, cut), slice(cut, None))
    ]
    assert sum(one.loss.item() for one in pieces) == pytest.approx(whole.loss.item(), abs=1e-5)
    assert torch.allclose(pieces[0].sums + pieces[1].sums, whole.sums, atol=1e-5)


def test_one_annotated_post_in_sixteen_weighs_as_its_final_answer_does():
    """Divided by those that answer, it weighs as much as all sixteen final answers together."""
    logits = [torch.zeros(16, 2, requires_grad=True), torch.zeros(16, 2, requires_grad=True)]
    targets = [torch.zeros(16, 2), torch.eye(2)[[0] * 16]]
    targets[0][3, 0] = 1.0

    def gradients(denominators):
        for one in logits:
            one.grad = None
        process_loss(logits, targets, denominators=denominators).loss.backward()
        return [float(one.grad[3, 0]) for one in logits]

    process, final = gradients(None)
    assert process == pytest.approx(final)
    process, final = gradients([1.0, 16.0])
    assert process == pytest.approx(16 * final)


def test_fewer_than_one_expected_answer_a_step_divides_and_none_does_not():
    logits, answered = [torch.tensor([[0.3, -0.7]])], [torch.tensor([[1.0, 0.0]])]

    def loss(denominator, targets):
        return process_loss(logits, targets, denominators=[denominator]).loss.item()

    assert loss(0.32, answered) == pytest.approx(loss(1.0, answered) / 0.32)
    assert loss(0.0, [torch.zeros(1, 2)]) == 0.0


def test_a_bounded_loss_has_the_value_of_its_parts_and_the_gradient_of_the_whole():
    """Signed targets in parts: what is clipped is decided by the sums over all of them."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(8, 3, generator=generator) * 4]
    machine, human = torch.eye(3)[[0, 1, 2, 0, 1, 2, 0, 1]], torch.eye(3)[[1] * 8]
    targets = [machine + (human - machine) / 0.2]
    sums = answer_sums(logits, targets)
    assert sums[0].min() < 0 < sums[0].max()

    def grown(cuts):
        z = logits[0].clone().requires_grad_(True)
        total = 0.0
        for part in cuts:
            found = process_loss([z[part]], [targets[0][part]], denominators=[8.0], signed=True, whole=sums)
            found.loss.backward()
            total += found.loss.item()
        return total, z.grad

    whole, parts = grown([slice(0, 8)]), grown([slice(0, 3), slice(3, 8)])
    assert whole[0] == pytest.approx(sums[0].clamp_min(0).sum().item() / 8, rel=1e-5)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert torch.allclose(parts[1], whole[1], atol=1e-6)


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
            values = [reference(m, targets, [1.0, 2.0, 0.5], posts_of(targets)) for m in moved]
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
        (None, [1, math.nan, 1]),
        (None, [1, 1, -1]),
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


# ---- weights of answers ---------------------------------------------------------------------------------


def test_answers_weigh_as_they_are_told_hard_and_soft():
    """Against torch's own weighted cross-entropy, which takes soft targets; sums stay without weights."""
    generator = torch.Generator().manual_seed(3)
    logits = [torch.randn(6, 3, generator=generator, requires_grad=True)]
    hard = F.one_hot(torch.tensor([0, 1, 2, 2, 1, 2]), 3).float()
    soft = torch.softmax(torch.randn(6, 3, generator=generator), 1)
    weights = torch.tensor([2.0, 0.5, 1.5])
    for target in (hard, soft):
        found = process_loss(logits, [target], answer_weights=[weights])
        expected = F.cross_entropy(logits[0], target, weight=weights, reduction="sum") / 6
        assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert found.sums.tolist() == process_loss(logits, [target]).sums.tolist()
    even = process_loss(logits, [soft], answer_weights=[torch.ones(3)])
    assert even.loss.item() == process_loss(logits, [soft]).loss.item()


@pytest.mark.parametrize("name", ["answer_weights", "whole"])
@pytest.mark.parametrize("shapes", [(3,), (3, 1), (3, 3, 2), ()])
def test_numbers_of_answers_that_are_not_there_are_refused(name, shapes):
    logits, targets = [torch.zeros(2, 3), torch.zeros(2, 2)], [torch.eye(3)[:2], torch.eye(2)]
    process_loss(logits, targets, **{name: [torch.ones(3), torch.ones(2)]})
    with pytest.raises(BatchError, match=f"{name} of shapes .*; expected .* a number for each answer"):
        process_loss(logits, targets, **{name: [torch.ones(width) for width in shapes]})


def test_posts_are_counted_exactly_whatever_the_targets_are():
    logits = [torch.zeros(301, 2)]
    for kind in (torch.bfloat16, torch.float16, torch.long, torch.bool):
        found = process_loss(logits, [torch.eye(2)[torch.zeros(301, dtype=torch.long)].to(kind)])
        assert found.known.tolist() == [301]
        assert found.parts.tolist() == pytest.approx([math.log(2)])

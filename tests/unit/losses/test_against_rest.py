"""The loss of K classes: a mean over classes, and for two classes the loss of one against the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pnu_reference import reference_loss

from losses import AgainstRest, BatchError, Group, PNULoss

FORMS = ("weighted", "convex", "sakai", "nnpu", "upu", "pn")
KINDS = ("labelled", "agreed", "divergent")


def drawn(seed, posts, classes):
    """Logits [B, K], a class and a kind for each post, and soft targets [B, K]."""
    random = np.random.default_rng(seed)
    targets = random.dirichlet(np.ones(classes), posts)
    return random.normal(0, 2, (posts, classes)), random.integers(0, classes, posts), \
        random.integers(0, 3, posts), targets  # fmt: skip


def groups_of(labels, kinds, columns):
    own = {0: Group.POSITIVE, 1: Group.AGREED_POSITIVE, 2: Group.DIVERGENT}
    other = {0: Group.NEGATIVE, 1: Group.AGREED_NEGATIVE, 2: Group.DIVERGENT}
    return np.array([
        [int(own[kind] if label == k else other[kind]) for k in columns]
        for label, kind in zip(labels.tolist(), kinds.tolist(), strict=True)
    ])  # fmt: skip


@given(
    seed=st.integers(0, 2**31), form=st.sampled_from(FORMS), balance=st.sampled_from([-0.4, 0.3]),
    classes=st.integers(3, 5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_it_is_the_mean_of_what_each_class_gives_against_the_rest(seed, form, balance, classes):
    logits, labels, kinds, targets = drawn(seed, 12, classes)
    groups = groups_of(labels, kinds, range(classes))
    thetas = [0.1 + 0.1 * k for k in range(classes)]
    loss = AgainstRest(tuple(PNULoss(form=form, balance=balance, theta=theta) for theta in thetas))
    found = loss(torch.tensor(logits), torch.tensor(groups), torch.tensor(targets))
    expected = 0.0
    for k in range(classes):
        rows = []
        for z, group, target in zip(
            logits.tolist(), groups[:, k].tolist(), targets[:, k].tolist(), strict=True
        ):
            rest = math.log(sum(math.exp(other) for j, other in enumerate(z) if j != k))
            rows.append((z[k] - rest, group, target, 1.0))
        expected += reference_loss(
            rows, form=form, balance=balance, theta=thetas[k], lambda_u=loss.losses[k].lambda_u
        )
    assert float(found.loss) == pytest.approx(expected / classes, rel=1e-9, abs=1e-9)


@given(seed=st.integers(0, 2**31), form=st.sampled_from(FORMS))
@settings(max_examples=40, deadline=None)
def test_two_classes_give_the_figures_of_one_against_the_other_to_the_bit(seed, form):
    logits, labels, kinds, targets = drawn(seed, 10, 2)
    groups, soft = (
        torch.tensor(groups_of(labels, kinds, [1])),
        torch.tensor(targets[:, 1:], dtype=torch.float32),
    )
    alone, together = (torch.tensor(logits[:, 1], dtype=torch.float32, requires_grad=True) for _ in range(2))
    one = PNULoss(form=form, balance=0.2, theta=0.3)
    first = one(alone, groups[:, 0], soft[:, 0])
    second = AgainstRest((one,))(torch.nn.functional.pad(together[:, None], (1, 0)), groups, soft)
    assert torch.equal(first.loss, second.loss)
    assert first.parts.keys() == second.parts.keys()
    assert all(torch.equal(first.parts[name], second.parts[name]) for name in first.parts)
    for output in (first, second):
        output.loss.backward()
    assert torch.equal(alone.grad, together.grad)


def test_a_round_fills_in_each_classes_prior_and_asks_for_them_once():
    groups = groups_of(np.array([0, 1, 2, 0]), np.array([0, 0, 0, 1]), range(3))
    asked = []

    def priors():
        asked.append(1)
        return [0.2, 0.3, 0.5]

    filled = AgainstRest((PNULoss(),) * 3).for_round(groups, priors, evidence_weight=0.9)
    assert [one.theta for one in filled.losses] == [0.2, 0.3, 0.5]
    assert [one.lambda_soft for one in filled.losses] == pytest.approx([0.3] * 3)
    assert len(asked) == 1
    assert filled == AgainstRest((PNULoss(),) * 3).for_round(groups, priors, evidence_weight=0.9)


def test_the_gradient_moves_probability_to_the_labelled_class():
    z = torch.zeros(1, 4, requires_grad=True)
    groups = torch.tensor(groups_of(np.array([2]), np.array([0]), range(4)))
    AgainstRest((PNULoss(form="pn"),) * 4)(z, groups, torch.zeros(1, 4)).loss.backward()
    assert z.grad[0].argmin() == 2
    assert z.grad.sum().item() == pytest.approx(0, abs=1e-6)  # what all logits share changes nothing


@pytest.mark.parametrize(
    ("logits", "groups", "targets", "columns"),
    [
        ((4, 2), (4, 2), (4, 2), 1),  # of two classes one is set against the other
        ((4,), (4,), (4,), 1),
        ((4, 1), (4, 1), (4, 1), 1),
        ((4, 2), (4, 3), (4, 3), 3),
        ((4, 3), (4, 1), (4, 1), 1),
        ((4, 3), (4, 3), (4, 1), 3),
        ((4, 3), (5, 3), (5, 3), 3),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, groups, targets, columns):
    loss = AgainstRest((PNULoss(),) * columns)
    with pytest.raises(BatchError, match=r"logits, groups and targets have shapes .*: expected logits \[B"):
        loss(torch.zeros(logits), torch.zeros(groups, dtype=torch.long), torch.zeros(targets))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_log_odds_of_half_precision_are_computed_in_float32(kind):
    (
        logits,
        groups,
        targets,
    ) = torch.tensor([[9.0, 8.5, -60000], [3, 2, 1]]).to(kind), *two_posts()
    loss = AgainstRest((PNULoss(),) * 3)
    found = loss(logits, groups, targets).loss
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(logits.float(), groups, targets).loss)
    assert math.isfinite(found)


def two_posts():
    return torch.tensor([[1, 0, 1], [0, 1, 1]]), torch.zeros(2, 3)

"""Risks that learn from one labelled class and unlabelled posts: uPU, nnPU, the paper's, and their mirrors.

All have one shape. With l the loss of the labelled class's own side and l' that of the other side, pi the
prior of the labelled class and D the unlabelled posts::

    risk = pi mean_labelled l + correct(bracket),   bracket = mean_D l' - pi mean_labelled l'

The bracket estimates the risk of the class that has no labels here, which cannot be negative; on few posts
the estimate can. What `correct` does about it is all that the published risks differ in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from losses.group import Group
from losses.groups import GroupedBatch


class OneSided(NamedTuple):
    """Means [] that a one-sided risk is built of.

    Attributes:
        own: mean_labelled l, the labelled posts judged as what they are.
        opposite: mean_labelled l', the same posts judged as the other class.
        unlabelled: mean_D l', the unlabelled posts judged as the other class.
        present: Whether D carries any weight, bool [].
    """

    own: Tensor
    opposite: Tensor
    unlabelled: Tensor
    present: Tensor


class UnlabelledRisk(NamedTuple):
    """A one-sided risk [], its bracket [] before correction, and whether it was clipped, 0 or 1 []."""

    risk: Tensor
    bracket: Tensor
    clipped: Tensor


Correction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(pi mean_labelled l [], bracket []) -> (risk [], clipped bool [])"""


def labelled_means(batch: GroupedBatch, *, positive: bool) -> OneSided:
    """The means over the labelled posts of one class alone, and over D (Sakai, Kiryo, the article)."""
    own, opposite = (batch.plus, batch.minus) if positive else (batch.minus, batch.plus)
    group = Group.POSITIVE if positive else Group.NEGATIVE
    return OneSided(
        own=batch.mean(own, group),
        opposite=batch.mean(opposite, group),
        unlabelled=batch.mean(opposite, Group.DIVERGENT),
        present=batch.occupied(Group.DIVERGENT),
    )


def labelled_and_agreed_means(batch: GroupedBatch, *, positive: bool) -> OneSided:
    """As `labelled_means`, the labelled and the agreed posts of the class at half weight each (the paper).

    R+ = 1/2 [mean_P l+ + mean_AP BCE(z, t)]; its opposite judges the agreed posts by the flipped target,
    BCE(z, 1-t), which for t = .67 is the paper's BCE(z, .33).
    """
    labelled = labelled_means(batch, positive=positive)
    agreed = Group.AGREED_POSITIVE if positive else Group.AGREED_NEGATIVE
    return labelled._replace(
        own=0.5 * (labelled.own + batch.mean(batch.soft, agreed)),
        opposite=0.5 * (labelled.opposite + batch.mean(batch.soft_flipped, agreed)),
    )


def one_sided_risk(means: OneSided, prior: float, correct: Correction) -> UnlabelledRisk:
    """The risk of the module's docstring; exactly 0, its gradient too, where D is empty.

    Without D there is nothing to subtract from: the bracket would be -pi mean_labelled l', uPU would sink
    without bound, and nnPU's way out of a negative bracket would push the labelled posts to the wrong side.
    """
    bracket = means.unlabelled - prior * means.opposite
    risk, clipped = correct(prior * means.own, bracket)
    zero = torch.zeros_like(bracket)
    return UnlabelledRisk(
        risk=torch.where(means.present, risk, zero),
        bracket=torch.where(means.present, bracket, zero),
        clipped=(means.present & clipped).to(bracket.dtype),
    )


def uncorrected(own: Tensor, bracket: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased and unbounded below: uPU, and R_pu and R_nu of Sakai et al. (2017)."""
    return own + bracket, torch.zeros_like(bracket, dtype=torch.bool)


def leaky(own: Tensor, bracket: Tensor) -> tuple[Tensor, Tensor]:
    """own + h(bracket), h(x) = x if x >= 0 else -.01 x (arXiv 2511.13759); value and gradient agree."""
    clipped = bracket < 0
    return own + torch.where(clipped, -0.01 * bracket, bracket), clipped


def non_negative(beta: float, gamma: float) -> Correction:
    """nnPU, Kiryo et al. (2017), equation 6 and algorithm 1.

    The value is own + max(bracket, -beta). Where the bracket lies below -beta the gradient is not that of
    the value, but that of -gamma bracket alone: a step back, out of the overfitting that made it negative.

    Args:
        beta: How far below 0 the bracket may go, >= 0.
        gamma: Length of the step back, in [0, 1].
    """

    def correct(own: Tensor, bracket: Tensor) -> tuple[Tensor, Tensor]:
        clipped = bracket < -beta
        way_back = -gamma * bracket
        # x - x.detach() is exactly 0 and has the gradient of x: value from one side, gradient from the other
        stepped = (own - beta).detach() + (way_back - way_back.detach())
        return torch.where(clipped, stepped, own + bracket), clipped

    return correct

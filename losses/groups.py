"""A batch sorted into the five groups of PNU learning, and means over them.

Shape legend: ``B`` posts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.errors import BatchError
from losses.group import Group


class Surrogate(Protocol):
    """Both surrogate losses of a logit: ``(l+, l-)``, element by element."""

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]: ...


def logistic(logits: Tensor) -> tuple[Tensor, Tensor]:
    """l+(z) = softplus(-z), l-(z) = softplus(z); the cross-entropy of the sigmoid."""
    return F.softplus(-logits), F.softplus(logits)


def sigmoid(logits: Tensor) -> tuple[Tensor, Tensor]:
    """l+(z) = sigmoid(-z), l-(z) = sigmoid(z); bounded and symmetric, Kiryo et al. (2017), section 5."""
    return torch.sigmoid(-logits), torch.sigmoid(logits)


SURROGATES: dict[str, Surrogate] = {"logistic": logistic, "sigmoid": sigmoid}


@dataclass(frozen=True, slots=True)
class GroupedBatch:
    """The surrogate losses of a batch, and who belongs where.

    Attributes:
        plus: l+ of every post [B], float32 or float64.
        minus: l- of every post [B], same type.
        groups: Group of every post [B], integer.
        targets: Soft target of every post [B] in [0, 1]; meaningful for agreed posts only.
        weights: Weight of every post [B], non-negative.
    """

    plus: Tensor
    minus: Tensor
    groups: Tensor
    targets: Tensor
    weights: Tensor

    def mean(self, values: Tensor, group: Group) -> Tensor:
        """Weighted mean [] of `values` [B] over one group; exactly 0 where the group carries no weight."""
        mask = self.groups == group
        # `where` and not a product, so that an infinite value in another group cannot make a NaN here
        weights = torch.where(mask, self.weights, 0.0)
        total = weights.sum()
        shares = weights / torch.where(total > 0, total, 1.0)
        return torch.where(mask, shares * values, 0.0).sum()

    def occupied(self, group: Group) -> Tensor:
        """Whether the group carries any weight: bool []."""
        return torch.where(self.groups == group, self.weights, 0.0).sum() > 0

    @property
    def soft(self) -> Tensor:
        """BCE(z, t) = t l+ + (1-t) l- of every post [B]."""
        return self.targets * self.plus + (1.0 - self.targets) * self.minus

    @property
    def soft_flipped(self) -> Tensor:
        """BCE(z, 1-t) of every post [B]: the loss of the opposite soft label."""
        return (1.0 - self.targets) * self.plus + self.targets * self.minus


def group_batch(
    logits: Tensor,
    groups: Tensor,
    targets: Tensor | None,
    weights: Tensor | None,
    *,
    surrogate: str,
    soft_positive: float,
    soft_negative: float,
) -> GroupedBatch:
    """Check a batch and compute its surrogate losses, in float32 at least.

    Args:
        logits: z [B], any floating type; half precision is widened, also under autocast.
        groups: `Group` values [B], integer.
        targets: Soft targets [B] in [0, 1], read for agreed posts only, or None for the two constants.
        weights: Non-negative finite weights [B], or None for ones.

    Raises:
        BatchError: Shapes or types that do not fit, an unknown group, a weight or target out of range.
    """
    _check_shapes(logits, groups, targets, weights)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    groups = groups.to(wide.device)
    agreed = (groups == Group.AGREED_POSITIVE) | (groups == Group.AGREED_NEGATIVE)
    if targets is None:
        filled = torch.where(groups == Group.AGREED_NEGATIVE, soft_negative, soft_positive).to(wide)
    else:
        filled = torch.where(agreed, targets.detach().to(wide), 0.0)
    used = torch.ones_like(wide) if weights is None else weights.detach().to(wide)
    _check_values(groups, filled, used)
    if weights is not None and used.numel() > 0:
        # only ratios count; the largest becomes 1, so that no sum of huge weights overflows
        used = used / used.max().clamp(min=torch.finfo(used.dtype).tiny)
    plus, minus = SURROGATES[surrogate](wide)
    return GroupedBatch(plus=plus, minus=minus, groups=groups, targets=filled, weights=used)


def _check_shapes(logits: Tensor, groups: Tensor, targets: Tensor | None, weights: Tensor | None) -> None:
    if logits.ndim != 1 or not logits.is_floating_point():
        raise BatchError(
            f"logits have shape {tuple(logits.shape)} and type {logits.dtype}: expected floats [B], "
            "one logit a post; squeeze a trailing axis of width 1"
        )
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise BatchError(f"groups have type {groups.dtype}: expected integers, the values of losses.Group")
    others = {"groups": groups, "targets": targets, "weights": weights}
    for name, tensor in others.items():
        if tensor is not None and tensor.shape != logits.shape:
            raise BatchError(
                f"{name} have shape {tuple(tensor.shape)}, logits {tuple(logits.shape)}: expected the same, "
                "one value a post"
            )


def _check_values(groups: Tensor, targets: Tensor, weights: Tensor) -> None:
    known = (groups >= min(Group)) & (groups <= max(Group))
    target_fits = (targets >= 0) & (targets <= 1)
    weight_fits = (weights >= 0) & torch.isfinite(weights)
    if bool((known & target_fits & weight_fits).all()):  # one wait for the device instead of three
        return
    if not bool(known.all()):
        names = ", ".join(f"{group.value} {group.name}" for group in Group)
        raise BatchError(f"group {int(groups[~known][0])} is unknown: expected one of {names}")
    if not bool(target_fits.all()):
        found = float(targets[~target_fits][0])
        raise BatchError(f"an agreed post has soft target {found}: expected a number in [0, 1]")
    found = float(weights[~weight_fits][0])
    reason = "negative" if not math.isnan(found) and found < 0 else "not finite"
    raise BatchError(f"weight {found} is {reason}: expected finite numbers >= 0; 0 leaves a post out")

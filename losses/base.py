"""What all losses share: errors, the groups of posts, what a training loop needs of a loss. Free of torch.

Shape legend: ``B`` posts of a batch, ``M`` posts of a whole round, ``K`` classes, ``C`` classes that are set
against the rest: of two classes the positive one alone, since the other is its mirror; of more, all.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class LossError(Exception):
    """Base of the tree."""


class SettingError(LossError, ValueError):
    """A setting outside its range, or a form that does not exist."""


class BatchError(LossError, ValueError):
    """Tensors that do not fit together, or hold what a loss cannot use."""


class PriorEstimateError(LossError, ValueError):
    """A quantity that cannot be estimated from what was given."""


def is_number(found: object) -> bool:
    """Whether a setting is a real number; those of NumPy are, true and false are not."""
    return isinstance(found, numbers.Real) and not isinstance(found, bool)


class Group(IntEnum):
    """What is known of a post, with regard to one class; the values of the `groups` tensor."""

    POSITIVE = 0
    NEGATIVE = 1
    AGREED_POSITIVE = 2
    AGREED_NEGATIVE = 3
    DIVERGENT = 4


class LossOutput(NamedTuple):
    """A loss, and what it is made of.

    Attributes:
        loss: Scalar [] with its graph.
        parts: Every part of the formula by name, detached scalars []; training logs their means.
    """

    loss: Tensor
    parts: dict[str, Tensor]


class SupportsArray(Protocol):
    """A NumPy array, without importing NumPy."""

    def __array__(self) -> object: ...


class ClassLoss(Protocol):
    """What a trainer minimises: the loss of K classes, as `losses.against_rest` makes it of a `RoundLoss`."""

    def __call__(self, logits: Tensor, groups: Tensor, targets: Tensor) -> LossOutput:
        """Return the loss of a batch, with its graph, and its parts.

        Args:
            logits: [B, K] uncalibrated logits, any floating type.
            groups: `Group` values [B, C], integers: what each post is to each class set against the rest.
            targets: Soft targets [B, C] in [0, 1], read for agreed posts alone.

        Raises:
            BatchError: Shapes, types or values that do not fit.
        """
        ...


class RoundLoss(Protocol):
    """A loss of self-training, of one class against the rest. It is a value: it always gives the same.

    Attributes:
        theta: Prior of the positives among the divergent posts, in (0, 1), for the round's record; None where
            the loss knows none.
        soft_positive: Target of agreed positives, in [0, 1]; agreed negatives get 1 - soft_positive.
    """

    @property
    def theta(self) -> float | None: ...
    @property
    def soft_positive(self) -> float: ...

    def for_round(
        self, groups: SupportsArray, prior: Callable[[], float], evidence_weight: float | None = None
    ) -> RoundLoss:
        """Return the loss that the model of one round is trained with; a loss without such settings: itself.

        Args:
            groups: `Group` values [M] of all training posts of the round, integers, some labelled among them.
            prior: Gives an estimate of the share of positives among the divergent posts, in (0, 1). It scores
                them first, so it is called only where the estimate is wanted.
            evidence_weight: How much an agreed post counts beside a labelled one, in [0, 1], where the
                targets of agreed posts are evidence: what the agents' answers alone say of the class,
                P(answers | positive) / (P(answers | positive) + P(answers | negative)). None: the targets
                are softened labels, and count as much as the loss chooses.
        """
        ...

    def __call__(self, logits: Tensor, groups: Tensor, targets: Tensor | None = None) -> LossOutput:
        """Return the loss of a batch, with its graph, and its parts.

        Args:
            logits: [B] uncalibrated logits of the positive class, any floating type.
            groups: `Group` values [B], integers.
            targets: Soft targets [B] in [0, 1], read for agreed posts alone; None: `soft_positive` and
                1 - `soft_positive`.

        Raises:
            BatchError: Shapes, types or values that do not fit.
        """
        ...

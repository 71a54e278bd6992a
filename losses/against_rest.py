"""The loss of K classes: the mean over classes of one-against-rest losses.

A post's logit with regard to a class is its log-odds against all others together, z_k - log sum exp z_j, so
that the losses of all classes speak of one distribution. Of two classes one is set against the other, once.

Shape legend: ``B`` posts, ``M`` posts of a whole round, ``K`` classes, ``C`` classes set against the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from losses.base import BatchError, LossOutput, RoundLoss
from losses.precision import widened


@dataclass(frozen=True, slots=True)
class AgainstRest:
    """A `losses.base.ClassLoss`: the mean of C parts, one a class set against the rest, the last C of K."""

    losses: tuple[RoundLoss, ...]

    @property
    def soft_positive(self) -> float:
        """Target of an agreed post's class; the others share the rest."""
        return self.losses[0].soft_positive

    def for_round(
        self,
        groups: npt.NDArray[np.int64],
        priors: Callable[[], Sequence[float]],
        evidence_weight: float | None = None,
    ) -> AgainstRest:
        """Return the loss that the model of one round is trained with; see `RoundLoss.for_round`.

        `groups` are `Group` values [M, C]; `priors` gives C estimates, and is asked once at most.
        """
        known = cache(priors)

        def filled(column: int) -> RoundLoss:
            return self.losses[column].for_round(groups[:, column], lambda: known()[column], evidence_weight)

        return AgainstRest(tuple(map(filled, range(len(self.losses)))))

    def __call__(self, logits: Tensor, groups: Tensor, targets: Tensor) -> LossOutput:
        """See `ClassLoss`; a part is the mean of the classes' parts of that name."""
        self._check(logits, groups, targets)
        logits = widened(logits)  # log-odds of half precision would be rounded before any loss sees them
        first = logits.shape[1] - len(self.losses)
        parts = [
            loss(_against_rest(logits, first + column), groups[:, column], targets[:, column])
            for column, loss in enumerate(self.losses)
        ]
        return LossOutput(
            torch.stack([one.loss for one in parts]).mean(),
            {name: torch.stack([one.parts[name] for one in parts]).mean() for name in parts[0].parts},
        )

    def _check(self, logits: Tensor, groups: Tensor, targets: Tensor) -> None:
        found = [tuple(one.shape) for one in (logits, groups, targets)]
        columns = len(self.losses)
        wide = len(found[0]) == 2 and found[0][1] == max(columns, 2)
        if not wide or found[1:] != [(found[0][0], columns)] * 2:
            raise BatchError(
                f"logits, groups and targets have shapes {found}: expected logits [B, {max(columns, 2)}], and"
                f" [B, {columns}] for the two others"
            )


def _against_rest(logits: Tensor, place: int) -> Tensor:
    """Return the log-odds [B] of one class."""
    rest = torch.cat([logits[:, :place], logits[:, place + 1 :]], dim=1)
    return logits[:, place] - rest.logsumexp(1)

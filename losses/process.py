"""The loss of process supervision: a weighted sum of cross-entropies, one a question, the final one included.

AgentPS (arXiv 2412.15251), its loss equation: ``L = sum_i w_i CE_i``. A question that nobody answered for a
post is no term of the post: it is masked out, never guessed.

Shape legend: ``B`` posts, ``Q`` questions (the final one among them, last), ``K`` answers of a question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.act import non_negative
from losses.base import BatchError, SettingError

# targets are float32 at least; a row adds up to one as far as that holds it
_TOLERANCE = 1e-3


class ProcessOutput(NamedTuple):
    """The loss, and what it is made of.

    Attributes:
        loss: Scalar with a gradient.
        sums: [Q] the sum of each question's cross-entropies, without any weights and without a gradient.
        known: [Q] how many posts answer each question.
    """

    loss: Tensor
    sums: Tensor
    known: Tensor

    @property
    def parts(self) -> Tensor:
        """Return [Q] the mean cross-entropy over the posts that answer; 0 where no post does."""
        return self.sums / self.known.clamp_min(1.0)


def process_loss(
    logits: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    denominators: Sequence[float] | None = None,
    answer_weights: Sequence[Tensor] | None = None,
    signed: bool = False,
    whole: Sequence[Tensor] | None = None,
) -> ProcessOutput:
    """``sum_q w_q / n_q sum_b CE(logits_qb, target_qb)``, with n_q the posts of the batch.

    So every post's loss is the published sum over the questions that have an answer for it. Divided by the
    posts that answer instead, the one annotated post of a batch would weigh as much as all final answers
    together; `denominators` allows that too.

    Cross-entropy is linear in its target, so that a target need not be one class: a soft pseudo-label is a
    distribution, and a missing label is a row of zeros. With `signed`, a row may leave [0, 1] as long as it
    adds up to one: ``t_m + (t_h - t_m) delta / pi`` is the unbiased target of ACT, and with `whole` its loss
    is bounded below, see `losses.act.non_negative`.

    Args:
        logits: Q tensors [B, K_q].
        targets: Q tensors [B, K_q]; each row adds up to 1, or is all zeros where the answer is missing.
        weights: [Q] w_q >= 0, not all 0; None: all 1, as published.
        denominators: [Q] n_q >= 0, expected numbers below 1 among them; where this call sees a part of a
            batch, those of the whole: losses of the parts then add up to the loss of the whole. 0: no answer
            in the whole batch. None: the posts of this call.
        answer_weights: [Q] tensors [K_q] >= 0, by which each answer's share of the cross-entropy is
            multiplied; what it is divided by stays. None: all 1.
        signed: Accept targets outside [0, 1].
        whole: [Q] tensors [K_q], `answer_sums` of the whole batch.

    Raises:
        SettingError: Weights or denominators of another number than the questions, negative, or not finite.
        BatchError: Shapes that do not fit, or a target row that is no distribution.
    """
    factors = _factors(weights, len(logits))
    _check(logits, targets, signed=signed)
    _check_by_answer(logits, {"answer_weights": answer_weights, "whole": whole})
    # a bit of every logit, so that a head nobody answered still has a gradient, of zero
    loss = sum((one.float().sum() * 0.0 for one in logits), start=torch.zeros((), device=logits[0].device))
    sums, known = [], []
    for q, (scores, wanted) in enumerate(zip(logits, targets, strict=True)):
        found = _by_answer(scores, wanted)
        if whole is not None:
            found = non_negative(found, whole[q])
        sums.append(found.detach().sum())
        if answer_weights is not None:
            found = found * answer_weights[q]
        posts = float(len(scores)) if denominators is None else _denominator(denominators, q, len(logits))
        loss = loss + factors[q] * found.sum() / (posts or 1.0)  # 0: nobody answers, and the sum is 0
        known.append(wanted.detach().float().sum(1).round().sum())
    return ProcessOutput(loss, torch.stack(sums), torch.stack(known))


def answer_sums(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
    """Return Q tensors [K_q]: of every answer the sum over the posts of target times -log p."""
    with torch.no_grad():
        return [_by_answer(scores, wanted) for scores, wanted in zip(logits, targets, strict=True)]


def _by_answer(scores: Tensor, wanted: Tensor) -> Tensor:
    return -(wanted.to(torch.float32) * F.log_softmax(scores.float(), dim=1)).sum(0)


def _factors(weights: Sequence[float] | None, questions: int) -> list[float]:
    if questions == 0:
        raise BatchError("no question has logits; expected at least those of the final one")
    factors = [1.0] * questions if weights is None else [float(weight) for weight in weights]
    if len(factors) != questions or min(factors) < 0 or not math.isfinite(sum(factors)) or sum(factors) == 0:
        raise SettingError(
            f"the weights are {factors} for {questions} questions; expected one finite weight >= 0 for each,"
            " the final one included, and not all 0"
        )
    return factors


def _denominator(denominators: Sequence[float], question: int, questions: int) -> float:
    if len(denominators) != questions or not 0 <= denominators[question] < math.inf:
        raise SettingError(
            f"the denominators are {list(denominators)}; expected {questions} finite numbers >= 0"
        )
    return float(denominators[question])


def _check_by_answer(logits: Sequence[Tensor], given: Mapping[str, Sequence[Tensor] | None]) -> None:
    wanted = [(one.shape[1],) for one in logits]
    for name, tensors in given.items():
        found = wanted if tensors is None else [tuple(one.shape) for one in tensors]
        if found != wanted:
            raise BatchError(f"{name} of shapes {found}; expected {wanted}, a number for each answer")


def _check(logits: Sequence[Tensor], targets: Sequence[Tensor], *, signed: bool) -> None:
    shapes = [tuple(one.shape) for one in logits], [tuple(one.shape) for one in targets]
    if shapes[0] != shapes[1] or any(len(shape) != 2 or shape[1] < 2 for shape in shapes[0]):
        raise BatchError(
            f"logits of shapes {shapes[0]}, targets of shapes {shapes[1]}; expected the same [B, K] for each"
            " question, K at least 2"
        )
    if len({shape[0] for shape in shapes[0]}) > 1:
        raise BatchError(f"the questions have {[shape[0] for shape in shapes[0]]} posts; expected one number")
    for question, wanted in enumerate(targets):
        total = wanted.detach().sum(1)
        missing = (wanted.detach() == 0).all(1)
        fits = missing | ((total - 1).abs() <= _TOLERANCE)
        if not signed:
            fits &= ((wanted.detach() >= 0) & (wanted.detach() <= 1 + _TOLERANCE)).all(1)
        if not bool(fits.all()):
            row = int((~fits).nonzero()[0])
            raise BatchError(
                f"question {question}: the target of post {row} is {wanted[row].tolist()}; expected a"
                " distribution over the answers, or zeros where the answer is missing"
            )

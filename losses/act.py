"""The ACT loss: machine labels for all posts, human labels for a sampled few, unbiased all the same.

With l_m the loss of a post under its machine label, l_h under its human one, delta whether it was reviewed
and pi the probability with which it was chosen for review::

    L = 1/N sum_i [ lambda l_m + (l_h - lambda l_m) delta / pi ]

E[delta] = pi, so E[L] = 1/N sum l_h, the loss of a fully human-labelled set, whatever the machine errs, as
long as pi > 0 for every post. Where pi = 0 is possible (the threshold rule) that does not hold: the reviewed
posts have pi = 1, and the loss is plainly the one on mixed labels, human where there is one and machine
elsewhere: as biased as the labels that nobody looked at are wrong. Single terms may be negative: only their
sum is a loss.

Sources: "ACT as Human" (arXiv 2511.09833), lambda = 1; Zrnic and Candès, "Active statistical inference" (ICML
2024), lambda as power tuning.

Shape legend: ``B`` posts of a batch, ``N`` of the whole set, ``K`` classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import BatchError, LossOutput, SettingError, is_number
from losses.precision import widened


class ACTWeights(NamedTuple):
    """What each post's two losses count [B]: loss = mean(machine l_m + human l_h).

    machine = lambda (1 - delta/pi), negative where a post with pi < 1 was reviewed; human = delta/pi.
    """

    machine: Tensor
    human: Tensor


def act_loss(
    machine: Tensor,
    human: Tensor | None,
    reviewed: Tensor,
    inclusion: Tensor,
    *,
    power: float = 1.0,
    size: float | None = None,
) -> LossOutput:
    """Return the ACT loss of any per-post loss, in float32 at least.

    Its parts are "machine", the mean of lambda l_m, "correction", the mean of (l_h - lambda l_m) delta / pi
    (loss = machine + correction), and "reviewed", how many posts of the batch have delta = 1.

    The sum is divided by the number of posts, never by that of the reviewed ones nor by the sum of delta/pi:
    a divisor that depends on what was drawn makes the loss biased. On minibatches the mean over a batch that
    was drawn without looking at delta (a shuffled epoch) is unbiased for the mean over all; batches that
    gather the reviewed posts are not. Where batches differ in size, or are spread over devices, `size` is the
    divisor, the same for every batch: N / (batches an epoch).

    Args:
        machine: l_m [B], floats.
        human: l_h [B], floats, read where a post was reviewed; elsewhere it may be NaN or anything else, and
            no gradient flows from there. None when no post of the batch was reviewed.
        reviewed: delta [B], bool.
        inclusion: pi [B], in (0, 1] where a post was reviewed, in [0, 1] elsewhere.
        power: lambda, finite and >= 0; 0 uses the human labels alone.
        size: Divisor, > 0; None for B.

    Raises:
        SettingError: `power` or `size` outside its range.
        BatchError: Shapes or types that do not fit, an empty batch, a reviewed post with pi = 0 or without a
            human loss, a pi outside its range, a NaN.
    """
    _check_shapes({"machine losses": machine, "human losses": human, "inclusion": inclusion}, reviewed)
    if bool(torch.isnan(machine).any()):
        raise BatchError(
            f"{int(torch.isnan(machine).sum())} of {machine.numel()} machine losses are NaN: expected a "
            "number for every post; look at what the model gives, and lower the learning rate"
        )
    if human is None:
        if bool(reviewed.any()):
            raise BatchError(
                f"{int(reviewed.sum())} posts are reviewed but no human losses are given: expected l_h [B]"
            )
        human = torch.zeros_like(machine)
    missing = reviewed & torch.isnan(human)
    if bool(missing.any()):
        raise BatchError(
            f"{int(missing.sum())} reviewed posts have the human loss NaN: expected a number where a post "
            "was reviewed; mark the others as not reviewed"
        )
    weights = act_weights(reviewed, inclusion, power=power)
    return _combined(machine, human, reviewed, weights, power=power, size=size)


def act_cross_entropy(
    logits: Tensor,
    machine_labels: Tensor,
    human_labels: Tensor,
    reviewed: Tensor,
    inclusion: Tensor,
    *,
    power: float = 1.0,
    size: float | None = None,
) -> LossOutput:
    """`act_loss` with the cross-entropy of K classes.

    Args:
        logits: z [B, K], K >= 2, any floating type. Logits that are not finite give a loss that is not:
            whoever trains watches for it.
        machine_labels: [B], integers in [0, K).
        human_labels: [B], integers in [0, K) where a post was reviewed, anything (-1, say) elsewhere.
        reviewed, inclusion, power, size: As for `act_loss`.

    Raises:
        SettingError, BatchError: As `act_loss`; also a label outside [0, K).
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise BatchError(
            f"logits have shape {tuple(logits.shape)} and type {logits.dtype}: expected floats [B, K], one "
            "logit a class, K >= 2"
        )
    wide = widened(logits)
    _check_shapes({"inclusion": inclusion, "logits": wide[:, 0]}, reviewed)
    reviewed = reviewed.to(wide.device)
    used = {"machine label": machine_labels, "human label": human_labels}
    for name, labels in used.items():
        if labels.shape != reviewed.shape or labels.dtype == torch.bool or labels.is_floating_point():
            raise BatchError(
                f"{name}s have shape {tuple(labels.shape)} and type {labels.dtype}: expected integers "
                f"{tuple(reviewed.shape)}, one a post"
            )
    machine_labels = machine_labels.to(wide.device).long()
    # the machine's label stands in where nobody looked: no class is made up, and its weight is 0
    human_labels = torch.where(reviewed, human_labels.to(wide.device).long(), machine_labels)
    for name, labels in (("machine label", machine_labels), ("human label", human_labels)):
        outside = (labels < 0) | (labels >= logits.shape[1])
        if bool(outside.any()):
            raise BatchError(
                f"{name} {int(labels[outside][0])} with {logits.shape[1]} classes: expected class indices in "
                f"[0, {logits.shape[1]})"
            )
    machine = F.cross_entropy(wide, machine_labels, reduction="none")
    human = F.cross_entropy(wide, human_labels, reduction="none")
    weights = act_weights(reviewed, inclusion.to(wide.device), power=power)
    return _combined(machine, human, reviewed, weights, power=power, size=size)


def act_weights(reviewed: Tensor, inclusion: Tensor, *, power: float = 1.0) -> ACTWeights:
    """Return the weights of machine and human losses, for a trainer that adds the losses up itself.

    The arguments, and what is raised, are those of `act_loss`.
    """
    if not (is_number(power) and math.isfinite(power) and power >= 0):
        raise SettingError(f"power is {power}: expected a finite number >= 0; 1 is the published loss")
    _check_shapes({"inclusion": inclusion}, reviewed)
    _check_inclusion(reviewed, inclusion)
    wide = widened(inclusion.detach())
    # `where` twice: no division by the 0 of a post that was not reviewed
    ratio = torch.where(reviewed, 1.0 / torch.where(reviewed, wide, 1.0), 0.0)
    return ACTWeights(power * (1.0 - ratio), ratio)


def non_negative(parts: Tensor, whole: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return `parts`, but for those whose sum over the batch is negative; they are 0 and are unlearned.

    A target ``t_m + (t_h - t_m) delta / pi`` is negative where people gave another answer than the machine:
    a model that learns the sample by heart lowers its loss there without an end (-120 for one post with
    pi = 1/4 at a logit gap of 40). In the mean over the draws the sum of one answer's terms is that of human
    labels, which no model makes negative, so a negative sum is chance that was learned. As in nnPU (Kiryo et
    al., NeurIPS 2017): its value is 0, its gradient -gamma times its own, gamma in [0, 1]. The loss is no
    longer unbiased; it errs upwards, where it was clipped.

    Args:
        parts: [K] sums of target times -log p over some posts of a batch, with a gradient.
        whole: [K] the same over the whole batch.
    """
    below = whole < 0
    value = torch.where(below, 0.0, parts)
    slope = torch.where(below, -gamma * parts, parts)
    return slope + (value - slope).detach()


def act_variance(machine: Tensor, human: Tensor, inclusion: Tensor, *, power: float = 1.0) -> Tensor:
    """Var(L) = 1/N^2 sum (l_h - lambda l_m)^2 (1 - pi) / pi, a scalar [], of independent delta ~ Ber(pi).

    A sample of fixed size, drawn in random order, varies less: what all terms (l_h - lambda l_m)/pi have in
    common falls away. `machine` and `human` are l_m and l_h of all posts [N], `inclusion` is pi [N].

    Raises:
        BatchError: Shapes that do not fit, or a pi outside (0, 1].
    """
    everyone = torch.ones_like(inclusion, dtype=torch.bool)
    _check_shapes({"machine losses": machine, "human losses": human, "inclusion": inclusion}, everyone)
    _check_inclusion(everyone, inclusion)
    terms = (human - power * machine) ** 2 * (1.0 - inclusion) / inclusion
    return terms.sum() / terms.numel() ** 2


def _combined(
    machine: Tensor, human: Tensor, reviewed: Tensor, weights: ACTWeights, *, power: float, size: float | None
) -> LossOutput:
    divisor = machine.numel() if size is None else size
    if not (is_number(divisor) and math.isfinite(divisor) and divisor > 0):
        raise SettingError(f"size is {divisor!r}: expected a number > 0, the same for every batch")
    machine, human = widened(machine), widened(human)
    # `where` and not a product: a NaN where nobody looked would make NaN of 0 times it, and of its gradient
    seen = torch.where(reviewed, human, 0.0)
    loss = (weights.machine * machine + weights.human * seen).sum() / divisor
    plain = (power * machine.detach()).sum() / divisor
    parts = {
        "machine": plain,
        "correction": loss.detach() - plain,
        "reviewed": reviewed.sum().to(plain.dtype),
    }
    return LossOutput(loss, parts)


def _check_shapes(floats: dict[str, Tensor | None], reviewed: Tensor) -> None:
    if reviewed.dtype != torch.bool or reviewed.ndim != 1 or not reviewed.numel():
        raise BatchError(
            f"reviewed has shape {tuple(reviewed.shape)} and type {reviewed.dtype}: expected bool [B], at "
            "least one post"
        )
    for name, tensor in floats.items():
        if tensor is None:
            continue
        if tensor.shape != reviewed.shape or not tensor.is_floating_point():
            raise BatchError(
                f"{name} have shape {tuple(tensor.shape)} and type {tensor.dtype}: expected floats "
                f"{tuple(reviewed.shape)}, one value a post"
            )


def _check_inclusion(reviewed: Tensor, inclusion: Tensor) -> None:
    fits = (inclusion >= 0) & (inclusion <= 1) & ~(reviewed & (inclusion == 0))
    if bool(fits.all()):
        return
    found = float(inclusion[~fits][0])
    if found == 0.0:
        raise BatchError(
            f"{int((reviewed & (inclusion == 0)).sum())} reviewed posts have inclusion probability 0: what "
            "cannot be drawn cannot have been; give the probabilities that the sample was drawn with"
        )
    raise BatchError(f"inclusion probability {found}: expected numbers in [0, 1], above 0 where reviewed")

"""The steps of fine-tuning: AdamW over batches that hold every group, the best epoch kept.

Shape legend: ``V`` validation posts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from losses.base import LossOutput, RoundLoss
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.errors import NonFiniteLossError
from selftrain.models.finetune_network import Network
from selftrain.models.group_batches import GroupBatches
from selftrain.models.head import LossWatch, Progress
from selftrain.models.metrics import macro_f1

WARM_UP = 0.1  # share of the steps over which the learning rate rises: Adam's first steps know little
CLIP = 1.0  # longest gradient; one odd batch of 16 must not undo the others


class DescentSettings(NamedTuple):
    """How the weights are moved; `FineTuner` says what each is."""

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    augment: bool
    progress: bool


class Best(NamedTuple):
    """The best epoch: its validation macro-F1, weights (on the CPU) and raw validation logits [V]."""

    score: float
    epoch: int
    weights: dict[str, Tensor]
    raw: Float32Array


def descend(
    network: Network,
    corpus: Corpus,
    training: TrainingSet,
    *,
    loss: RoundLoss,
    seed: int,
    settings: DescentSettings,
    where: str,
    validate: Callable[[], Float32Array],
) -> tuple[Best, tuple[Progress, ...]]:
    """Train `network` in place; the best epoch by validation macro-F1 (the first of equals), and the curve.

    Args:
        validate: Raw logits [V] of the validation posts by the network as it stands.

    Raises:
        NonFiniteLossError: A NaN or infinite loss or validation logit, with the epoch and the step.
        TrainingError: The batch size cannot hold a post of each group.
    """
    batches = GroupBatches(training.groups, settings.batch_size, seed)
    total = settings.epochs * batches.steps
    optimizer = _optimizer(network, settings)
    schedule = LambdaLR(optimizer, lambda step: warm_up_then_cosine(step, total))
    labels = corpus.labels[corpus.validation]
    watch, curve, best = LossWatch(where), list[Progress](), Best(-1.0, 0, {}, np.empty(0, np.float32))
    with tqdm(total=total, desc=where, disable=not settings.progress) as bar:
        for epoch in range(1, settings.epochs + 1):
            watch.where = f"{where}, epoch {epoch}"
            network.train()
            for step, chosen in enumerate(batches.epoch(epoch), 1):
                output = _judge(network, corpus, training, chosen, loss=loss, augment=settings.augment)
                watch.add(step, output.loss, output.parts)
                _move(network, output.loss, optimizer, schedule)
                bar.set_postfix(epoch=f"{epoch}/{settings.epochs}", loss=output.loss.item(), refresh=False)
                bar.update()
            raw = validate()
            _check_finite(raw, watch.where, batches.steps)
            score = macro_f1(labels, (raw > 0).astype(np.int8))
            curve.append(Progress(epoch, watch.mean(), score))
            if score > best.score:
                best = Best(score, epoch, network.portable(), raw)
    return best, tuple(curve)


def warm_up_then_cosine(step: int, total: int) -> float:
    """Factor in [0, 1] on the learning rate at `step`, counted from 0, of `total`."""
    rise = max(1, round(WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _optimizer(network: Network, settings: DescentSettings) -> torch.optim.AdamW:
    assert network.head is not None, "a head is attached before training"
    trained = [weight for weight in network.backbone.parameters() if weight.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": trained, "lr": settings.learning_rate},
            {"params": list(network.head.parameters()), "lr": settings.head_learning_rate},
        ],
        weight_decay=settings.weight_decay,
    )


def _judge(
    network: Network,
    corpus: Corpus,
    training: TrainingSet,
    chosen: IntArray,
    *,
    loss: RoundLoss,
    augment: bool,
) -> LossOutput:
    """The loss of one batch, given as indices into `training`."""
    posts = [corpus.posts[position] for position in training.positions[chosen]]
    logits = network(network.source.collate(posts, train=augment))
    groups = torch.from_numpy(training.groups[chosen]).to(logits.device)
    targets = torch.from_numpy(training.targets[chosen]).to(logits.device)
    return loss(logits, groups, targets)


def _move(network: Network, loss: Tensor, optimizer: torch.optim.AdamW, schedule: LambdaLR) -> None:
    """One step down."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()
    schedule.step()


def _check_finite(raw: Float32Array, where: str, step: int) -> None:
    """A loss can be finite and its gradient not; then the weights are lost, and only the logits tell."""
    broken = int((~np.isfinite(raw)).sum())
    if broken:
        raise NonFiniteLossError(
            f"{where}, after step {step}: {broken} of {len(raw)} validation logits are not finite. Lower"
            " classifier.learning_rate"
        )

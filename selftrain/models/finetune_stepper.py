"""The steps of fine-tuning: AdamW over batches that hold every group, the best epoch kept.

Shape legend: ``V`` validation posts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from losses.base import RoundLoss
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.errors import NonFiniteLossError
from selftrain.models.finetune_network import Network
from selftrain.models.group_batches import GroupBatches
from selftrain.models.head import ADVICE
from selftrain.models.metrics import macro_f1
from selftrain.models.train_loop import EpochResult, StepLoss, train_epochs, warm_up_schedule
from selftrain.models.training_log import TrainingLog

CLIP = 1.0  # longest gradient; one odd batch of 16 must not undo the others


class FineTuneSettings(NamedTuple):
    """How the weights are moved; `FineTuner` says what each is."""

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    augment: bool
    progress: bool


class NetworkStepper:
    """A `Stepper` of a whole network.

    Args:
        network: Trained in place.
        corpus, training: The posts.
        batches: Of `training`.
        loss: Computed batch by batch.
        augment: Let the backbone crop training images.
        validate: Raw logits [V] of the validation posts by the network as it stands.
        where: Said in an error.

    Attributes:
        weights, raw: Of the best epoch: weights on the CPU, raw validation logits [V].
    """

    def __init__(
        self,
        network: Network,
        corpus: Corpus,
        training: TrainingSet,
        batches: GroupBatches,
        *,
        loss: RoundLoss,
        augment: bool,
        validate: Callable[[], Float32Array],
        where: str,
    ) -> None:
        self.model = network
        self.weights: dict[str, Tensor] = {}
        self.raw: Float32Array = np.empty(0, np.float32)
        self._corpus, self._training, self._batches = corpus, training, batches
        self._loss, self._augment, self._validate, self._where = loss, augment, validate, where
        self._epoch, self._now = 0, self.raw

    def batches(self, epoch: int, skip: int) -> Generator[IntArray, None, None]:
        """Yield indices into the training set."""
        self._epoch = epoch
        yield from self._batches.epoch(epoch)[skip:]

    def gradients(self, batch: IntArray) -> StepLoss:
        training = self._training
        posts = [self._corpus.posts[position] for position in training.positions[batch]]
        logits = self.model(self.model.source.collate(posts, train=self._augment))
        groups = torch.from_numpy(training.groups[batch]).to(logits.device)
        targets = torch.from_numpy(training.targets[batch]).to(logits.device)
        output = self._loss(logits, groups, targets)
        output.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        return StepLoss.of(output)

    def evaluate(self) -> dict[str, Any]:
        """Return macro-F1.

        Raises:
            NonFiniteLossError: A loss can be finite and its gradient not; then the weights are lost, and only
                the logits tell.
        """
        self._now = self._validate()
        broken = int((~np.isfinite(self._now)).sum())
        if broken:
            raise NonFiniteLossError(
                f"{self._where}, epoch {self._epoch}, after step {self._batches.steps}: {broken} of"
                f" {len(self._now)} validation logits are not finite. Lower classifier.learning_rate"
            )
        labels = self._corpus.labels[self._corpus.validation]
        return {"macro_f1": macro_f1(labels, (self._now > 0).astype(np.int8))}

    def keep_best(self) -> None:
        self.weights, self.raw = self.model.portable(), self._now

    def advice(self, batch: IntArray) -> str:
        return ADVICE


def train_network(
    network: Network,
    corpus: Corpus,
    training: TrainingSet,
    *,
    loss: RoundLoss,
    seed: int,
    settings: FineTuneSettings,
    where: str,
    validate: Callable[[], Float32Array],
) -> tuple[NetworkStepper, tuple[EpochResult, ...]]:
    """Train `network` in place, with a warm-up and a cosine decay; what is best of it, and the epochs.

    Raises:
        NonFiniteLossError: A NaN or infinite loss or validation logit, with the epoch and the step.
        TrainingError: The batch size cannot hold a post of each group.
    """
    batches = GroupBatches(training.groups, settings.batch_size, seed)
    assert network.head is not None, "a head is attached before training"
    trained = [weight for weight in network.backbone.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": trained, "lr": settings.learning_rate},
            {"params": list(network.head.parameters()), "lr": settings.head_learning_rate},
        ],
        weight_decay=settings.weight_decay,
    )
    stepper = NetworkStepper(
        network, corpus, training, batches,
        loss=loss, augment=settings.augment, validate=validate, where=where,
    )  # fmt: skip
    steps = settings.epochs * batches.steps
    with TrainingLog(steps, name=where, bar=settings.progress) as log:
        curve = train_epochs(
            stepper, optimizer, warm_up_schedule(optimizer, steps, decay="cosine"),
            epochs=settings.epochs, steps_per_epoch=batches.steps, where=where, log=log,
        )  # fmt: skip
    return stepper, curve

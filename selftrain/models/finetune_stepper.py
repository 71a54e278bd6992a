"""The steps of fine-tuning: batches that hold every group, clipped gradients, the best weights kept.

Shape legend: ``V`` validation posts, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from losses.base import ClassLoss
from selftrain._util.types import Float32Array, IntArray
from selftrain.data.corpus import Corpus, TrainingSet
from selftrain.errors import NonFiniteLossError
from selftrain.models.finetune_network import Network
from selftrain.models.group_batches import GroupBatches
from selftrain.models.head import ADVICE
from selftrain.models.metrics import evaluate
from selftrain.models.train_loop import StepLoss

CLIP = 1.0  # longest gradient; one odd batch of 16 must not undo the others


class NetworkStepper:
    """A `Stepper` of a whole network, which is trained in place.

    `validate` gives raw logits [V, K] of the validation posts by the network as it stands; of the best epoch
    `weights`, on the CPU, and `raw` are kept.
    """

    def __init__(
        self,
        network: Network,
        corpus: Corpus,
        training: TrainingSet,
        batches: GroupBatches,
        *,
        loss: ClassLoss,
        augment: bool,
        validate: Callable[[], Float32Array],
        where: str,
    ) -> None:
        self.model = network
        self.weights: dict[str, Tensor] = {}
        self.raw: Float32Array = np.empty((0, 0), np.float32)
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
        """Return macro-F1 and, where both classes occur, AUC.

        A loss can be finite and its gradient not; then the weights are lost, and only the logits tell.
        """
        self._now = self._validate()
        broken = int((~np.isfinite(self._now)).any(1).sum())
        if broken:
            raise NonFiniteLossError(
                f"{self._where}, epoch {self._epoch}, after step {self._batches.steps}: {broken} of"
                f" {len(self._now)} validation logits are not finite. Lower classifier.learning_rate"
            )
        labels = self._corpus.labels[self._corpus.validation]
        found = evaluate(labels, self._now)
        return {"macro_f1": found.macro_f1, **({} if found.auc is None else {"auc": found.auc})}

    def keep_best(self) -> None:
        self.weights, self.raw = self.model.portable(), self._now

    def advice(self, batch: IntArray) -> str:
        return ADVICE

"""The one loop that trains heads, backbones and multimodal models.

A `Stepper` knows its model: what a batch is, where gradients come from, how good the model is. The loop
knows the rest: the order of things, the mean of the losses, which epoch is best, when to save, and that a
loss which is no number stops everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from losses.base import LossOutput
from selftrain.errors import NonFiniteLossError
from selftrain.models.training_log import TrainingLog

Batch = TypeVar("Batch")


class StepLoss(NamedTuple):
    """What one step minimised.

    Attributes:
        loss: The loss.
        parts: What it is made of, by name.
        norm: Length of the gradient before it was clipped; None where nobody measured it.
    """

    loss: float
    parts: Mapping[str, float]
    norm: float | None = None

    @classmethod
    def of(cls, output: LossOutput) -> StepLoss:
        """Return the numbers of a loss; on a GPU this waits for them."""
        return cls(float(output.loss.detach()), {name: float(part) for name, part in output.parts.items()})


class EpochResult(NamedTuple):
    """One evaluation.

    Attributes:
        epoch: After which epoch, or within which, from 1.
        parts: Means of the loss and of its parts over the steps since the last evaluation.
        metrics: Of the validation posts, by name.
        step: After how many steps in all.
    """

    epoch: int
    parts: dict[str, float]
    metrics: Mapping[str, Any]
    step: int = 0

    @property
    def macro_f1(self) -> float:
        """Return the validation macro-F1."""
        return float(self.metrics["macro_f1"])


class TrainingState(NamedTuple):
    """Where training stands: how many steps were taken, and every evaluation until now."""

    step: int = 0
    results: tuple[EpochResult, ...] = ()


class Stepper(Protocol[Batch]):
    """One model and its posts, as `train_epochs` needs them."""

    @property
    def model(self) -> nn.Module:
        """Return what is put into training mode before every epoch."""
        ...

    def batches(self, epoch: int, skip: int) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch, counted from 1, without the first `skip`: they were taken before."""
        ...

    def gradients(self, batch: Batch) -> StepLoss:
        """Put the gradients of a batch into the parameters, accumulated over its parts and clipped."""
        ...

    def evaluate(self) -> dict[str, Any]:
        """Return metrics of the validation posts; the model is left in evaluation mode."""
        ...

    def keep_best(self) -> None:
        """Keep the weights as they are now: no epoch was as good."""
        ...

    def advice(self, batch: Batch) -> str:
        """Return what to do about a loss of `batch` that is no number."""
        ...


def train_epochs(
    stepper: Stepper[Batch],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    *,
    epochs: int,
    steps_per_epoch: int = 1,
    where: str = "training",
    metric: str = "macro_f1",
    evaluate_every: int = 1,
    evaluate_steps: int | None = None,
    patience: int | None = None,
    log: TrainingLog | None = None,
    state: TrainingState | None = None,
    save: Callable[[TrainingState], None] | None = None,
    save_every: int | None = None,
) -> tuple[EpochResult, ...]:
    """Train, evaluate every so many epochs and after the last, keep the best; of equally good ones the first.

    A training that goes on from any state that was saved ends as one that was never cut off, where it stops
    early too: whether it should follows from the evaluations.

    Args:
        stepper: The model and its posts.
        optimizer: Of the model.
        scheduler: Of the optimizer; it is advanced after every step.
        epochs: How many in all.
        steps_per_epoch: Batches of an epoch.
        where: Said in an error ("round 3").
        metric: Which of the validation metrics says which epoch is best; more is better.
        evaluate_every: Epochs.
        evaluate_steps: Also within an epoch, after every so many steps in all; None: not.
        patience: End after so many evaluations without a better one; None: after the last epoch.
        log: Gets every step and evaluation.
        state: Of a training that was cut off; model, optimizer and scheduler are as they were then.
        save: Called after every evaluation, and every `save_every` steps.
        save_every: Steps; None: at evaluations alone.

    Raises:
        NonFiniteLossError: A loss or gradient that is NaN or infinite; the weights are those before the step.
    """
    number, results = state or TrainingState()
    course = _Course(
        stepper, optimizer, scheduler, epochs=epochs, steps_per_epoch=steps_per_epoch, where=where,
        metric=metric, evaluate_every=evaluate_every, evaluate_steps=evaluate_steps, patience=patience,
        log=log, save=save, save_every=save_every, number=number, results=results,
    )  # fmt: skip
    course.run()
    return course.results


def _since_best(results: Sequence[EpochResult], metric: str) -> int:
    """Return how many evaluations came after the best one."""
    best = best_epoch(results, metric)
    return next(n for n, one in enumerate(reversed(results)) if one is best)


def best_epoch(results: Sequence[EpochResult], metric: str = "macro_f1") -> EpochResult:
    """Return the first evaluation that none is better than."""
    return max(results, key=lambda one: float(one.metrics[metric]))


def warm_up_schedule(
    optimizer: Optimizer,
    steps: int,
    *,
    warm_up: float = 0.1,
    decay: Literal["linear", "cosine"] = "linear",
    step: int = 0,
) -> LambdaLR:
    """Return a schedule that rises to the optimizer's learning rates, then falls to nothing.

    Adam's first steps know little of the gradients' sizes, hence the rise. transformers' schedules of these
    shapes begin at a rate of 0, which wastes the first step; of a short training that is a large part.

    Args:
        optimizer: At its peak rates.
        steps: In all.
        warm_up: Share of the steps over which the rate rises, at least one step.
        decay: The shape of the fall.
        step: The step, from 0, that comes next: above 0 where a training goes on.
    """
    rise = max(round(steps * warm_up), 1)

    def factor(number: int) -> float:
        if number < rise:
            return (number + 1) / rise
        fallen = (number - rise) / max(steps - rise, 1)
        if decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * fallen))
        return max(steps - number, 0) / max(steps - rise, 1)

    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])  # torch asks for it where a schedule begins later
    return LambdaLR(optimizer, factor, last_epoch=step - 1)


class LossMeans:
    """Adds up losses and their parts between two evaluations."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, losses: StepLoss) -> None:
        """Take in one step."""
        for name, value in {"loss": losses.loss, **losses.parts}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Return the means of the steps since the last call."""
        found = {name: value / max(self._steps, 1) for name, value in self._sums.items()}
        self._sums, self._steps = {}, 0
        return found


@dataclass
class _Course(Generic[Batch]):
    """A training under way; see `train_epochs` for what each part is."""

    stepper: Stepper[Batch]
    optimizer: Optimizer
    scheduler: LRScheduler
    epochs: int
    steps_per_epoch: int
    where: str
    metric: str
    evaluate_every: int
    evaluate_steps: int | None
    patience: int | None
    log: TrainingLog | None
    save: Callable[[TrainingState], None] | None
    save_every: int | None
    number: int
    results: tuple[EpochResult, ...]
    means: LossMeans = field(default_factory=LossMeans)

    def run(self) -> None:
        if self.due() and (not self.results or self.results[-1].step < self.number):
            self.evaluate()  # cut off between a step's save and this
        for epoch in range(self.number // self.steps_per_epoch + 1, self.epochs + 1):
            if self.patience_is_over():
                return
            self.stepper.model.train()
            # closed also where a step fails: whatever reads ahead for it ends
            with closing(self.stepper.batches(epoch, self.number % self.steps_per_epoch)) as batches:
                for batch in batches:
                    self.step(epoch, batch)
                    if self.number % self.steps_per_epoch and self.due():
                        self.evaluate()
                        if self.patience_is_over():
                            return
                        self.stepper.model.train()
            if self.due():
                self.evaluate()

    def step(self, epoch: int, batch: Batch) -> None:
        losses = self.stepper.gradients(batch)
        if not math.isfinite(losses.loss) or not math.isfinite(losses.norm or 0.0):
            place = f"{self.where}, epoch {epoch}, step {self.number % self.steps_per_epoch + 1}"
            raise NonFiniteLossError(f"{place}: {_found(losses)}. {self.stepper.advice(batch)}")
        self.means.add(losses)
        if self.log is not None:
            self.log.step(self.number, losses.loss, losses.parts, _share_of_peak(self.optimizer))
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1
        if self.save is not None and self.save_every is not None and self.number % self.save_every == 0:
            self.save(TrainingState(self.number, self.results))

    def due(self) -> bool:
        epoch, within = divmod(self.number, self.steps_per_epoch)
        if within:
            return self.evaluate_steps is not None and self.number % self.evaluate_steps == 0
        return self.number > 0 and (epoch % self.evaluate_every == 0 or epoch == self.epochs)

    def evaluate(self) -> None:
        epoch = -(-self.number // self.steps_per_epoch)
        found = EpochResult(epoch, self.means.take(), self.stepper.evaluate(), self.number)
        self.results = (*self.results, found)
        if not _since_best(self.results, self.metric):
            self.stepper.keep_best()
        if self.save is not None:
            self.save(TrainingState(self.number, self.results))
        if self.log is not None:
            self.log.evaluation(epoch, self.number, found.metrics, self.metric)

    def patience_is_over(self) -> bool:
        if self.patience is None or not self.results:
            return False
        return _since_best(self.results, self.metric) >= self.patience


def _found(losses: StepLoss) -> str:
    listed = ", ".join(f"{name} {value:g}" for name, value in {"loss": losses.loss, **losses.parts}.items())
    length = "" if losses.norm is None else f", norm of the gradient {losses.norm:g}"
    return f"the loss is {losses.loss} ({listed}{length})"


def _share_of_peak(optimizer: Optimizer) -> float:
    group = optimizer.param_groups[0]
    return float(group["lr"] / group["initial_lr"])

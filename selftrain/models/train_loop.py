"""The one loop that trains heads, backbones and multimodal models.

A `Stepper` knows its model: what a batch is, where gradients come from, how good the model is. The loop
knows the rest: the order of things, the mean of the losses, which epoch is best, when to save, and that a
loss which is no number stops everything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from backbones.progress import ProgressBar
from losses.base import LossOutput
from selftrain.errors import NonFiniteLossError
from selftrain.store import atomic

Batch = TypeVar("Batch")


class StepLoss(NamedTuple):
    """What one step minimised."""

    loss: float  # the loss
    parts: Mapping[str, float]  # what it is made of, by name
    norm: float | None = None  # length of the gradient before it was clipped; None where nobody measured it

    @classmethod
    def of(cls, output: LossOutput) -> StepLoss:
        """Return the numbers of a loss; on a GPU this waits for them."""
        return cls(float(output.loss.detach()), {name: float(part) for name, part in output.parts.items()})

    def named(self) -> dict[str, float]:
        """Return the loss and its parts."""
        return {"loss": self.loss, **self.parts}


class EpochResult(NamedTuple):
    """One evaluation."""

    epoch: int  # after which epoch, or within which, from 1
    parts: dict[str, float]  # means of the loss and of its parts over the steps since the last evaluation
    metrics: Mapping[str, Any]  # of the validation posts, by name
    step: int = 0  # after how many steps in all

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


class LossMeans:
    """Adds up losses and their parts between two evaluations."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, losses: StepLoss) -> None:
        """Take in one step."""
        for name, value in losses.named().items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1

    def take(self) -> dict[str, float]:
        """Return the means of the steps since the last call."""
        found = {name: value / max(self._steps, 1) for name, value in self._sums.items()}
        self._sums, self._steps = {}, 0
        return found


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a training goes on, and when it is evaluated and saved."""

    epochs: int
    steps_per_epoch: int = 1
    metric: str = "macro_f1"  # which of the validation metrics says what is best, more is better; or `LAST`
    evaluate_every: int = 1  # epochs; the last one is always evaluated
    evaluate_steps: int | None = None  # also within an epoch, after every so many steps in all; None: not
    patience: int | None = None  # end after so many evaluations without a better one; None: after all epochs
    save_every: int | None = None  # steps; None: after evaluations only

    def is_due(self, step: int) -> bool:
        """Return whether the model is evaluated after `step` steps in all."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if within:
            return self.evaluate_steps is not None and step % self.evaluate_steps == 0
        return step > 0 and (epoch % self.evaluate_every == 0 or epoch == self.epochs)

    def is_over(self, results: Sequence[EpochResult]) -> bool:
        """Return whether it ends early."""
        return (
            bool(results) and self.patience is not None and _since_best(results, self.metric) >= self.patience
        )


def train_epochs(
    stepper: Stepper[Batch],
    optimizer: Optimizer,
    scheduler: LRScheduler,
    pace: Pace,
    *,
    where: str = "training",
    log: TrainingLog | None = None,
    state: TrainingState | None = None,
    save: Callable[[TrainingState], None] | None = None,
) -> tuple[EpochResult, ...]:
    """Train, evaluate every so many epochs and after the last, keep the best; of equally good ones the first.

    A training that goes on from any state that was saved ends as one that was never cut off, where it stops
    early too: whether it should follows from the evaluations. The scheduler is advanced after every step.

    Args:
        where: Said in an error ("round 3").
        state: Of a training that was cut off; model, optimizer and scheduler are as they were then.
        save: Called after every evaluation, and every `pace.save_every` steps.

    Raises:
        NonFiniteLossError: A loss or gradient that is NaN or infinite; the weights are those before the step.
    """
    state = state or TrainingState()
    course = _Course(stepper, optimizer, scheduler, pace, where, log, save, state.step, state.results)
    if not course.results or course.results[-1].step < course.number:
        course.evaluate_if_due()  # cut off between a step's save and this
    for epoch in range(course.number // pace.steps_per_epoch + 1, pace.epochs + 1):
        if pace.is_over(course.results):
            break
        course.train_epoch(epoch)
    return course.results


@dataclass
class _Course(Generic[Batch]):
    """A training under way."""

    stepper: Stepper[Batch]
    optimizer: Optimizer
    scheduler: LRScheduler
    pace: Pace
    where: str
    log: TrainingLog | None
    save: Callable[[TrainingState], None] | None
    number: int  # of the next step, from 0
    results: tuple[EpochResult, ...]
    means: LossMeans = field(default_factory=LossMeans)

    def train_epoch(self, epoch: int) -> None:
        """Take the steps of an epoch that are left, evaluated where that is due; it may be over within."""
        skip = self.number % self.pace.steps_per_epoch
        self.stepper.model.train()
        # closed also where a step fails: whatever reads ahead for it ends
        with closing(self.stepper.batches(epoch, skip)) as batches:
            for batch in batches:
                self._step(batch, epoch)
                if self.number % self.pace.steps_per_epoch and self.evaluate_if_due():
                    if self.pace.is_over(self.results):
                        return
                    self.stepper.model.train()
        self.evaluate_if_due()

    def evaluate_if_due(self) -> bool:
        """Evaluate, keep what is best, save and log; return whether it was due."""
        if not self.pace.is_due(self.number):
            return False
        epoch, metric = -(-self.number // self.pace.steps_per_epoch), self.pace.metric
        found = EpochResult(epoch, self.means.take(), self.stepper.evaluate(), self.number)
        self.results = (*self.results, found)
        if not _since_best(self.results, metric):
            self.stepper.keep_best()
        if self.save is not None:
            self.save(TrainingState(self.number, self.results))
        if self.log is not None:
            self.log.evaluation(epoch, self.number, found.metrics, metric)
        return True

    def _step(self, batch: Batch, epoch: int) -> None:
        place = (self.where, epoch, self.number % self.pace.steps_per_epoch + 1)
        losses = _finite_gradients(self.stepper, batch, place)
        self.means.add(losses)
        if self.log is not None:
            self.log.step(self.number, losses.loss, losses.parts, _share_of_peak(self.optimizer))
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1
        if self.save is not None and self.pace.save_every and self.number % self.pace.save_every == 0:
            self.save(TrainingState(self.number, self.results))


def _finite_gradients(stepper: Stepper[Batch], batch: Batch, place: tuple[str, int, int]) -> StepLoss:
    """Put the gradients of a batch into the parameters, or say where the loss is no number."""
    losses = stepper.gradients(batch)
    if not math.isfinite(losses.loss) or not math.isfinite(losses.norm or 0.0):
        where, epoch, step = place
        listed = ", ".join(f"{name} {value:g}" for name, value in losses.named().items())
        length = "" if losses.norm is None else f", norm of the gradient {losses.norm:g}"
        raise NonFiniteLossError(
            f"{where}, epoch {epoch}, step {step}: the loss is {losses.loss} ({listed}{length})."
            f" {stepper.advice(batch)}"
        )
    return losses


def _since_best(results: Sequence[EpochResult], metric: str) -> int:
    """Return how many evaluations came after the best one."""
    best = best_epoch(results, metric)
    return next(n for n, one in enumerate(reversed(results)) if one is best)


LAST = "last"
"""In the place of a metric: what came last is the best."""


def best_epoch(results: Sequence[EpochResult], metric: str = "macro_f1") -> EpochResult:
    """Return the first evaluation that none is better than; by `LAST` the last one."""
    if metric == LAST:
        return results[-1]
    return max(results, key=lambda one: float(one.metrics[metric]))


def warm_up_schedule(
    optimizer: Optimizer,
    steps: int,
    *,
    warm_up: float = 0.1,
    decay: Literal["linear", "cosine"] = "linear",
    step: int = 0,
) -> LambdaLR:
    """Return a schedule that rises to the optimizer's learning rates, then falls to nothing at `steps`.

    Adam's first steps know little of the gradients' sizes, hence the rise. transformers' schedules of these
    shapes begin at a rate of 0, which wastes the first step; of a short training that is a large part.

    `warm_up` is the share of the steps, at least one, over which the rate rises; `step`, from 0, is what
    comes next: above 0 where a training goes on.
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


def _share_of_peak(optimizer: Optimizer) -> float:
    group = optimizer.param_groups[0]
    return float(group["lr"] / group["initial_lr"])


# ---- what training shows while it goes on ---------------------------------------------------------------

LOSSES = "losses.jsonl"


class TrainingLog:
    """A context that is written to after every step and evaluation.

    In a `folder` it writes losses.jsonl and tensorboard/. Lines of steps from `step`, the next one, on are
    dropped: those steps were not saved, and happen again.
    """

    def __init__(
        self,
        steps: int,
        *,
        name: str = "training",
        folder: Path | None = None,
        step: int = 0,
        bar: bool = True,
    ) -> None:
        self._bar = ProgressBar(total=steps, initial=step, desc=name, unit="step", disable=not bar)
        self._file: Any = None
        self._events: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            file = folder / LOSSES
            folder.mkdir(parents=True, exist_ok=True)
            if file.exists():  # a last line that was cut off goes too
                kept = file.read_text(encoding="utf-8").splitlines(keepends=True)[:step]
                atomic.write_text(file, "".join(kept))
            self._file = file.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def step(self, number: int, loss: float, parts: Mapping[str, float], rate: float) -> None:
        """Log step `number`, from 0 over all epochs: its loss and parts, and the rate as a share of its peak.

        losses.jsonl has the parts without their names, in their order.
        """
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{loss:.3f}")
        if self._file is not None:
            self._file.write(json.dumps({"step": number, "loss": loss, "parts": list(parts.values())}) + "\n")
            self._file.flush()
            self._events.add_scalar("training/loss", loss, number)
            self._events.add_scalar("training/rate", rate, number)

    def evaluation(self, epoch: int, step: int, metrics: Mapping[str, Any], metric: str) -> None:
        """Log validation metrics in or after an epoch, from 1, after `step` steps; `metric` counts."""
        if self._events is None:
            return
        told = [f"{name} {metrics[name]:.4f}" for name in dict.fromkeys((metric, "auc")) if name in metrics]
        self._bar.write(f"epoch {epoch}, step {step:,} | validation {', '.join(told)}")
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"validation/{name}", value, step - 1)
        self._events.flush()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
            self._events.close()

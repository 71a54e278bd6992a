"""Fine-tuning as a story: steps of several parts, a validation after each epoch, the best epoch kept.

Written on accelerate: one process or several (`accelerate launch`), a CPU or GPUs, the same losses.

Shape legend: ``M`` training posts, ``B`` posts of a step, ``Q`` questions, the final one last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from backbones.mllm.base import Inputs, to_device
from backbones.prefetch import prefetch, threads_for
from losses.process import process_loss
from selftrain._util.types import IntArray, Json
from selftrain.agentps.examples import Example
from selftrain.agentps.journal import Journal
from selftrain.agentps.prompts import Collator, stack_targets
from selftrain.agentps.steps import Order, Step
from selftrain.agentps.weights import Progress, load_progress, save_progress, save_weights, trained
from selftrain.errors import NonFiniteLossError, TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from backbones.mllm.answering import AnsweringModel

PROGRESS, WEIGHTS = "training.safetensors", "model.safetensors"


class Schedule(NamedTuple):
    """How training goes.

    Attributes:
        epochs: At least 1 (published: 5).
        batch_size: Posts of a step.
        part: Posts computed at once; a step is accumulated from parts.
        learning_rate: Of adapters, the token's row and new parts, at its peak.
        head_learning_rate: Of the heads.
        weight_decay: Of everything but norms, biases and the row.
        warmup: Share of the steps over which the rate rises; then it falls to nothing, linearly.
        clip: The largest norm of a gradient.
        weights: w_q of each question, the final one last; None: all 1, as published.
        save_every: Steps between two saves; an epoch's end saves too.
        seed: Of the order, and of dropout.
        signed: Targets may leave [0, 1], as ACT's do.
    """

    epochs: int = 5
    batch_size: int = 16
    part: int = 16
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    weights: tuple[float, ...] | None = None
    save_every: int = 200
    seed: int = 0
    signed: bool = False


class Outcome(NamedTuple):
    """A finished training: every epoch's figures, and which of them was kept."""

    epochs: list[Json]
    best: int


def train(
    model: AnsweringModel,
    collator: Collator,
    posts: Sequence[Example],
    *,
    schedule: Schedule,
    folder: Path,
    identity: str,
    validate: Callable[[AnsweringModel], Json],
    metric: str,
    accelerator: Accelerator,
    progress_bar: bool = True,
) -> Outcome:
    """Train `model`; its best epoch's weights end up in it and in `folder`/model.safetensors.

    Args:
        model: As `build` gave it.
        collator: Of the model.
        posts: M training posts with a target each.
        schedule: How training goes.
        folder: Where weights and progress are kept. A training found there goes on.
        identity: What is trained on what; see `Progress`.
        validate: Figures of the model on validation posts, the same in every process.
        metric: Which of them says which epoch is best; more is better.
        accelerator: Of accelerate, with its precision and its processes.
        progress_bar: Draw one.

    Raises:
        NonFiniteLossError: A loss or gradient that is NaN or infinite; nothing of the step is kept.
        TrainingError: No posts, or no memory left.
        ModelError: `folder` holds another training.
    """
    if not posts:
        raise TrainingError("no post has a label to learn from: expected some in the grown data or manifest")
    order = Order(collator.lengths(posts), schedule.batch_size, schedule.epochs, schedule.seed)
    optimizer = _optimizer(model, schedule)
    wrapped = accelerator.prepare_model(model)
    done = Progress(0, identity, [])
    if (folder / PROGRESS).exists():
        done = load_progress(model, optimizer, folder / PROGRESS, identity)
    accelerator.wait_for_everyone()
    journal = Journal(folder if accelerator.is_main_process else None, done.step, order.steps, progress_bar)

    # ---- steps --------------------------------------------------------------------------------------
    descent = _Descent(
        wrapped=wrapped, optimizer=optimizer, collator=collator, posts=posts, schedule=schedule,
        steps=order.steps, accelerator=accelerator,
    )  # fmt: skip
    for epoch in range(len(done.epochs), schedule.epochs):
        model.train()
        steps = [step for step in order.epoch(epoch) if step.number >= done.step]
        for step, losses in descent.through(steps):
            journal.step(step.number, losses, descent.rate(step.number))
            if (step.number + 1) % schedule.save_every == 0:
                done = done._replace(step=step.number + 1)
                _save(accelerator, model, optimizer, done, folder)

        # ---- an epoch is over: how good is it, is it the best? ----------------------------------------
        model.eval()
        figures = validate(model)
        done = Progress((epoch + 1) * order.steps_per_epoch, identity, [*done.epochs, figures])
        if _best(done.epochs, metric) == epoch and accelerator.is_main_process:
            save_weights(model, folder / WEIGHTS)
        _save(accelerator, model, optimizer, done, folder)
        journal.epoch(epoch, figures, metric)
    journal.close()

    accelerator.wait_for_everyone()
    return Outcome(done.epochs, _best(done.epochs, metric))


class _Descent:
    """One step after another. Its parts' losses add up to the loss of the whole step."""

    def __init__(
        self,
        *,
        wrapped: Any,  # noqa: ANN401 -- the model, or what several processes make of it
        optimizer: torch.optim.Optimizer,
        collator: Collator,
        posts: Sequence[Example],
        schedule: Schedule,
        steps: int,
        accelerator: Accelerator,
    ) -> None:
        self._wrapped, self._optimizer = wrapped, optimizer
        self._collator, self._posts, self._schedule = collator, posts, schedule
        self._steps, self._accelerator = steps, accelerator
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]
        self._parameters = [one for group in optimizer.param_groups for one in group["params"]]

    def rate(self, step: int) -> float:
        """The share of the peak rate at a step: up over the warm-up, then down to nothing."""
        rising = max(round(self._steps * self._schedule.warmup), 1)
        if step < rising:
            return (step + 1) / rising
        return max(self._steps - step, 0) / max(self._steps - rising, 1)

    def through(self, steps: Sequence[Step]) -> Iterator[tuple[Step, list[float]]]:
        """Take every step: its losses, see `_take`. While a GPU computes, threads read its next parts."""
        parts = (places for step in steps for places in self._parts(step))
        threads = threads_for(self._accelerator.device.type)
        # closed also where a step fails: no thread reads on
        with closing(prefetch(self._read, parts, threads)) as inputs:
            for step in steps:
                yield step, self._take(step, inputs)

    def _read(self, places: IntArray) -> Inputs:
        return self._collator.inputs([self._posts[place] for place in places])

    def _take(self, step: Step, inputs: Iterator[Inputs]) -> list[float]:
        """Change the weights once; the mean loss of each question, and their weighted sum last."""
        accelerator, schedule = self._accelerator, self._schedule
        known = [
            float(one.sum(1).round().sum()) for one in stack_targets([self._posts[i] for i in step.posts])
        ]
        # dropout depends on the step alone, so that a training that was killed repeats it
        torch.manual_seed(hash((schedule.seed, step.number, accelerator.process_index)))
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self.rate(step.number)
        parts = self._parts(step)
        total = torch.zeros(len(known) + 1, device=accelerator.device)
        for i, places in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(self._wrapped):
                total += self._part(next(inputs), [self._posts[place] for place in places], known, step)
        losses: Tensor = accelerator.reduce(total, reduction="sum")
        norm = accelerator.clip_grad_norm_(self._parameters, schedule.clip)
        self._check(step, losses, norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        values: list[float] = losses.tolist()
        return values

    def _parts(self, step: Step) -> list[IntArray]:
        ranks = self._accelerator.num_processes
        return step.parts(self._accelerator.process_index, ranks, self._schedule.part)

    def _part(self, read: Inputs, posts: list[Example], known: list[float], step: Step) -> Tensor:
        accelerator = self._accelerator
        inputs = to_device(read, accelerator.device)
        wanted = [one.to(accelerator.device) for one in stack_targets(posts)]
        try:
            with accelerator.autocast():
                logits = self._wrapped(inputs)
            output = process_loss(
                logits, wanted, self._schedule.weights, denominators=known, signed=self._schedule.signed
            )
            # gradients of several processes are averaged: each gives as much as makes their sum
            accelerator.backward(output.loss * accelerator.num_processes)
        except torch.OutOfMemoryError as error:
            length = inputs["input_ids"].shape[1]
            raise TrainingError(
                f"step {step.number}: no memory left for {len(posts)} posts of {length} tokens on the device"
                f" ({str(error).partition('. ')[0]}). Lower training.part (now {self._schedule.part}), set"
                " training.checkpointing, or lower frames.count or model.max_tokens"
            ) from error
        return torch.cat([output.parts, output.loss.detach()[None]])

    def _check(self, step: Step, losses: Tensor, norm: Any) -> None:  # noqa: ANN401 -- a tensor or None
        if bool(torch.isfinite(losses).all()) and (norm is None or math.isfinite(float(norm))):
            return
        named = ", ".join(self._posts[place].id for place in step.posts[:5])
        found = f"losses {losses.tolist()}, norm of the gradient {norm}"
        raise NonFiniteLossError(
            f"step {step.number} of epoch {step.epoch}: {found}; expected finite numbers. Its posts begin"
            f" with {named}. Lower training.learning_rate (now {self._schedule.learning_rate:g}), or look at"
            " these posts; what was saved before is kept"
        )


def _optimizer(model: AnsweringModel, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW; heads learn at a rate of their own, and nothing one-dimensional decays."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in trained(model).items():
        rate = schedule.head_learning_rate if name.startswith("heads.") else schedule.learning_rate
        flat = parameter.ndim < 2 or "token_adapter" in name
        groups.setdefault((rate, 0.0 if flat else schedule.weight_decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings)


def _save(
    accelerator: Accelerator,
    model: AnsweringModel,
    optimizer: torch.optim.Optimizer,
    done: Progress,
    folder: Path,
) -> None:
    if accelerator.is_main_process:
        save_progress(model, optimizer, done, folder / PROGRESS)
    accelerator.wait_for_everyone()


def _best(epochs: Sequence[Json], metric: str) -> int:
    """The first epoch that none is better than."""
    scores = [float(one[metric]) for one in epochs]
    return scores.index(max(scores))

"""The steps of a fine-tuning: which posts make up each, in how many processes, and what cannot be read.

The order of the posts follows from the seed, their number and their lengths, never from how many processes
there are.

Shape legend: ``M`` training posts, ``B`` posts of a step, ``Q`` questions, the final one last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import KW_ONLY, dataclass
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from backbones.mllm.answering import AnsweringModel, compile_blocks, set_attention
from backbones.mllm.base import to_device
from backbones.mllm.prompts import Inputs
from backbones.prefetch import read_ahead, workers_for
from losses.process import answer_sums, process_loss
from selftrain._util.types import IntArray, Json
from selftrain.agentps import checkpoint, dataset, sharding
from selftrain.agentps.checkpoint import PROGRESS, QUARANTINE, WEIGHTS
from selftrain.agentps.model import Built, CollatedPosts, Collator, part_sizes, stack_targets
from selftrain.agentps.recipe import TrainingSettings
from selftrain.errors import QuarantineError, TrainingError
from selftrain.models import train_loop
from selftrain.models.train_loop import TrainingLog
from selftrain.store import atomic
from selftrain.store.run_dir import read_jsonl

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

# posts of so many steps are sorted by length together, a quarter of an epoch at most: little of what is
# computed pads, and posts meet others in the next epoch
_SORTED_STEPS = 32


# ---- which posts make up a step -------------------------------------------------------------------------


class Order:
    """The steps of all epochs: arrays [B] of indices into the training posts, each step's by length.

    Steps are made of even size, so the last is no smaller.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self._seed = seed
        self.steps_per_epoch = max(round(len(lengths) / batch_size), 1)

    def epoch(self, number: int) -> list[IntArray]:
        """Return the steps of one epoch, counted from 0; every post occurs once."""
        generator = np.random.default_rng([self._seed, number])
        shuffled = generator.permutation(len(self.lengths))
        batches: list[IntArray] = []
        stretches = max(self.steps_per_epoch // _SORTED_STEPS, min(self.steps_per_epoch, 4))
        sizes = [len(part) for part in np.array_split(shuffled, self.steps_per_epoch)]
        start = 0
        for steps in np.array_split(np.arange(self.steps_per_epoch), stretches):
            wanted = [sizes[step] for step in steps]
            stretch = shuffled[start : start + sum(wanted)]
            stretch = stretch[np.argsort(self.lengths[stretch], kind="stable")]
            batches += np.split(stretch, np.cumsum(wanted)[:-1])
            start += sum(wanted)
        # sorted stretches would show the short posts first
        return [batches[place] for place in generator.permutation(len(batches))]


def share_of_step(
    posts: IntArray,
    rank: int,
    processes: int,
    size: int,
    *,
    lengths: IntArray | None = None,
    tokens: int | None = None,
) -> list[IntArray]:
    """Return the posts of a step that process `rank` computes, in parts of at most `size`; at least one part.

    Every process gets posts of every length, so that none waits for the others, and as many parts, some of
    which may be empty. Without a limit of tokens parts are of even size; with one they are as `part_sizes`
    says, by the `lengths` of all posts.
    """
    sizes = []
    for share in (posts[one::processes] for one in range(processes)):
        if tokens is None or lengths is None:
            even = np.array_split(share, max(-(-len(share) // size), 1))
            sizes.append([len(part) for part in even])
        else:
            sizes.append(part_sizes(lengths[share].tolist(), size, tokens))
    mine = sizes[rank]
    while len(mine) < max(map(len, sizes)):
        place = int(np.argmax(mine))
        mine[place : place + 1] = [mine[place] - mine[place] // 2, mine[place] // 2]
    return np.split(posts[rank::processes], np.cumsum(mine)[:-1])


# ---- the steps ------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Stepper:
    """A `selftrain.models.train_loop.Stepper`: its parts' losses add up to the loss of the whole step."""

    built: Built
    posts: Sequence[dataset.Example]
    order: Order
    _: KW_ONLY
    settings: TrainingSettings
    seed: int
    signed: bool
    folder: Path
    max_unread: int
    validate: Callable[[AnsweringModel], Json]
    accelerator: Accelerator

    def __post_init__(self) -> None:
        self.model, to = self.built.model, self.accelerator.device
        sharding.wrap_by_block(self.accelerator, self.built.base.module, self.built.base.language_layers)
        # prepared together: a wrapper that shards the parameters has to tell the optimizer of its shards
        optimizer = _optimizer(self.model, self.settings)
        self._wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self._names = [one.name for one in self.built.questions.all]
        self._weights = self.settings.question_weights(self._names)
        weights = self.settings.answer_weights(dataset.count_answers(self.built.questions, self.posts))
        self._answer_weights = None if weights is None else [torch.tensor(w, device=to) for w in weights]
        self._parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        targets = stack_targets(self.posts)
        self._shares = [float(one.sum(1).round().sum()) / len(self.posts) for one in targets]
        self._unread = Unread(
            self.folder / QUARANTINE, self.max_unread, self.accelerator,
            posts=self.posts, collator=self.built.collator,
        )  # fmt: skip
        self._number = 0
        self._inputs: Iterator[CollatedPosts] = iter(())

    def batches(self, epoch: int, skip: int) -> Generator[IntArray, None, None]:
        """Yield steps. While a GPU computes, processes read the parts of the next ones."""
        steps = self.order.epoch(epoch - 1)[skip:]
        parts = (self._computed(part, step) for step in steps for part in self._parts(step))
        device, workers = self.accelerator.device.type, self.settings.workers
        workers = workers_for(device) if workers is None else workers
        if self.built.collator.cache is not None:
            self.built.collator.cache.refresh()
        read = read_ahead(self.built.collator.read, parts, workers, pin=device == "cuda")
        with closing(read) as self._inputs:
            for number, step in enumerate(steps, (epoch - 1) * self.order.steps_per_epoch + skip):
                self._number = number
                yield step

    def gradients(self, batch: IntArray) -> train_loop.StepLoss:
        accelerator = self.accelerator
        targets = stack_targets([self.posts[place] for place in batch])
        known = [float(one.sum(1).round().sum()) for one in targets]
        divisors = self._divisors(len(batch), known)
        # dropout depends on the step alone, so that a training that was killed repeats it
        torch.manual_seed(hash((self.seed, self._number, accelerator.process_index)))
        places, whole = self._parts(batch), None
        parts: Iterable[_Part] = (self._next_part(self._computed(one, batch)) for one in places)
        if self.signed and self.settings.non_negative:
            parts = list(parts)
            whole = self._answer_sums(parts)
        total = torch.zeros(len(known) + 1, device=accelerator.device)
        for i, part in enumerate(parts):
            last = i == len(places) - 1
            with nullcontext() if last else accelerator.no_sync(self._wrapped):
                total += self._backward(part, divisors, whole, last=last)
        for one in self._parameters:
            if one.grad is None:  # of a projector in a step without a picture: it decays all the same
                one.grad = torch.zeros_like(one)
        met = total.new_tensor([len(self._unread.new)])
        *sums, loss, unread = accelerator.reduce(torch.cat([total, met]), reduction="sum").tolist()
        if unread:  # in any process: all of them share it, and stop together
            self._unread.share()
        norm = accelerator.clip_grad_norm_(self._parameters, self.settings.clip)
        # of each question the mean over the posts that answer it, whatever the loss divides by
        means = (one / max(count, 1.0) for one, count in zip(sums, known, strict=True))
        return train_loop.StepLoss(
            loss, dict(zip(self._names, means, strict=True)), None if norm is None else float(norm)
        )

    def evaluate(self) -> Json:
        self.model.eval()
        return self.validate(self.model)

    def keep_best(self) -> None:
        checkpoint.save_weights(self.model, self.folder / WEIGHTS, write=self.accelerator.is_main_process)

    def advice(self, batch: IntArray) -> str:
        named = ", ".join(self.posts[place].id for place in batch[:5])
        mixed = self.accelerator.mixed_precision != "no"
        precise = 'set training.precision = "float32", ' if mixed else ""
        return (
            f"Its posts begin with {named}. Lower training.learning_rate (now"
            f" {self.settings.learning_rate:g}), {precise}or look at these posts; what was saved before is"
            " kept"
        )

    def _parts(self, step: IntArray) -> list[IntArray]:
        return share_of_step(
            step, self.accelerator.process_index, self.accelerator.num_processes, self.settings.part,
            lengths=self.order.lengths, tokens=self.settings.part_tokens,
        )  # fmt: skip

    def _divisors(self, posts: int, known: list[float]) -> list[float]:
        """Return [Q] what each question's cross-entropies of a step are divided by."""
        match self.settings.divisor:
            case "posts":
                return [float(posts)] * len(known)
            case "expected":
                return [posts * share for share in self._shares]
            case "answers":
                return known

    def _computed(self, part: IntArray, step: IntArray) -> list[dataset.Example]:
        """Return the posts of a part; in place of none one that counts nothing, as the others compute too."""
        if len(part):
            return [self.posts[place] for place in part]
        return [_without_targets(self.posts[step[0]])]

    def _next_part(self, posts: list[dataset.Example]) -> _Part:
        """Take the next part that was read; a post that could not be read is there, and counts nothing."""
        read = next(self._inputs)
        for row, reason in read.unread.items():
            self._unread.add(posts[row].id, reason)
            posts[row] = _without_targets(posts[row])
        device = self.accelerator.device
        targets = [one.to(device, non_blocking=True) for one in stack_targets(posts)]
        return _Part(to_device(read.inputs, device), targets, read)

    def _answer_sums(self, parts: Sequence[_Part]) -> list[Tensor]:
        """Return [Q] tensors [K] over the whole step, in all processes: what is clipped hangs on no part."""
        sums = [torch.zeros(one.shape[1], device=one.device) for one in parts[0].targets]
        for part in parts:
            with torch.no_grad(), self.accelerator.autocast():
                logits = self.model(part.inputs)
            sums = [a + b for a, b in zip(sums, answer_sums(logits, part.targets), strict=True)]
        return [self.accelerator.reduce(one, reduction="sum") for one in sums]

    def _backward(
        self, part: _Part, divisors: list[float], whole: list[Tensor] | None, *, last: bool
    ) -> Tensor:
        """Add a part's gradients to those at hand; the sum of each question, and their weighted sum last."""
        accelerator = self.accelerator
        try:
            with accelerator.autocast():
                logits = self._wrapped(part.inputs)
            output = process_loss(
                logits, part.targets, self._weights, denominators=divisors,
                answer_weights=self._answer_weights, signed=self.signed, whole=whole,
            )  # fmt: skip
            loss = output.loss
            if last and accelerator.num_processes > 1:
                # a process whose posts have no picture has to give the vision tower's gradients too, of zero
                held = (one.sum() for one in sharding.held_whole(self.model))
                loss = loss + sum(held, loss.new_zeros(())) * 0.0
            # gradients of several processes are averaged: each gives as much as makes their sum
            accelerator.backward(loss * accelerator.num_processes)
        except torch.OutOfMemoryError as error:
            posts, length = part.inputs["input_ids"].shape
            raise TrainingError(
                f"step {self._number}: no memory left for {posts} posts of {length} tokens on the device"
                f" ({str(error).partition('. ')[0]}). Lower training.part (now {self.settings.part}) or"
                " training.part_tokens, set training.checkpointing, or lower frames.count or model.max_tokens"
            ) from error
        self.built.collator.keep(part.read, self.model.features)
        return torch.cat([output.sums, output.loss.detach()[None]])


class _Part(NamedTuple):
    """Posts computed at once, on their device."""

    inputs: Inputs
    targets: list[Tensor]  # Q of [B, K]
    read: CollatedPosts


def _without_targets(post: dataset.Example) -> dataset.Example:
    return post._replace(targets=tuple(np.zeros_like(one) for one in post.targets))


def noted_in(file: Path) -> list[Json]:
    """Return what a quarantine lists; nothing where there is none."""
    return [*read_jsonl(file)] if file.exists() else []


def unread_row(post_id: str, reason: str) -> Json:
    """Return how a quarantine lists a post whose pictures cannot be read."""
    return {"kind": "picture", "id": post_id, "reason": reason}


class Unread:
    """Posts whose pictures cannot be read: noted in a file as bad rows are, once each, at most `limit`.

    Those that all processes met count together. What an earlier part of the training noted is looked at
    first of all: it counts on, or can be read by now and is off the list.
    """

    def __init__(
        self,
        file: Path,
        limit: int,
        accelerator: Accelerator,
        *,
        posts: Sequence[dataset.Example],
        collator: Collator,
    ) -> None:
        self._file, self._limit, self._accelerator = file, limit, accelerator
        rows = noted_in(file)
        self._others = [row for row in rows if row["kind"] != "picture"]
        self._reasons = dict[str, str]()
        self.new = dict[str, str]()  # post id -> why, met by this process since the last `share`
        noted = {str(row["id"]) for row in rows if row["kind"] == "picture"}
        for post in posts:
            if post.id in noted and (found := collator.read([post]).unread):
                self.add(post.id, found[0])
        if noted:
            self.share()

    def add(self, post_id: str, reason: str) -> None:
        """Take in a post that this process met."""
        if post_id not in self._reasons:
            self.new[post_id] = reason

    def share(self) -> None:
        """Take in what every process met, each at the same time; QuarantineError: more than the limit."""
        from accelerate.utils import gather_object

        self._reasons |= dict(gather_object([*self.new.items()]))
        self.new = {}
        if self._accelerator.is_main_process:
            atomic.write_jsonl(self._file, [*self._others, *starmap(unread_row, self._reasons.items())])
        if len(self._reasons) > self._limit:
            first = "\n".join(f"  {one}: {why}" for one, why in list(self._reasons.items())[:10])
            raise QuarantineError(
                f"{len(self._reasons)} posts have pictures that cannot be read; at most {self._limit} are"
                f" tolerated:\n{first}\nPut the pictures right, or raise data.max_bad_rows or"
                " data.max_bad_share; the same command goes on"
            )


def _optimizer(model: AnsweringModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return AdamW; heads learn at a rate of their own, and nothing one-dimensional decays."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in checkpoint.trained(model).items():
        rate = settings.head_learning_rate if name.startswith("heads.") else settings.learning_rate
        flat = parameter.ndim < 2 or "token_adapter" in name
        groups.setdefault((rate, 0.0 if flat else settings.weight_decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ]
    )


def train(
    built: Built,
    posts: Sequence[dataset.Example],
    *,
    settings: TrainingSettings,
    seed: int,
    folder: Path,
    identity: str,
    validate: Callable[[AnsweringModel], Json],
    accelerator: Accelerator,
    signed: bool = False,
    max_unread: int = 0,
    rehearse: Callable[[], object] | None = None,
    bar: bool = True,
) -> tuple[train_loop.EpochResult, ...]:
    """Train a model on posts with a target each; its best epoch's weights are kept in `folder`.

    A training of the same `identity` (`checkpoint.save_training`) found there goes on. `validate` gives
    metrics of validation posts, the same in every process. `signed` targets may leave [0, 1], as ACT's do; at
    most `max_unread` posts may be left out because their pictures cannot be read. `rehearse` is called before
    the first step, once the model lies where it trains.

    Raises:
        NonFiniteLossError: A loss or gradient that is NaN or infinite; nothing of the step is kept.
        TrainingError, QuarantineError: No posts, or no memory left; more posts that cannot be read.
        ModelError: `folder` holds another training.
    """
    if not posts:
        raise TrainingError("no post has a label to learn from: expected some in the grown data or manifest")
    model, main = built.model, accelerator.is_main_process
    if settings.attention != "auto":
        set_attention(built.base.module, settings.attention)
    if settings.compile:
        compile_blocks(built.base.module)
    order = Order(built.collator.lengths(posts), settings.batch_size, seed)
    steps = order.steps_per_epoch * settings.epochs
    _warn(built, order, unbounded=signed and not settings.non_negative)
    stepper = _Stepper(
        built, posts, order,
        settings=settings, seed=seed, signed=signed, folder=folder, max_unread=max_unread, validate=validate,
        accelerator=accelerator,
    )  # fmt: skip
    optimizer = stepper.optimizer
    if rehearse is not None:
        rehearse()
    state = checkpoint.load_training(model, optimizer, folder / PROGRESS, identity)
    accelerator.wait_for_everyone()

    def save(reached: train_loop.TrainingState) -> None:
        checkpoint.save_training(model, optimizer, reached, identity, folder / PROGRESS, write=main)
        accelerator.wait_for_everyone()

    with TrainingLog(steps, folder=folder if main else None, step=state.step, bar=bar and main) as log:
        results = train_loop.train_epochs(
            stepper, optimizer,
            train_loop.warm_up_schedule(optimizer, steps, warm_up=settings.warmup, step=state.step),
            _pace(settings, order.steps_per_epoch), log=log, state=state, save=save,
        )  # fmt: skip
    accelerator.wait_for_everyone()
    return results


def _warn(built: Built, order: Order, *, unbounded: bool) -> None:
    """Say before the first step what may go wrong with it."""
    longest = int(order.lengths.max())
    if 0 < built.base.positions < longest:
        logger.warning(
            "the longest post has %s tokens with its pictures, and %s was made for %s: what lies beyond is"
            " hardly understood. Lower frames.count or the frames' size, or model.max_tokens",
            f"{longest:,}", built.base.name, f"{built.base.positions:,}",
        )  # fmt: skip
    if unbounded:
        logger.warning("training.non_negative is off: the loss of reviewed posts has no lower bound")


def _pace(settings: TrainingSettings, steps_per_epoch: int) -> train_loop.Pace:
    return train_loop.Pace(
        epochs=settings.epochs, steps_per_epoch=steps_per_epoch, metric=settings.metric,
        evaluate_steps=settings.validate_every, patience=settings.patience, save_every=settings.save_every,
    )  # fmt: skip

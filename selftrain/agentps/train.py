"""Fine-tuning: from a recipe to a trained model in its folder, killed and gone on with at any step.

Written on accelerate: one process or several (`accelerate launch`), a CPU or GPUs, the same losses. The order
of the posts follows from the seed, their number and their lengths, never from how many processes there are.

Shape legend: ``M`` training posts, ``B`` posts of a step, ``Q`` questions, the final one last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from backbones.mllm.answering import AnsweringModel
from backbones.mllm.base import to_device
from backbones.mllm.prompts import Inputs
from backbones.prefetch import prefetch, threads_for
from losses.process import process_loss
from selftrain._util.types import IntArray, Json
from selftrain.agentps import checkpoint
from selftrain.agentps.checkpoint import PROGRESS, WEIGHTS, AgentPSModel
from selftrain.agentps.dataset import Example, LabelledPosts, load_posts
from selftrain.agentps.evaluate import ScoredPost, full_report, headline, score
from selftrain.agentps.model import Built, build, stack_targets
from selftrain.agentps.predict import answers_row
from selftrain.agentps.recipe import AgentPSRecipe, TrainingSettings, load_agentps_recipe
from selftrain.data.task import dump_task
from selftrain.errors import DataError, ModelError, RunBusyError, TrainingError
from selftrain.models.train_loop import (
    EpochResult,
    StepLoss,
    TrainingState,
    best_epoch,
    train_epochs,
    warm_up_schedule,
)
from selftrain.models.training_log import TrainingLog
from selftrain.store import atomic
from selftrain.store.run_dir import without_none

if TYPE_CHECKING:
    from accelerate import Accelerator

# posts of so many steps are sorted by length together: batches waste little, and an epoch stays well shuffled
_SORTED_STEPS = 8


# ---- which posts make up a step -------------------------------------------------------------------------


class Order:
    """The steps of all epochs: arrays [B] of indices into the training posts, each step's by length.

    Args:
        lengths: [M] tokens of each post.
        batch_size: Posts of a step, at least 1; steps are made of even size, so the last is no smaller.
        seed: Of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._seed = seed
        self.steps_per_epoch = max(round(len(lengths) / batch_size), 1)

    def epoch(self, number: int) -> list[IntArray]:
        """Return the steps of one epoch, counted from 0; every post occurs once."""
        generator = np.random.default_rng([self._seed, number])
        shuffled = generator.permutation(len(self._lengths))
        batches: list[IntArray] = []
        stretches = max(self.steps_per_epoch // _SORTED_STEPS, 1)
        sizes = [len(part) for part in np.array_split(shuffled, self.steps_per_epoch)]
        start = 0
        for steps in np.array_split(np.arange(self.steps_per_epoch), stretches):
            wanted = [sizes[step] for step in steps]
            stretch = shuffled[start : start + sum(wanted)]
            stretch = stretch[np.argsort(self._lengths[stretch], kind="stable")]
            batches += np.split(stretch, np.cumsum(wanted)[:-1])
            start += sum(wanted)
        # sorted stretches would show the short posts first
        return [batches[place] for place in generator.permutation(len(batches))]


def share_of_step(posts: IntArray, rank: int, processes: int, size: int) -> list[IntArray]:
    """Return the posts of a step that process `rank` computes, in parts of at most `size`; at least one part.

    Every process gets posts of every length, so that none waits for the others.
    """
    mine = posts[rank::processes]
    return np.array_split(mine, max(-(-len(mine) // size), 1))


# ---- the steps ------------------------------------------------------------------------------------------


class _Stepper:
    """A `selftrain.models.train_loop.Stepper`: its parts' losses add up to the loss of the whole step."""

    def __init__(
        self,
        built: Built,
        posts: Sequence[Example],
        order: Order,
        optimizer: torch.optim.Optimizer,
        *,
        settings: TrainingSettings,
        seed: int,
        signed: bool,
        folder: Path,
        validate: Callable[[AnsweringModel], Json],
        accelerator: Accelerator,
    ) -> None:
        self.model, self._collator, self._questions = built.model, built.collator, built.questions
        self._wrapped: Any = accelerator.prepare_model(built.model)
        self._names = [one.name for one in built.questions.all]
        self._weights = settings.question_weights(self._names)
        self._posts, self._order, self._settings, self._seed = posts, order, settings, seed
        self._signed, self._folder, self._validate = signed, folder, validate
        self._accelerator = accelerator
        self._parameters = [one for group in optimizer.param_groups for one in group["params"]]
        self._number = 0
        self._inputs: Iterator[Inputs] = iter(())

    def batches(self, epoch: int, skip: int) -> Generator[IntArray, None, None]:
        """Yield steps. While a GPU computes, threads read the parts of the next ones."""
        steps = self._order.epoch(epoch - 1)[skip:]
        parts = (part for step in steps for part in self._parts(step))
        threads = threads_for(self._accelerator.device.type)
        with closing(prefetch(self._read, parts, threads)) as self._inputs:
            for number, step in enumerate(steps, (epoch - 1) * self._order.steps_per_epoch + skip):
                self._number = number
                yield step

    def gradients(self, batch: IntArray) -> StepLoss:
        accelerator = self._accelerator
        targets = stack_targets([self._posts[place] for place in batch])
        known = [float(one.sum(1).round().sum()) for one in targets]
        # dropout depends on the step alone, so that a training that was killed repeats it
        torch.manual_seed(hash((self._seed, self._number, accelerator.process_index)))
        parts = self._parts(batch)
        total = torch.zeros(len(known) + 1, device=accelerator.device)
        for i, places in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last else accelerator.no_sync(self._wrapped):
                total += self._part(next(self._inputs), [self._posts[place] for place in places], known)
        *means, loss = accelerator.reduce(total, reduction="sum").tolist()
        norm = accelerator.clip_grad_norm_(self._parameters, self._settings.clip)
        named = dict(zip(self._names, means, strict=True))
        return StepLoss(loss, named, None if norm is None else float(norm))

    def evaluate(self) -> Json:
        self.model.eval()
        return self._validate(self.model)

    def keep_best(self) -> None:
        if self._accelerator.is_main_process:
            checkpoint.save_weights(self.model, self._folder / WEIGHTS)

    def advice(self, batch: IntArray) -> str:
        named = ", ".join(self._posts[place].id for place in batch[:5])
        return (
            f"Its posts begin with {named}. Lower training.learning_rate (now"
            f" {self._settings.learning_rate:g}), or look at these posts; what was saved before is kept"
        )

    def _read(self, places: IntArray) -> Inputs:
        return self._collator.inputs([self._posts[place] for place in places])

    def _parts(self, step: IntArray) -> list[IntArray]:
        accelerator = self._accelerator
        return share_of_step(step, accelerator.process_index, accelerator.num_processes, self._settings.part)

    def _part(self, read: Inputs, posts: list[Example], known: list[float]) -> Tensor:
        """Add a part's gradients to those at hand; the loss of each question, and their weighted sum last."""
        accelerator = self._accelerator
        inputs = to_device(read, accelerator.device)
        wanted = [one.to(accelerator.device) for one in stack_targets(posts)]
        try:
            with accelerator.autocast():
                logits = self._wrapped(inputs)
            output = process_loss(logits, wanted, self._weights, denominators=known, signed=self._signed)
            # gradients of several processes are averaged: each gives as much as makes their sum
            accelerator.backward(output.loss * accelerator.num_processes)
        except torch.OutOfMemoryError as error:
            length = inputs["input_ids"].shape[1]
            raise TrainingError(
                f"step {self._number}: no memory left for {len(posts)} posts of {length} tokens on the device"
                f" ({str(error).partition('. ')[0]}). Lower training.part (now {self._settings.part}), set"
                " training.checkpointing, or lower frames.count or model.max_tokens"
            ) from error
        return torch.cat([output.parts, output.loss.detach()[None]])


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
    posts: Sequence[Example],
    *,
    settings: TrainingSettings,
    seed: int,
    folder: Path,
    identity: str,
    validate: Callable[[AnsweringModel], Json],
    accelerator: Accelerator,
    signed: bool = False,
    bar: bool = True,
) -> tuple[EpochResult, ...]:
    """Train a model; its best epoch's weights end up in `folder`/model.safetensors.

    Args:
        built: As `build` gave it.
        posts: M training posts with a target each.
        settings: How training goes.
        seed: Of the order, and of dropout.
        folder: Where weights and progress are kept. A training found there goes on.
        identity: What is trained on what; see `checkpoint.save_training`.
        validate: Metrics of the model on validation posts, the same in every process.
        accelerator: Of accelerate, with its precision and its processes.
        signed: Targets may leave [0, 1], as ACT's do.
        bar: Draw one.

    Returns:
        Every epoch's metrics.

    Raises:
        NonFiniteLossError: A loss or gradient that is NaN or infinite; nothing of the step is kept.
        TrainingError: No posts, or no memory left.
        ModelError: `folder` holds another training.
    """
    if not posts:
        raise TrainingError("no post has a label to learn from: expected some in the grown data or manifest")
    model, main = built.model, accelerator.is_main_process
    order = Order(built.collator.lengths(posts), settings.batch_size, seed)
    steps = order.steps_per_epoch * settings.epochs
    optimizer = _optimizer(model, settings)
    stepper = _Stepper(
        built, posts, order, optimizer,
        settings=settings, seed=seed, signed=signed, folder=folder, validate=validate,
        accelerator=accelerator,
    )  # fmt: skip
    state = checkpoint.load_training(model, optimizer, folder / PROGRESS, identity)
    accelerator.wait_for_everyone()

    def save(reached: TrainingState) -> None:
        if main:
            checkpoint.save_training(model, optimizer, reached, identity, folder / PROGRESS)
        accelerator.wait_for_everyone()

    with TrainingLog(steps, folder=folder if main else None, step=state.step, bar=bar and main) as log:
        results = train_epochs(
            stepper, optimizer,
            warm_up_schedule(optimizer, steps, warm_up=settings.warmup, step=state.step),
            epochs=settings.epochs, steps_per_epoch=order.steps_per_epoch, metric=settings.metric,
            log=log, state=state, save=save, save_every=settings.save_every,
        )  # fmt: skip
    accelerator.wait_for_everyone()
    return results


# ---- from a recipe to a model ---------------------------------------------------------------------------


def train_agentps(
    source: Path | str | None,
    out: Path | str,
    *,
    recipe: Path | str | None = None,
    overrides: Sequence[str] = (),
    bar: bool = True,
) -> AgentPSModel:
    """Fine-tune a multimodal language model on a run's grown dataset, with the task's ancillary questions.

    A training that was cut off goes on; a finished one is only loaded. Run by `accelerate launch` it trains
    with several processes; every one of them comes back with the model.

    Args:
        source: A finished run's folder, or a manifest with labels; None: what the recipe names.
        out: The model's folder.
        recipe: A TOML file; None: the defaults.
        overrides: ``section.key=value``, each changes one value of the recipe.
        bar: Draw one.

    Raises:
        SelftrainError: What the parts raise: recipe, data, training, or a folder that holds another model.
        BackboneError: The base model cannot be had, or a prompt does not fit.

    Example::

        st.train_agentps("runs/mine", "models/mine", overrides=["model.rank=16", "frames.count=1"])
        st.load_predictor("models/mine").predict(posts)
    """
    given = load_agentps_recipe(
        None if recipe is None else Path(recipe), overrides, source=None if source is None else Path(source)
    )
    return train_recipe(given, Path(out), bar=bar)


def train_recipe(recipe: AgentPSRecipe, out: Path, *, bar: bool = True) -> AgentPSModel:
    """`train_agentps` with a recipe at hand."""
    accelerator = make_accelerator(recipe.training)
    lock = FileLock(out / ".lock")
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunBusyError(
                f"another process trains in {out}: wait for it, or give another --out"
            ) from error
    try:
        return _train_locked(recipe, out, accelerator, bar=bar)
    finally:
        lock.release()


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """Return accelerate's view of the machine, in the recipe's precision.

    Raises:
        TrainingError: This process has trained with another one already, and accelerate keeps to the first.
    """
    from accelerate import Accelerator

    cpu, asked = settings.device == "cpu", settings.precision
    if asked == "auto":
        # a CPU without bfloat16 units computes several times slower in it
        asked = "bfloat16" if not cpu and torch.cuda.is_available() else "float32"
    try:
        return Accelerator(cpu=cpu, mixed_precision="bf16" if asked == "bfloat16" else "no")
    except ValueError as error:
        raise TrainingError(
            f"training.precision is {asked} on {settings.device}, but this process began to train with"
            " another device or precision: train each in a process of its own"
        ) from error


def _train_locked(recipe: AgentPSRecipe, out: Path, accelerator: Accelerator, *, bar: bool) -> AgentPSModel:
    found, settings, training = load_posts(recipe.data, recipe.seed), recipe.model_settings(), recipe.training
    built = build(settings, found.task)
    posts, validation = found.examples(built.questions)
    identity = _identity(recipe, built, [*posts, *validation])
    if _finished(out, identity):
        return checkpoint.fill(out, built, found.task, settings)
    if accelerator.is_main_process:
        _begin(out, recipe, found, built, posts)
    if training.checkpointing:
        built.base.module.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]

    def scored(model: AnsweringModel) -> list[ScoredPost]:
        return _score_shared(model, built, validation, accelerator, training.evaluation_batch)

    results = train(
        built, posts,
        settings=training, seed=recipe.seed, folder=out, identity=identity, accelerator=accelerator,
        signed=bool(found.final_targets), bar=bar,
        validate=lambda model: headline(built.questions, scored(model)),
    )  # fmt: skip

    # ---- the best epoch again, measured with intervals -------------------------------------------------
    checkpoint.load_weights(built.model, out / WEIGHTS)
    final = scored(built.model)
    if accelerator.is_main_process:
        best = best_epoch(results, training.metric).epoch - 1  # files count epochs from 0
        atomic.write_jsonl(out / checkpoint.VALIDATION, (answers_row(built.questions, one) for one in final))
        measured = full_report(built.questions, final)
        epochs = [dict(one.metrics) for one in results]
        atomic.write_json(out / checkpoint.METRICS, {"epochs": epochs, "best": best, "questions": measured})
        about = {"best_epoch": best, "metric": training.metric, "identity": identity, "finished": True}
        checkpoint.describe(
            out, settings, found.task, built.questions, base=built.base.fingerprint, more=about
        )
        (out / PROGRESS).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    # what accelerate laid around the model goes again: the weights are computed as a fresh process would
    accelerator.unwrap_model(built.model, keep_fp32_wrapper=False)
    built.model.to("cpu")
    return checkpoint.fill(out, built, found.task, settings)


def _begin(
    out: Path, recipe: AgentPSRecipe, found: LabelledPosts, built: Built, posts: Sequence[Example]
) -> None:
    """Write what the folder says before the first step."""
    for q, question in enumerate(built.questions.process):
        if posts and not any(one.targets[q].any() for one in posts):
            raise DataError(
                f"no post answers the question {question.name!r}, so nothing can be learned about it: give"
                " answers in the manifest's `process`, have a model give them (`selftrain annotate`) and name"
                " that manifest as data.process, or take the question out of the task"
            )
    atomic.write_text(out / "training.toml", tomli_w.dumps(without_none(recipe.model_dump(mode="json"))))
    dump_task(found.task, out / checkpoint.TASK)
    if found.quarantine:
        atomic.write_jsonl(out / "quarantine.jsonl", found.quarantine)


def _finished(out: Path, identity: str) -> bool:
    if not (out / checkpoint.ABOUT).exists():
        return False
    if checkpoint.read_about(out).get("identity") != identity:
        raise ModelError(
            f"{out} holds a model of other posts or settings: give another --out, or restore the recipe and"
            " the data that it was trained with"
        )
    return True


def _score_shared(
    model: AnsweringModel, built: Built, posts: list[Example], accelerator: Accelerator, batch_size: int
) -> list[ScoredPost]:
    """Let every process score its share of `posts`; all get all of them, in order."""
    from accelerate.utils import gather_object

    ranks, rank = accelerator.num_processes, accelerator.process_index
    mine = list(
        score(
            model, built.collator, posts[rank::ranks], batch_size=batch_size, device=accelerator.device,
            precise=accelerator.mixed_precision == "no",
        )
    )  # fmt: skip
    if ranks == 1:
        return mine
    pairs = zip(range(rank, len(posts), ranks), mine, strict=True)
    return [one for _, one in sorted(gather_object(list(pairs)), key=lambda pair: pair[0])]


def _identity(recipe: AgentPSRecipe, built: Built, posts: Sequence[Example]) -> str:
    """Return the digest of what a training that goes on must share with the one that began."""
    kept = recipe.model_dump(mode="json", exclude={"data": True})
    free = ("part", "device", "save_every", "evaluation_batch", "checkpointing", "precision")
    kept["training"] = {key: value for key, value in kept["training"].items() if key not in free}
    wording = list(built.questions.wording)
    digest = hashlib.sha256(json.dumps([kept, built.base.fingerprint, wording]).encode())
    for one in posts:
        digest.update(json.dumps([one.id, one.text, [path.name for path in one.pictures]]).encode())
        for target in one.targets:
            digest.update(target.tobytes())
    return digest.hexdigest()

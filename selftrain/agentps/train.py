"""Fine-tuning: from a recipe to a trained model in its folder, killed and gone on with at any step.

Written on accelerate: one process or several (`accelerate launch`), a CPU or GPUs, the same losses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tomli_w
import torch

from backbones.mllm import smollm2_efficientnet
from backbones.mllm.answering import checkpoint_blocks, forget_compiled, set_attention
from selftrain._util.object_urls import local_path, refuse
from selftrain._util.types import Json
from selftrain.agentps import checkpoint, dataset, sharding, steps
from selftrain.agentps.checkpoint import PROGRESS, WEIGHTS, AgentPSModel
from selftrain.agentps.decisions import decided, fit_decisions
from selftrain.agentps.evaluate import ScoredPost, check_both, headline, question_scores, score_share
from selftrain.agentps.model import Built, build
from selftrain.agentps.predict import answers_row, redecide, write_measured
from selftrain.agentps.recipe import AgentPSRecipe, TrainingSettings, check_names, load_agentps_recipe
from selftrain.agentps.vision_cache import VisionCache
from selftrain.data.task import Task, dump_task
from selftrain.errors import DataError, ModelError, TrainingError
from selftrain.models import train_loop
from selftrain.store import atomic, locks
from selftrain.store.run_dir import without_none

if TYPE_CHECKING:
    from accelerate import Accelerator


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
    refuse(out)
    given = load_agentps_recipe(
        None if recipe is None else Path(recipe), overrides,
        source=None if source is None else local_path(source),
    )  # fmt: skip
    return train_recipe(given, Path(out), bar=bar)


def train_recipe(recipe: AgentPSRecipe, out: Path, *, bar: bool = True) -> AgentPSModel:
    """`train_agentps` with a recipe at hand."""
    accelerator = make_accelerator(recipe.training)
    checkpoint.check_out(out, trained=True)
    with ExitStack() as held:
        if accelerator.is_main_process:
            with atomic.writing(out):
                out.mkdir(parents=True, exist_ok=True)
            busy = f"another process trains in {out}: wait for it, or give another --out"
            held.callback(locks.take(out / ".lock", busy).release)
        return _train_locked(recipe, out, accelerator, bar=bar)


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """Return accelerate's view of the machine, in the recipe's precision; cuDNN's attention is off after it.

    TrainingError: this process has trained with another one already, and accelerate keeps to the first.
    """
    from accelerate import Accelerator

    cpu, asked = settings.device == "cpu", settings.precision
    if asked == "auto":
        # a CPU without bfloat16 units computes several times slower in it
        asked = "bfloat16" if not cpu and torch.cuda.is_available() else "float32"
    # with a mask its gradients are no numbers for some lengths of 64 modulo 128, on Hopper cards since torch
    # 2.11 (pytorch/pytorch#196678); a context would not reach what checkpointing computes again
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        made = Accelerator(cpu=cpu, mixed_precision="bf16" if asked == "bfloat16" else "no")
    except ValueError as error:
        raise TrainingError(
            f"training.precision is {asked} on {settings.device}, but this process began to train with"
            " another device or precision: train each in a process of its own"
        ) from error
    sharding.check_sharding(made)
    return made


class _Work(NamedTuple):
    """A training under way, in each of its processes."""

    recipe: AgentPSRecipe
    out: Path
    accelerator: Accelerator
    built: Built
    validation: list[dataset.Example]

    def scored(self, posts: list[dataset.Example]) -> list[ScoredPost]:
        """Let every process score its share of `posts`; all get all of them, in order."""
        from accelerate.utils import gather_object

        training, here = self.recipe.training, self.accelerator
        mine = score_share(
            self.built.model, self.built.collator, posts, here.process_index, here.num_processes,
            batch_size=training.evaluation_batch, device=here.device,
            precise=here.mixed_precision == "no", tokens=training.part_tokens, workers=training.workers,
        )  # fmt: skip
        sharding.release(self.built.model)
        found = {one.example.id: one for one in gather_object(mine)}
        return [found[one.id] for one in posts]

    def equip(self) -> None:
        """Give the model what training needs beside it: caches, checkpoints, a device."""
        self.built.use_cache(self._vision_cache())
        if self.recipe.training.checkpointing:
            checkpoint_blocks(self.built.base.module)
        if not self.accelerator.is_fsdp2:  # which takes it there block by block
            self.built.model.to(self.accelerator.device)

    def rehearse(self) -> None:
        """Try the largest evaluation, and whether it can be measured, before an epoch went into it."""
        self._check_readable()
        lengths = self.built.collator.lengths(self.validation)
        order = sorted(range(len(self.validation)), key=lambda place: -lengths[place])
        self.scored([self.validation[place] for place in order[: self.recipe.training.evaluation_batch]])

    def _check_readable(self) -> None:
        """Raise DataError where no validation post of a class, or of the others, has readable pictures."""
        questions = self.built.questions
        looked_for = questions.final.answers[questions.positive]
        labels = [(dataset.answer_of(one.targets[-1]), one) for one in self.validation]
        of_class = [one for label, one in labels if label == questions.positive]
        others = [one for label, one in labels if label not in (None, questions.positive)]
        for named, posts in ((repr(looked_for), of_class), (f"no {looked_for!r}", others)):
            if posts and all(self.built.collator.read([one]).unread for one in posts):
                reason = self.built.collator.read(posts[:1]).unread[0]
                raise DataError(
                    f"{len(posts)} validation posts are {named}, and the pictures of none can be read"
                    f" ({reason}): expected one at least. Put them right, or add posts to validate on"
                )

    def _vision_cache(self) -> VisionCache | None:
        training, frames = self.recipe.training, self.built.collator.frames
        if training.vision_cache is None or frames is None:
            return None
        precision = f"{self.accelerator.mixed_precision} {self.accelerator.device.type}"
        return VisionCache(
            training.vision_cache, self.built.base, frames, album=self.recipe.model.album,
            precision=precision, limit=training.vision_cache_gb * 1e9,
        )  # fmt: skip

    def load_best(self) -> None:
        """Put the weights that are kept into the model, which computes as for whoever opens it."""
        checkpoint.load_weights(self.built.model, self.out / WEIGHTS)
        if self.recipe.training.attention != "auto":  # thresholds are set on these products, the tower's too
            set_attention(self.built.base.module, "auto")
            self.built.use_cache(None)

    def strip(self) -> None:
        """Take it off again: answers are computed as a fresh process would."""
        self.accelerator.unwrap_model(self.built.model, keep_fp32_wrapper=False)
        self.built.model.to("cpu")
        self.built.use_cache(None)
        forget_compiled(self.built.base.module)

    def write(
        self, results: Sequence[train_loop.EpochResult], scored: Sequence[ScoredPost], task: Task, more: Json
    ) -> None:
        """Decide the validation posts, write what that is worth, and describe the model."""
        asked, metric = self.built.questions, self.recipe.training.metric
        best = train_loop.best_epoch(results, metric)
        decisions = fit_decisions(question_scores(asked, scored), self.recipe.decisions)
        validations = [{"epoch": one.epoch, "step": one.step, "metrics": one.metrics} for one in results]
        figures = {"validations": validations, "best": results.index(best)}
        rows = [answers_row(asked, decided(decisions, one)) for one in scored]
        write_measured(self.out, asked, rows, decisions, figures)
        if unread := [steps.unread_row(one.example.id, one.reason) for one in scored if one.reason]:
            file = self.out / checkpoint.QUARANTINE
            atomic.write_jsonl(file, [*steps.noted_in(file), *unread])
        about = more | {
            "finished": True,
            "precision": "float32" if self.accelerator.mixed_precision == "no" else "bfloat16",
            "best_epoch": best.epoch,
            "metric": metric,
            "decisions": checkpoint.decisions_to_json(asked, decisions),
        }
        settings, base = self.recipe.model_settings(), self.built.base
        if base.revision:  # whoever opens the model gets these weights, wherever the branch is by then
            settings = settings.model_copy(update={"revision": base.revision})
        elif settings.base != smollm2_efficientnet.NAME:  # a folder, and whoever opens it may stand elsewhere
            settings = settings.model_copy(update={"base": str(Path(settings.base).resolve())})
        checkpoint.describe(self.out, settings, task, asked, base=base.fingerprint, more=about)


def _train_locked(recipe: AgentPSRecipe, out: Path, accelerator: Accelerator, *, bar: bool) -> AgentPSModel:
    found, settings, training = (
        dataset.load_posts(recipe.data, recipe.seed),
        recipe.model_settings(),
        recipe.training,
    )
    questions = dataset.question_set(
        found.task, settings.variant, policy=settings.policy, rounds=settings.rounds
    )
    posts, validation = found.examples(questions)
    # all that can be known to be wrong is said before a base model is fetched and loaded
    check_named(recipe, questions)
    _check_examples(questions, posts, validation)
    work = _Work(recipe, out, accelerator, build(settings, found.task), validation)
    built, identity = work.built, _identity(recipe, work.built, [*posts, *validation])
    if _finished(out, identity):
        if accelerator.is_main_process:
            redecide(checkpoint.fill(out, built, found.task, settings), recipe.decisions)
            _write_recipe(out, recipe)
            (out / PROGRESS).unlink(missing_ok=True)  # where it was killed between its last two writes
        accelerator.wait_for_everyone()
        return checkpoint.fill(out, built, found.task, settings)
    checkpoint.check_training(out / PROGRESS, identity)
    if accelerator.is_main_process:
        _begin(out, recipe, found)
    accelerator.wait_for_everyone()
    work.equip()
    tolerated = min(recipe.data.max_bad_rows, int(recipe.data.max_bad_share * len(posts)))
    results = steps.train(
        built, posts,
        settings=training, seed=recipe.seed, folder=out, identity=identity, accelerator=accelerator,
        signed=found.signed, max_unread=tolerated, rehearse=work.rehearse, bar=bar,
        validate=lambda _: headline(built.questions, work.scored(validation)),
    )  # fmt: skip

    # ---- the best weights again, measured with intervals -------------------------------------------------
    work.load_best()
    final = work.scored(validation)
    if accelerator.is_main_process:
        work.write(results, final, found.task, {"identity": identity})
        (out / PROGRESS).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    if accelerator.is_fsdp2:  # no process has the whole model
        return checkpoint.load(out)
    work.strip()
    return checkpoint.fill(out, built, found.task, settings)


def check_named(recipe: AgentPSRecipe, questions: dataset.QuestionSet) -> None:
    """Refuse a recipe that weighs or decides a question, or an answer, that is not asked."""
    names = [one.name for one in questions.all]
    recipe.training.question_weights(names)
    recipe.training.answer_weights(dataset.count_answers(questions, ()))
    check_names("a rule is given for", recipe.decisions, names)


def _check_examples(
    questions: dataset.QuestionSet,
    posts: Sequence[dataset.Example],
    validation: Sequence[dataset.Example],
) -> None:
    """Refuse what would end a training after its base model was loaded, or after an epoch."""
    for q, question in enumerate(questions.process):
        if not any(one.targets[q].any() for one in posts):
            raise DataError(
                f"no post answers the question {question.name!r}, so nothing can be learned about it: give"
                " answers in the manifest's `process`, have a model give them (`selftrain annotate`) and name"
                " that manifest as data.process, or take the question out of the task"
            )
    labels = [dataset.answer_of(one.targets[-1]) for one in validation if one.targets[-1].any()]
    check_both(questions, labels.count(questions.positive), len(labels))


def _begin(out: Path, recipe: AgentPSRecipe, found: dataset.LabelledPosts) -> None:
    """Write what the folder says before the first step."""
    _write_recipe(out, recipe)
    dump_task(found.task, out / checkpoint.TASK)
    noted = steps.noted_in(out / checkpoint.QUARANTINE)
    rows = [*found.quarantine, *(row for row in noted if row["kind"] == "picture")]
    if rows or noted:
        atomic.write_jsonl(out / checkpoint.QUARANTINE, rows)


def _write_recipe(out: Path, recipe: AgentPSRecipe) -> None:
    atomic.write_text(out / checkpoint.RECIPE, tomli_w.dumps(without_none(recipe.model_dump(mode="json"))))


def _finished(out: Path, identity: str) -> bool:
    if not (out / checkpoint.ABOUT).exists():
        return False
    if checkpoint.read_about(out).get("identity") != identity:
        raise ModelError(
            f"{out} holds a model of other posts or settings: give another --out, or restore the recipe and"
            " the data that it was trained with"
        )
    return True


def _identity(recipe: AgentPSRecipe, built: Built, posts: Sequence[dataset.Example]) -> str:
    """Return the digest of what a training that goes on must share with the one that began."""
    kept = recipe.model_dump(mode="json", exclude={"data": True, "decisions": True})
    free = (
        "part", "part_tokens", "workers", "compile", "attention", "device", "save_every", "evaluation_batch",
        "checkpointing", "precision", "vision_cache", "vision_cache_gb",
    )  # fmt: skip
    kept["training"] = {key: value for key, value in kept["training"].items() if key not in free}
    wording = list(built.questions.wording)
    digest = hashlib.sha256(json.dumps([kept, built.base.fingerprint, wording]).encode())
    for one in posts:
        digest.update(json.dumps([one.id, one.text, [path.name for path in one.pictures]]).encode())
        for target in one.targets:
            digest.update(target.tobytes())
    return digest.hexdigest()

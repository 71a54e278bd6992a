"""From a recipe to a trained model in its folder: gather, build, train, measure, describe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from selftrain.agentps import evaluation, folder
from selftrain.agentps.architecture import Built, build
from selftrain.agentps.examples import Example, examples, known_counts
from selftrain.agentps.folder import Loaded
from selftrain.agentps.gathering import Gathered, gather
from selftrain.agentps.predict import answers_row
from selftrain.agentps.recipe import AgentPSRecipe
from selftrain.agentps.scoring import ScoredPost, score
from selftrain.agentps.training import PROGRESS, Outcome, train
from selftrain.agentps.weights import load_weights
from selftrain.data.task import dump_task
from selftrain.errors import DataError, TrainingError
from selftrain.store import atomic

if TYPE_CHECKING:
    from accelerate import Accelerator

    from backbones.mllm.answering import AnsweringModel


def fit(recipe: AgentPSRecipe, out: Path, *, progress: bool = True) -> Loaded:
    """Train a model, or go on with one whose training was cut off; a finished one is only loaded.

    Run by `accelerate launch` it trains with several processes; every one of them comes back with the model.

    Args:
        recipe: What, of what, and how.
        out: The model's folder.
        progress: Draw bars.

    Raises:
        SelftrainError: What the parts raise: recipe, data, training, or a folder that holds another model.
        BackboneError: The base model cannot be had, or a prompt does not fit.
    """
    from filelock import FileLock, Timeout

    from selftrain.errors import RunBusyError

    accelerator = make_accelerator(recipe)
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
        return _fit(recipe, out, accelerator, progress=progress)
    finally:
        lock.release()


def make_accelerator(recipe: AgentPSRecipe) -> Accelerator:
    """accelerate's view of the machine, in the recipe's precision.

    Raises:
        TrainingError: This process has trained with another one already, and accelerate keeps to the first.
    """
    import torch
    from accelerate import Accelerator

    cpu = recipe.training.device == "cpu"
    asked = recipe.training.precision
    if asked == "auto":
        # a CPU without bfloat16 units computes several times slower in it
        asked = "bfloat16" if not cpu and torch.cuda.is_available() else "float32"
    try:
        return Accelerator(cpu=cpu, mixed_precision="bf16" if asked == "bfloat16" else "no")
    except ValueError as error:
        raise TrainingError(
            f"training.precision is {asked} on {recipe.training.device}, but this process began to train with"
            " another device or precision: train each in a process of its own"
        ) from error


def _fit(recipe: AgentPSRecipe, out: Path, accelerator: Accelerator, *, progress: bool) -> Loaded:
    found = gather(recipe.data, recipe.seed)
    architecture = recipe.architecture()
    built = build(architecture, found.task)
    known = [post for post in found.train if post.label is not None]
    posts = examples(known, built.asked, found.shares, found.finals)
    validation = examples(found.validation, built.asked)
    identity = _identity(recipe, built, posts, validation)
    if _finished(out, identity):
        return folder.fill(out, built, found.task, architecture)
    if accelerator.is_main_process:
        _begin(out, recipe, found, built, posts)
    if recipe.training.checkpointing:
        built.base.module.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    batch, precise = recipe.training.evaluation_batch, accelerator.mixed_precision == "no"

    def scored(model: AnsweringModel) -> list[ScoredPost]:
        return _scored(model, built, validation, accelerator, batch, precise=precise)

    outcome = train(
        built.model, built.collator, posts,
        schedule=recipe.schedule([one.name for one in built.asked.all])._replace(signed=bool(found.finals)),
        folder=out, identity=identity, metric=recipe.training.metric, accelerator=accelerator,
        validate=lambda model: evaluation.quick(built.asked, scored(model)),
        progress_bar=progress,
    )  # fmt: skip

    # ---- the best epoch again, measured with intervals -------------------------------------------------
    load_weights(built.model, out / folder.WEIGHTS)
    final = scored(built.model)
    if accelerator.is_main_process:
        about = {"best_epoch": outcome.best, "metric": recipe.training.metric, "identity": identity}
        _write_figures(out, built, final, outcome)
        folder.describe(
            out, architecture, found.task, built.asked,
            base=built.base.fingerprint, more=about | {"finished": True},
        )  # fmt: skip
        (out / PROGRESS).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    # what accelerate laid around the model goes again: the weights are computed as a fresh process would
    accelerator.unwrap_model(built.model, keep_fp32_wrapper=False)
    built.model.to("cpu")
    return folder.fill(out, built, found.task, architecture)


def _begin(out: Path, recipe: AgentPSRecipe, found: Gathered, built: Built, posts: list[Example]) -> None:
    """What the folder says before the first step."""
    import tomli_w

    from selftrain.store.run_dir import without_none

    known = known_counts(posts)
    for asked, count in zip(built.asked.process, known, strict=False):
        if not count:
            raise DataError(
                f"no post answers the question {asked.name!r}, so nothing can be learned about it: give"
                " answers in the manifest's `process`, have a model give them (`selftrain annotate`) and name"
                " that manifest as data.process, or take the question out of the task"
            )
    atomic.write_text(out / "training.toml", tomli_w.dumps(without_none(recipe.model_dump(mode="json"))))
    dump_task(found.task, out / folder.TASK)
    if found.quarantine:
        atomic.write_jsonl(out / "quarantine.jsonl", found.quarantine)


def _write_figures(out: Path, built: Built, final: list[ScoredPost], outcome: Outcome) -> None:
    """Every answer on the validation posts, and what it is worth."""
    atomic.write_jsonl(out / folder.VALIDATION, (answers_row(built.asked, one) for one in final))
    figures = evaluation.full(built.asked, final)
    atomic.write_json(
        out / folder.METRICS, {"epochs": outcome.epochs, "best": outcome.best, "questions": figures}
    )


def _finished(out: Path, identity: str) -> bool:
    from selftrain.errors import ModelError

    if not (out / folder.ABOUT).exists():
        return False
    if folder.read_about(out).get("identity") != identity:
        raise ModelError(
            f"{out} holds a model of other posts or settings: give another --out, or restore the recipe and"
            " the data that it was trained with"
        )
    return True


def _scored(
    model: AnsweringModel,
    built: Built,
    posts: list[Example],
    accelerator: Accelerator,
    batch: int,
    *,
    precise: bool,
) -> list[ScoredPost]:
    """Every process scores its share of `posts`; all get all of them, in order."""
    from accelerate.utils import gather_object

    ranks, rank = accelerator.num_processes, accelerator.process_index
    mine = list(
        score(
            model,
            built.collator,
            posts[rank::ranks],
            batch_size=batch,
            device=accelerator.device,
            precise=precise,
        )
    )
    if ranks == 1:
        return mine
    pairs = zip(range(rank, len(posts), ranks), mine, strict=True)
    return [one for _, one in sorted(gather_object(list(pairs)), key=lambda pair: pair[0])]


def _identity(recipe: AgentPSRecipe, built: Built, posts: list[Example], validation: list[Example]) -> str:
    """What a training that goes on must share with the one that began."""
    kept = recipe.model_dump(mode="json", exclude={"data": True})
    free = ("part", "device", "save_every", "evaluation_batch", "checkpointing", "precision")
    kept["training"] = {key: value for key, value in kept["training"].items() if key not in free}
    digest = hashlib.sha256(json.dumps([kept, built.base.fingerprint, list(built.asked.wording)]).encode())
    for one in (*posts, *validation):
        digest.update(json.dumps([one.id, one.text, [path.name for path in one.pictures]]).encode())
        for target in one.targets:
            digest.update(target.tobytes())
    return digest.hexdigest()

"""A recipe becomes a run: `start` reads it, `Run.rounds` goes round.

run = start("runs/quickstart.toml", out="runs/quickstart")
for round in run.rounds():
    print(round)
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain import atomic
from selftrain.recipe import Recipe, load_recipe
from selftrain.run.folder import RunFolder
from selftrain.run.summary import missing_reviews

if TYPE_CHECKING:
    from backbones.base import Backbone
    from losses.pnu import PNULoss
    from selftrain.estimate import Estimate
    from selftrain.finetune import BackboneTrainer
    from selftrain.loop import LoopSettings
    from selftrain.preparation import Prepared
    from selftrain.rounds import Round

_DISTRIBUTIONS = ("selftrain", "torch", "open_clip_torch", "transformers", "peft", "numpy", "scikit-learn")


def start(recipe: Recipe | Path | str, out: Path | str, overrides: Sequence[str] = ()) -> Run:
    """A run of `recipe` in the folder `out`; nothing is computed yet.

    Args:
        recipe: A recipe, or the path of one.
        out: The run folder; a run that is already there goes on if its recipe is the same.
        overrides: ``section.key=value``, for a recipe given by its path.

    Raises:
        RecipeError: The recipe cannot be understood.
    """
    if isinstance(recipe, Recipe):
        return Run(recipe, Path(out))
    return Run(load_recipe(recipe, overrides), Path(out), Path(recipe).name)


class Run:
    """A recipe and its folder.

    Attributes:
        recipe: As resolved.
        folder: Where everything is written.
        name: The recipe's file name; empty for one that was built in Python.
        stopped: Why `rounds` ended before the loop did: the token cap, or reviews that are missing. Empty
            otherwise.
    """

    def __init__(self, recipe: Recipe, out: Path, name: str = "") -> None:
        self.recipe = recipe
        self.folder = RunFolder(out)
        self.name = name
        self.stopped = ""

    def rounds(self, *, progress: bool = False) -> Iterator[Round]:
        """Go on with the run and yield every round, those finished earlier first.

        The folder is locked until the iterator is exhausted or closed.

        Raises:
            SelftrainError, or an error of a leaf's tree: see their modules.
        """
        import torch

        from agents.errors import TokenCapError
        from agents.vlm.paying import Metered
        from selftrain.data.task import dump_task
        from selftrain.loop import self_train
        from selftrain.panels import build_panel
        from selftrain.people import build_people

        with self.folder.locked():
            self.folder.check_recipe(self.recipe.model_dump(mode="json"))
            if self.recipe.threads:
                torch.set_num_threads(self.recipe.threads)
            prepared = self._prepared(progress=progress)
            corpus = prepared.corpus
            panel = build_panel(self.recipe, prepared.task, corpus, out=self.folder.path, progress=progress)
            environment = _environment(self.recipe) | {
                "recipe": self.name,
                "identity": prepared.identity,
                "agents": panel.describe(),
                "simulated": panel.simulated,
                "classes": {"positive": corpus.positive, "negative": corpus.negative},
                "splits": {n: len(getattr(corpus, n)) for n in ("labelled", "validation", "pool", "test")},
            }
            self.folder.begin(self.recipe.model_dump(mode="json"), environment)
            atomic.write_jsonl(self.folder.path / "quarantine.jsonl", prepared.quarantine)
            dump_task(prepared.task, self.folder.path / "task.toml")
            people = build_people(self.recipe, self.folder, prepared.task, corpus.posts, progress=progress)
            rounds = self_train(
                corpus,
                build_trainer(self.recipe, progress=progress),
                panel,
                loss=build_loss(self.recipe),
                folder=self.folder,
                settings=build_settings(self.recipe),
                people=people,
            )
            try:
                yield from self._told(rounds)
                self.stopped = missing_reviews(self.folder) or ""
            except TokenCapError as error:
                # no fault: what the recipe allows is spent, and the rounds that are finished stand
                self.stopped = str(error)
            finally:
                if isinstance(panel, Metered):
                    panel.close()
                if people is not None:
                    people.close()

    def estimate(self, *, progress: bool = False) -> Estimate:
        """What the run's vision-language agents would cost; see `selftrain.estimate`.

        Raises:
            RecipeError: The recipe asks other agents, which cost nothing.
            SelftrainError, AgentError: As `rounds`.
        """
        from agents.vlm.panel import VlmPanel
        from selftrain.errors import RecipeError
        from selftrain.estimate import estimate
        from selftrain.panels import build_panel

        if self.recipe.agents.kind != "vlm":
            raise RecipeError(f'agents.kind is "{self.recipe.agents.kind}": these agents cost nothing to ask')
        prepared = self._prepared(progress=progress)
        # the cap is what the estimate is held against, not what may stop its probe
        uncapped = self.recipe.model_copy(
            update={"vlm": self.recipe.vlm.model_copy(update={"token_cap": None})}
        )
        panel = build_panel(uncapped, prepared.task, prepared.corpus, out=self.folder.path, progress=progress)
        assert isinstance(panel, VlmPanel)
        try:
            return estimate(self.recipe, prepared.corpus, panel)
        finally:
            panel.close()

    def _prepared(self, *, progress: bool) -> Prepared:
        """The posts of the recipe with their features, on a newly loaded backbone."""
        from backbones import load_backbone
        from selftrain.preparation import prepare

        backbone = load_backbone(self.recipe.backbone.name, **backbone_options(self.recipe))
        return prepare(self.recipe, backbone, progress=progress)

    def _told(self, rounds: Iterator[Round]) -> Iterator[Round]:
        """`rounds`, each told to TensorBoard and MLflow before it is passed on; the report follows anyhow.

        A round that an earlier start finished is told only if that start was killed before it could be.
        """
        from selftrain.run import report, tracking

        earlier, any_round = len(self.folder.finished_rounds()), False
        try:
            for finished in rounds:
                any_round = True
                tracking.tell(self.folder, finished.figures, fresh=finished.number >= earlier)
                yield finished
        finally:
            if any_round:
                report.write_report(self.folder)
                tracking.close(self.folder)


def build_loss(recipe: Recipe) -> PNULoss:
    """The PNU loss of a recipe. A setting that the form does not read is left at its default."""
    from losses.pnu import PNULoss

    section = recipe.loss
    options: dict[str, Any] = {"form": section.form, "balance": section.balance}
    if section.form not in ("paper",):
        options["lambda_soft"] = 1.0 if section.lambda_soft == "count" else section.lambda_soft
    if section.form in ("article", "nnpu", "pn"):
        options["lambda_u"] = section.lambda_unlabelled
    if isinstance(section.theta, float):
        options["theta"] = section.theta
    soft = section.soft_positive
    return PNULoss(**options, soft_positive=soft, soft_negative=1 - soft)


def build_settings(recipe: Recipe) -> LoopSettings:
    """The loop's plain arguments."""
    from selftrain.loop import Limits, LoopSettings

    return LoopSettings(
        seed=recipe.seed,
        k=recipe.selection.k,
        shares=recipe.selection.shares,
        again=recipe.selection.again,
        revise=recipe.selection.revise,
        start=recipe.rounds.start,
        theta=recipe.loss.theta if isinstance(recipe.loss.theta, float) else None,
        by_count=recipe.loss.lambda_soft == "count",
        soft_positive=recipe.loss.soft_positive,
        limits=Limits(recipe.rounds.max, recipe.rounds.patience, recipe.rounds.budget),
        root=recipe.data.manifest.parent,
        near_chance=recipe.agents.near_chance or ("stop" if recipe.agents.kind == "vlm" else "go on"),
    )


def build_trainer(recipe: Recipe, *, progress: bool = False) -> Any:  # noqa: ANN401 -- a Trainer of some model
    """The trainer of `classifier.train`: the head on cached features, or the backbone with it."""
    section = recipe.classifier
    if section.train != "head":
        return _build_backbone_trainer(recipe, progress=progress)
    from selftrain.head import HeadSettings
    from selftrain.trainer import HeadTrainer

    defaults = HeadSettings()
    return HeadTrainer(
        HeadSettings(
            kind=section.head,
            hidden=section.hidden,
            dropout=section.dropout,
            epochs=section.epochs or defaults.epochs,
            learning_rate=section.learning_rate or defaults.learning_rate,
            weight_decay=defaults.weight_decay if section.weight_decay is None else section.weight_decay,
        )
    )


def _build_backbone_trainer(recipe: Recipe, *, progress: bool) -> BackboneTrainer:
    """What the recipe leaves open stays at the trainer's own defaults, which are not those of a head."""
    from selftrain.finetune import BackboneTrainer

    section = recipe.classifier
    assert section.train != "head", "that is another trainer"
    given: dict[str, Any] = {"epochs": section.epochs, "weight_decay": section.weight_decay}
    return BackboneTrainer(
        partial(finetuning_backbone, recipe),
        mode=section.train,
        head=section.head,
        hidden=section.hidden,
        dropout=section.dropout,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        lora_rank=section.lora_rank,
        lora_alpha=section.lora_alpha,
        evaluation_batch=recipe.backbone.batch_size,
        workers=recipe.backbone.workers,
        progress=progress,
        **{name: value for name, value in given.items() if value is not None},
    )


def finetuning_backbone(recipe: Recipe) -> Backbone:
    """A new pretrained backbone in float32, as fine-tuning wants it."""
    from backbones import load_backbone

    return load_backbone(recipe.backbone.name, dtype="fp32", **backbone_options(recipe))


def backbone_options(recipe: Recipe) -> dict[str, Any]:
    """Keyword arguments of `load_backbone` for a recipe."""
    options: dict[str, Any] = {"device": recipe.backbone.device}
    if recipe.backbone.name == "clip":
        options |= {"model": recipe.backbone.model, "weights": recipe.backbone.weights}
    return options


def _environment(recipe: Recipe) -> dict[str, Any]:
    import torch

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: metadata.version(name) for name in _DISTRIBUTIONS},
        "git": _git_commit(),
        "seed": recipe.seed,
        "images_root": str(recipe.data.manifest.parent),
    }


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from; None for an installed wheel."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    result = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None

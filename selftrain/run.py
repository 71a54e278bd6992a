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
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftrain.config import Recipe, load_recipe
from selftrain.report.status import missing_reviews
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder

if TYPE_CHECKING:
    from selftrain.data.preparation import PreparedData
    from selftrain.report.cost import RunCost
    from selftrain.rounds import RoundResult

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

    def rounds(self, *, progress: bool = False) -> Iterator[RoundResult]:
        """Go on with the run and yield every round, those finished earlier first.

        The folder is locked until the iterator is exhausted or closed.

        Raises:
            SelftrainError, or an error of a leaf's tree: see their modules.
        """
        import torch

        from agents.ask.metering import Metered
        from agents.errors import TokenCapError
        from selftrain.build import build_loss, build_panel, build_reviewers, build_settings, build_trainer
        from selftrain.data.task import dump_task
        from selftrain.loop import self_train

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
            reviewers = build_reviewers(
                self.recipe, self.folder, prepared.task, corpus.posts, progress=progress
            )
            rounds = self_train(
                corpus,
                build_trainer(self.recipe, progress=progress),
                panel,
                loss=build_loss(self.recipe),
                folder=self.folder,
                settings=build_settings(self.recipe),
                reviewers=reviewers,
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
                if reviewers is not None:
                    reviewers.close()

    def estimate(self, *, progress: bool = False) -> RunCost:
        """What the run's vision-language agents would cost; see `selftrain.report.cost`.

        Raises:
            RecipeError: The recipe asks other agents, which cost nothing.
            SelftrainError, AgentError: As `rounds`.
        """
        from agents.ask.judge import VLMPanel
        from selftrain.build import build_panel
        from selftrain.errors import RecipeError
        from selftrain.report.cost import estimate_cost

        if self.recipe.agents.kind != "vlm":
            raise RecipeError(f'agents.kind is "{self.recipe.agents.kind}": these agents cost nothing to ask')
        prepared = self._prepared(progress=progress)
        # the cap is what the estimate is held against, not what may stop its probe
        uncapped = self.recipe.model_copy(
            update={"vlm": self.recipe.vlm.model_copy(update={"token_cap": None})}
        )
        panel = build_panel(uncapped, prepared.task, prepared.corpus, out=self.folder.path, progress=progress)
        assert isinstance(panel, VLMPanel)
        try:
            return estimate_cost(self.recipe, prepared.corpus, panel)
        finally:
            panel.close()

    def _prepared(self, *, progress: bool) -> PreparedData:
        """The posts of the recipe with their features, on a newly loaded backbone."""
        from backbones import load_backbone
        from selftrain.data.preparation import prepare
        from selftrain.models.pretrained import backbone_options

        backbone = load_backbone(self.recipe.backbone.name, **backbone_options(self.recipe.backbone))
        return prepare(self.recipe, backbone, progress=progress)

    def _told(self, rounds: Iterator[RoundResult]) -> Iterator[RoundResult]:
        """`rounds`, each told to TensorBoard and MLflow before it is passed on; the report follows anyhow.

        A round that an earlier start finished is told only if that start was killed before it could be.
        """
        from selftrain import report
        from selftrain.report import tracking

        earlier, any_round = self.folder.finished(), False
        try:
            for finished in rounds:
                any_round = True
                tracking.log_round(self.folder, finished, fresh=finished.number >= earlier)
                yield finished
        finally:
            if any_round:
                report.write_report(self.folder)
                tracking.close(self.folder)


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

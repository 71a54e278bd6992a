"""A run: its parts, its folder, and what reads it again.

`SelfTrainer` takes the parts as arguments, `start` and `run` take a recipe; both go round in `Run.rounds`,
which locks the folder, prepares the posts, builds what was not given, loops, and writes the report.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from agents.ask.judge import VLMPanel
from agents.ask.metering import Metered
from agents.errors import TokenCapError
from agents.judgment import Verdict
from agents.panel import Panel
from agents.trust import OnNearChance
from backbones.base import Backbone
from losses.base import RoundLoss
from selftrain import report
from selftrain._util.plugins import name_of
from selftrain._util.types import Json
from selftrain.build import (
    build_loss,
    build_panel,
    build_reviewers,
    build_selector,
    build_settings,
    build_trainer,
)
from selftrain.config import Recipe, load_recipe
from selftrain.data.posts import Post
from selftrain.data.preparation import PreparedData, SplitPosts, prepare, prepare_split
from selftrain.data.task import dump_task
from selftrain.errors import RecipeError
from selftrain.loop import self_train
from selftrain.models.pretrained import build_backbone
from selftrain.models.run_predictor import stored_recipe
from selftrain.models.trainer import Trainer
from selftrain.report import tracking
from selftrain.report.cost import RunCost, estimate_cost
from selftrain.report.status import missing_reviews
from selftrain.review.reviewers import Reviewers
from selftrain.rounds import RoundResult
from selftrain.selection import Selector, TopK
from selftrain.state import RoundLimits
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder, read_jsonl

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
        return Run(out, recipe)
    return Run(out, load_recipe(recipe, overrides), Path(recipe).name)


def run(
    recipe: Recipe | Path | str, out: Path | str, overrides: Sequence[str] = (), *, progress: bool = False
) -> Run:
    """Run a recipe to its end, going on where its folder stands; `start` gives the rounds one by one.

    Raises:
        RecipeError: The recipe cannot be understood.
        SelftrainError, or an error of a leaf's tree: As `Run.rounds`.
    """
    begun = start(recipe, out, overrides)
    for _ in begun.rounds(progress=progress):
        pass
    return begun


class Parts(NamedTuple):
    """What a `SelfTrainer` was given; None: the recipe's own."""

    data: SplitPosts
    backbone: Backbone | None
    classifier: Trainer[Any] | None
    selector: Selector
    panel: Panel | None
    loss: RoundLoss | None
    reviewers: Callable[[RunFolder], Reviewers] | None


class SelfTrainer:
    """Self-training in Python: parts in, finished rounds out.

    Each part is what a recipe would build, or one of your own that has the same methods.

    Args:
        backbone: Posts to features; None: `backbones.MiniLMEfficientNet`.
        classifier: Fits and scores models; None: a `HeadTrainer`.
        selector: Chooses whom the agents judge; None: `TopK()`.
        panel: The agents; None: offline agents, which learn from the labels.
        loss: None: `losses.PNULoss`.
        reviewers: Builds who reviews for the run's folder, as ``partial(HumanReview, budget=200)``; None:
            nobody.
        seed: Of every draw.
        limits: When to stop; None: `RoundLimits()`.
        retract_flipped: Whether an accepted post whose label the best model no longer gives loses it.
        start: Whether each round trains from "pretrained" weights or from the "best" model.
        on_near_chance: What to do when an agent may be guessing.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None = None,
        classifier: Trainer[Any] | None = None,
        selector: Selector | None = None,
        panel: Panel | None = None,
        loss: RoundLoss | None = None,
        reviewers: Callable[[RunFolder], Reviewers] | None = None,
        seed: int = 0,
        limits: RoundLimits | None = None,
        retract_flipped: bool = True,
        start: Literal["pretrained", "best"] = "pretrained",
        on_near_chance: OnNearChance = "continue",
    ) -> None:
        self._parts = (backbone, classifier, selector or TopK(), panel, loss, reviewers)
        self._seed, self._limits, self._start = seed, limits or RoundLimits(), start
        self._retract_flipped, self._on_near_chance = retract_flipped, on_near_chance

    def fit(self, data: SplitPosts, out: Path | str, *, progress: bool = False) -> Iterator[RoundResult]:
        """Yield every round; called again with the same posts and folder, it goes on where it stands.

        The folder is that of a run like any other: `selftrain show`, `report` and `compare` read it.

        Raises:
            RunMismatchError: The folder holds a run of other parts or posts.
            SelftrainError, or an error of a leaf's tree: see their modules.
        """
        parts = Parts(data, *self._parts)
        yield from Run(out, self._recipe(parts), parts=parts).rounds(progress=progress)

    def _recipe(self, parts: Parts) -> Recipe:
        """Describe the parts as a recipe does: the folder keeps it, and refuses to go on with another one."""
        selector, limits = parts.selector, self._limits
        chosen = (
            {"k": selector.k, "shares": selector.shares}
            if isinstance(selector, TopK)
            else {"kind": name_of(selector)}
        )
        own = {
            "agents": parts.panel, "loss": parts.loss, "classifier": parts.classifier,
        }  # fmt: skip
        named = {section: {"kind": name_of(part)} for section, part in own.items() if part is not None}
        named["agents"] = named.get("agents", {}) | {"on_near_chance": self._on_near_chance}
        if parts.backbone is not None:
            named["backbone"] = {"name": name_of(parts.backbone)}
        return Recipe.model_validate(
            {
                "seed": self._seed,
                "data": parts.data.section,
                "selection": chosen
                | {
                    "reselect_divergent": limits.reselect_divergent,
                    "retract_flipped": self._retract_flipped,
                },
                "rounds": {
                    "max": limits.rounds, "patience": limits.patience, "budget": limits.budget,
                    "start": self._start,
                },
                **named,
            }
        )  # fmt: skip


class Run:
    """A run's folder, and the recipe and parts that it goes on with.

    Attributes:
        folder: Where everything is written.
        name: The recipe's file name; empty for one that was built in Python.
        stopped: Why `rounds` ended before the loop did: the token cap, or reviews that are missing. Empty
            otherwise.
    """

    def __init__(
        self, out: Path | str, recipe: Recipe | None = None, name: str = "", parts: Parts | None = None
    ) -> None:
        self._recipe, self._parts = recipe, parts
        self.folder = RunFolder(out)
        self.name = name
        self.stopped = ""

    @property
    def recipe(self) -> Recipe:
        """The recipe, that of the folder where none was given.

        Raises:
            RunStateError: No run folder, or a damaged one.
        """
        return self._recipe or stored_recipe(self.folder)

    def grown(self) -> list[Post]:
        """Return the grown dataset: labelled and accepted posts, each with its `extra["provenance"]`.

        Raises:
            RunStateError: No run folder, or a damaged one.
        """
        root = self.recipe.data.manifest.parent
        return [post_from_json(row, root) for row in read_jsonl(self.folder.path / "grown.jsonl")]

    def verdicts(self, round: int) -> list[Verdict]:  # noqa: A002 -- the word of the field
        """Return what classifier and agents said of every candidate of a round, with each rationale.

        Raises:
            RunStateError: A damaged folder.
        """
        return self.folder.verdicts(round)

    def rounds(self, *, progress: bool = False) -> Iterator[RoundResult]:
        """Go on with the run and yield every round, those finished earlier first.

        The folder is locked until the iterator is exhausted or closed.

        Raises:
            SelftrainError, or an error of a leaf's tree: see their modules.
        """
        recipe, parts = self.recipe, self._parts
        with self.folder.locked():
            # ---- lock, and refuse another recipe before anything is computed --------------------------
            self.folder.check_recipe(recipe.model_dump(mode="json"))
            if recipe.threads:
                torch.set_num_threads(recipe.threads)

            # ---- prepare the posts, build what was not given -------------------------------------------
            prepared = self._prepared(progress=progress)
            corpus, task = prepared.corpus, prepared.task
            panel = (parts and parts.panel) or build_panel(
                recipe, task, corpus, out=self.folder.path, progress=progress
            )
            environment = _environment(recipe) | {
                "recipe": self.name,
                "identity": prepared.identity,
                "agents": panel.describe(),
                "simulated": panel.simulated,
                "classes": {"positive": corpus.positive, "negative": corpus.negative},
                "splits": {n: len(getattr(corpus, n)) for n in ("labelled", "validation", "pool", "test")},
            }
            self.folder.begin(recipe.model_dump(mode="json"), environment)
            atomic.write_jsonl(self.folder.path / "quarantine.jsonl", prepared.quarantine)
            dump_task(task, self.folder.path / "task.toml")
            reviewers = (
                parts.reviewers(self.folder)
                if parts and parts.reviewers
                else build_reviewers(recipe, self.folder, task, corpus.posts, progress=progress)
            )

            # ---- loop, and report -----------------------------------------------------------------------
            rounds = self_train(
                corpus,
                (parts and parts.classifier) or build_trainer(recipe, progress=progress),
                panel,
                selector=parts.selector if parts else build_selector(recipe),
                loss=(parts and parts.loss) or build_loss(recipe),
                folder=self.folder,
                settings=build_settings(recipe),
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
        """Estimate what the run's vision-language agents would cost; see `selftrain.report.cost`.

        Raises:
            RecipeError: The recipe asks other agents, which cost nothing.
            SelftrainError, AgentError: As `rounds`.
        """

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
        """The posts with their features, on the backbone given or a newly loaded one."""
        recipe, parts = self.recipe, self._parts
        backbone = (parts and parts.backbone) or build_backbone(recipe)
        if parts is None:
            return prepare(recipe, backbone, progress=progress)
        return prepare_split(recipe, parts.data, backbone, progress=progress)

    def _told(self, rounds: Iterator[RoundResult]) -> Iterator[RoundResult]:
        """`rounds`, each told to TensorBoard and MLflow before it is passed on; the report follows anyhow.

        A round that an earlier start finished is told only if that start was killed before it could be.
        """
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


def post_from_json(record: Json, root: Path) -> Post:
    """Return the post of a line of grown.jsonl, its images relative to `root`."""
    images = tuple(root / name for name in record["images"])
    extra = {"provenance": record["provenance"]}
    return Post(
        record["id"], record["text"], images, record["label"], process=record.get("process", {}), extra=extra
    )

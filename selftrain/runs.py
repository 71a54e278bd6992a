"""A run: its parts, its folder, and what reads it again.

`SelfTrainer` takes the parts as arguments, `start` and `run` take a recipe; both go round in `Run.rounds`,
which locks the folder, prepares the posts, builds what was not given, loops, and writes the report.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from agents.ask.metering import Metered
from agents.errors import TokenCapError
from agents.judgment import Verdict
from agents.panel import Panel
from agents.trust import OnNearChance
from backbones.base import Backbone
from losses.base import RoundLoss
from losses.pnu import PNULoss
from selftrain import build as building
from selftrain._util.toml_sections import checked
from selftrain._util.types import Json
from selftrain.config import Recipe, load_recipe, stored_recipe
from selftrain.data.columns import COLUMNS
from selftrain.data.context import ForRun, RunContext
from selftrain.data.posts import Post
from selftrain.data.preparation import PreparedData, SplitPosts, prepare, prepare_split
from selftrain.data.task import dump_task
from selftrain.engine.mapping import Engine
from selftrain.errors import DataError, RecipeError, RunStateError
from selftrain.loop import self_train
from selftrain.models.pretrained import build_backbone
from selftrain.models.trainer import HeadTrainer, Trainer
from selftrain.panels import AskedForNothing, ModelServers, OfflinePanel, VLMPanel
from selftrain.report import run_page, tracking
from selftrain.report.cost import RunCost, estimate_cost, most_candidates
from selftrain.report.status import missing_reviews
from selftrain.review.reviewers import HumanReview, Reviewers
from selftrain.rounds import RoundResult
from selftrain.selection import Selector
from selftrain.state import RoundLimits, Start
from selftrain.store import checksums
from selftrain.store.mirror import Mirror
from selftrain.store.run_dir import RunFolder, read_jsonl
from selftrain.verification.panel_check import PanelCheck, check_panel
from selftrain.verification.rules import VerdictRule

logger = logging.getLogger(__name__)

_DISTRIBUTIONS = ("selftrain", "torch", "open_clip_torch", "transformers", "peft", "numpy", "scikit-learn")


def start(
    recipe: Recipe | Path | str,
    out: Path | str,
    overrides: Sequence[str] = (),
    *,
    engine: Engine | None = None,
    mirror: str | None = None,
) -> Run:
    """Return a run of `recipe` in the folder `out`; nothing is computed yet.

    Args:
        recipe: A recipe, or the path of one.
        out: The run folder; a run that is already there goes on if its recipe is the same.
        overrides: ``section.key=value``, for a recipe given by its path.
        engine: Who computes features, in place of the recipe's.
        mirror: ``s3://BUCKET/PREFIX`` where the folder is kept too, see `selftrain.store.mirror`.

    Raises:
        RecipeError: The recipe cannot be understood.
    """
    if isinstance(recipe, Recipe):
        return Run(out, recipe, engine=engine, mirror=mirror)
    return Run(out, load_recipe(recipe, overrides), Path(recipe).name, engine=engine, mirror=mirror)


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


class SelfTrainer:
    """Self-training in Python: parts in, finished rounds out.

    Each part is what a recipe would build, or one of your own that has the same methods. The folder keeps the
    parts' classes and arguments, as far as these are plain values, and goes on with the same ones only.

    Args:
        backbone: Posts to features; None: `backbones.MiniLMEfficientNet`.
        classifier: Fits and scores models; None: a `HeadTrainer`.
        selector: Chooses whom the agents judge; None: `TopK()` under `Unanimous`, else `Uncertain()`.
        panel: The agents; None: an `OfflinePanel`, which learns from the labels.
        loss: None: `losses.PNULoss`.
        rule: Decides which verdicts become labels; None: `PosteriorRule()`, but `Unanimous()`, the article's,
            for agents that learn from the labels alone, see `selftrain.config.default_rule`.
        folds: Parts in which labelled posts are left out, see `verification.folds` of a recipe.
        reviewers: People, as `HumanReview(budget=200)`; None: nobody is asked, but reviews of the run that
            are there count.
        seed: Of every draw.
        limits: When to stop; None: `RoundLimits()`.
        retract_flipped: Whether an accepted post whose label the best model no longer gives loses it.
        start: Whether each round trains from "pretrained" weights or from the "best" model.
        on_near_chance: What to do when an agent may be guessing; None: "stop" where a `VLMPanel` is asked,
            else "continue".

    Raises:
        RecipeError: A part lacks a method that the loop calls, or is a class instead of an object of it.
    """

    def __init__(
        self,
        *,
        backbone: Backbone | None = None,
        classifier: Trainer[Any] | ForRun[Trainer[Any]] | None = None,
        selector: Selector | None = None,
        panel: Panel | ForRun[Panel] | None = None,
        loss: RoundLoss | None = None,
        rule: VerdictRule | None = None,
        folds: int = 5,
        reviewers: Reviewers | ForRun[Reviewers | None] | None = None,
        seed: int = 0,
        limits: RoundLimits | None = None,
        retract_flipped: bool = True,
        start: Start = "pretrained",
        on_near_chance: OnNearChance | None = None,
    ) -> None:
        # not `or`: a part that is empty, a list say, is a part
        panel = OfflinePanel() if panel is None else panel
        rule = building.default_rule_for(panel) if rule is None else rule
        self._parts = building.Parts(
            classifier=HeadTrainer() if classifier is None else classifier,
            selector=building.default_selector_for(rule) if selector is None else selector,
            panel=panel,
            loss=PNULoss() if loss is None else loss,
            rule=rule,
            reviewers=HumanReview() if reviewers is None else reviewers,
            backbone=backbone,
        )
        self._folds = folds
        self._seed, self._limits, self._start = seed, limits or RoundLimits(), start
        self._retract_flipped, self._on_near_chance = retract_flipped, on_near_chance

    def fit(self, data: SplitPosts, out: Path | str, *, progress: bool = False) -> Iterator[RoundResult]:
        """Yield every round; called again with the same posts and folder, it goes on where it stands.

        The folder is that of a run like any other: `selftrain show`, `report` and `compare` read it.

        Raises:
            DataError: The posts are not in their splits.
            RecipeError: A setting outside its range.
            RunMismatchError: The folder holds a run of other parts or posts; the message names what differs.
            SelftrainError, or an error of a leaf's tree: see their modules.
        """
        if not isinstance(data, SplitPosts):
            raise DataError(f"data is a {type(data).__name__}: expected posts in their splits, by `st.split`")
        run = Run(out, self._recipe(data), parts=self._parts, data=data)
        yield from run.rounds(progress=progress)

    def _recipe(self, data: SplitPosts) -> Recipe:
        """Return the recipe that would build the same parts."""
        sections, limits = building.describe(self._parts), self._limits
        sections["selection"] |= {
            "reselect_divergent": limits.reselect_divergent, "retract_flipped": self._retract_flipped,
        }  # fmt: skip
        sections["agents"] |= {"on_near_chance": self._on_near_chance}
        sections["verification"] |= {"folds": self._folds}
        sections["rounds"] = {
            "max": limits.rounds, "patience": limits.patience, "budget": limits.budget, "start": self._start,
        }  # fmt: skip
        table = {"seed": self._seed, "data": data.section, **sections}
        return checked(Recipe, table, "the SelfTrainer, as a recipe would have its parts,")


class Run:
    """A run's folder, and the recipe and parts that it goes on with.

    Args:
        out: The folder.
        recipe: None: that of the folder.
        name: The recipe's file name; empty for one that was built in Python.
        parts: None: those of the recipe.
        data: Posts in their splits; None: those that the recipe names.
        engine: Who computes features; None: whom the recipe names.
        mirror: ``s3://BUCKET/PREFIX`` where the folder is kept too; None: nowhere.

    Attributes:
        folder: Where everything is written.
        earlier: Rounds that were finished when `rounds` began, here or on another machine.
        stopped: Why `rounds` ended before the loop did: the token cap, or reviews that are missing. Empty
            otherwise.
    """

    def __init__(
        self,
        out: Path | str,
        recipe: Recipe | None = None,
        name: str = "",
        *,
        parts: building.Parts | None = None,
        data: SplitPosts | None = None,
        engine: Engine | None = None,
        mirror: str | None = None,
    ) -> None:
        self._recipe, self._name, self._parts, self._data = recipe, name, parts, data
        self._engine, self._mirror = engine, mirror
        self.folder = RunFolder(out, kept_at=(mirror or "").rstrip("/"))
        self.earlier = 0
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
            RunStateError: No such round is finished, no run folder, or a damaged one.
        """
        finished = self.folder.finished()
        if round not in range(finished):
            self.folder.recipe()  # no run folder: said before anything else
            raise RunStateError(
                f"{self.folder.path} has no finished round {round!r}: expected 0 to {finished - 1}"
                if finished
                else f"{self.folder.path} has no finished round yet"
            )
        return self.folder.verdicts(round)

    def rounds(self, *, progress: bool = False) -> Iterator[RoundResult]:
        """Go on with the run and yield every round, those finished earlier first.

        The folder is locked until the iterator is exhausted or closed.

        Raises:
            SelftrainError, or an error of a leaf's tree: see their modules.
        """
        recipe, folder = self.recipe, self.folder
        with folder.locked(), self._mirrored() as publish, _threads(recipe.threads):
            self.earlier = folder.finished()
            # ---- refuse another recipe before anything is computed ------------------------------------
            folder.check_recipe(recipe.model_dump(mode="json"))

            # ---- build the parts, prepare the posts ----------------------------------------------------
            parts = self._built(progress=progress)
            prepared = self._prepared(parts, progress=progress)
            context = building.run_context(recipe, folder, prepared, progress=progress)
            if isinstance(parts.panel, AskedForNothing) and not folder.finished():
                for warning in self._checked(parts.panel, context).warnings():
                    logger.warning("%s", warning)
            panel: Panel = parts.in_run("panel", context)
            folder.begin(recipe.model_dump(mode="json"), self._environment(prepared, panel), prepared.posts)
            checksums.write_jsonl(folder.path / "quarantine.jsonl", prepared.quarantine)
            copied = folder.path / "task.toml"
            dump_task(prepared.task, copied)
            checksums.note_written(copied)
            reviewers: Reviewers | None = parts.in_run("reviewers", context)

            # ---- loop, and report -----------------------------------------------------------------------
            rounds = self_train(
                prepared.corpus, parts.in_run("classifier", context), panel,
                selector=parts.selector, loss=parts.loss, rule=parts.rule, folder=folder,
                settings=building.build_settings(recipe), reviewers=reviewers, before=prepared.stages,
            )  # fmt: skip
            try:
                # closed while the folder is held: what it writes at its end is kept too
                with closing(self._logged(rounds)) as logged:
                    for finished in logged:
                        publish()
                        yield finished
                self.stopped = missing_reviews(folder) or ""
            except TokenCapError as error:
                # no fault: what the recipe allows is spent, and the rounds that are finished stand
                self.stopped = str(error)
            finally:
                if isinstance(panel, Metered):
                    panel.close()
                if reviewers is not None:
                    reviewers.close()

    def _mirrored(self) -> AbstractContextManager[Callable[[], None]]:
        """Return what holds the mirror, and gives what brings it in line with the folder."""
        if self._mirror is None:
            return nullcontext(lambda: None)
        if self.recipe.human.budget:
            raise RecipeError(
                f"human.budget is {self.recipe.human.budget}: people's reviews are a database in the run's"
                " folder, which is not kept on object storage; go on without --mirror, on a shared disk"
            )
        return Mirror(self._mirror, self.folder.path).held()

    def estimate(self, *, progress: bool = False) -> RunCost | PanelCheck:
        """Estimate what the run's agents would cost, or, where that is nothing, what they are worth.

        Raises:
            RecipeError: The recipe asks agents of the user's own, or none.
            SelftrainError, AgentError: As `rounds`.
        """
        parts = self._built()
        if not isinstance(parts.panel, VLMPanel | AskedForNothing):
            raise RecipeError(
                f'agents.kind is "{self.recipe.agents.kind}": nothing is known of what these cost, or of what'
                " they are worth, before they are asked"
            )
        prepared = self._prepared(parts, progress=progress)
        context = building.run_context(self.recipe, self.folder, prepared, progress=progress)
        if isinstance(parts.panel, AskedForNothing):
            return self._checked(parts.panel, context)
        # the cap is what the estimate is held against, not what may stop its probe
        panel = parts.panel.model_copy(update={"token_cap": None}).for_run(context)
        try:
            return estimate_cost(self.recipe, prepared.corpus, panel)
        finally:
            panel.close()

    def _built(self, *, progress: bool = False) -> building.Parts:
        """Build the parts; that no call to a model could be sent is said before anything is computed."""
        parts = self._parts or building.build(self.recipe, progress=progress)
        critic = parts.reviewers.critic() if isinstance(parts.reviewers, HumanReview) else None
        for model in (parts.panel, critic):
            if isinstance(model, ModelServers) and not self.folder.finished():
                model.check_routes()
        return parts

    def _checked(self, panel: AskedForNothing, context: RunContext) -> PanelCheck:
        corpus = context.corpus
        asked = len(corpus.labelled) + min(most_candidates(self.recipe), len(corpus.pool))
        return check_panel(
            panel.for_run(context), corpus, asked=asked, advice=panel.when_silent, seed=self.recipe.seed
        )

    def _prepared(self, parts: building.Parts, *, progress: bool) -> PreparedData:
        """Return the posts with their features, on the backbone given or a newly loaded one."""
        if self._data is None and self.recipe.data.task == Path():
            raise RunStateError(
                f"{self.folder.path} was begun in Python, where the task was an object: go on with"
                " `SelfTrainer.fit` on the same posts and parts"
            )
        if parts.backbone is None:
            backbone, pool = build_backbone(self.recipe), building.encoder_pool(self.recipe, self._engine)
        else:
            backbone, pool = parts.backbone, None
        if self._data is None:
            return prepare(self.recipe, backbone, progress=progress, pool=pool)
        return prepare_split(self.recipe, self._data, backbone, progress=progress, pool=pool)

    def _environment(self, prepared: PreparedData, panel: Panel) -> Json:
        """Return what the run is made with and on, for environment.json."""
        recipe, corpus = self.recipe, prepared.corpus
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
            "recipe": self._name,
            "identity": prepared.identity | building.digests_of_files(recipe),
            "agents": panel.describe(),
            "simulated": panel.simulated,
            "classes": {"positive": corpus.positive, "all": list(corpus.shown)},
            "splits": {n: len(getattr(corpus, n)) for n in ("labelled", "validation", "pool", "test")},
        }

    def _logged(self, rounds: Iterator[RoundResult]) -> Generator[RoundResult]:
        """Yield `rounds`, each logged to TensorBoard and MLflow before; the report follows anyhow.

        A round that an earlier start finished is logged only if that start was killed before it could be.
        """
        earlier, any_round = self.folder.finished(), False
        try:
            for finished in rounds:
                any_round = True
                tracking.log_round(self.folder, finished, fresh=finished.number >= earlier)
                yield finished
        finally:
            if any_round:
                run_page.write_report(self.folder)
                tracking.close(self.folder)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads inside, and with its own afterwards; None: with its own."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _git_commit() -> str | None:
    """Return the commit of the checkout this code runs from; None for an installed wheel."""
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
    video = root / record["video"] if "video" in record else None
    extra = {name: value for name, value in record.items() if name not in COLUMNS}
    process = record.get("process", {})
    return Post(record["id"], record["text"], images, record["label"], process, extra, video)

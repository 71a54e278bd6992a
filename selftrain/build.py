"""From a recipe to objects: agents and what serves them, trainer, loss, settings, reviewers. Nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.ask.annotator import AnnotationPrompts
from agents.ask.cache import ResponseCache
from agents.ask.criticizer import Criticizer
from agents.ask.judge import JudgePrompts, VLMAgent, VLMPanel
from agents.ask.metering import UsageTotals
from agents.ask.prepare import Opener
from agents.ask.prompt_files import Brief
from agents.ask.protocols import PROTOCOLS
from agents.ask.questioner import Questioner, QuestionPrompts
from agents.ask.runner import Runner
from agents.client.base import Backend
from agents.client.client import ChatClient
from agents.judgment import PostLike
from agents.offline.offline_agent import offline_agents
from agents.panel import AgentPanel, NoPanel, Panel
from agents.replayed import AnswersPanel, replayed_agents
from agents.simulated import SimulatedAgent, symmetric
from losses.base import RoundLoss
from losses.pnu import PNULoss
from selftrain._util.plugins import build_own, is_own
from selftrain._util.types import Float32Array
from selftrain.models.pretrained import finetuning_backbone
from selftrain.selection import Mixed, RandomPosts, Selector, TopK, Uncertain

if TYPE_CHECKING:
    from PIL import Image

    from selftrain.annotation.question_plan import AnnotationSettings
    from selftrain.config import AgentsSection, Recipe, VlmSection
    from selftrain.data.corpus import Corpus
    from selftrain.data.posts import Post
    from selftrain.data.task import Task
    from selftrain.loop import LoopSettings
    from selftrain.models.finetune import BackboneTrainer
    from selftrain.review.criticism import LoopCriticizer
    from selftrain.review.reviewers import HumanReview
    from selftrain.store.run_dir import RunFolder

logger = logging.getLogger(__name__)

CACHE = "responses.sqlite"
"""Beside the run folders, so that all runs of a folder share what was paid for."""


def build_vlm_panel(recipe: Recipe, task: Task, out: Path, *, progress: bool = False) -> VLMPanel:
    """Build the agents of a recipe's `vlm` section; nothing is asked yet.

    Args:
        recipe: Its `vlm` section says all but the seed.
        task: Classes and policy.
        out: The run folder.
        progress: Whether to show bars.

    Raises:
        PromptFileError, StoreError: With what to do.
    """
    section = recipe.vlm
    runner = build_runner(
        section, cache_beside(out, section.store), run=str(out.resolve()),
        max_pixels=recipe.data.max_image_pixels, progress=progress,
    )  # fmt: skip
    return VLMPanel(
        runner,
        build_vlm_agent(recipe, task),
        always_cross_review=section.always_cross_review,
        settings=_shown_settings(section),
    )


def cache_beside(path: Path, named: Path | None = None) -> ResponseCache:
    """Open the answers paid for so far: in the file that is named, else beside `path`.

    Raises:
        StoreError: With what to do.
    """
    return ResponseCache(named or path.resolve().parent / CACHE)


def build_runner(
    section: VlmSection, cache: ResponseCache, *, run: str, max_pixels: int, progress: bool = False
) -> Runner:
    """Build what asks a model about many posts; nothing is asked yet.

    Args:
        section: Where it is served, how pictures are sent, how many calls at a time, what they may cost.
        cache: Where answers are kept; not closed by the runner.
        run: Who pays.
        max_pixels: Most pixels of an image file.
        progress: Whether to show bars.
    """
    return Runner(
        build_backend(section), cache, run=run, opener=opener(max_pixels), image_side=section.image_side,
        max_images=section.max_images, width=section.concurrency * max(1, len(section.servers)),
        attempts=section.attempts, token_cap=section.token_cap, progress=bar if progress else None,
    )  # fmt: skip


def build_vlm_agent(recipe: Recipe, task: Task) -> VLMAgent:
    """Build prompts and answer schema of a recipe.

    Raises:
        PromptFileError: A prompt file that cannot be used.
    """
    section = recipe.vlm
    prompts = JudgePrompts(brief_of(task), folder=section.prompts, text_chars=section.text_chars)
    return VLMAgent(
        prompts, PROTOCOLS[section.protocol], form=section.form, rationale_chars=section.rationale_chars,
        examples=section.examples, seed=recipe.seed,
    )  # fmt: skip


def opener(max_pixels: int) -> Opener:
    """Return what opens image files whose header claims at most `max_pixels`."""

    def opened(path: Path, side: int) -> Image.Image:
        from backbones.images import open_image

        return open_image(path, max_pixels=max_pixels, target_size=side)

    return opened


def build_backend(section: VlmSection) -> Backend:
    """Return the client of the servers that a recipe names."""
    return ChatClient(
        section.servers, model=section.model, revision=section.revision,
        key_variable=section.key_variable, maximum=section.concurrency, timeout=section.timeout,
        retries=section.retries, patience=section.patience, on_event=_log,
    )  # fmt: skip


def brief_of(task: Task) -> Brief:
    """Return a task as agents read it."""
    return Brief(task.name, task.policy, {one.name: one.meaning for one in task.classes}, dict(task.roles))


def _shown_settings(section: VlmSection) -> dict[str, object]:
    """Return the settings that a reader of the run wants to know; never the key."""
    shown = section.model_dump(mode="json", exclude={"key_variable", "store", "token_cap"})
    return {"vlm": {key: value for key, value in shown.items() if value is not None}}


def _log(event: str, figures: Mapping[str, Any]) -> None:
    """A server that is lost or found is told at once: whoever waits wants to know for what."""
    if event == "down":
        logger.warning("a model server is down, calls go elsewhere or wait: %s", figures["reason"])
    elif event == "up":
        logger.info("%s answers", figures["endpoint"])
    else:
        logger.debug("%s %s", event, dict(figures))


def bar(what: str, total: int) -> Callable[[UsageTotals], None]:
    """Show a bar over posts, with calls, stored answers and failures."""
    from tqdm import tqdm

    shown = tqdm(total=total, desc=what, unit="post")

    def told(usage: UsageTotals) -> None:
        shown.set_postfix(calls=usage.calls, stored=usage.stored, failed=usage.failed, refresh=False)
        shown.update()
        if shown.n >= total:
            shown.close()

    return told


def build_panel(
    recipe: Recipe, task: Task, corpus: Corpus, *, out: Path | None = None, progress: bool = False
) -> Panel:
    """Build the agents of a recipe.

    Args:
        recipe: Which agents, with which settings; its seed fixes every draw.
        task: What vision-language agents are told of.
        corpus: Gives the image features to agents that look at images, and the truth to simulated ones.
        out: The run folder; vision-language agents keep their answers beside it.
        progress: Whether agents that take long show how far they are.

    Raises:
        AgentError: Agents that cannot be built as asked.
    """
    section, seed = recipe.agents, recipe.seed
    if is_own(section.kind):
        panel: Panel = build_own(section.kind, section.options, "agents.kind")
        return panel
    classes = (corpus.positive, corpus.negative)
    match section.kind:
        case "vlm":
            assert out is not None, "vision-language agents are asked for a run"
            return build_vlm_panel(recipe, task, out, progress=progress)
        case "none":
            return NoPanel()
        case "offline":
            return AgentPanel(offline_agents(classes, image_vectors=_image_vectors(corpus), seed=seed))
        case "replayed":
            return _replayed_panel(section, corpus)
        case "simulated":
            truth = {
                post.id: corpus.class_name(int(value))
                for post, value in zip(corpus.posts, corpus.truth, strict=True)
                if value >= 0
            }
            confusion = symmetric(classes, section.accuracy)
            roles = ("reviewer", "user")
            return AgentPanel(
                [SimulatedAgent(r, truth, confusion, abstention=section.abstention, seed=seed) for r in roles]
            )
    raise AssertionError(f"the recipe checks agents.kind, found {section.kind!r}")


def _replayed_panel(section: AgentsSection, corpus: Corpus) -> Panel:
    """Build agents from files; posts that a file of answers does not hold are told before the run begins."""
    if section.file is not None:
        return AgentPanel(replayed_agents(section.file))
    panel = AnswersPanel(section.files, (corpus.positive, corpus.negative))
    asked = [corpus.posts[position] for position in (*corpus.labelled, *corpus.pool)]
    for missing in panel.missing(asked):
        logger.warning("%s", missing)
    return panel


class _ImageVectors:
    """Posts to the image blocks of their feature rows; zeros where a post has no image."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._position_of = {post.id: position for position, post in enumerate(corpus.posts)}

    def __call__(self, posts: Sequence[PostLike]) -> Float32Array:
        assert self._corpus.table is not None, "features are extracted before the agents look"
        positions = np.array([self._position_of[post.id] for post in posts], dtype=np.int64)
        return self._corpus.rows(positions)[:, self._corpus.table.layout.image]


def _image_vectors(corpus: Corpus) -> _ImageVectors | None:
    """None when no post has an image: then the agents look at texts only."""
    return _ImageVectors(corpus) if any(post.images for post in corpus.posts) else None


_SELECTORS: Mapping[str, Callable[..., Selector]] = {
    "top_k": TopK,
    "uncertain": Uncertain,
    "random": RandomPosts,
    "mixed": Mixed,
}


def build_selector(recipe: Recipe) -> Selector:
    """Build what chooses the candidates."""
    section = recipe.selection
    if is_own(section.kind):
        selector: Selector = build_own(section.kind, section.options, "selection.kind")
        return selector
    given: dict[str, Any] = {"k": section.k, "shares": section.shares, "mix": section.mix}
    if section.kind != "mixed":
        del given["mix"]
    return _SELECTORS[section.kind](**{key: value for key, value in given.items() if value is not None})


def build_loss(recipe: Recipe) -> RoundLoss:
    """Build the loss of a recipe. A setting that the form does not read is left at its default."""
    section = recipe.loss
    if is_own(section.kind):
        loss: RoundLoss = build_own(section.kind, section.options, "loss.kind")
        return loss
    options: dict[str, Any] = {"form": section.form, "balance": section.balance}
    if section.form != "convex" and section.lambda_soft != "count":
        options["lambda_soft"] = section.lambda_soft
    if section.form in ("weighted", "nnpu", "pn"):
        options["lambda_u"] = section.lambda_unlabelled
    if isinstance(section.theta, float):
        options["theta"] = section.theta
    return PNULoss(**options, soft_positive=section.soft_positive)


def build_settings(recipe: Recipe) -> LoopSettings:
    """The loop's plain arguments."""
    from selftrain.loop import LoopSettings
    from selftrain.state import RoundLimits

    return LoopSettings(
        seed=recipe.seed,
        retract_flipped=recipe.selection.retract_flipped,
        start=recipe.rounds.start,
        limits=RoundLimits(
            recipe.rounds.max,
            recipe.rounds.patience,
            recipe.rounds.budget,
            recipe.selection.reselect_divergent,
        ),
        root=recipe.data.manifest.parent,
        on_near_chance=recipe.agents.on_near_chance
        or ("stop" if recipe.agents.kind == "vlm" else "continue"),
    )


def build_trainer(recipe: Recipe, *, progress: bool = False) -> Any:  # noqa: ANN401 -- a Trainer of some model
    """The trainer of `classifier.train`: the head on cached features, or the backbone with it."""
    section = recipe.classifier
    if is_own(section.kind):
        return build_own(section.kind, section.options, "classifier.kind")
    if section.train != "head":
        return _build_backbone_trainer(recipe, progress=progress)
    from selftrain.models.head import HeadSettings
    from selftrain.models.trainer import HeadTrainer

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
    from selftrain.models.finetune import BackboneTrainer

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


def build_reviewers(
    recipe: Recipe, folder: RunFolder, task: Task, posts: Iterable[Post], *, progress: bool = False
) -> HumanReview | None:
    """Who reviews for the loop: by the recipe, or because reviews of the run are there; None: nobody.

    Args:
        recipe: Its `human` section, and `vlm` where a model criticizes.
        folder: The run.
        task: Classes and policy.
        posts: Of the run; a criticizer is shown those it is asked about.
        progress: Whether to show bars.

    Raises:
        PromptFileError, StoreError: A criticizer cannot be set up.
    """
    from selftrain.review.ledger_reader import LEDGER
    from selftrain.review.reviewers import HumanReview

    section = recipe.human
    if not section.budget and not (folder.path / LEDGER).exists():
        return None
    criticizer = None
    if section.budget and section.source == "criticizer":
        known = {post.id: post for post in posts}
        criticizer = build_criticizer(recipe, task, folder, known, progress=progress)
    return HumanReview(
        folder,
        criticizer=criticizer,
        budget=section.budget,
        per_round=section.per_round,
        rule=section.rule,
        floor=section.floor,
        double_annotation_rate=section.double_annotation_rate,
        wait=section.wait,
        seed=recipe.seed,
        progress=progress,
    )


def build_criticizer(
    recipe: Recipe, task: Task, folder: RunFolder, posts: Mapping[str, PostLike], *, progress: bool = False
) -> LoopCriticizer:
    """Build the criticizer of a recipe's `human` section; nothing is asked yet.

    Its model is that of the `vlm` section unless `human.servers` names others; how pictures are sent, where
    answers are kept and the token cap are those of `vlm` in any case.

    Raises:
        PromptFileError, StoreError: With what to do.
    """
    from selftrain.review.criticism import LoopCriticizer

    section = recipe.vlm
    if recipe.human.servers:
        section = section.model_copy(update={"servers": recipe.human.servers, "model": recipe.human.model})
    out = folder.path.resolve()
    prompts = AnnotationPrompts(brief_of(task), text_chars=section.text_chars)
    criticizer = Criticizer(
        prompts, recipe.human.strategy, rationale_chars=section.rationale_chars, seed=recipe.seed
    )
    runner = build_runner(
        section, cache_beside(out, section.store), run=str(out),
        max_pixels=recipe.data.max_image_pixels, progress=progress,
    )  # fmt: skip
    return LoopCriticizer(runner, criticizer, posts, folder)


def build_questioner(
    settings: AnnotationSettings,
    task: Task,
    out: Path,
    *,
    prompts: Path | None = None,
    max_failed: float = 0.1,
    progress: bool = False,
) -> Questioner:
    """Build the questioner; nothing is asked yet.

    Args:
        settings: Of `annotation_settings`.
        task: Name, classes and policy.
        out: The manifest that will be written: answers are kept beside it, and the token cap is its own.
        prompts: A folder of prompt files that replace the built-in ones.
        max_failed: The largest share of questions without a usable answer, in [0, 1].
        progress: Whether to show a bar.

    Raises:
        PromptFileError, StoreError: With what to do.
    """
    section = settings.vlm
    runner = build_runner(
        section, cache_beside(out, section.store), run=str(out.resolve()),
        max_pixels=settings.max_pixels, progress=progress,
    )  # fmt: skip
    return Questioner(
        runner,
        QuestionPrompts(brief_of(task), folder=prompts, text_chars=section.text_chars),
        form=section.form or "reason_first",
        rationale_chars=section.rationale_chars,
        seed=settings.seed,
        max_failed=max_failed,
    )

"""From a recipe to vision-language agents: what serves them, their prompts and their store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.vlm.brief import Brief
from agents.vlm.inquiry import Inquiry
from agents.vlm.interview import Interviewer
from agents.vlm.panel import VlmPanel
from agents.vlm.paying import Spending
from agents.vlm.pictures import Opener
from agents.vlm.prompts import Prompts
from agents.vlm.protocols import PROTOCOLS
from agents.vlm.store import AnswerStore

if TYPE_CHECKING:
    from PIL import Image

    from agents.chat.base import Backend
    from agents.criticizer.desk import Desk
    from selftrain.data.task import Task
    from selftrain.recipe import Recipe, VlmSection

logger = logging.getLogger(__name__)

STORE = "judgments.sqlite"
"""Beside the run folders, so that all runs of a folder share what was paid for."""


def build_vlm_panel(recipe: Recipe, task: Task, out: Path, *, progress: bool = False) -> VlmPanel:
    """The agents of a recipe's `vlm` section; nothing is asked yet.

    Args:
        recipe: Its `vlm` section says all but the seed.
        task: Classes and policy.
        out: The run folder.
        progress: Whether to show bars.

    Raises:
        PromptError, StoreError: With what to do.
    """
    section = recipe.vlm
    store = store_beside(out, section.store)
    return VlmPanel(
        build_inquiry(section, store, run=str(out.resolve()), progress=progress),
        build_interviewer(recipe, task),
        PROTOCOLS[section.protocol],
        thorough=section.thorough,
        settings=_told(section),
    )


def store_beside(path: Path, named: Path | None = None) -> AnswerStore:
    """The answers paid for so far: in the file that is named, else beside `path`.

    Raises:
        StoreError: With what to do.
    """
    return AnswerStore(named or path.resolve().parent / STORE)


def build_desk(
    section: VlmSection, store: AnswerStore, *, run: str, max_pixels: int, progress: bool = False
) -> Desk:
    """A model that annotates or criticizes; nothing is asked yet.

    Args:
        section: Where it is served, how pictures are sent, what it may cost.
        store: Where answers are kept; not closed by the desk.
        run: Who pays.
        max_pixels: Most pixels of an image file.
        progress: Whether to show bars.
    """
    from agents.criticizer.desk import Desk

    inquiry = build_inquiry(section, store, run=run, progress=progress)
    return Desk(
        inquiry,
        opener=opener(max_pixels),
        image_side=section.image_side,
        max_images=section.max_images,
    )


def build_inquiry(section: VlmSection, store: AnswerStore, *, run: str, progress: bool) -> Inquiry:
    """What stands between whoever asks and the servers: many calls at a time, each paid for once.

    Args:
        section: What answers, how many calls at a time, what they may cost.
        store: Where answers are kept.
        run: Who pays.
        progress: Whether to show bars.
    """
    return Inquiry(
        build_backend(section), store, run=run, attempts=section.attempts, token_cap=section.token_cap,
        width=section.concurrency * max(1, len(section.servers)), progress=bar if progress else None,
    )  # fmt: skip


def build_interviewer(recipe: Recipe, task: Task) -> Interviewer:
    """Prompts, forms and pictures of a recipe.

    Raises:
        PromptError: A prompt file that cannot be used.
    """
    section = recipe.vlm
    prompts = Prompts(brief_of(task), folder=section.prompts, text_chars=section.text_chars)
    return Interviewer(
        prompts, PROTOCOLS[section.protocol], opener(recipe.data.max_image_pixels), form=section.form,
        rationale_chars=section.rationale_chars, image_side=section.image_side,
        max_images=section.max_images, examples=section.examples, seed=recipe.seed,
    )  # fmt: skip


def opener(max_pixels: int) -> Opener:
    """Opens image files whose header claims at most `max_pixels`."""

    def opened(path: Path, side: int) -> Image.Image:
        from backbones.images import open_image

        return open_image(path, max_pixels=max_pixels, target_size=side)

    return opened


def build_backend(section: VlmSection) -> Backend:
    """What answers: servers over HTTP, or an engine in this process."""
    if section.backend == "in_process":
        from agents.chat.inprocess import InProcessBackend

        return InProcessBackend(section.model, revision=section.revision, images=section.max_images)
    from agents.chat.client import ChatClient

    return ChatClient(
        section.servers, model=section.model, revision=section.revision,
        key_variable=section.key_variable, maximum=section.concurrency, timeout=section.timeout,
        retries=section.retries, patience=section.patience, on_event=_log,
    )  # fmt: skip


def brief_of(task: Task) -> Brief:
    """What agents are told of a task."""
    return Brief(task.name, task.policy, {one.name: one.meaning for one in task.classes}, dict(task.roles))


def _told(section: VlmSection) -> dict[str, object]:
    """The settings that a reader of the run wants to know; never the key."""
    shown = section.model_dump(mode="json", exclude={"key_variable", "store", "token_cap"})
    return {"vlm": {key: value for key, value in shown.items() if value is not None}}


def _log(event: str, figures: Mapping[str, Any]) -> None:
    """A server that is lost or found is told at once: whoever waits wants to know for what."""
    if event == "down":
        logger.warning("a model server is down, calls go elsewhere or wait: %s", figures["reason"])
    elif event == "up":
        logger.info("%s answers", figures["address"])
    else:
        logger.debug("%s %s", event, dict(figures))


def bar(what: str, total: int) -> Callable[[Spending], None]:
    """A bar over posts that tells calls, stored answers and failures."""
    from tqdm import tqdm

    shown = tqdm(total=total, desc=what, unit="post")

    def told(spending: Spending) -> None:
        shown.set_postfix(calls=spending.calls, stored=spending.stored, failed=spending.failed, refresh=False)
        shown.update()
        if shown.n >= total:
            shown.close()

    return told

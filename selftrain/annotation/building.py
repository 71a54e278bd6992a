"""From a recipe's `vlm` section, or addresses alone, to an agent that answers questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from agents.questions.asking import Questioner
from agents.questions.panel import QuestionPanel
from agents.questions.prompts import QuestionPrompts
from selftrain.data.manifest import MAX_PIXELS
from selftrain.data.task import Task
from selftrain.errors import RecipeError
from selftrain.recipe import VlmSection, load_recipe
from selftrain.vlm_panel import brief_of, build_inquiry, opener, store_beside

MAX_FAILED = 0.1
"""The largest share of questions without a usable answer, unless the user says otherwise."""


class Settings(NamedTuple):
    """What an annotation takes from a recipe.

    Attributes:
        vlm: Servers, sampling, pictures, cost; its protocol and prompts are those of judges and not used.
        seed: Of the model's draws.
        max_bad_rows, max_bad_share: Of the manifest, see `manifest.enforce`.
        max_pixels: The largest width x height that an image's header may claim.
    """

    vlm: VlmSection
    seed: int = 0
    max_bad_rows: int = 100
    max_bad_share: float = 0.05
    max_pixels: int = MAX_PIXELS


def settings_of(
    recipe: Path | None = None,
    servers: Sequence[str] = (),
    token_cap: int | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Settings of a recipe, or the defaults, with other servers or another cap where these are given.

    Raises:
        RecipeError: A recipe that cannot be understood, or no server anywhere.
    """
    if recipe is None:
        settings = Settings(VlmSection())
    else:
        read = load_recipe(recipe, overrides)
        data = read.data
        settings = Settings(read.vlm, read.seed, data.max_bad_rows, data.max_bad_share, data.max_image_pixels)
    changed: dict[str, object] = {}
    if servers:
        changed |= {"servers": tuple(servers), "backend": "servers"}
    if token_cap is not None:
        changed["token_cap"] = token_cap
    section = settings.vlm.model_copy(update=changed)
    if section.backend == "servers" and not section.servers:
        raise RecipeError(
            "no server to ask: start one with `selftrain agents serve MODEL` and give its address with"
            " --server, for instance --server http://127.0.0.1:8000, or a recipe whose [vlm] names one"
        )
    return settings._replace(vlm=section)


def build_question_panel(
    settings: Settings,
    task: Task,
    out: Path,
    *,
    prompts: Path | None = None,
    max_failed: float = MAX_FAILED,
    progress: bool = False,
) -> QuestionPanel:
    """The agent; nothing is asked yet.

    Args:
        settings: Of `settings_of`.
        task: Name, classes and policy.
        out: The manifest that will be written: answers are kept beside it, and the token cap is its own.
        prompts: A folder of prompt files that replace the built-in ones.
        max_failed: The largest share of questions without a usable answer, in [0, 1].
        progress: Whether to show a bar.

    Raises:
        PromptError, StoreError: With what to do.
    """
    section = settings.vlm
    questioner = Questioner(
        QuestionPrompts(brief_of(task), folder=prompts, text_chars=section.text_chars),
        opener(settings.max_pixels), form=section.form or "reason_first",
        rationale_chars=section.rationale_chars, image_side=section.image_side,
        max_images=section.max_images, seed=settings.seed,
    )  # fmt: skip
    store = store_beside(out, section.store)
    inquiry = build_inquiry(section, store, run=str(out.resolve()), progress=progress)
    return QuestionPanel(inquiry, questioner, max_failed=max_failed)

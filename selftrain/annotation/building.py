"""From a recipe's `vlm` section, or addresses alone, to an agent that answers questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from backbones.images import MAX_PIXELS
from selftrain.config import VlmSection, load_recipe
from selftrain.errors import RecipeError

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
        changed |= {"servers": tuple(servers)}
    if token_cap is not None:
        changed["token_cap"] = token_cap
    section = settings.vlm.model_copy(update=changed)
    if not section.servers:
        raise RecipeError(
            "no server to ask: start one with `selftrain agents serve MODEL` and give its address with"
            " --server, for instance --server http://127.0.0.1:8000, or a recipe whose [vlm] names one"
        )
    return settings._replace(vlm=section)

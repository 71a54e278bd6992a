"""``selftrain act train``: a classifier trained with the ACT loss on the reviews of a labelling or a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from selftrain._util.printable import printable
from selftrain.config import load_recipe
from selftrain.errors import RecipeError
from selftrain.review.act_training import train_on_reviews


def train(
    folder: Path,
    out: Path,
    *,
    validation: Path | None = None,
    test: Path | None = None,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    power: float = 1.0,
    seed: int = 0,
) -> None:
    """Train, write the model, and print what it learned from, how good it is and what comes next.

    Raises:
        SelftrainError, BackboneError: Nothing is written.
    """
    if overrides and recipe is None:
        raise RecipeError("--set changes a value of a recipe, and none is given: add --recipe")
    sections = None if recipe is None else load_recipe(recipe, overrides)
    found = train_on_reviews(
        folder, out, validation=validation, test=test,
        backbone=None if sections is None else sections.backbone,
        classifier=None if sections is None else sections.classifier,
        power=power, seed=seed, progress=sys.stderr.isatty(),
    )  # fmt: skip
    print(printable(f"{out}: learned from {found.posts:,} labels, {found.human:,} of them people's"))
    if found.left_out:
        print(f"{len(found.left_out):,} posts could not be encoded and are left out, see act.json")
    if not found.unbiased:
        print(
            "note: some posts had no chance of review (threshold without a floor): as wrong as their labels"
        )
    for split, quality in found.quality.items():
        print(f"{split}: {quality}")
    print(printable(f"next: selftrain predict {shlex.quote(str(out))} MANIFEST --out FILE, or serve, filter"))

"""README and guides keep their word: shell and Python blocks run in order, links and recipes are there.

``make`` would install everything anew, so each of its blocks is held against the Makefile, and what it does
beyond installing is run with the environment of this test.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from selftrain.config import load_recipe

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]
GUIDES = ("README.md", *(f"docs/{f.name}" for f in sorted((CHECKOUT / "docs").glob("*.md"))))
ARTICLE = tuple(f"article/{name}.toml" for name in ("hateful_memes", "hsol", "mami", "sentiment140"))
RECIPES = (*ARTICLE, "emotion.toml", "harmeme.toml", "hsol.toml", "quickstart.toml")
SHOWN = {"text", "toml", "json"}  # fences that are not run
# target -> what it must run, by the Makefile
TARGETS = {
    "quickstart": ("selftrain quickstart",),
    "test": ("ruff check", "ruff format --check", "mypy", "pytest"),
}


class Block(NamedTuple):
    """One fenced block: the guide it stands in, its tag, its text, and the line of its fence."""

    guide: str
    language: str
    code: str
    line: int


def blocks(guide: str = "README.md") -> list[Block]:
    """All fenced blocks of a guide, in order."""
    text = (CHECKOUT / guide).read_text(encoding="utf-8")
    return [
        Block(guide, found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def run_block(block: Block, folder: Path, cache: Path) -> str:
    """What the block prints; where it fails, the test fails with the block's line."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_"))
    }
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "SELFTRAIN_CACHE": str(cache),
    }
    shell = ["bash", "-euo", "pipefail", "-c"]
    command = [sys.executable, "-c"] if block.language == "python" else shell
    done = subprocess.run(
        [*command, block.code],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, f"{block.guide}:{block.line} gave {done.returncode}\n{block.code}\n{said}"
    return done.stdout


def made(target: str) -> str:
    """What ``make TARGET`` would run in a fresh checkout; nothing is run."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def without_make(block: Block) -> Block | None:
    """The block as it is run here; None for ``make test``, which is what is running."""
    (target,) = re.fullmatch(r"make (\w+)\n", block.code).groups()
    for command in TARGETS[target]:
        assert command in made(target), f"make {target} does not run {command}"
    return block._replace(code="selftrain quickstart") if target == "quickstart" else None


def follow(guide: str, folder: Path, cache: Path) -> dict[int, str]:
    """Run every block of a guide in a fresh folder, in order; what each printed, by its line."""
    # the README calls the environment that make leaves by this name
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    said = {}
    for block in blocks(guide):
        runs = block if block.language in ("bash", "python") else None
        if runs is not None and runs.code.startswith("make "):
            runs = without_make(runs)
        if runs is not None:
            said[block.line] = run_block(runs, folder, cache)
    return said


@pytest.fixture(scope="module")
def followed(tmp_path_factory, quickstart_cache):
    """A fresh folder in which every block of the README was run, and what each printed, by its line."""
    folder = tmp_path_factory.mktemp("readme")
    return folder, follow("README.md", folder, quickstart_cache)


@pytest.mark.parametrize("guide", GUIDES)
def test_every_block_says_whether_it_is_run(guide):
    assert {block.language for block in blocks(guide)} <= SHOWN | {"bash", "python"}


def test_the_readme_fits_on_a_few_screens_and_its_blocks_are_run():
    assert len((CHECKOUT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
    assert {"bash", "python"} <= {block.language for block in blocks()}


def test_the_blocks_run_in_order_and_leave_what_the_text_says(followed):
    run = followed[0] / "runs" / "quickstart"
    for file in ("recipe.toml", "environment.json", "quarantine.jsonl", "grown.jsonl"):
        assert (run / file).is_file(), file
    assert (run / "best").resolve().parent == (run / "rounds").resolve()


def test_the_first_steps_lead_to_predictions(tmp_path):
    follow("docs/first-steps.md", tmp_path, tmp_path / "cache")
    for file in ("candidates.jsonl", "verdicts.jsonl", "model.safetensors", "metrics.json"):
        assert (tmp_path / "runs" / "mine" / "rounds" / "0001" / file).is_file(), file
    predicted = [json.loads(line) for line in (tmp_path / "predicted.jsonl").read_text().splitlines()]
    assert [(row["id"], row["label"]) for row in predicted] == [("n1", "spam"), ("n2", "fine")]


def test_every_other_guide_that_has_blocks_to_run_is_followed_somewhere():
    running = {g for g in GUIDES if any(block.language in ("bash", "python") for block in blocks(g))}
    # docs/extending.md: tests/integration/test_extending.py; docs/scale.md: test_ray.py
    assert running == {"README.md", "docs/first-steps.md", "docs/extending.md", "docs/scale.md"}


def test_the_excerpt_is_what_the_quickstart_prints(followed):
    """Digits may differ by machine; the words and the columns may not."""
    _, said = followed
    (first,) = (block for block in blocks() if block.code.startswith("make quickstart"))
    (shown,) = (block for block in blocks() if block.language == "text" and block.code.startswith("drawing"))
    printed = {shape(line) for line in said[first.line].splitlines()}
    for line in shown.code.splitlines():
        assert shape(line) in printed, line


def shape(line: str) -> str:
    """A line without what may differ: digits, outcomes, and the spaces and rules that follow from them."""
    line = re.sub(r"kept|rolled back", "OUTCOME", line)
    return re.sub(r"[\s━─╇┼┃│]+", " ", re.sub(r"[-+]?\d+(\.\d+)?", "N", line)).strip()


def test_a_finished_run_is_told_again_from_python(followed):
    _, said = followed
    (block,) = (block for block in blocks() if block.language == "python")
    *rounds, grown, predicted = said[block.line].splitlines()
    assert [line.split()[0] for line in rounds] == ["0", "1", "2"]
    assert int(grown.split()[0]) >= 60
    assert predicted.count("Prediction(") == 3


@pytest.mark.parametrize("guide", GUIDES)
def test_links_and_pictures_are_in_the_checkout(guide):
    place = CHECKOUT / guide
    for link in re.findall(r"\]\(([^)#\s]+)\)", place.read_text(encoding="utf-8")):
        assert "://" in link or (place.parent / link).exists(), link


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_checkout_load(name):
    recipe = load_recipe(CHECKOUT / "runs" / name)
    assert recipe.data.manifest.is_absolute()


def test_no_other_recipe_is_there():
    runs = CHECKOUT / "runs"
    found = sorted(
        str(path.relative_to(runs)) for place in ("", "article/") for path in runs.glob(f"{place}*.toml")
    )
    # of fine-tuning, loaded in tests/unit/agentps
    assert [name for name in found if not name.startswith("agentps_")] == list(RECIPES)


@pytest.mark.parametrize("name", ARTICLE)
def test_the_article_s_recipes_train_all_of_clip_with_the_published_loss(name):
    from selftrain.build import build

    recipe = load_recipe(CHECKOUT / "runs" / name)
    first = load_recipe(CHECKOUT / "runs" / ARTICLE[0])
    assert recipe.model_copy(update={"data": first.data}) == first
    backbone, loss = recipe.backbone, build(recipe).loss
    assert (backbone.kind, backbone.model, backbone.weights) == ("clip", "ViT-L-14", "openai")
    assert (recipe.classifier.kind, recipe.classifier.mode) == ("finetune", "full")
    assert (loss.form, loss.balance, loss.theta) == ("convex", 0.1, 0.5)
    assert (recipe.verification.rule, recipe.selection.kind) == ("unanimous", "top_k")
    assert (loss.soft_positive, loss.soft_negative) == pytest.approx((0.67, 0.33))

"""The README keeps its word: its shell and Python blocks run in order, its links and recipes are there.

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
README = CHECKOUT / "README.md"
RECIPES = ("harmeme.toml", "hateful_memes.toml", "hsol.toml", "quickstart.toml")
SHOWN = {"text", "toml", "json"}  # fences that are not run
# target -> what it must run, by the Makefile
TARGETS = {
    "quickstart": ("selftrain quickstart",),
    "test": ("ruff check", "ruff format --check", "mypy", "pytest"),
}


class Block(NamedTuple):
    """One fenced block: its tag, its text, and the line of its fence."""

    language: str
    code: str
    line: int


def blocks() -> list[Block]:
    """All fenced blocks, in order."""
    text = README.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def run_block(block: Block, folder: Path) -> str:
    """What the block prints; where it fails, the test fails with the block's line."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_"))
    }
    environment |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "SELFTRAIN_CACHE": str(folder / "cache"),
    }
    shell = ["bash", "-euo", "pipefail", "-c"]
    command = [sys.executable, "-c"] if block.language == "python" else shell
    done = subprocess.run(
        [*command, block.code],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, f"README.md:{block.line} gave {done.returncode}\n{block.code}\n{said}"
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


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A fresh folder in which every block was run, and what each printed, by its line."""
    folder = tmp_path_factory.mktemp("readme")
    # the README calls the environment that make leaves by this name
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    said = {}
    for block in blocks():
        runs = block if block.language in ("bash", "python") else None
        if runs is not None and runs.code.startswith("make "):
            runs = without_make(runs)
        if runs is not None:
            said[block.line] = run_block(runs, folder)
    return folder, said


def test_every_block_says_whether_it_is_run():
    tags = {block.language for block in blocks()}
    assert tags <= SHOWN | {"bash", "python"}, tags
    assert {"bash", "python"} <= tags


def test_the_blocks_run_in_order_and_leave_what_the_text_says(followed):
    folder, _ = followed
    for name in ("quickstart", "mine"):
        run = folder / "runs" / name
        for file in ("recipe.toml", "environment.json", "quarantine.jsonl", "grown.jsonl"):
            assert (run / file).is_file(), file
        assert (run / "best").resolve().parent == (run / "rounds").resolve()
    for file in ("candidates.jsonl", "verdicts.jsonl", "model.safetensors", "metrics.json"):
        assert (folder / "runs" / "mine" / "rounds" / "0001" / file).is_file(), file
    predicted = [json.loads(line) for line in (folder / "predicted.jsonl").read_text().splitlines()]
    assert [(row["id"], row["label"]) for row in predicted] == [("n1", "spam"), ("n2", "fine")]


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
    assert len(said[block.line].splitlines()) == 3  # round 0 and the two of the recipe


def test_links_and_pictures_are_in_the_checkout():
    links = re.findall(r"\]\(([^)#\s]+)\)", README.read_text(encoding="utf-8"))
    assert "docs/loop.svg" in links
    for link in links:
        assert "://" in link or (CHECKOUT / link).exists(), link


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_of_the_checkout_load(name):
    recipe = load_recipe(CHECKOUT / "runs" / name)
    assert recipe.data.manifest.is_absolute()


def test_no_other_recipe_is_there():
    found = sorted(path.name for path in (CHECKOUT / "runs").glob("*.toml"))
    # of fine-tuning, loaded in tests/unit/agentps
    assert [name for name in found if not name.startswith("agentps_")] == list(RECIPES)


def test_hateful_memes_trains_all_of_clip_with_the_published_loss():
    from selftrain.build import build_loss

    recipe = load_recipe(CHECKOUT / "runs" / "hateful_memes.toml")
    backbone, loss = recipe.backbone, build_loss(recipe)
    assert (backbone.name, backbone.model, backbone.weights) == ("clip", "ViT-L-14", "openai")
    assert recipe.classifier.train == "full"
    assert (loss.form, loss.balance, loss.theta) == ("convex", 0.1, 0.5)
    assert (loss.soft_positive, loss.soft_negative) == pytest.approx((0.67, 0.33))

"""The promise: killed at any moment, the same command goes on to the same grown dataset, to the byte."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from kill_helpers import CHECKOUT, CHILDREN, SMALL, launcher

from selftrain.data.drawn import draw_posts

pytestmark = pytest.mark.integration

RECIPE = (
    SMALL
    + """
[loss]
lambda_soft = 1.0
soft_positive = 0.67
"""
)
KILLS = {
    "while features are extracted": ("after", "call:loop_child:LightBackbone.encode", 3),
    "while feature rows are flushed": ("before", "fsync", 4),
    "before the environment": ("before", "replace:environment.json", 1),
    "between environment and recipe": ("before", "replace:recipe.toml", 1),
    "between recipe and quarantine": ("after", "replace:recipe.toml", 1),
    "with half of round 0's model written": ("half", "write:model.safetensors", 1),
    "after round 0's metrics": ("after", "replace:metrics.json", 1),
    "before candidates": ("before", "replace:candidates.jsonl", 1),
    "between candidates and verdicts": ("after", "replace:candidates.jsonl", 2),
    "while the agents learn": ("after", "call:agents.offline.offline_agent:OfflineAgent.fit", 3),
    "while the agents judge": ("before", "call:agents.offline.offline_agent:OfflineAgent.judge", 4),
    "while the agents reconsider": ("after", "call:agents.offline.offline_agent:OfflineAgent.reconsider", 1),
    "with half of the verdicts written": ("half", "write:verdicts.jsonl", 2),
    "after the verdicts": ("after", "replace:verdicts.jsonl", 1),
    "while a head is trained": ("before", "call:selftrain.models.head:train_epochs", 3),
    "between model and metrics": ("after", "replace:model.safetensors", 2),
    "before the metrics take their place": ("before", "replace:metrics.json", 2),
    "between metrics and grown": ("after", "replace:metrics.json", 2),
    "with half of grown written": ("half", "write:grown.jsonl", 2),
    "between grown and best": ("after", "replace:grown.jsonl", 2),
    "before best moves": ("before", "link:best", 2),
    "after the last round's metrics": ("after", "replace:metrics.json", 4),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A recipe with its posts and an empty cache."""
    folder = tmp_path_factory.mktemp("resume")
    draw_posts(folder / "posts", 130, seed=1)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def launch(place):
    """Runs the one command in a process of its own, killed or not: its exit code and words."""
    with launcher() as request:
        yield lambda out, kill=None, recipe=place / "recipe.toml": request(recipe, out, kill)


@pytest.fixture(scope="module")
def whole(place, launch):
    """The run that was never killed."""
    folder = place / "whole"
    code, words = launch(folder)
    assert code == 0, words
    return folder


def contents(folder):
    """Everything that a run promises to repeat: all of it but times and machine."""
    found = {"best": str((folder / "best").readlink())}
    for file in [folder / "grown.jsonl", folder / "recipe.toml", *sorted(folder.glob("rounds/*/*"))]:
        name = str(file.relative_to(folder))
        if file.name == "metrics.json":
            found[name] = json.loads(file.read_text()) | {"seconds": 0, "stages": []}
        else:
            found[name] = file.read_bytes()
    return found


def assert_same(folder, whole):
    first, second = contents(whole), contents(folder)
    assert first.keys() == second.keys()
    for name, content in first.items():
        assert second[name] == content, name
    assert not list(folder.rglob(".*.tmp"))


def finished(folder):
    """Inode of every finished round's metrics: a round that is done again gets another."""
    return {file.parent.name: file.stat().st_ino for file in folder.glob("rounds/*/metrics.json")}


def test_the_run_to_repeat_keeps_and_rejects_rounds_and_accepts_posts(whole):
    kept = [json.loads(file.read_text())["kept"] for file in sorted(whole.glob("rounds/*/metrics.json"))]
    assert len(kept) == 4
    assert sum(kept) >= 2, kept
    assert sum(kept) < 4, kept
    assert "pseudo-label" in (whole / "grown.jsonl").read_text()


def test_the_same_command_in_another_folder_and_a_fresh_process_gives_the_same_bytes(place, whole, tmp_path):
    result = subprocess.run(
        [sys.executable, str(CHILDREN / "loop_child.py"), str(place / "recipe.toml"), str(tmp_path / "run")],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "PYTHONHASHSEED": "77"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("moment", KILLS)
def test_killed_at_any_moment_the_same_command_ends_the_same(place, launch, whole, tmp_path, moment):
    out, recipe = tmp_path / "run", place / "recipe.toml"
    if "feature" in moment:  # a cache of its own, or there is nothing to extract
        recipe = place / "uncached.toml"
        recipe.write_text(RECIPE.replace('"cache"', json.dumps(str(tmp_path / "cache"))))
    code, words = launch(out, KILLS[moment], recipe)
    assert code == -signal.SIGKILL, words
    done = finished(out)
    code, words = launch(out, recipe=recipe)
    assert code == 0, words
    assert finished(out).items() >= done.items()
    if "feature" in moment:
        (out / "recipe.toml").write_bytes((whole / "recipe.toml").read_bytes())  # the cache is named in it
    assert_same(out, whole)


@pytest.mark.parametrize(
    "kills",
    [
        [("after", "replace:verdicts.jsonl", 1), ("after", "replace:model.safetensors", 1)],
        [("after", "replace:metrics.json", 2), ("before", "replace:grown.jsonl", 1)],
        [("half", "write:verdicts.jsonl", 1), ("after", "call:shutil:rmtree", 1)],
        [("after", "replace:candidates.jsonl", n) for n in (1, 1, 1)],
    ],
)
def test_killed_again_and_again_the_same_command_ends_the_same(launch, whole, tmp_path, kills):
    out = tmp_path / "run"
    for kill in kills:
        done = finished(out)
        code, words = launch(out, kill)
        assert code == -signal.SIGKILL, words
        assert finished(out).items() >= done.items()
    code, words = launch(out)
    assert code == 0, words
    assert_same(out, whole)


def test_a_finished_run_started_again_changes_nothing(launch, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out, symlinks=True)
    done = finished(out)
    code, words = launch(out)
    assert code == 0, words
    assert finished(out) == done
    assert_same(out, whole)

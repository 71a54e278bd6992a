"""A third party's parts, those of docs/extending.md: through a recipe and through Python, killed, resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import selftrain as st

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n# (\w+)\.py\n(.*?)```\n```toml\n(.*?)```", PAGE, re.DOTALL)
PROGRAM = """
import os, signal, sys
import selftrain as st
from half_random import HalfRandom
from letter_counts import LetterCounts
from plain_loss import PlainLoss
from word_panel import WordPanel

home, out, last = sys.argv[1:]
task = st.load_task(f"{home}/task.toml")
data = st.split(st.read_manifest(f"{home}/manifest.jsonl", task), task, labelled=40, seed=0)
trainer = st.SelfTrainer(
    backbone=LetterCounts(), selector=HalfRandom(20), loss=PlainLoss(), limits=st.RoundLimits(2),
    panel=WordPanel(["free", "offer"], list(task.names)),
)
for one in trainer.fit(data, out=out):
    if one.number == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Drawn posts, and the page's modules beside them."""
    folder = tmp_path_factory.mktemp("extending")
    st.draw_posts(folder, 240)
    for name, code, _ in EXAMPLES:
        (folder / f"{name}.py").write_text(code)
    return folder


def start(home, *command):
    path = os.pathsep.join([str(CHECKOUT), str(home)])
    environment = os.environ | {"PYTHONPATH": path, "SELFTRAIN_CACHE": str(home / "cache")}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=home, env=environment, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip


def least(home):
    paths = {"manifest": home / "manifest.jsonl", "task": home / "task.toml"}
    data = "".join(f'{key} = "{path}"\n' for key, path in paths.items())
    return f"[data]\n{data}labelled = 40\n[rounds]\nmax = 1\n"


def test_the_page_has_four_examples():
    assert [name for name, _, _ in EXAMPLES] == ["half_random", "word_panel", "plain_loss", "letter_counts"]
    code = next(code for name, code, _ in EXAMPLES if name == "half_random")
    assert len(code.split("class HalfRandom")[1].strip().splitlines()) < 15


def test_all_four_go_through_a_recipe(home, tmp_path):
    sections = "".join(section for _, _, section in EXAMPLES)
    (tmp_path / "recipe.toml").write_text(least(home) + sections)
    done = start(home, "-m", "selftrain", "run", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    run = st.Run(tmp_path / "run")
    verdicts = run.verdicts(round=1)
    assert len(verdicts) == 20
    assert {one.judgments[0].source for one in verdicts} == {"word_panel"}
    assert len(run.grown()) >= 20


def test_a_class_that_is_not_there_is_said_before_anything_is_computed(home, tmp_path):
    (tmp_path / "recipe.toml").write_text(least(home) + '[selection]\nkind = "nowhere:Nothing"\n')
    done = start(home, "-m", "selftrain", "run", tmp_path / "recipe.toml", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert 'selection.kind is "nowhere:Nothing", which cannot be imported' in done.stderr


def test_python_takes_the_same_parts_and_a_killed_run_ends_as_one_that_never_was(home, tmp_path):
    (home / "program.py").write_text(PROGRAM)
    assert start(home, "program.py", home, tmp_path / "whole", "-1").returncode == 0
    killed = start(home, "program.py", home, tmp_path / "parts", "1")
    assert killed.returncode == -signal.SIGKILL
    again = start(home, "program.py", home, tmp_path / "parts", "-1")
    assert again.returncode == 0, again.stderr
    for file in ("grown.jsonl", "rounds/0002/verdicts.jsonl", "rounds/0002/candidates.jsonl"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()

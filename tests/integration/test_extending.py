"""A third party's parts, one of each kind: through a recipe and through Python, killed, resumed.

Those of docs/extending.md, and those of mylab.py beside this file.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from processes import run

import selftrain as st
from selftrain.cli import main

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n# (\w+)\.py\n(.*?)```\n```toml\n(.*?)```", PAGE, re.DOTALL)
SECTIONS = {name: section for name, _, section in EXAMPLES}
COMPARED = ("grown.jsonl", "rounds/0002/verdicts.jsonl", "rounds/0002/candidates.jsonl")
NAMES = '["invitation", "advertisement"]'
AGENTS = f"""
[agents]
kind = "cross_review"
reviewer = {{ kind = "mylab:Words", options = {{ role = "reviewer", words = ["free"], classes = {NAMES} }} }}
user = {{ kind = "mylab:Words", options = {{ role = "user", words = ["sale", "bring"], classes = {NAMES} }} }}
"""
TOYS = """
[classifier]
kind = "mylab:NearestMean"
options = { sharpness = 8.0 }
[human]
kind = "mylab:Desk"
options = { label = "invitation" }
"""
PROGRAM = """
import os, signal, sys
import selftrain as st
from half_random import HalfRandom
from letter_counts import LetterCounts
from mylab import Desk, NearestMean, Words
from plain_loss import PlainLoss

home, out, last, k = sys.argv[1:]
task = st.load_task(f"{home}/task.toml")
data = st.split(st.read_manifest(f"{home}/manifest.jsonl", task), task, labelled=40, seed=0)
trainer = st.SelfTrainer(
    backbone=LetterCounts(), classifier=NearestMean(8.0), selector=HalfRandom(int(k)), loss=PlainLoss(),
    panel=st.CrossReview(
        Words("reviewer", ["free"], list(task.names)), Words("user", ["sale", "bring"], list(task.names))
    ),
    reviewers=Desk("invitation"), limits=st.RoundLimits(2),
)
for one in trainer.fit(data, out=out):
    if one.number == int(last):
        os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED = """
import os, signal, sys
import selftrain as st

for one in st.start(sys.argv[1], out=sys.argv[2]).rounds():
    if one.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Drawn posts, and the modules of the third party beside them."""
    folder = tmp_path_factory.mktemp("extending")
    st.draw_posts(folder, 240)
    for name, code, _ in EXAMPLES:
        (folder / f"{name}.py").write_text(code)
    shutil.copy(Path(__file__).parent / "mylab.py", folder)
    (folder / "program.py").write_text(PROGRAM)
    (folder / "killed.py").write_text(KILLED)
    return folder


@pytest.fixture
def beside(home, monkeypatch):
    """The folder of the third party's modules, importable in this process."""
    monkeypatch.syspath_prepend(home)
    monkeypatch.setenv("SELFTRAIN_CACHE", str(home / "cache"))
    return home


def start(home, *command):
    path = os.pathsep.join([str(CHECKOUT), str(home)])
    environment = os.environ | {"PYTHONPATH": path, "SELFTRAIN_CACHE": str(home / "cache")}
    return run(command, cwd=home, env=environment)


def least(home, rounds=1):
    paths = {"manifest": home / "manifest.jsonl", "task": home / "task.toml"}
    data = "".join(f'{key} = "{path}"\n' for key, path in paths.items())
    return f"[data]\n{data}labelled = 40\n[rounds]\nmax = {rounds}\n"


def assert_same(folder, other):
    for file in COMPARED:
        assert (folder / file).read_bytes() == (other / file).read_bytes(), file
    people = [one for one in st.Run(folder).grown() if one.extra["provenance"]["source"] == "human"]
    assert {one.label for one in people} == {"invitation"}


def test_the_page_has_four_examples_and_begins_with_a_selector_of_a_few_lines():
    assert list(SECTIONS) == ["half_random", "word_panel", "plain_loss", "letter_counts"]
    code = next(code for name, code, _ in EXAMPLES if name == "half_random")
    assert len(code.split("class HalfRandom")[1].strip().splitlines()) < 15


def test_all_four_go_through_a_recipe(beside, tmp_path):
    before = torch.get_num_threads()
    threads = f"threads = {before + 1}\n"
    (tmp_path / "recipe.toml").write_text(threads + least(beside) + "".join(SECTIONS.values()))
    seen, run = set(), st.start(tmp_path / "recipe.toml", tmp_path / "run")
    for _ in run.rounds():
        seen.add(torch.get_num_threads())
    assert (seen, torch.get_num_threads()) == ({before + 1}, before)
    verdicts = run.verdicts(round=1)
    assert len(verdicts) == 20
    assert {one.judgments[0].source for one in verdicts} == {"word_panel"}
    assert len(run.grown()) >= 20


def test_a_class_that_is_not_there_is_said_before_anything_is_computed(home, tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text(least(home) + '[selection]\nkind = "nowhere:Nothing"\n')
    assert main(["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")]) == 2
    assert 'selection.kind is "nowhere:Nothing", which cannot be imported' in capsys.readouterr().err


def test_a_recipe_of_third_parties_goes_on_after_a_kill_as_if_it_had_not_been(beside, tmp_path):
    home = beside
    named = [SECTIONS[name] for name in ("half_random", "plain_loss", "letter_counts")]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(least(home, rounds=2) + "".join(named) + AGENTS + TOYS)
    assert start(home, "killed.py", recipe, tmp_path / "parts").returncode == -signal.SIGKILL
    done = start(home, "-m", "selftrain", "run", recipe, "--out", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    st.run(recipe, tmp_path / "whole")
    assert_same(tmp_path / "parts", tmp_path / "whole")
    assert {one.judgments[0].source for one in st.Run(tmp_path / "parts").verdicts(round=2)} == {"words"}


def test_python_takes_the_same_parts_and_goes_on_with_the_same_arguments_only(home, tmp_path, capsys):
    whole = start(home, "program.py", home, tmp_path / "whole", "-1", 20)
    assert whole.returncode == 0, whole.stderr
    killed = start(home, "program.py", home, tmp_path / "parts", "1", 20)
    assert killed.returncode == -signal.SIGKILL
    other = start(home, "program.py", home, tmp_path / "parts", "-1", 30)
    assert other.returncode == 1
    assert "selection.options.k: 20 in the folder, 30 now" in other.stderr
    again = start(home, "program.py", home, tmp_path / "parts", "-1", 20)
    assert again.returncode == 0, again.stderr
    assert_same(tmp_path / "parts", tmp_path / "whole")
    # the folder's recipe names the same parts: the command line goes on with it too
    words = ["run", str(tmp_path / "parts/recipe.toml"), "--out", str(tmp_path / "parts")]
    assert main(words) == 2  # the recipe lacks the task's file, which Python had read
    assert "data.task" in capsys.readouterr().err

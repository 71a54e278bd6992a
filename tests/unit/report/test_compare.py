"""Runs side by side: what differs, what can be paired, and how it is shown."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from class_helpers import both
from report_helpers import HOSTILE, PLAIN, made

from selftrain.cli import main
from selftrain.errors import RunStateError
from selftrain.report.compare import compare, render_comparison
from selftrain.store.scores import Scored, write_scores


def run(place, said=PLAIN, *, sharpness=None, recipe=(), **more):
    """A run whose best model, of round 1, has scores if it is given a sharpness."""
    folder = made(place, said, **more)
    for old, new in recipe:
        text = folder.recipe_path.read_text()
        assert old in text
        folder.recipe_path.write_text(text.replace(old, new))
    if sharpness is not None:
        random = np.random.default_rng(0)
        labels = (np.arange(200) % 2).astype(np.int8)
        logits = (2 * labels - 1) * sharpness + random.normal(0, 1, 200)
        scored = Scored([f"v{i}" for i in range(200)], labels, both(logits))
        write_scores(folder.round_path(1), {"validation": scored}, (said["negative"], said["positive"]))
    return folder


def test_only_keys_that_differ_are_listed_and_an_absent_one_is_none(tmp_path):
    changed = [("patience = 3", "patience = 5"), ("seed = 0", "seed = 0\nthreads = 2")]
    runs = [run(tmp_path / "a"), run(tmp_path / "b", recipe=changed)]
    found = dict(compare(runs).recipe)
    assert found.pop("data.manifest")
    assert found == {"rounds.patience": [3, 5], "threads": [None, 2]}


def test_intervals_come_from_the_figures_and_gains_from_the_scores(tmp_path):
    weak = run(tmp_path / "weak", sharpness=0.5)
    strong = run(tmp_path / "strong", sharpness=3.0)
    bare = run(tmp_path / "bare")
    found = compare([weak, strong, bare])
    assert found.splits == ["validation", "test"]
    one = found.runs[2].estimates["validation"]["accuracy"]
    assert one.value == 0.75
    assert one.low < 0.75 < one.high
    first, gain, nothing = found.gains["validation"]
    assert (first, nothing) == (None, None)
    assert gain.value >= gain.low > 0.1
    assert found.gains["test"] == [None, None, None]


def test_runs_of_other_tasks_or_posts_are_told_apart(tmp_path):
    runs = [run(tmp_path / "a"), run(tmp_path / "b", PLAIN | {"reason": "another task"})]
    assert not compare(runs).same_task
    assert compare([runs[0], runs[0]]).same_task
    other = json.loads((runs[1].path / "environment.json").read_text())
    other["identity"] = {"task": "plain", "posts": "1"}
    (runs[1].path / "environment.json").write_text(json.dumps(other))
    found = compare(runs)
    assert found.same_task
    assert not found.same_posts


def test_two_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = [run(tmp_path / "a"), run(tmp_path / "b")]
    assert [one.name for one in compare(runs).runs] == [str(one.path) for one in runs]
    third = run(tmp_path / "c", PLAIN | {"folder": "other"})
    assert [one.name for one in compare([runs[0], third]).runs] == ["run", "other"]


def test_a_run_without_a_finished_round_is_refused(tmp_path):
    empty = made(tmp_path / "empty", PLAIN, scores=(), kept=())
    with pytest.raises(RunStateError, match="no finished round"):
        compare([run(tmp_path / "a"), empty])


def test_the_command_prints_tables_and_json_and_writes_a_page(tmp_path, capsys):
    paths = [str(run(tmp_path / name, sharpness=s).path) for name, s in (("a", 0.5), ("b", 3.0))]
    page = tmp_path / "compare.html"
    assert main(["compare", *paths, "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "0.749 [" in out
    assert "(0.600 0.812)" in out  # rolled back
    assert str(page) in out
    assert main(["compare", *paths, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["gain"]["validation"] is None for one in told["runs"]] == [True, False]
    assert told["runs"][0]["final"]["validation"]["macro_f1"]["value"] == pytest.approx(0.7493734, abs=1e-6)
    assert "2 runs side by side" in page.read_text()


def test_one_run_alone_is_refused(tmp_path, capsys):
    assert main(["compare", str(run(tmp_path).path)]) == 2
    assert "RUN" in capsys.readouterr().err


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, sorted(name for name, _ in attrs)))

    def handle_data(self, data):
        self.text += data


def test_hostile_strings_change_nothing_of_the_page_and_reach_no_terminal(tmp_path, capsys):
    bad, plain = (run(tmp_path / name, said) for name, said in (("bad", HOSTILE), ("plain", PLAIN)))
    hostile, tame = (Tags(render_comparison(compare([one, one]))) for one in (bad, plain))
    assert hostile.seen == tame.seen
    assert "<b>run</b>'\"{{ 1 }}\\u202e" in hostile.text
    assert main(["compare", str(bad.path), str(plain.path)]) == 0
    assert not set(capsys.readouterr().out) & set("\x1b\x07\x9b\u202e\u2066")

"""`status` and `show` on a real run, and on one whose posts and agents are hostile."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from report_helpers import by_hand

from agents.judgment import Verdict
from selftrain.cli import main
from selftrain.store.run_dir import RunFolder

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m[bold red]x[/]\r\u202e"


def run(capsys, *words, status=0):
    assert main([str(word) for word in words]) == status
    shown = capsys.readouterr()
    return shown.err if status else shown.out


def records(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def copied(small_run, tmp_path):
    """A copy of the run that a test may change."""
    return by_hand(RunFolder(shutil.copytree(small_run, tmp_path / "run", symlinks=True))).path


def rewrite(file, change):
    """Apply `change` to the first record of a JSON lines file."""
    first, *others = [json.loads(line) for line in file.read_text().splitlines()]
    change(first)
    last = last_words(first).values()
    first["consistent"] = all(one["label"] == first["classifier_label"] for one in last)
    file.write_text("".join(json.dumps(one) + "\n" for one in (first, *others)))


def test_the_rounds_are_those_of_the_metrics_files(small_run, capsys):
    told = records(run(capsys, "show", small_run, "--json"))
    assert told == RunFolder(small_run).round_records()
    lines = run(capsys, "show", small_run).splitlines()
    for figures in told:
        (line,) = (one for one in lines if one.split("│")[0].strip() == str(figures["round"]))
        assert f"{figures['validation']['macro_f1']:.3f}" in line
        assert ("rolled back" in line) == (not figures["kept"])


@pytest.mark.parametrize("simulated", [False, True])
def test_verdicts_of_simulated_agents_are_shown_as_such(copied, capsys, simulated):
    file = copied / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"simulated": simulated}))
    post_id = RunFolder(copied).verdicts(1)[0].post_id
    for more in (["--post", post_id], ["--round", "1"], ["--disagreements"]):
        assert run(capsys, "show", copied, *more).startswith("SIMULATED agents") == simulated, more


def test_no_figure_is_cut_by_a_narrow_terminal(small_run, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    shown = run(capsys, "show", small_run)
    for figures in RunFolder(small_run).round_records():
        assert f"{figures['validation']['macro_f1']:.3f}" in shown


def test_a_posts_story_has_everybodys_words(small_run, capsys):
    verdict = RunFolder(small_run).verdicts(1)[0].to_json()
    source = (small_run.parent / "data" / "manifest.jsonl").read_text().splitlines()
    (row,) = (row for row in map(json.loads, source) if row["id"] == verdict["post_id"])
    out = run(capsys, "show", small_run, "--post", verdict["post_id"])
    assert row.get("text", "") in out
    assert all(image in out for image in row.get("images", []))
    for judgment in verdict["judgments"]:
        assert judgment["rationale"] in out
    assert ("consistent" if verdict["consistent"] else "divergent") in out
    told = records(run(capsys, "show", small_run, "--post", verdict["post_id"], "--json"))
    assert told[0]["round"] == 1
    assert told[0]["verdict"] == verdict
    assert told[0]["images"] == row.get("images", [])


def test_a_post_is_followed_through_all_rounds_or_one(copied, capsys):
    folder = RunFolder(copied)
    post_id = folder.verdicts(1)[0].post_id
    rewrite(folder.round_path(2) / "verdicts.jsonl", lambda one: one.update(post_id=post_id))
    told = records(run(capsys, "show", copied, "--post", post_id, "--json"))
    assert [one["round"] for one in told] == [1, 2]
    (only,) = records(run(capsys, "show", copied, "--post", post_id, "--round", 2, "--json"))
    assert only["round"] == 2


def test_a_rounds_verdicts_one_a_line(small_run, capsys):
    verdicts = RunFolder(small_run).verdicts(1)
    lines = run(capsys, "show", small_run, "--round", 1).splitlines()
    assert [line.split()[0] for line in lines] == [one.post_id for one in verdicts]
    assert records(run(capsys, "show", small_run, "--round", 1, "--json")) == [
        one.to_json() for one in verdicts
    ]
    assert "labels alone" in run(capsys, "show", small_run, "--round", 0)


def test_hostile_posts_and_agents_reach_the_terminal_as_text(copied, capsys):
    def poison(verdict):
        verdict["post_id"] = HOSTILE
        for judgment in verdict["judgments"]:
            judgment["rationale"] = judgment["agent"] = HOSTILE

    rewrite(RunFolder(copied).round_path(1) / "verdicts.jsonl", poison)
    manifest = copied.parent / "hostile.jsonl"
    manifest.write_text(json.dumps({"id": HOSTILE, "text": HOSTILE}) + "\n")
    recipe = copied / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(copied.parent / "data/manifest.jsonl"), str(manifest)))
    for words in (["--post", HOSTILE], ["--round", 1], [], ["--post", HOSTILE, "--json"]):
        out = run(capsys, "show", copied, *words)
        assert not set(out) & set("\x1b\x07\x9b\r\u202e")
        assert "[bold red]x[/]" in out or not words
    assert "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m" in run(capsys, "show", copied, "--post", HOSTILE)


def last_words(verdict):
    """Agent -> its last judgment."""
    return {one["agent"]: one for one in verdict["judgments"]}


def test_verdicts_of_one_kind_are_found_in_all_rounds_or_in_one(copied, capsys):
    folder = RunFolder(copied)

    def fail(verdict):
        verdict["judgments"][0] |= {"state": "failed", "label": None, "probability": None}

    def disagree(verdict):
        verdict["judgments"][-1] |= {"state": "label", "label": "somebody else's", "probability": 0.5}

    rewrite(folder.round_path(1) / "verdicts.jsonl", fail)
    rewrite(folder.round_path(2) / "verdicts.jsonl", disagree)
    (failed,) = records(run(capsys, "show", copied, "--failed", "--json"))
    assert (failed["round"], failed["post_id"]) == (1, folder.verdicts(1)[0].post_id)
    assert "no verdicts with a call that failed" in run(capsys, "show", copied, "--failed", "--round", 2)
    told = records(run(capsys, "show", copied, "--disagreements", "--json"))
    expected = [
        verdict["post_id"]
        for number in (1, 2)
        for verdict in map(Verdict.to_json, folder.verdicts(number))
        if {one["label"] for one in last_words(verdict).values()} - {None, verdict["classifier_label"]}
    ]
    assert [one["post_id"] for one in told] == expected
    assert folder.verdicts(2)[0].post_id in expected
    for one in records(run(capsys, "show", copied, "--changed", "--json")):
        first = {judgment["agent"]: judgment for judgment in reversed(one["judgments"])}
        assert any(first[agent]["label"] != last["label"] for agent, last in last_words(one).items())
    lines = run(capsys, "show", copied, "--disagreements").splitlines()
    assert len(lines) == len(expected)
    assert all(post_id in line for post_id, line in zip(expected, lines, strict=True))


def test_an_unknown_post_says_what_there_is(small_run, capsys):
    known = RunFolder(small_run).verdicts(1)[0].post_id
    seen = {one.post_id for number in (1, 2) for one in RunFolder(small_run).verdicts(number)}
    err = run(capsys, "show", small_run, "--post", known + "x", status=2)
    assert f"{len(seen)} posts were" in err
    assert f"'{known}'" in err
    assert "--round N" in err


def test_an_unfinished_round_is_refused(small_run, capsys):
    assert "rounds 0 to 2 are" in run(capsys, "show", small_run, "--round", 9, status=2)


def test_a_story_survives_its_manifest(copied, capsys):
    post_id = RunFolder(copied).verdicts(1)[0].post_id
    recipe = copied / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("manifest.jsonl", "gone.jsonl"))
    assert "not in the run's manifests any more" in run(capsys, "show", copied, "--post", post_id)


def test_a_text_that_has_changed_since_is_told(copied, capsys):
    post_id = RunFolder(copied).verdicts(1)[0].post_id
    (copied.parent / "changed.jsonl").write_text(json.dumps({"id": post_id, "text": "another"}) + "\n")
    recipe = copied / "recipe.toml"
    named = str(copied.parent / "changed.jsonl")
    recipe.write_text(re.sub(r'(?m)^manifest = ".*"$', f'manifest = "{named}"', recipe.read_text()))
    told = run(capsys, "show", copied, "--post", post_id)
    assert "another" in told
    assert re.search("remark +its text is not what it was when this began", told)


def test_status_says_what_would_happen_next(copied, capsys):
    out = run(capsys, "status", copied)
    assert "small.toml" in out
    assert "nothing: all 2 rounds are done" in out
    recipe = copied / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("max = 2", "max = 3"))
    assert "round 3, when the command" in run(capsys, "status", copied)
    with RunFolder(copied).locked():
        assert "round 3 is under way" in run(capsys, "status", copied)
        assert json.loads(run(capsys, "status", copied, "--json"))["held"] is True
    told = json.loads(run(capsys, "status", copied, "--json"))
    assert (told["held"], told["finished"], told["stopped"]) == (False, 3, None)

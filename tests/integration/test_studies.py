"""The studies as they are typed, made quick: each ends, writes its figures, and goes on where it stopped."""

from __future__ import annotations

import json

import pytest
from kill_helpers import CHECKOUT
from processes import run

TYPED = {
    "pools": [],
    "features": ["--data", "{data}/hsol"],
    "report": [],
    "scale": [],
    "act": ["--data", "{data}", "--part", "coverage", "--reviews", "50"],
    "judges": [
        "--data", "{data}/judgments", "--sets", "hatexplain",
        "--methods", "labels_only,dawid_skene,article,ours",
    ],
}  # fmt: skip


def measured(study, data, file, *more):
    given = [one.format(data=data) for one in TYPED[study]]
    words = ("-m", "runs.bench", study, "--quick", *given, *more, "--json", file)
    done = run(words, cwd=CHECKOUT, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("study", TYPED)
def test_a_quick_study_ends_and_writes_figures_with_where_they_come_from(study, data_root, tmp_path):
    found = measured(study, data_root, tmp_path / "figures.jsonl")
    assert found
    assert {type(line["value"]) for line in found} <= {int, float}
    for line in found:
        assert line["versions"]
        assert line["machine"]


def test_a_study_that_was_cut_off_measures_what_is_missing(data_root, tmp_path):
    file = tmp_path / "figures.jsonl"
    methods = ("--methods", "labels_only,dawid_skene")
    whole = measured("judges", data_root, file, *methods)
    seeds = {line["seed"] for line in whole}
    assert len(seeds) == 2
    kept = [line for line in whole if line["seed"] == min(seeds)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    again = measured("judges", data_root, file, *methods)
    assert again[: len(kept)] == kept
    assert found_in(again) == found_in(whole)


def found_in(lines):
    """The figures, but for what a clock says."""
    names = ("method", "asked", "n", "seed", "metric", "value")
    return [tuple(line[name] for name in names) for line in lines if line["metric"] != "seconds"]

"""What is worse than the committed figures is said, by ratios and memory alone."""

from __future__ import annotations

import sys

import pytest

from runs.bench import compare
from runs.bench.study import Figure, Figures
from selftrain.errors import DataError


def figures(file, **values):
    made = Figures(file)
    made.add([Figure("s", "d", "ours", 1, seed, metric, value)
              for metric, of_seeds in values.items() for seed, value in enumerate(of_seeds)])  # fmt: skip
    return made


def test_the_worst_comes_first_whichever_way_is_better(tmp_path):
    before = figures(None, ratio=[1.0, 1.4], peak_rss_mb=[100.0], cached_share=[0.5], seconds=[1.0])
    now = figures(None, ratio=[0.9], peak_rss_mb=[105.0], cached_share=[0.6], seconds=[9.0])
    found = list(compare.compare(before, now))
    assert [one.key[-1] for one in found] == ["ratio", "peak_rss_mb", "cached_share"]
    assert [one.worse for one in found] == pytest.approx([0.25, 0.05, -0.2])


def test_a_tenth_worse_is_status_1(tmp_path, monkeypatch, capsys):
    figures(tmp_path / "old", ratio=[1.2])
    for ratio, status, told in ((1.07, 1, "WORSE"), (1.09, 0, "as before"), (1.4, 0, "better")):
        figures(tmp_path / f"{ratio}", ratio=[ratio])
        given = [str(tmp_path / f"{ratio}"), "--against", str(tmp_path / "old")]
        monkeypatch.setattr(sys, "argv", ["compare", *given])
        assert compare.main() == status
        assert capsys.readouterr().out.startswith(told)


def test_nothing_in_common_is_an_error():
    with pytest.raises(DataError, match=r"no figure of .* is one of .* too: expected some of ratio"):
        list(compare.compare(figures(None, ratio=[1.0]), figures(None, seconds=[1.0])))


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "features.jsonl")])
    assert compare.main() == 2
    assert "features.jsonl is not there: expected figures of a study" in capsys.readouterr().err

"""What is worse than the committed figures is said; only ratios, shares, memory and sizes count."""

from __future__ import annotations

import json
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
    assert [one.key[-1] for one in found] == ["ratio", "peak_rss_mb", "cached_share", "seconds"]
    assert [one.worse for one in found] == pytest.approx([0.25, 0.05, -0.2, 8.0])
    assert [one.told for one in found] == ["WORSE", "as before", "better", "slower"]


def test_a_tenth_worse_is_status_1(tmp_path, monkeypatch, capsys):
    figures(tmp_path / "old", ratio=[1.2])
    for ratio, status, told in ((1.07, 1, "WORSE"), (1.09, 0, "as before"), (1.4, 0, "better")):
        figures(tmp_path / f"{ratio}", ratio=[ratio])
        given = [str(tmp_path / f"{ratio}"), "--against", str(tmp_path / "old")]
        monkeypatch.setattr(sys, "argv", ["compare", *given])
        assert compare.main() == status
        assert capsys.readouterr().out.startswith(told)


def test_nothing_in_common_is_an_error():
    with pytest.raises(DataError, match=r"no figure of .* is one of .* too: expected ratios"):
        list(compare.compare(figures(None, ratio=[1.0]), figures(None, macro_f1=[1.0])))


@pytest.mark.parametrize(
    ("study", "method", "metric", "more_is_worse"),
    [
        ("features", "ours", "ratio", False),
        ("serve", "attacked over calm", "p99", True),
        ("bare", "serve", "ratio", False),
        ("bare", "filter", "ratio", False),
        ("bare", "loop", "time ratio", True),
        ("bare", "loop", "time ratio, offline agents", True),
        ("bare", "loop", "time ratio, offline agents left out", True),
        ("bare", "report", "time ratio, written", True),
        ("bare", "report", "time ratio, opened", True),
        ("bare", "report", "size ratio", True),
        ("bare", "report", "page_mb", True),
        ("agents", "throughput", "ratio", False),
        ("agents", "reference", "ratio", False),
        ("agents", "client", "ratio, text", False),
        ("agents", "client", "ratio of processor time, picture", False),
        ("agents", "cache", "cached_share", False),
        ("agents", "cache", "generations_per_candidate", True),
        ("agents", "memory", "grown_mb_100000", True),
        ("agentps", "prediction", "time ratio, sixteen frames", True),
        ("agentps", "training", "throughput ratio", False),
        ("agentps", "served", "time ratio, served over transformers", True),
        ("scale", "2 workers", "posts_per_second", False),
        ("scale", "1 worker", "worker_mb", True),
        ("scale", "in process", "driver_mb", True),
        ("pools", "ours", "peak_rss_mb", True),
        ("report", "ours", "page_mb", True),
        ("report", "ours", "elements", True),
        ("hsol", "whole_run", "peak_rss_mb", True),
        ("harmeme", "whole_run", "peak_rss_mb", True),
    ],
)
def test_committed_figures_that_were_made_worse_by_hand_are_found(
    *, tmp_path, monkeypatch, capsys, study, method, metric, more_is_worse
):
    lines = [json.loads(line) for line in (compare.COMMITTED / f"{study}.jsonl").read_text().splitlines()]
    chosen = [one for one in lines if (one["method"], one["metric"]) == (method, metric)]
    true = [one["value"] for one in chosen]
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / f"{study}.jsonl")])
    for by, status in ((0.0, 0), (0.05, 0), (0.12, 1)):
        for one, value in zip(chosen, true, strict=True):
            # of nothing any memory is more
            one["value"] = value * (1 + by if more_is_worse else 1 - by) or float(by > 0.1)
        (tmp_path / f"{study}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
        assert compare.main() == status
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WORSE")]
        assert bool(told) == bool(status)
        assert all(f", {metric}" in line and f"{method}, " in line for line in told)


def test_a_slower_clock_is_told_and_counts_for_nothing(tmp_path, monkeypatch, capsys):
    lines = (compare.COMMITTED / "pools.jsonl").read_text().splitlines()
    slower = [one | {"value": one["value"] * (1.2 if one["metric"] == "seconds" else 1)}
              for one in map(json.loads, lines)]  # fmt: skip
    (tmp_path / "pools.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in slower))
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "pools.jsonl")])
    assert compare.main() == 0
    told = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert (told.count("slower"), told.count("WORSE")) == (3, 0)


def test_of_a_seed_that_was_measured_again_the_last_counts():
    before = figures(None, ratio=[1.0])
    before.add([Figure("s", "d", "ours", 1, 0, "ratio", 2.0)])
    (found,) = compare.compare(before, figures(None, ratio=[1.5]))
    assert (found.before, found.worse) == (2.0, 0.25)


def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path / "features.jsonl")])
    assert compare.main() == 2
    assert "features.jsonl is not there: expected figures of a study" in capsys.readouterr().err

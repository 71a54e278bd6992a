"""The studies that start servers and measure pairs: what stands in the file is not measured again."""

from __future__ import annotations

import pytest

from runs.bench import __main__ as bench
from runs.bench import bare, serve
from runs.bench.serve import Waits
from runs.bench.study import Figures


@pytest.fixture
def served(monkeypatch):
    """Pairs that the study of waits measured, in place of servers; killed at the one of `kill`."""
    pairs = {"measured": 0, "kill": None}

    async def measure(*_):
        if pairs["measured"] == pairs["kill"]:
            raise KeyboardInterrupt
        pairs["measured"] += 1
        return Waits([1.0, 1.0], 0, 0.1), Waits([2.0 * pairs["measured"]] * 2, 3, 0.2)

    monkeypatch.setattr(serve, "bodies_of_a_run", lambda folder: [])
    monkeypatch.setattr(serve, "_measure", measure)
    return pairs


def over_calm(file):
    return Figures(file).values("attacked over calm", serve.HOSTILE, "p99")


def test_the_study_of_waits_goes_on_where_it_was_killed(served, tmp_path, capsys):
    file = tmp_path / "serve.jsonl"
    given = ["serve", "--repeats", "3", "--json", str(file)]
    served["kill"] = 2
    with pytest.raises(KeyboardInterrupt):
        bench.main(given)
    assert over_calm(file) == {0: 2.0, 1: 4.0}
    before = file.read_bytes()
    served["kill"] = None
    assert bench.main(given) == 0
    assert over_calm(file) == {0: 2.0, 1: 4.0, 2: 6.0}
    assert file.read_bytes().startswith(before)
    assert "(3 seeds)" in capsys.readouterr().out


def test_a_pair_of_waits_that_was_cut_off_is_measured_again_and_stands_there_once(served, tmp_path):
    file = tmp_path / "serve.jsonl"
    given = ["serve", "--repeats", "2", "--json", str(file)]
    assert bench.main(given) == 0
    whole = file.read_bytes()
    for cut in (len(whole) - 40, whole.index(b'"attacked"', len(whole) // 2)):
        file.write_bytes(whole[:cut])
        served["measured"] = 1
        assert bench.main(given) == 0
        assert file.read_bytes() == whole


def test_nothing_is_prepared_where_all_is_there(served, tmp_path, monkeypatch):
    given = ["serve", "--repeats", "1", "--json", str(tmp_path / "serve.jsonl")]
    assert bench.main(given) == 0
    monkeypatch.setattr(serve, "bodies_of_a_run", lambda folder: pytest.fail("a model was trained"))
    assert bench.main(given) == 0
    assert served["measured"] == 1


# ---- beside what does the same -------------------------------------------------------------------------


def stand_in(calls, name):
    def measure(folder, n, repeat, *_):
        calls.append((name, n, repeat))
        return {"time ratio": 1.0 + repeat}

    return measure


def test_the_bare_parts_are_measured_by_size_once_each(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(bare, "looped", stand_in(calls, "loop"))
    monkeypatch.setattr(bare, "reported", stand_in(calls, "report"))
    monkeypatch.setattr(bare, "chromium", lambda given: "browser")
    file = tmp_path / "bare.jsonl"
    given = ["bare", "--pools", "20,30", "--verdicts", "5", "--json", str(file)]
    assert bench.main([*given, "--parts", "loop", "--repeats", "1"]) == 0
    warm = ("loop", bare.WARM, 0)
    assert calls == [warm, ("loop", 20, 0), ("loop", 30, 0)]
    calls.clear()
    assert bench.main([*given, "--parts", "loop,report", "--repeats", "2"]) == 0
    wanted = [("report", 5, 0), ("loop", 20, 1), ("loop", 30, 1), ("report", 5, 1)]
    assert calls == [("report", bare.WARM, 0), warm, *wanted]
    calls.clear()
    assert bench.main([*given, "--parts", "loop,report", "--repeats", "2"]) == 0
    assert calls == []
    assert Figures(file).values("loop", 30, "time ratio") == {0: 1.0, 1: 2.0}


def test_a_part_that_is_not_there_is_named(capsys):
    assert bench.main(["bare", "--parts", "loop,loops"]) == 2
    assert (
        "no part is called ['loops']: expected some of serve, filter, loop, report" in capsys.readouterr().err
    )


def test_without_a_browser_nothing_else_is_measured_first(monkeypatch, capsys):
    monkeypatch.setattr(bare, "looped", lambda *_: pytest.fail("the loop was measured"))
    assert bench.main(["bare", "--parts", "loop,report", "--chromium", "/nowhere/chromium"]) == 2
    assert "no browser '/nowhere/chromium' on the path" in capsys.readouterr().err

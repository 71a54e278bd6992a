"""Progress bars start no thread, and count where they are not drawn."""

from __future__ import annotations

import threading

from backbones.progress import LATEST, ProgressBar


def test_a_bar_starts_no_thread(capsys):
    before = threading.enumerate()
    with ProgressBar(total=2, desc="drawn") as bar:
        bar.update()
        assert threading.enumerate() == before
    assert list(ProgressBar(desc="over", disable=True).over(range(3))) == [0, 1, 2]
    assert threading.enumerate() == before
    told = capsys.readouterr().err
    assert "drawn" in told
    assert "1/2 " in told
    assert " posts/s" in told
    assert "over" not in told


def test_numbers_are_kept_of_bars_that_nobody_sees(monkeypatch, capsys):
    clock = iter((10.0, 14.0, 20.0, 30.0)).__next__
    monkeypatch.setattr("backbones.progress.time.monotonic", clock)
    bar = ProgressBar(total=100, initial=40, desc="unseen", unit="image", disable=True)
    bar.update(20)
    found = LATEST["unseen"]
    assert (bar.n, found.done, found.total, found.unit, found.per_second) == (60, 60, 100, "image", 5.0)
    bar.update(20)
    bar.close()
    bar.close()  # the clock has stopped
    assert (found.done, found.per_second) == (80, 4.0)
    assert capsys.readouterr().err == ""

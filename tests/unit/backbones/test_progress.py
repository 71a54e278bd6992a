"""Progress bars start no thread."""

from __future__ import annotations

import threading

from backbones.progress import progress_bar


def test_a_bar_starts_no_thread(capsys):
    before = threading.enumerate()
    with progress_bar(total=2, desc="posts") as bar:
        bar.update()
        assert threading.enumerate() == before
    assert list(progress_bar(range(3), disable=True)) == [0, 1, 2]
    assert threading.enumerate() == before
    assert "posts" in capsys.readouterr().err

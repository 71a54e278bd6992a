"""Ids that come again, among any number, in little memory."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from selftrain.data import post_store
from selftrain.data.post_store import MetIds


@given(st.lists(st.text(max_size=3)))
def test_an_id_that_comes_again_is_found_where_it_came_first(ids):
    met, first = MetIds(), {}
    before, post_store._RECENT = post_store._RECENT, 4
    try:
        for line, one in enumerate(ids, 1):
            assert met.meet(one, line) == first.get(one)
            first.setdefault(one, line)
    finally:
        post_store._RECENT = before


def test_runs_double_and_an_id_takes_sixteen_bytes(monkeypatch):
    monkeypatch.setattr(post_store, "_RECENT", 100)
    met = MetIds()
    for line in range(1, 10_001):
        assert met.meet(f"post {line}", line) is None
    assert all(met.meet(f"post {line}", 0) == line for line in range(1, 10_001, 7))
    lengths = [len(keys) for keys, _ in met._runs]
    assert sum(lengths) == 10_000
    assert len(lengths) <= 7
    assert sum(keys.nbytes + lines.nbytes for keys, lines in met._runs) == 160_000
    assert sys.getsizeof(met._recent) < 10_000

"""Reading ahead: the same results in the same order, a bounded way ahead, and a clean end."""

from __future__ import annotations

import threading
import time

import pytest

from backbones.prefetch import MOST_THREADS, prefetch, threads_for


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_results_are_those_of_map_in_their_order(threads):
    def slow_when_even(number):
        time.sleep(0.002 * (number % 2 == 0))
        return number * number

    assert list(prefetch(slow_when_even, iter(range(40)), threads)) == [n * n for n in range(40)]
    assert list(prefetch(slow_when_even, [], threads)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_it_runs_no_further_ahead_than_twice_its_threads(threads):
    drawn = []

    def items():
        for number in range(100):
            drawn.append(number)
            yield number

    results = prefetch(lambda number: number, items(), threads)
    assert not drawn, "nothing is read before it is asked for"
    for asked in range(1, 20):
        next(results)
        assert asked <= len(drawn) <= asked + 2 * threads
    results.close()


def test_without_threads_nothing_is_read_ahead():
    drawn = []
    results = prefetch(drawn.append, iter(range(9)), 0)
    next(results)
    assert drawn == [0]


def test_threads_work_at_the_same_time():
    meeting = threading.Barrier(2, timeout=20)
    assert len(list(prefetch(lambda _: meeting.wait(), range(4), 2))) == 4


def test_a_fault_comes_in_its_turn_and_ends_it():
    begun = []

    def third_is_bad(number):
        begun.append(number)
        if number == 2:
            raise ValueError("the third")
        return number

    results = prefetch(third_is_bad, range(1000), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert len(begun) < 10
    assert not list(results)


def test_closed_early_it_begins_nothing_more():
    begun, gate = [], threading.Event()

    def wait(number):
        begun.append(number)
        if number:
            gate.wait(20)
        return number

    results = prefetch(wait, range(1000), 2)
    assert next(results) == 0
    gate.set()
    results.close()
    assert len(begun) <= 5
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


def test_a_cpu_computes_with_all_its_cores_and_a_gpu_has_readers():
    assert threads_for("cpu") == 0
    assert 1 <= threads_for("cuda") <= MOST_THREADS

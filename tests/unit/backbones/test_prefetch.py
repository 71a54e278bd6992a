"""Reading ahead: the same results in the same order, a bounded way ahead, and a clean end."""

from __future__ import annotations

import os
import threading
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from backbones import prefetch as reading
from backbones.errors import PromptFitError
from backbones.prefetch import prefetch, read_ahead, workers_for


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


# ---- in processes ---------------------------------------------------------------------------------------


def read_slowly(number):
    time.sleep(0.002 * (number % 2 == 0))
    return {"number": torch.full((3,), number)}, os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_processes_give_the_results_of_map_in_their_order(workers):
    found = list(read_ahead(read_slowly, iter(range(40)), workers))
    assert [one["number"].tolist() for one, _ in found] == [[n] * 3 for n in range(40)]
    here = {process for _, process in found} == {os.getpid()}
    assert here == (workers == 0)


def test_few_items_start_no_processes():
    drawn = iter(range(100, 104))
    assert {process for _, process in read_ahead(read_slowly, drawn, 3)} == {os.getpid()}
    assert list(read_ahead(read_slowly, [], 3)) == []


def test_a_servers_thread_starts_no_processes():
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: list(read_ahead(read_slowly, range(20), 3))).result()
    assert {process for _, process in found} == {os.getpid()}


def test_processes_draw_a_few_items_ahead_and_end_where_nobody_asks_any_more():
    drawn = []

    def items():
        for number in range(1000):
            drawn.append(number)
            yield number

    results = read_ahead(read_slowly, items(), 2)
    assert not drawn, "nothing is read before it is asked for"
    for asked in range(1, 20):
        next(results)
        assert len(drawn) <= asked + 8
    results.close()
    assert len(drawn) < 40


def fail_at_seven(number):
    if number == 7:
        raise PromptFitError("the seventh: raise max_tokens")
    return number


def test_a_fault_in_a_process_comes_in_its_turn_as_it_was_raised():
    results = read_ahead(fail_at_seven, range(1000), 2)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(PromptFitError) as raised:
        next(results)
    assert str(raised.value) == "the seventh: raise max_tokens"
    assert not list(results)


class UnheardError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def test_a_fault_that_cannot_travel_is_told_by_its_words():
    def fail(number):
        raise UnheardError("no", number)

    with pytest.raises(RuntimeError, match="UnheardError: no 0"):
        list(read_ahead(fail, range(9), 2))


def test_a_cpu_computes_with_all_its_cores_and_a_gpu_has_readers(monkeypatch, caplog):
    monkeypatch.setattr(reading, "_cores", lambda: 16)
    assert workers_for("cpu") == 0
    assert workers_for("cuda") == 15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers_for("cuda") == 3
    monkeypatch.setattr(reading, "_cores", lambda: 2)
    assert workers_for("cuda") == 1
    assert not caplog.records
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(reading.shutil, "disk_usage", lambda _: usage(64_000_000))
    assert workers_for("cuda") == 0
    assert "0.1 GB free" in caplog.text
    assert "--shm-size" in caplog.text

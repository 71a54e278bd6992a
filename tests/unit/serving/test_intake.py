"""Work for requests in processes of their own: bounded by what it costs, not by who else is at work."""

from __future__ import annotations

import os
import time

import anyio
import psutil
import pytest
from anyio import CapacityLimiter

from selftrain.serving import intake


def test_work_is_ended_by_the_processor_seconds_that_it_takes_and_the_next_is_done(monkeypatch):
    monkeypatch.setattr(intake, "SECONDS", 1)

    async def go():
        line = CapacityLimiter(1)
        await intake._apart(line, time.sleep, 2)  # who only waits has taken nothing
        with pytest.raises(anyio.BrokenWorkerProcess):
            await intake._apart(line, sum, range(10**12))
        return await intake._apart(line, sum, range(4))

    assert anyio.run(go) == 6


def test_work_that_waits_for_ever_is_ended_too(monkeypatch):
    monkeypatch.setattr(intake, "PATIENCE", 1)
    with pytest.raises(TimeoutError):
        anyio.run(intake._apart, CapacityLimiter(1), time.sleep, 60)


def test_work_is_done_though_every_idle_process_was_killed_and_none_is_missed_yet():
    async def go():
        others = psutil.Process().children()
        async with anyio.create_task_group() as group:
            for _ in range(intake.LINES):
                group.start_soon(intake._apart, CapacityLimiter(1), time.sleep, 0.2)
        idle = [process for process in psutil.Process().children() if process not in others]
        for process in idle:
            process.kill()
        psutil.wait_procs(idle)  # gone, but the loop has not heard of it
        return len(idle), await intake._apart(CapacityLimiter(1), sum, (1, 2, 3))

    assert anyio.run(go) == (intake.LINES, 6)


def test_work_that_ends_its_process_at_once_is_given_up():
    with pytest.raises(anyio.BrokenWorkerProcess):
        anyio.run(intake._apart, CapacityLimiter(1), os._exit, 1)

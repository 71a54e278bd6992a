"""The matrix of kills: any command, interrupted at any moment by anything, and started again.

A seed decides which job, by what, when and how often. A few seeds are tried always, all 200 by `make kills`;
`pytest -m "slow or not slow" -k seed-17- tests/integration/test_kill_matrix.py` repeats one of them.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections import Counter

import pytest
from kill_helpers import child
from kill_jobs import JOBS, contents
from kill_reviewer import Reviewer
from model_server import ModelServer, paid_twice
from page_tables import write_table

pytestmark = pytest.mark.integration

NAMES = tuple(JOBS)
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
FAULTS = (*SIGNALS, "SIGKILL", "SIGKILL", "SIGTERM", "a full disk", "no memory")
SEEDS = 200
QUICK = (6, 9, 11, 24)
HEAD = ("held", "failed", "ended before")
BY_JOB: Counter[tuple[str, str]] = Counter()
BY_FAULT: Counter[tuple[str, str]] = Counter()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def server():
    one = ModelServer()
    yield one
    one.stop()


@pytest.fixture(scope="module")
def ask(place, server):
    """A function from words of a command, and how it is interrupted, to exit status and what it told.

    A review is `served` to a reviewer, and ends with another status as long as there is something to review.
    """
    with child("command_child.py") as request:

        def start(words, served="", **fault):
            line = words.replace("{work}", str(place / "work")).replace("SERVER", server.stub.url)
            if not served:
                code, told = request(argv=line.split(), **fault)
                return code, json.loads(told)
            with Reviewer(place / "work" / served, place / "reviewed") as reviewer:
                code, told = request(argv=line.split(), until=str(reviewer.done), **fault)
            return code if reviewer.finished else code or 75, json.loads(told) | {"kept": reviewer.told}

        yield start


@pytest.fixture(scope="module")
def whole(place, server, ask):
    """A function from a job's name to what it leaves when nothing happens: contents, seconds, questions."""
    known = {}

    def of(name):
        if name not in known:
            prepare(place, server, ask, name)
            seconds = []
            for words, expected in JOBS[name].commands:
                code, told = ask(words, JOBS[name].served)
                assert code == expected, told["said"]
                seconds.append(told["seconds"])
            known[name] = contents(place / "work"), seconds, Counter(server.bodies)
        prepare(place, server, ask, name)
        return known[name]

    yield of
    write_table("kills by job", HEAD, BY_JOB)
    write_table("kills by fault", HEAD, BY_FAULT)


def prepare(place, server, ask, name):
    """The job's inputs in the one folder where all jobs run: paths are part of what is repeated."""
    inputs, work = place / f"inputs {NAMES.index(name)}", place / "work"
    if work.exists():
        shutil.rmtree(work)
    if not inputs.exists():
        work.mkdir()
        JOBS[name].made(work, server.stub.url)
        for words, expected in JOBS[name].before:
            code, told = ask(words)
            assert code == expected, told["said"]
        work.rename(inputs)
    shutil.copytree(inputs, work, symlinks=True)
    server.forget()


def fault_of(how, chance, seconds):
    """How a start is interrupted: the keywords of a request."""
    if how in SIGNALS:
        return {"signal": SIGNALS[how], "after": chance.uniform(0, seconds)}
    if how == "a full disk":
        return {"disk": int(2 ** chance.uniform(6, 18))}
    return {"memory": int(2 ** chance.uniform(10, 26))}


def play(seed, name, how, place, server, ask, whole):  # noqa: PLR0917 -- fixtures
    """One row of the matrix; how often its command was interrupted."""
    chance = random.Random(seed)
    left = chance.choice((1, 1, 2, 3))
    expected, seconds, once = whole(name)
    commands, interruptions, kept = JOBS[name].commands, [], []
    (target,) = chance.choices(range(len(commands)), weights=seconds)
    print(f"seed {seed}: {name!r}, command {target + 1} of {len(commands)}, {how}, {left} times")
    for number, (words, status) in enumerate(commands):
        while True:
            fault = fault_of(how, chance, seconds[number]) if left and number == target else {}
            left -= bool(fault)
            code, told = ask(words, JOBS[name].served, **fault)
            kept += told.get("kept", ())
            # a library that cannot be loaded for want of memory has no words of ours
            in_words = "memory" in fault or "Traceback" not in told["said"]
            assert in_words, (fault, told["said"])
            if code == status:
                break
            assert fault, (code, told["said"])
            print(f"  {fault}: {code} {told['said'][-200:]}")
            interruptions.append(len(server.bodies))
    found = contents(place / "work")
    assert found.keys() == expected.keys()
    for file, content in expected.items():
        assert found[file] == content, file
    # a reviewer who was told that an answer is kept is not asked for it again
    assert len(kept) == len(set(kept))
    assert paid_twice(server.bodies, interruptions, JOBS[name].at_once, once) == 0
    return len(interruptions)


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow, id=f"seed-{n}-") for n in range(SEEDS)],
)
def test_interrupted_at_any_moment_the_same_commands_end_the_same(seed, place, server, ask, whole):
    name, how = NAMES[seed % len(NAMES)], random.Random(f"fault {seed}").choice(FAULTS)
    try:
        interrupted = play(seed, name, how, place, server, ask, whole)
    except Exception:
        count(name, how, "failed")
        raise
    count(name, how, "held" if interrupted else "ended before")


def count(name, how, outcome):
    BY_JOB[name, outcome] += 1
    BY_FAULT[how, outcome] += 1

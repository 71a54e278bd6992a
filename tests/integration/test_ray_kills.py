"""Workers, nodes and commands of a cluster killed at random moments: the same bytes in the end.

A seed decides who is killed, at what work and when; `make kills` tries all 30 and writes their table.
`pytest -m slow -k seed-17- tests/integration/test_ray_kills.py` repeats one of them.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from subprocess import DEVNULL

import pytest
from page_tables import write_table
from processes import Process
from test_ray import HERE, SMALL_NODE, begun_by_raylets, bytes_of, cluster, source  # noqa: F401 -- fixtures

pytestmark = [pytest.mark.integration, pytest.mark.slow]

VICTIMS = ("a worker", "a node", "the command")
JOBS = ("filter", "run")
SEEDS = 30
HEAD = ("held", "held, given again", "failed", "ended before")
COUNTS: Counter[tuple[str, str]] = Counter()
SECONDS = 300
AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
FILTER = """
import sys
from pathlib import Path
from test_ray import go
from selftrain.engine.on_ray import OnRay
from selftrain.errors import EngineError
source, sink, *address = sys.argv[1:]
try:
    go(Path(source), Path(sink), *map(OnRay, address), seconds=0.1, commit_seconds=0.0)
except EngineError as error:
    sys.exit(str(error))
"""


def command(job, out, small_run, source, *engine):  # noqa: F811 -- the fixture
    """Words of the command that leaves its files in `out`, here or with an engine's workers."""
    if job == "filter":
        return ("-c", FILTER, source, out / "sink.jsonl", *engine)
    blocks = ("--set", "threads=1", "--set", "backbone.batch_size=2")  # of few posts: there are many
    return (
        "-m", "selftrain", "run", small_run.parent / "small.toml", "--out", out / "run",
        "--set", f"backbone.cache={out / 'cache'}", *blocks, *(("--ray", *engine) if engine else ()),
    )  # fmt: skip


def left(job, out):
    """What must be the same."""
    if job == "filter":
        return bytes_of(out / "sink.jsonl")
    run = out / "run"
    files = [run / "grown.jsonl", *run.glob("rounds/*/*.jsonl"), *run.glob("rounds/*/model.safetensors")]
    files += [*out.glob("cache/*/rows.f32"), *out.glob("cache/*/keys.bin")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def start(cluster, small_run, source):  # noqa: F811
    """A function that starts a job's command."""
    place = {"PYTHONPATH": f"{os.environ['PYTHONPATH']}:{HERE}", "OMP_NUM_THREADS": "1"}

    def started(job, out, *engine):
        words = command(job, out, small_run, source, *engine)
        return Process(words, cwd=out, env=os.environ | place, stdout=DEVNULL)

    yield started
    write_table("kills on a cluster", HEAD, COUNTS)


@pytest.fixture(scope="module")
def whole(start, cluster, tmp_path_factory):  # noqa: F811
    """A function from a job to what one process leaves, and how long it takes on the cluster."""
    known = {}

    def of(job):
        if job not in known:
            here, there = (tmp_path_factory.mktemp(name) for name in ("here", "there"))
            assert ended(start(job, here)) == 0
            began = time.monotonic()
            assert ended(start(job, there, cluster.address)) == 0
            known[job] = left(job, here), time.monotonic() - began
            assert left(job, there) == known[job][0]
            assert known[job][0]
        return known[job]

    return of


def ended(process):
    """The exit status; what it told is words."""
    _, told = process.communicate(SECONDS)
    assert "Traceback" not in told, told
    print(told)  # seen where the test fails
    return process.returncode


def strike(victim, chance, process, cluster):  # noqa: F811
    """Kill it, and tell whether there was one; of the workers any that is busy, Ray's own among them.

    But for a raylet's agents: it ends with them, and where it is the command's own node, so does that.
    """
    if victim == "the command":
        process.kill()
    elif victim == "a node":
        cluster.remove_node(cluster.other, allow_graceful=False)
        cluster.other = None
    else:
        names = workers(cluster)
        while not names and process.poll() is None:  # none has begun
            time.sleep(0.05)
            names = workers(cluster)
        busy = sorted(pid for pid, name in names.items() if "ray::" in name and name != "ray::IDLE")
        if names:
            os.kill(chance.choice(busy or sorted(names)), signal.SIGKILL)
        return bool(names)
    return True


def workers(cluster):  # noqa: F811
    """Process -> its name, of all that the raylets have begun but for their agents."""
    return {pid: name for pid, name in begun_by_raylets(cluster).items() if name not in AGENTS}


def play(seed, job, victim, start, whole, cluster, out):  # noqa: F811, PLR0917 -- fixtures
    """One row of the table; the outcome."""
    chance, (expected, seconds) = random.Random(seed), whole(job)
    process, outcome = start(job, out, cluster.address), "held"
    try:
        process.wait(chance.uniform(0, seconds))
        outcome = "ended before"
    except subprocess.TimeoutExpired:
        outcome = "held" if strike(victim, chance, process, cluster) else "ended before"
    if ended(process):
        assert outcome == "held", "nobody was killed"
        outcome = "held, given again"
        assert ended(start(job, out, cluster.address)) == 0
    assert left(job, out) == expected
    return outcome


@pytest.mark.parametrize("seed", [pytest.param(n, id=f"seed-{n}-") for n in range(SEEDS)])
def test_whoever_is_killed_the_bytes_are_those_of_one_process(seed, start, whole, cluster, tmp_path):  # noqa: F811
    victim, job = VICTIMS[seed % len(VICTIMS)], JOBS[seed // len(VICTIMS) % len(JOBS)]
    kind = f"{victim}, {job}"
    try:
        COUNTS[kind, play(seed, job, victim, start, whole, cluster, tmp_path)] += 1
    except BaseException:
        COUNTS[kind, "failed"] += 1
        raise
    finally:
        if cluster.other is None:
            cluster.other = cluster.add_node(**SMALL_NODE)
            cluster.wait_for_nodes()

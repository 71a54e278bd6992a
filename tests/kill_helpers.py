"""Runs of the one command that can be killed at a chosen point, on a recipe small enough to repeat often."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

from processes import Process

CHECKOUT = Path(__file__).parents[1]
CHILDREN = CHECKOUT / "tests" / "integration"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
SMALL = """
seed = 7
threads = 1
[data]
manifest = "posts/manifest.jsonl"
task = "posts/task.toml"
labelled = 12
[backbone]
cache = "cache"
batch_size = 4
[classifier]
head = "mlp"
hidden = 16
epochs = 40
learning_rate = 0.01
[selection]
k = 15
[rounds]
max = 3
patience = 9
"""


@contextmanager
def child(script, *, light=False):
    """A function that asks `script` for one call, its keywords in JSON: exit code, and what it told.

    Every call runs in a process of its own, forked from one that has imported everything already; a `light`
    script has imported little, and forks the faster for it.
    """
    if light:
        words = [sys.executable, str(CHILDREN / script)]
        server = subprocess.Popen(words, cwd=CHECKOUT, stdin=PIPE, stdout=PIPE, text=True, env=ENVIRONMENT)
    else:
        server = Process([CHILDREN / script], cwd=CHECKOUT, stdin=PIPE, stderr=None, env=ENVIRONMENT)
    assert server.stdout.readline() == "ready\n"

    def ask(**line):
        server.stdin.write(json.dumps(line) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        return answer["code"], answer["words"]

    yield ask
    server.stdin.close()
    assert server.wait(timeout=30) == 0


@contextmanager
def launcher():
    """A function from recipe, run folder and kill (see loop_child.py) to exit code and words."""
    with child("loop_child.py") as ask:
        yield lambda recipe, out, kill=None: ask(recipe=str(recipe), out=str(out), kill=kill)

"""The human budget under SIGKILL: many reviewers' processes at once, killed at random points and replaced."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import ReviewItem, agreement_of

pytestmark = pytest.mark.integration

CHECKOUT = Path(__file__).parents[2]
CLASSES = ("rude", "kind")
POSTS, POPULATION, DOUBLED = 2000, 3000, 0.1
LEASE = 2.0
REVIEWERS = 20

# what a reviewer's page does; every answer that it was told of goes into a file of its own, at once
CLIENT = """
import os, random, sys, time
from pathlib import Path
from selftrain.review.ledger import ReviewLedger
from selftrain.errors import DecisionError
path, who, told = sys.argv[1:]
ledger, chance = ReviewLedger(Path(path)), random.Random(who)
with open(told, "a") as file:
    idle = 0
    while idle < 40:
        post = ledger.next_post(who)
        if post is None:
            idle += 1
            time.sleep(0.05)
            continue
        idle = 0
        post_id = post.item.post_id
        act = chance.random()
        try:
            if act < 0.02:
                ledger.skip(who, post_id)
            elif act < 0.03:
                ledger.undo(who)
            else:
                label = ["rude", "kind"][int(post_id[1:]) % 2]
                ledger.decide(who, post_id, label)
                os.write(file.fileno(), f"{post_id} {label}\\n".encode())
        except DecisionError:
            pass  # twenty wait for one file: a lease may run out meanwhile, and the post go to somebody else
"""


def start(ledger, who, folder):
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(ledger.path), who, str(folder / f"{who}.told")], cwd=CHECKOUT
    )


@pytest.fixture
def ledger(tmp_path):
    ledger = ReviewLedger.create(
        tmp_path / "review.sqlite",
        classes=CLASSES,
        budget=POSTS,
        double_annotation_rate=DOUBLED,
        lease_seconds=LEASE,
    )
    entries = [ReviewItem(f"p{i}", CLASSES[i % 2], 0.5, POSTS / POPULATION) for i in range(POPULATION)]
    ledger.add("round 1", entries, [f"p{i}" for i in range(POSTS)])
    return ledger


def test_twenty_reviewers_killed_at_random_lose_no_post_and_spend_the_budget_exactly(ledger, tmp_path):
    chance = random.Random(7)
    names = [f"r{i}" for i in range(REVIEWERS)]
    running = {who: start(ledger, who, tmp_path) for who in names}
    kills, newcomers = 0, 0
    while (progress := ledger.progress()).reviewed + progress.second < POSTS * (1 + DOUBLED) * 0.8:
        time.sleep(chance.uniform(0.02, 0.25))
        who = chance.choice(list(running))
        os.kill(running[who].pid, signal.SIGKILL)
        running.pop(who).wait()
        kills += 1
        # half come back under their name, to their lease; for the others a lease must run out
        if chance.random() < 0.5:
            newcomers += 1
            who = f"n{newcomers}"
        running[who] = start(ledger, who, tmp_path)
    for process in running.values():
        assert process.wait(timeout=120) == 0
    assert kills >= 5

    progress = ledger.progress()
    decisions = ledger.decisions()
    assert (progress.reviewed, progress.left, progress.second) == (POSTS, 0, POSTS * DOUBLED)
    # none lost, and none beyond the sample
    assert [d.post_id for d in decisions] == [f"p{i}" for i in range(POSTS)]
    assert sum(len(d.reviews) == 2 for d in decisions) == POSTS * DOUBLED
    assert all(len({r.reviewer for r in d.reviews}) == len(d.reviews) for d in decisions)
    assert all(d.label == CLASSES[int(d.post_id[1:]) % 2] and not d.contested for d in decisions)
    assert agreement_of(ledger.decisions()).kappa == 1.0
    assert_what_was_told_is_kept(ledger, tmp_path)
    check = sqlite3.connect(ledger.path).execute("PRAGMA integrity_check").fetchone()
    assert check == ("ok",)


def assert_what_was_told_is_kept(ledger, folder):
    """Whatever a client was told is decided stands in the ledger's log, unless it was undone."""
    logged = sqlite3.connect(ledger.path).execute("SELECT reviewer, post_id FROM log WHERE action = 'decide'")
    known = set(logged)
    told = [
        (file.stem, line.split()[0])
        for file in folder.glob("*.told")
        for line in file.read_text().splitlines()
    ]
    assert len(told) > POSTS / 2
    assert set(told) <= known


def test_a_reviewer_killed_between_two_calls_finds_the_post_again(ledger, tmp_path):
    code = (
        "import os, signal, sys; from selftrain.review.ledger import ReviewLedger;"
        "post = ReviewLedger(sys.argv[1]).next_post('ann'); print(post.item.post_id, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(ledger.path)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout.strip() == "p0"
    assert ledger.next_post("ann").item.post_id == "p0"
    assert ledger.progress().reviewed == 0


def test_the_same_sample_added_by_two_processes_enters_once(ledger, tmp_path):
    code = (
        "import sys; from selftrain.review.ledger import ReviewLedger\n"
        "from selftrain.review.ledger_reader import ReviewItem;"
        "path = sys.argv[1];"
        "ledger = ReviewLedger.create(path, classes=('rude', 'kind'), budget=50);"
        "items = [ReviewItem(f'p{i}', 'rude', .1, .5) for i in range(100)];"
        "ledger.add('a', items, [f'p{i}' for i in range(50)])"
    )
    path = tmp_path / "shared.sqlite"
    racing = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=CHECKOUT) for _ in range(4)]
    assert [process.wait(timeout=60) for process in racing] == [0, 0, 0, 0]
    shared = ReviewLedger(path)
    assert shared.progress().entered == 50
    assert shared.batches() == ["a"]

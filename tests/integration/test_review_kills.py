"""`selftrain review serve` under SIGKILL and at its edges: nothing told is lost, nothing reviewed twice."""

from __future__ import annotations

import http.client
import json
import random
import socket
import sqlite3
import stat
import threading
import time
from collections import Counter

import pytest
from cli_helpers import here
from http_helpers import ask
from review_helpers import Server, as_json, review_of, run_of

from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER

pytestmark = pytest.mark.integration

POSTS, DOUBLED, REVIEWERS, KILLS = 200, 0.1, 12, 3


class Client(threading.Thread):
    """A reviewer's page: it asks until it is answered, through every death of the server."""

    def __init__(self, name, server):
        super().__init__()
        self.name, self.port, self.token = name, server.port, server.token
        self.told, self.problems = [], []
        self.chance = random.Random(name)

    def ask(self, what, **fields):
        while True:
            try:
                status, content = ask(
                    self.port, "POST", f"/api/{what}?token={self.token}",
                    as_json({"reviewer": self.name, **fields}),
                    {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"},
                    timeout=30,
                )  # fmt: skip
                body = json.loads(content)
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)  # the server is dead; what was asked is asked again
                continue
            if status != 503:
                return status, body

    def run(self):
        status, told = self.ask("begin")
        while status == 200:
            if told["post"] is None:
                if told["end"]["finished"] and not told["end"]["second_open"]:
                    return
                time.sleep(0.2)
                status, told = self.ask("next")
            elif self.chance.random() < 0.03:
                status, told = self.ask("skip", post=told["post"]["id"])
            else:
                post_id = told["post"]["id"]
                label = label_of(post_id)
                status, told = self.ask("decide", post=post_id, label=label)
                self.told.append((post_id, label))
        self.problems.append((status, told))


def label_of(post_id):
    return ("positive", "negative")[int(post_id[1:]) % 2]


def test_a_server_killed_while_people_review_loses_nothing_and_spends_the_budget_exactly(tmp_path):
    folder = review_of(tmp_path, POSTS, doubled=DOUBLED)
    server = Server(folder)
    clients = [Client(f"r{i}", server) for i in range(REVIEWERS)]
    for one in clients:
        one.start()
    ledger, port = ReviewLedger(folder.path / LEDGER), server.port
    for kill in range(KILLS):
        until = time.monotonic() + 120
        while ledger.progress().reviewed < POSTS * (kill + 1) / (KILLS + 1):
            assert time.monotonic() < until
            time.sleep(0.02)
        server.kill()
        server = Server(folder)
        assert server.port == port
    for one in clients:
        one.join(120)
        assert not one.is_alive()
        assert one.problems == []
    assert server.end() == 0

    progress, decisions = ledger.progress(), ledger.decisions()
    assert (progress.reviewed, progress.left, progress.second) == (POSTS, 0, POSTS * DOUBLED)
    assert all(d.label == label_of(d.post_id) for d in decisions)
    assert all(len({r.reviewer for r in d.reviews}) == len(d.reviews) for d in decisions)
    kept = Counter((r.post_id, r.reviewer) for d in decisions for r in d.reviews)
    told = Counter((post_id, one.name) for one in clients for post_id, _ in one.told)
    assert told == kept  # what was told is kept, and what is kept was told, once
    assert sqlite3.connect(ledger.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_whoever_had_a_post_open_gets_it_again(tmp_path):
    folder = review_of(tmp_path, 5)
    server = Server(folder)
    ann, bob = Client("ann", server), Client("bob", server)
    held = ann.ask("begin")[1]["post"], bob.ask("begin")[1]["post"]
    server.kill()
    again = Server(folder)
    assert (again.port, again.token) == (server.port, server.token)
    assert (ann.ask("begin")[1]["post"], bob.ask("begin")[1]["post"]) == held
    assert again.end() == 0


def test_the_remembered_token_is_for_its_owner_alone(tmp_path):
    folder = review_of(tmp_path, 2)
    server = Server(folder)
    mode = (folder.path / ".review.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    other = Server(folder)  # beside it: the same token, another port
    assert other.token == server.token
    assert other.port != server.port
    assert (server.end(), other.end()) == (0, 0)


# ---- the command line -----------------------------------------------------------------------------------


def refused(*options):
    """The message of a command that ends with 2, one line without a traceback."""
    ended = here("review", "serve", *options, "--no-browser")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    return ended.stderr


def test_a_budget_begins_a_review_and_the_same_command_goes_on(tmp_path):
    folder = run_of(tmp_path, 20)
    begun = Server(
        folder, "--budget", "8", "--double-annotation-rate", "0.25", "--order", "uncertain",
        "--reviewer", "Ann L",
    )  # fmt: skip
    assert begun.told[:2] == [
        f"drawn 8 of 20 posts into {folder.path}/review.sqlite",
        "reviewed 0 of 8 posts, 0 of 2 second reviews",
    ]
    assert begun.address.endswith("&reviewer=Ann%20L")
    ann = Client("ann", begun)
    post = ann.ask("begin")[1]["post"]
    ann.ask("decide", post=post["id"], label="positive")
    begun.kill()
    again = Server(folder, "--budget", "8", "--double-annotation-rate", "0.25")
    assert again.told[0] == "reviewed 1 of 8 posts, 0 of 2 second reviews"
    ann.port, status = again.port, 200
    while (post := ann.ask("next")[1]["post"]) is not None:
        status, _ = ann.ask("decide", post=post["id"], label="positive")
    assert status == 200
    assert again.end() == 0
    assert again.rest.splitlines()[-2:] == [
        "reviewed 8 of 8 posts, 0 of 2 second reviews",
        f"next: selftrain run {folder.path}/recipe.toml --out {folder.path}",
    ]


def test_mistakes_are_told_in_a_line(tmp_path):
    folder = run_of(tmp_path, 20)
    run = folder.path
    assert "not a run folder" in refused(tmp_path / "none")
    assert "20 divergent posts are there to draw from" in refused(run)
    assert "a budget of 0 for 20 divergent posts" in refused(run, "--budget", 0)
    assert "a budget of 21 for 20 divergent posts" in refused(run, "--budget", 21)
    assert "no pseudo-labels" in refused(run, "--budget", 3, "--among", "accepted")
    assert not (run / LEDGER).exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port} cannot be listened on" in refused(run, "--budget", 5, "--port", port)
    assert "a budget of 5, now 6" in refused(run, "--budget", 6)
    assert "--rule cannot change it" in refused(run, "--rule", "threshold")
    # with the budget it is the same command, unless the ledger says otherwise
    others = ("--among", "accepted", "--seed", 1, "--order", "uncertain", "--double-annotation-rate", 0.1)
    assert "drawn: --order, --among, --seed cannot change it" in refused(run, "--budget", 5, *others)


def test_a_ledger_of_another_run_is_refused(tmp_path):
    folder, other = run_of(tmp_path / "one", 5), review_of(tmp_path / "two", 3, ids=["x1", "x2", "x3"])
    (folder.path / LEDGER).write_bytes(copy_of(other))
    assert "ledger of another run: 3 of its 3 posts are unknown" in refused(folder.path)
    (folder.path / LEDGER).write_bytes(b"no database" * 1000)
    assert "review.sqlite cannot be opened" in refused(folder.path)


def copy_of(folder):
    """The ledger of a run in one file."""
    connection = sqlite3.connect(folder.path / LEDGER)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return (folder.path / LEDGER).read_bytes()

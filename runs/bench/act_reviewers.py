"""Many reviewers at once on one review page, whose server is killed again and again: is anything lost?

Clients do what the page does, over HTTP: they ask for a post, answer, and repeat a request until it is
answered. At the end the ledger holds what they were told, no more and no less.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from runs.bench.study import Figure, Figures
from runs.bench.synthetic_run import synthetic_run
from selftrain._util.types import Json
from selftrain.errors import SelftrainError
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.review.sampling import request_reviews
from selftrain.store.run_dir import RunFolder

POSTS, REVIEWERS, KILLS, DOUBLED = 10_000, 20, 5, 0.1
_DIVERGENT = 0.15
"""A little less than the share of posts that `synthetic_run` leaves divergent."""


class Server:
    """A `selftrain review serve` in a process of its own."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-m", "selftrain", "review", "serve", str(run), "--no-browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.match(r"open http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)", line):
                self.port, self.token = int(found[1]), found[2]
                return
        raise SelftrainError(f"selftrain review serve {run} ended with status {self.process.wait()}")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Client(threading.Thread):
    """One reviewer's page, with the answers that it was told are saved.

    Attributes:
        told: Post ids, in order.
        seconds: From an answer to the next post, each.
        problem: What the server refused; None.
    """

    def __init__(self, name: str, server: Server, classes: Sequence[str]) -> None:
        super().__init__(name=name, daemon=True)
        self._port, self._token, self._classes = server.port, server.token, classes
        self._chance = random.Random(name)
        self.told: list[str] = []
        self.seconds: list[float] = []
        self.problem: Json | None = None

    def run(self) -> None:
        """Review until nothing is left."""
        status, told = self._ask("begin")
        while status == 200:
            if told["post"] is None:
                if told["end"]["finished"] and not told["end"]["second_open"]:
                    return
                time.sleep(1.0)
                status, told = self._ask("next")
                continue
            post_id, label = told["post"]["id"], self._chance.choice(self._classes)
            began = time.monotonic()
            status, told = self._ask("decide", post=post_id, label=label)
            self.seconds.append(time.monotonic() - began)
            self.told.append(post_id)
        self.problem = told

    def _ask(self, what: str, **fields: str) -> tuple[int, Json]:
        headers = {"Origin": f"http://127.0.0.1:{self._port}", "Content-Type": "application/json"}
        body = json.dumps({"reviewer": self.name, **fields})
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                connection.request("POST", f"/api/{what}?token={self._token}", body, headers)
                answer = connection.getresponse()
                told: Json = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)  # the server is dead: the page tries again
                continue
            finally:
                connection.close()
            if answer.status != 503:
                return answer.status, told


def measure(figures: Figures, posts: int = POSTS, reviewers: int = REVIEWERS, kills: int = KILLS) -> None:
    """Review `posts` posts by so many at once, with kills in between, unless the figures hold it.

    Raises:
        SelftrainError: The server does not start, or an answer was refused.
    """
    method = f"{reviewers} reviewers, {kills} kills"
    if figures.has("act", method, posts, 0):
        return
    with tempfile.TemporaryDirectory(prefix="selftrain-bench-") as place:
        folder = synthetic_run(Path(place), round(posts / _DIVERGENT), rounds=2, pictures=0)
        request_reviews(folder, budget=posts, batch="divergent", double_annotation_rate=DOUBLED)
        values = dict(_reviewed(folder, reviewers, kills))
    figures.add([Figure("act", "review page", method, posts, 0, *item) for item in values.items()])


def _reviewed(folder: RunFolder, reviewers: int, kills: int) -> Iterator[tuple[str, float]]:
    ledger = ReviewLedger(folder.path / LEDGER)
    server = Server(folder.path)
    clients = [Client(f"r{number}", server, ledger.classes) for number in range(reviewers)]
    began = time.monotonic()
    for one in clients:
        one.start()
    for kill in range(kills):
        while ledger.progress().reviewed < ledger.budget * (kill + 1) / (kills + 1):
            time.sleep(0.05)
        server.kill()
        server = Server(folder.path)
    for one in clients:
        one.join()
    elapsed = time.monotonic() - began
    server.kill()
    refused = [one.problem for one in clients if one.problem is not None]
    if refused:
        raise SelftrainError(f"{len(refused)} clients were refused something, the first {refused[0]}")
    progress, decisions = ledger.progress(), ledger.decisions()
    ledger.close()
    told = Counter((post_id, one.name) for one in clients for post_id in one.told)
    kept = Counter((review.post_id, review.reviewer) for one in decisions for review in one.reviews)
    yield "budget_left", float(progress.left)
    yield "posts_reviewed", float(len(decisions))
    yield "second_reviews", float(progress.second)
    yield "second_reviews_asked", float(progress.doubled)
    yield "told_but_not_kept", float((told - kept).total())
    yield "kept_but_not_told", float((kept - told).total())
    yield "answers_per_second", kept.total() / elapsed
    yield "median_seconds_to_next_post", statistics.median(s for one in clients for s in one.seconds)

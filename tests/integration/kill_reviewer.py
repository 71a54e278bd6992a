"""A reviewer beside `review serve`: answers what it is offered, through every death of the server."""

from __future__ import annotations

import http.client
import json
import threading
import time

from http_helpers import ask

from selftrain.data.drawn import ADVERTISEMENT, INVITATION

NAMES = ("ann", "bob")  # the second one does the second reviews
LABELS = (INVITATION, ADVERTISEMENT)


class Reviewer(threading.Thread):
    """Reviews a folder in a thread of its own while its `with` lasts.

    Attributes:
        told: (name, post id) of every answer that the server said is kept.
        done: This file is there when nothing is left to answer, or the server cannot keep answers.
        finished: Whether nothing was left.
    """

    def __init__(self, folder, done):
        super().__init__(daemon=True)
        self.folder, self.done = folder, done
        self.told, self.finished, self._ended = [], False, threading.Event()

    def __enter__(self):
        self.done.unlink(missing_ok=True)
        self.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self.join()
        self.done.unlink(missing_ok=True)

    def run(self):
        for name in NAMES:
            status, found = self._ask("next", reviewer=name)
            while status == 200 and found["post"] is not None:
                post_id = found["post"]["id"]
                label = LABELS[sum(post_id.encode()) % 2]
                status, found = self._ask("decide", reviewer=name, post=post_id, label=label)
                if status == 200:
                    self.told.append((name, post_id))
            if status != 200:
                break
            self.finished = name == NAMES[-1]
        self.done.touch()

    def _ask(self, what, **fields):
        """Status and content of an answer; 0 where the server has ended."""
        while not self._ended.is_set():
            try:
                place = json.loads((self.folder / ".review.json").read_text())
                status, content = ask(
                    place["port"], "POST", f"/api/{what}?token={place['token']}", json.dumps(fields),
                    {"Origin": f"http://127.0.0.1:{place['port']}", "Content-Type": "application/json"},
                    timeout=30,
                )  # fmt: skip
                return status, json.loads(content)
            except (OSError, ValueError, http.client.HTTPException):
                time.sleep(0.01)  # it does not listen yet, or no longer
        return 0, None

"""A model for workers of a Ray cluster: it says where it was loaded, and takes its time."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from contextlib import contextmanager
from pathlib import Path

from serving_helpers import TextPredictor

from selftrain.engine import on_ray


class NotedPredictor(TextPredictor):
    """Adds a line with its process and node to a file when it is loaded; a chunk takes `seconds`.

    The first chunk waits until so many as `gather` are loaded. The text "crash" ends the process.
    """

    def __init__(self, notes: Path, seconds: float, gather: int):
        super().__init__()
        self.notes, self.seconds, self.gather = notes, seconds, gather
        with notes.open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), "node": node_of_this_process()}) + "\n")

    def predict(self, posts):
        if any(post.text == "crash" for post in posts):
            os._exit(1)
        deadline = time.monotonic() + 120
        while len(self.notes.read_text().splitlines()) < self.gather and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(self.seconds)
        return super().predict(posts)


def node_of_this_process() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def raises(error: Exception) -> None:
    """A model that cannot be opened."""
    raise error


def ends_at(deadly: int, block: int) -> int:
    """Give the block back; one ends the process."""
    if block == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return block


@contextmanager
def across_processes(engine, source, stage, rescue=None):
    """`OnRay.map` without a cluster: everything is pickled as it would be on its way."""
    source, stage = pickle.loads(pickle.dumps((source, stage)))
    watch = Watch()
    worker = on_ray._Worker(stage, None, watch)
    yield (_told(on_ray._unpacked(worker(table))) for table in on_ray._read(source, watch))


class Watch:
    """What `on_ray._Watch` is to a worker, in its own process; `ends` says when the stage is ending."""

    def __init__(self, ends=bool):
        self._notes, self.ending = on_ray._Notes(), ends

    def tries(self, place, item=on_ray._WHOLE):
        return self._notes.begin((place, item))

    def finish(self, place, item=on_ray._WHOLE):
        self._notes.finish((place, item))


def _told(made):
    if isinstance(made, on_ray._Raised):
        raise made.error
    return made

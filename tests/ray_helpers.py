"""A model for workers of a Ray cluster: it says where it was loaded, and takes its time."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from serving_helpers import TextPredictor


class NotedPredictor(TextPredictor):
    """Adds a line with its process and node to a file when it is loaded; a chunk takes `seconds`."""

    def __init__(self, notes: Path, seconds: float):
        super().__init__()
        self.seconds = seconds
        with notes.open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), "node": node_of_this_process()}) + "\n")

    def predict(self, posts):
        time.sleep(self.seconds)
        return super().predict(posts)


def node_of_this_process() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def raises(error: Exception) -> None:
    """A model that cannot be opened."""
    raise error

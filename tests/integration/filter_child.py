"""Filters in processes of their own that kill themselves at the nth chance, or tell what memory they took.

It imports once and forks for every request: one JSON line {"source", "sink", "kill": N or null}; the answer
is the child's exit status, and in words an error, or its tally, chances and peak memory in kilobytes.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import filelock  # noqa: F401 -- once, not in every child
import tqdm  # noqa: F401

from selftrain.cli import printing
from selftrain.models.predictor import Prediction
from selftrain.serving import row_stream, streams
from selftrain.serving.row_stream import Sink
from selftrain.serving.streams import ModelAtWork, filter_posts


class NumberPredictor:
    """A post's text is its positive probability; another text has no score."""

    kind, name, positive, classes = "classifier", "numbers", "yes", ("yes", "no")
    threshold = None

    def __init__(self, fingerprint):
        self.fingerprint = fingerprint

    def predict(self, posts):
        return [self._one(post) for post in posts]

    def _one(self, post):
        try:
            prob = float(post.text)
        except ValueError:
            return Prediction(post.id, reason="no number")
        return Prediction(post.id, "yes" if prob > 0.5 else "no", {"yes": prob, "no": 1 - prob})

    def validation(self):
        return None


class Trap:
    """Counts chances, and kills at the nth."""

    def __init__(self, nth):
        self.left, self.met = nth, 0

    def chance(self):
        self.met += 1
        if self.met == self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            self.chance()
            result = original(*args, **kwargs)
            self.chance()
            return result

        setattr(owner, name, watched)

    def set(self):
        """Before and after every flush to the disk, replacement and cut; and with a line half written."""
        self.around(os, "fsync")
        self.around(Path, "replace")
        write = Sink.write

        def torn(journal, kept, failed):
            kept, failed = list(kept), list(failed)
            write(journal, kept, failed)
            for file, lines in ((journal._kept, kept), (journal._failed, failed)):
                file.flush()
                if not lines:
                    continue
                whole = file.tell()
                os.truncate(file.name, max(0, whole - 7))
                self.chance()
                if whole - 7 > 0:
                    with open(file.name, "ab") as again:  # noqa: PTH123
                        again.write("".join(f"{line}\n" for line in lines).encode()[-7:])

        Sink.write = torn


def predict(source, target, rows):
    """As `agentps predict`, forty posts at once and a commit after each; gives what it printed."""
    streams.CHUNK = 40
    row_stream.pour = partial(row_stream.pour, commit_seconds=0.0)
    told = io.StringIO()
    with redirect_stdout(told), redirect_stderr(told):
        work = ModelAtWork(predictor=NumberPredictor("a" * 64))
        printing.write_predictions(target, work, Path(source), done="scored", rows=rows)
    return told.getvalue()


def run(request):
    trap = Trap(request["kill"] or 0)
    if request["kill"] is not None:
        trap.set()
    if request.get("predict"):
        trap.around(Path, "unlink")
        told = predict(request["source"], request["sink"], request.get("rows"))
        return {"told": told, "chances": trap.met}
    tally = filter_posts(
        ModelAtWork(predictor=NumberPredictor(request.get("fingerprint", "a" * 64)), max_pixels=1000),
        request["source"], Path(request["sink"]), threshold=request.get("threshold", 0.5), text_limit=100,
        commit_seconds=request.get("commit_seconds", 0.0),
    )  # fmt: skip
    return {"tally": tally._asdict(), "chances": trap.met}


def serve():
    print("ready", flush=True)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as words:
            child = os.fork()
            if child == 0:
                os.dup2(words.fileno(), 2)
                try:
                    told = run(json.loads(line))
                    told["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    os.write(2, json.dumps(told).encode())
                    code = 0
                except Exception as error:
                    os.write(2, f"{type(error).__name__}: {error}".encode())
                    code = 2
                os._exit(code)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            words.seek(0)
            print(json.dumps({"code": status, "words": words.read().decode()}), flush=True)


if __name__ == "__main__":
    serve()

"""Starts runs in processes of their own that kill themselves where they are told to.

Importing torch takes longer than a small run: so this program imports once and forks for every request. A
request is one JSON line {"recipe": PATH, "out": PATH, "kill": SPEC or null}; the answer is the child's wait
status and what it wrote to its standard error. The same happens at every request, killed or not: it is the
same command.

SPEC is [moment, point, nth]: "before" or "after" the nth "replace:NAME" (NAME takes its place), "link:best",
"fsync", "write:NAME" (moment "half": half of the bytes are there), or "call:MODULE:FUNCTION".
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np

from backbones.base import Encoded, EncodeFailure, FeatureLayout
from backbones.errors import ImageError
from backbones.images import open_image

TEXT = 64


class LightBackbone:
    """Words hashed into buckets and mean colours: enough to learn from, and nothing to load."""

    name = "light"
    layout = FeatureLayout(TEXT, 48)

    def fingerprint(self):
        return sha256(b"light 1").hexdigest()

    def encode(self, posts, *, batch_size=64, workers=0, progress=False):
        rows, failures = np.full((len(posts), self.layout.width), np.nan, np.float32), []
        for index, post in enumerate(posts):
            try:
                rows[index] = self._row(post)
            except ImageError as error:
                failures.append(EncodeFailure(index, str(error)))
        return Encoded(rows, tuple(failures))

    def _row(self, post):
        row = np.zeros(self.layout.width, np.float32)
        for word in post.text.lower().split():
            row[sha256(word.strip(".,!?:").encode()).digest()[0] % TEXT] += 1
        for path in post.images:
            colours = np.asarray(open_image(path).resize((4, 4)), np.float32)
            row[self.layout.image] += colours.ravel() / 255
        row[self.layout.has_text], row[self.layout.has_image] = bool(post.text), bool(post.images)
        return row


def light_backbone(name, **options):
    """In place of `backbones.load_backbone`."""
    return LightBackbone()


class Trap:
    """Kills the process at its nth chance."""

    def __init__(self, moment, point, nth):
        self.moment, self.point, self.left = moment, point, nth

    def at(self, moment, point):
        if (moment, point) == (self.moment, self.point):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name, point_of):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            point = point_of(args)
            self.at("before", point)
            result = original(*args, **kwargs)
            self.at("after", point)
            return result

        setattr(owner, name, watched)

    def halve(self, name):
        """Trap files called so: those written at once, and those written line by line."""
        open_file = Path.open

        def half(path, data):
            if name in path.name:
                if self.left == 1:
                    with open_file(path, "wb") as file:
                        file.write(data[: len(data) // 2])
                self.at("half", self.point)
            with open_file(path, "wb") as file:  # not by `opened`
                return file.write(data)

        def opened(path, mode="r", *args, **kwargs):
            file = open_file(path, mode, *args, **kwargs)
            if mode == "wb" and name in path.name:
                if self.left == 1:
                    return HalfWritten(file, self)
                self.left -= 1
            return file

        Path.write_bytes, Path.open = half, opened

    def set(self):
        self.around(
            Path,
            "replace",
            lambda args: "link:best" if Path(args[1]).name == "best" else f"replace:{Path(args[1]).name}",
        )
        self.around(os, "fsync", lambda args: "fsync")
        if self.moment == "half":
            self.halve(self.point.partition(":")[2])
        kind, _, place = self.point.partition(":")
        if kind == "call":
            module, _, function = place.partition(":")
            *owners, name = function.split(".")
            owner = importlib.import_module(module)
            for one in owners:
                owner = getattr(owner, one)
            self.around(owner, name, lambda args: self.point)


class HalfWritten:
    """A file that is written line by line; its second line is its last, and not whole."""

    def __init__(self, file, trap):
        self.file, self.trap, self.lines = file, trap, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.lines += 1
        self.file.write(data if self.lines < 2 else data[: len(data) // 2])
        if self.lines == 2:
            self.file.flush()
            self.trap.at("half", self.trap.point)


def start(recipe, out, kill=None):
    """One run, from its beginning or where it stands."""
    from selftrain.models import pretrained
    from selftrain.runs import start as start_run

    # by its name: run as a program, this module is not the one that a trap is set in
    pretrained.load_backbone = importlib.import_module("loop_child").light_backbone
    if kill is not None:
        Trap(*kill).set()
    run = start_run(recipe, out)
    for one in run.rounds():
        print(one, file=sys.stderr)
    if run.stopped:
        print(f"stopped: {run.stopped}", file=sys.stderr)


def serve():
    for module in (
        "torch",
        "sklearn.metrics",
        "scipy.optimize",
        "agents.offline.offline_agent",
        "selftrain.loop",
        "safetensors.torch",
    ):
        importlib.import_module(module)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writer, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            code = 1
            try:
                start(**request)
                code = 0
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally:
                os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            words = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "words": words}), flush=True)


if __name__ == "__main__":
    serve() if len(sys.argv) == 1 else start(*sys.argv[1:3])

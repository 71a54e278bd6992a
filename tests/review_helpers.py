"""Runs with divergent posts, and a review of them, for the tests of the review page."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from PIL import Image
from processes import Process
from report_helpers import PLAIN, figures, judgment, lines

from selftrain.data.manifest import read_manifest
from selftrain.data.task import Task, TaskClass, dump_task
from selftrain.review.criticism import CRITICISMS
from selftrain.review.labelling import ANNOTATIONS, BATCH, LabelFolder, begin
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, ReviewItem
from selftrain.review.sampling import request_reviews
from selftrain.store.run_dir import RunFolder

CHECKOUT = Path(__file__).parents[1]
WORDS = PLAIN | {"agent": "reviewer", "rationale": "because of the lantern"}
COLOURS = ("red", "green", "blue")


class Clock:
    """A clock of its own; two decisions never fall on the same instant."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        self.now += 0.001
        return self.now


def verdict(said, post_id):
    """Divergent: the classifier and the first agent against the second one, which comes round too late."""
    judgments = [
        judgment(said, said["agent"], 0, said["negative"]), judgment(said, f"other {said['agent']}", 0, None),
        judgment(said, said["agent"], 1, said["positive"]),
        judgment(said, f"other {said['agent']}", 1, said["negative"]),
    ]  # fmt: skip
    return {
        "post_id": post_id, "classifier_label": said["positive"], "classifier_probability": 0.875,
        "consistent": False, "judgments": judgments, "deciders": [], "posterior": None,
    }  # fmt: skip


def run_of(place, posts=12, *, pictures=None, said=WORDS, ids=None, name="run"):
    """A run with one kept round of so many divergent posts; `pictures`: post number -> how many."""
    place.mkdir(parents=True, exist_ok=True)
    ids = ids or [f"p{i:02d}" for i in range(posts)]
    rows = []
    for number, post_id in enumerate(ids):
        row = {"id": post_id, "text": f"{said['text']} number {number}"}
        if count := (pictures or {}).get(number, 0):
            row["images"] = [f"{number}-{k}-{said['picture']}" for k in range(count)]
            for k, image in enumerate(row["images"]):
                Image.new("RGB", (400, 300), COLOURS[k % 3]).save(place / "drawn.png")
                (place / "drawn.png").rename(place / image)
        rows.append(row)
    lines(place / "manifest.jsonl", rows)
    classes = (TaskClass(said["positive"], said["reason"]), TaskClass(said["negative"], "everything else"))
    dump_task(Task("notices", classes, said["positive"], f"Policy: {said['text']}"), place / "task.toml")
    folder = RunFolder(place / name)
    recipe = {"data": {"manifest": str(place / "manifest.jsonl"), "task": str(place / "task.toml")}}
    environment = {
        "identity": {"task": "notices"}, "recipe": "notices.toml",
        "classes": {"positive": said["positive"], "all": [said["positive"], said["negative"]]},
    }  # fmt: skip
    with folder.locked():
        folder.begin(recipe, environment)
        for number in (0, 1):
            path = folder.open_round(number)
            lines(path / "verdicts.jsonl", [verdict(said, one) for one in ids] if number else [])
            folder.close_round(number, figures(number, said, kept=True, macro_f1=0.5))
    return folder


def review_of(place, posts=12, *, budget=None, doubled=0.0, **options):
    """The same with all posts, or a sample of them, sent to review."""
    folder = run_of(place, posts, **options)
    count = len(folder.verdicts(1))
    request_reviews(
        folder, budget=budget or count, batch="divergent", rule="normalised", double_annotation_rate=doubled
    )
    return folder


def labelling_of(place, classes, posts=2):
    """A labelling with so many posts, all of them drawn; every label is the first class, doubted a little."""
    ids = [f"q{i}" for i in range(posts)]
    lines(place / "manifest.jsonl", [{"id": one, "text": f"{one} says something"} for one in ids])
    dump_task(Task("notices", tuple(TaskClass(n, n) for n in classes), classes[0], "p"), place / "task.toml")
    folder = LabelFolder(place / "labels")
    with folder.locked():
        read = read_manifest(place / "manifest.jsonl").posts
        begin(folder, place / "manifest.jsonl", place / "task.toml", {"budget": posts}, posts=read)
    said = {"probability": 0.75, "rationale": "so it seems", "perplexity": None, "fault": "", "source": "m"}
    lines(folder.path / ANNOTATIONS, [{"post_id": one, "label": classes[0], **said} for one in ids])
    doubt = {"batch": BATCH, "label": classes[0], "strategy": "plain", "error": 0.4}
    doubt |= {"rationale": "", "fault": "", "source": "c"}
    lines(folder.path / CRITICISMS, [{"post_id": one, **doubt} for one in ids])
    ledger = ReviewLedger.create(folder.path / LEDGER, classes=classes, budget=posts)
    ledger.add(BATCH, [ReviewItem(one, classes[0], 0.4, 1.0) for one in ids], ids)
    ledger.close()
    return folder


class Server:
    """A `selftrain review serve` in a process of its own."""

    def __init__(self, folder, *options):
        words = ["review", "serve", str(folder.path), "--no-browser", *options]
        self.process = Process(("-m", "selftrain", *words), cwd=CHECKOUT)
        self.told = []
        for line in self.process.stdout:
            self.told.append(line.rstrip())
            if found := re.match(r"open (http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)\S*)$", line):
                self.address, self.port, self.token = found[1], int(found[2]), found[3]
                return
        raise AssertionError(self.process.stderr.read())

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.process.kill()
        self.process.wait(30)
        self._close()

    def end(self, sign=signal.SIGTERM):
        """Exit status after a signal; nothing on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        status = self.process.wait(30)
        self.rest, said = self.process.stdout.read(), self.process.stderr.read()
        self._close()
        assert said == ""
        return status

    def _close(self):
        self.process.stdout.close()
        self.process.stderr.close()


def as_json(value):
    return json.dumps(value).encode()

"""People in the loop under SIGKILL: while posts are drawn, while the run waits, while decisions are used.

The reviewers decide alike in every run (each post's label is the truth that its manifest hides), so that all
runs must end in the same bytes, and the budget may never be overspent on the way.
"""

from __future__ import annotations

import json
import shutil
import signal

import pytest
from kill_helpers import CHECKOUT, SMALL, launcher
from processes import run

from selftrain.cli import main
from selftrain.data.drawn import draw_posts
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER
from selftrain.review.reviewers import waiting_for
from selftrain.review.sampling import request_audit
from selftrain.store.run_dir import RunFolder, read_jsonl

pytestmark = pytest.mark.integration

BUDGET, PER_ROUND = 7, 4
RECIPE = (
    SMALL
    + f"""
[human]
budget = {BUDGET}
per_round = {PER_ROUND}
double_annotation_rate = 0.3
wait = "WAIT"
"""
)
DRAWING = {
    "before a sample is drawn": ("before", "call:selftrain.review.reviewers:request_reviews", 1),
    "between the ledger's creation and the sample": (
        "after",
        "call:selftrain.review.ledger:ReviewLedger.create",
        1,
    ),
    "within the change that adds the sample": (
        "after",
        "call:selftrain.review.ledger:Transaction.check_room",
        1,
    ),
    "after a sample is drawn": ("after", "call:selftrain.review.reviewers:request_reviews", 1),
}
USING = {
    "before the decisions are written": ("before", "replace:human.jsonl", 1),
    "with half of them written": ("half", "write:human.jsonl", 1),
    "after they are written": ("after", "replace:human.jsonl", 1),
    "between metrics and grown": ("after", "replace:metrics.json", 1),
    "with half of grown written": ("half", "write:grown.jsonl", 2),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Recipes that end and that poll, their posts, and the posts' true labels."""
    folder = tmp_path_factory.mktemp("people")
    draw_posts(folder / "posts", 130, seed=1)
    for wait in ("end", "poll"):
        (folder / f"{wait}.toml").write_text(RECIPE.replace("WAIT", wait))
    return folder


@pytest.fixture(scope="module")
def truth(place):
    return {row["id"]: row["label"] for row in read_jsonl(place / "posts" / "manifest.jsonl")}


@pytest.fixture(scope="module")
def launch(place):
    """Runs the one command in a process of its own, killed or not: its exit code and words."""
    with launcher() as request:
        yield lambda out, kill=None, wait="end": request(place / f"{wait}.toml", out, kill)


def review(out, truth, most=10**6):
    """A reviewer who knows the truth decides what is open to them, and no more than `most`; how many."""
    ledger, made = ReviewLedger(out / LEDGER), 0
    while made < most and (post := ledger.next_post("ann")) is not None:
        ledger.decide("ann", post.item.post_id, truth[post.item.post_id])
        made += 1
    ledger.close()
    return made


def open_reviews(out):
    waiting = waiting_for(RunFolder(out))
    return 0 if waiting is None else waiting.open


def to_the_end(launch, out, truth):
    """Run and review in turns until nothing waits."""
    for _ in range(6):
        code, words = launch(out)
        assert code == 0, words
        if not open_reviews(out):
            return
        assert review(out, truth)
    pytest.fail("the run never ends")


def contents(folder):
    """What the run promises to repeat; the recipe differs in `wait`, on purpose."""
    found = {"grown": (folder / "grown.jsonl").read_bytes(), "best": str((folder / "best").readlink())}
    for file in sorted(folder.glob("rounds/*/*")):
        name = str(file.relative_to(folder))
        if file.name == "metrics.json":
            found[name] = json.loads(file.read_text()) | {"seconds": 0, "stages": []}
        else:
            found[name] = file.read_bytes()
    return found


def assert_same(out, whole):
    first, second = contents(whole), contents(out)
    assert first.keys() == second.keys()
    for name, content in first.items():
        assert second[name] == content, name
    ledger, other = ReviewLedger(out / LEDGER), ReviewLedger(whole / LEDGER)
    assert [ledger.drawn(b) for b in ledger.batches()] == [other.drawn(b) for b in other.batches()]
    progress = ledger.progress()
    assert (progress.entered, progress.budget) == (other.progress().entered, BUDGET)
    assert not list(out.rglob(".*.tmp"))


@pytest.fixture(scope="module")
def whole(place, launch, truth):
    """The run that was never killed."""
    to_the_end(launch, place / "whole", truth)
    return place / "whole"


@pytest.fixture(scope="module")
def waiting(place, launch):
    """A run that waits for its first reviews."""
    code, words = launch(place / "waiting")
    assert code == 0, words
    assert open_reviews(place / "waiting")
    return place / "waiting"


def test_a_run_that_waits_says_how_many_posts_and_where(waiting, launch, capsys):
    expected = f"{PER_ROUND} of {PER_ROUND} posts wait for review in {waiting / LEDGER}"
    code, words = launch(waiting)
    assert code == 0
    assert f"stopped: {expected}" in words
    assert main(["status", str(waiting)]) == 0
    assert expected in capsys.readouterr().out
    assert "Waiting for people" in (waiting / "report.html").read_text()


def test_the_run_to_repeat_spends_its_budget_and_uses_what_people_said(whole):
    progress = ReviewLedger(whole / LEDGER).progress()
    assert PER_ROUND < progress.entered <= BUDGET
    assert progress.reviewed == progress.entered
    rows = list(read_jsonl(whole / "grown.jsonl"))
    human = {row["id"] for row in rows if row["provenance"]["source"] == "human"}
    assert len(human) == progress.reviewed
    assert "pseudo-label" in {row["provenance"]["source"] for row in rows}


@pytest.mark.parametrize("moment", DRAWING)
def test_killed_while_posts_are_drawn(launch, truth, whole, tmp_path, moment):
    out = tmp_path / "run"
    code, words = launch(out, DRAWING[moment])
    assert code == -signal.SIGKILL, words
    to_the_end(launch, out, truth)
    assert_same(out, whole)


@pytest.mark.parametrize("moment", USING)
def test_killed_while_decisions_are_used(  # noqa: PLR0917 -- fixtures
    launch, truth, whole, waiting, tmp_path, moment
):
    out = tmp_path / "run"
    shutil.copytree(waiting, out, symlinks=True)
    review(out, truth)
    code, words = launch(out, USING[moment])
    assert code == -signal.SIGKILL, words
    to_the_end(launch, out, truth)
    assert_same(out, whole)


def test_killed_while_it_polls_for_reviews_that_come_meanwhile(launch, truth, whole, waiting, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(waiting, out, symlinks=True)
    while open_reviews(out) > 1:
        code, words = launch(out, ("after", "call:selftrain.review.reviewers:waiting_for", 2), "poll")
        assert code == -signal.SIGKILL, words
        assert "posts wait for review" in words
        assert not (out / "rounds" / "0002").exists()
        assert review(out, truth, most=1) == 1
    review(out, truth)
    to_the_end(launch, out, truth)
    assert_same(out, whole)


def test_a_finished_run_started_again_changes_nothing(launch, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out, symlinks=True)
    code, words = launch(out)
    assert code == 0, words
    assert_same(out, whole)


KILLED_AUDIT = """
import os, signal, sys
from pathlib import Path
from selftrain.review import ledger
from selftrain.review.sampling import request_audit
from selftrain.review.ledger import ReviewLedger
from selftrain.store.run_dir import RunFolder
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "adding":
    ledger.Transaction.check_room = die
else:
    allow = ReviewLedger.allow
    def allowed(*args):
        allow(*args)
        die()
    ReviewLedger.allow = allowed
request_audit(RunFolder(Path(sys.argv[1])), budget=3)
"""


def test_an_audit_killed_and_repeated_is_drawn_once_and_allowed_once(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out, symlinks=True)
    for moment in ("allowing", "adding", "allowing"):
        killed = run(("-c", KILLED_AUDIT, out, moment), cwd=CHECKOUT)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = ReviewLedger(whole / LEDGER).progress()
    assert ReviewLedger(out / LEDGER).progress().entered == before.entered
    assert len(request_audit(RunFolder(out), budget=3).drawn) == 3
    progress = ReviewLedger(out / LEDGER).progress()
    assert (progress.entered, progress.budget) == (before.entered + 3, BUDGET + 3)

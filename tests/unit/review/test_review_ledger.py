"""The ledger of reviews: who gets which post, what a decision spends, what is refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from review_helpers import Clock
from sklearn.metrics import cohen_kappa_score

from agents.trust import cohen_kappa
from selftrain.errors import BudgetError, DecisionError, LedgerError
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import UNSURE, ReviewItem, agreement_of

CLASSES = ("rude", "kind", "odd")


def entries(n, start=0):
    return [ReviewItem(f"p{i}", CLASSES[i % 3], 0.3, 0.5, "round 1") for i in range(start, start + n)]


def make(tmp_path, n=6, *, budget=None, add=True, **options):
    clock = Clock()
    ledger = ReviewLedger.create(
        tmp_path / "run" / "review.sqlite", classes=CLASSES, budget=n if budget is None else budget,
        lease_seconds=60, clock=clock, **options,
    )  # fmt: skip
    if add:
        ledger.add("round 1", entries(2 * n), [f"p{i}" for i in range(n)])
    return ledger, clock


def review_all(ledger, *reviewers, label="rude"):
    """Every reviewer in turn until nobody gets a post; (reviewer, post) pairs in order."""
    seen = []
    while True:
        round_of = [(who, post) for who in reviewers if (post := ledger.next_post(who)) is not None]
        if not round_of:
            return seen
        for who, post in round_of:
            ledger.decide(who, post.item.post_id, label)
            seen.append((who, post.item.post_id))


# ---------------------------------------------------------------- handing out


def test_posts_come_in_order_each_to_one_reviewer(tmp_path):
    ledger, _ = make(tmp_path)
    assert [ledger.next_post(who).item.post_id for who in ("ann", "bob", "cem")] == ["p0", "p1", "p2"]
    assert ledger.progress().held == 3
    assert review_all(ledger, "ann") == [("ann", "p0"), *(("ann", f"p{i}") for i in (3, 4, 5))]
    assert ledger.next_post("ann") is None  # bob and cem still hold theirs
    leased = ledger.next_post("bob")
    assert leased.item == ReviewItem("p1", "kind", 0.3, 0.5, "round 1")
    assert (leased.place, leased.batch, leased.second) == (1, "round 1", False)


def test_a_reload_gives_the_same_post_and_a_longer_lease(tmp_path):
    ledger, clock = make(tmp_path)
    first = ledger.next_post("ann")
    clock.now += 50
    again = ledger.next_post("ann")
    assert again.item == first.item
    assert again.expires > first.expires + 49
    assert ledger.progress().held == 1


def test_a_lease_that_runs_out_gives_the_post_to_the_next(tmp_path):
    ledger, clock = make(tmp_path)
    ledger.next_post("ann")
    clock.now += 61
    assert ledger.progress().held == 0
    assert ledger.next_post("bob").item.post_id == "p0"
    with pytest.raises(DecisionError, match="lease ran out"):
        ledger.decide("ann", "p0", "rude")
    assert ledger.next_post("ann").item.post_id == "p1"


def test_a_late_decision_counts_as_long_as_nobody_else_has_the_post(tmp_path):
    ledger, clock = make(tmp_path)
    ledger.next_post("ann")
    clock.now += 500
    ledger.decide("ann", "p0", "kind")
    assert [d.label for d in ledger.decisions()] == ["kind"]


def test_the_latest_decision_is_the_one_made_last_though_the_clock_was_set_back(tmp_path):
    ledger, clock = make(tmp_path)
    for post_id, moved in (("p0", 0), ("p1", -500), ("p2", -500)):
        clock.now += moved
        assert ledger.next_post("ann").item.post_id == post_id
        ledger.decide("ann", post_id, "rude")
    assert ledger.undo("ann").item.post_id == "p2"
    assert ledger.undo("ann").item.post_id == "p1"
    assert ledger.latest("ann").post_id == "p0"


def test_a_skipped_post_goes_to_others_and_comes_back_last(tmp_path):
    ledger, _ = make(tmp_path, 3)
    ledger.next_post("ann")
    ledger.skip("ann", "p0")
    assert ledger.progress().reviewed == 0
    assert ledger.next_post("ann").item.post_id == "p1"
    assert ledger.next_post("bob").item.post_id == "p0"
    ledger.skip("bob", "p0")
    ledger.decide("ann", "p1", "rude")
    ledger.decide("ann", ledger.next_post("ann").item.post_id, "rude")
    assert ledger.next_post("ann").item.post_id == "p0"


def test_what_is_released_is_open_to_all(tmp_path):
    ledger, _ = make(tmp_path)
    ledger.next_post("ann")
    ledger.release("ann")
    ledger.release("ann")
    assert ledger.next_post("bob").item.post_id == "p0"


# ---------------------------------------------------------------- deciding


def test_decisions_spend_the_budget_unsure_included(tmp_path):
    ledger, _ = make(tmp_path, 3, budget=5)
    for label in ("rude", UNSURE):
        ledger.decide("ann", ledger.next_post("ann").item.post_id, label)
    progress = ledger.progress()
    assert (progress.budget, progress.entered, progress.reviewed, progress.left) == (5, 3, 2, 3)
    assert (progress.unsure, progress.finished) == (1, False)
    assert [(d.post_id, d.label) for d in ledger.decisions()] == [("p0", "rude"), ("p1", None)]


def test_the_same_decision_twice_is_one(tmp_path):
    ledger, _ = make(tmp_path)
    ledger.next_post("ann")
    ledger.decide("ann", "p0", "rude")
    ledger.decide("ann", "p0", "rude")
    assert ledger.progress().reviewed == 1
    with pytest.raises(DecisionError, match="undo that first"):
        ledger.decide("ann", "p0", "kind")
    assert [d.label for d in ledger.decisions()] == ["rude"]


def test_undo_gives_the_post_back_to_its_reviewer(tmp_path):
    ledger, _ = make(tmp_path)
    for label in ("rude", "kind"):
        ledger.decide("ann", ledger.next_post("ann").item.post_id, label)
    ledger.decide("bob", ledger.next_post("bob").item.post_id, "odd")
    ledger.next_post("ann")  # p3, which goes back
    assert ledger.undo("ann").item.post_id == "p1"
    assert ledger.next_post("bob").item.post_id == "p3"
    assert ledger.progress().reviewed == 2
    assert ledger.next_post("ann").item.post_id == "p1"
    ledger.decide("ann", "p1", "odd")
    assert {d.post_id: d.label for d in ledger.decisions()} == {"p0": "rude", "p1": "odd", "p2": "odd"}


def test_undo_goes_back_step_by_step_and_ends(tmp_path):
    ledger, _ = make(tmp_path, 2)
    review_all(ledger, "ann")
    assert [ledger.undo("ann").item.post_id for _ in range(2)] == ["p1", "p0"]
    assert ledger.undo("ann") is None
    assert ledger.undo("bob") is None
    assert ledger.progress().reviewed == 0
    assert [post for _, post in review_all(ledger, "ann")] == ["p0", "p1"]


@pytest.mark.parametrize("label", ["", "Rude", "unsure"])
def test_a_label_that_is_no_class_is_refused(tmp_path, label):
    ledger, _ = make(tmp_path)
    ledger.next_post("ann")
    with pytest.raises(DecisionError, match="expected one of"):
        ledger.decide("ann", "p0", label)


def test_what_was_not_handed_out_cannot_be_decided(tmp_path):
    ledger, _ = make(tmp_path)
    ledger.next_post("ann")
    for who, post in (("bob", "p0"), ("ann", "p1"), ("ann", "p11"), ("ann", "nobody's")):
        with pytest.raises(DecisionError):
            ledger.decide(who, post, "rude")
        with pytest.raises(DecisionError):
            ledger.skip(who, post)
    with pytest.raises(DecisionError):
        ledger.next_post(" ")
    assert ledger.progress().reviewed == 0


# ---------------------------------------------------------------- doubled posts


def test_doubled_posts_are_reviewed_by_two_people(tmp_path):
    ledger, _ = make(tmp_path, 20, double_annotation_rate=0.25)
    seen = review_all(ledger, "ann", "bob")
    counts = {post: [who for who, p in seen if p == post] for _, post in seen}
    assert len(counts) == 20
    assert sorted(map(len, counts.values())) == [1] * 15 + [2] * 5
    assert all(len(set(who)) == len(who) for who in counts.values())
    progress = ledger.progress()
    assert (progress.reviewed, progress.second, progress.doubled) == (20, 5, 5)
    assert progress.left == 0
    assert progress.finished
    assert ledger.next_post("cem") is None


def test_one_reviewer_alone_makes_no_second_review(tmp_path):
    ledger, _ = make(tmp_path, 10, double_annotation_rate=0.5)
    assert len(review_all(ledger, "ann")) == 10
    assert ledger.progress()[2:5] == (10, 5, 0)
    assert ledger.next_post("bob").second


def test_contested_posts_keep_the_first_label(tmp_path):
    ledger, _ = make(tmp_path, 4, double_annotation_rate=1.0)
    for who, labels in (("ann", ["rude", "rude", UNSURE, UNSURE]), ("bob", ["kind", "rude", "odd", UNSURE])):
        for label in labels:
            ledger.decide(who, ledger.next_post(who).item.post_id, label)
    found = [(d.label, d.contested, len(d.reviews)) for d in ledger.decisions()]
    assert found == [("rude", True, 2), ("rude", False, 2), ("odd", False, 2), (None, False, 2)]
    assert agreement_of(ledger.decisions())[:2] == (2, 1)  # who was unsure does not count


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=30))
@settings(max_examples=100, deadline=None)
def test_kappa_is_scikit_learns(pairs):
    first, second = zip(*pairs, strict=True)
    found = cohen_kappa(pairs)
    if len(set(first) | set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)


def test_no_reviewer_waits_for_scikit_learn():
    program = (
        "import sys, agents.trust as t; print(t.cohen_kappa([*zip('aab', 'abb')]), 'sklearn' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "0.4 False\n"


def test_agreement_of_reviewers_who_differ(tmp_path):
    ledger, _ = make(tmp_path, 30, double_annotation_rate=1.0)
    rng = np.random.default_rng(0)
    said = {who: rng.choice(CLASSES, 30) for who in ("ann", "bob")}
    for who, labels in said.items():
        for label in labels:
            ledger.decide(who, ledger.next_post(who).item.post_id, str(label))
    found = agreement_of(ledger.decisions())
    assert found.posts == 30
    assert found.kappa == pytest.approx(cohen_kappa_score(said["ann"], said["bob"]))


# ---------------------------------------------------------------- the budget


def test_no_more_posts_enter_than_the_budget_holds(tmp_path):
    ledger, _ = make(tmp_path, 6, budget=8)
    with pytest.raises(BudgetError, match="at most 2"):
        ledger.add("round 2", entries(5, 100), ["p100", "p101", "p102"])
    assert ledger.batches() == ["round 1"]
    ledger.add("round 2", entries(5, 100), ["p101", "p100"])
    assert len(review_all(ledger, "ann")) == 8
    assert ledger.progress().left == 0
    assert [d.post_id for d in ledger.decisions()][-2:] == ["p101", "p100"]


def test_the_same_batch_again_changes_nothing_and_another_under_its_name_is_refused(tmp_path):
    ledger, _ = make(tmp_path)
    ledger.decide("ann", ledger.next_post("ann").item.post_id, "rude")
    ledger.add("round 1", entries(12), [f"p{i}" for i in range(6)])
    assert ledger.progress()[1:3] == (6, 1)
    with pytest.raises(LedgerError, match="another name"):
        ledger.add("round 1", entries(12), [f"p{i}" for i in range(5)])


def test_the_whole_population_is_kept(tmp_path):
    ledger, _ = make(tmp_path)
    missing = ReviewItem("q", "rude", None, 0.0)
    ledger.add("round 2", [missing], [])
    assert ledger.population("round 1") == entries(12)
    assert ledger.population("round 2") == [missing]


def test_a_post_not_drawn_before_may_be_drawn_later_but_never_twice(tmp_path):
    ledger, _ = make(tmp_path, 6, budget=20)
    ledger.add("round 2", entries(12), ["p7"])
    with pytest.raises(BudgetError, match="p7"):
        ledger.add("round 3", entries(12), ["p8", "p7"])
    assert len(review_all(ledger, "ann")) == 7


@pytest.mark.parametrize(
    ("posts", "order"),
    [
        (entries(2) + entries(1), ["p0"]),
        (entries(2), ["p0", "p0"]),
        (entries(2), ["p5"]),
        ([ReviewItem("p0", "rude", 0.5, 0.0)], ["p0"]),
        ([ReviewItem("p0", "loud", 0.5, 0.5)], ["p0"]),
        ([ReviewItem("p0", "rude", 1.5, 0.5)], ["p0"]),
        ([ReviewItem("p0", "rude", float("nan"), 0.5)], ["p0"]),
        ([ReviewItem("p0", "rude", 0.5, float("nan"))], ["p0"]),
    ],
)
def test_what_is_no_sample_of_a_population_is_refused(tmp_path, posts, order):
    ledger, _ = make(tmp_path, add=False)
    with pytest.raises(BudgetError):
        ledger.add("round 1", posts, order)
    assert ledger.batches() == []


@pytest.mark.parametrize(
    "changed",
    [
        {"budget": -1},
        {"double_annotation_rate": 1.5},
        {"lease_seconds": 0},
        {"classes": ("rude",)},
        {"classes": ("rude", "rude")},
        {"classes": ("rude", UNSURE)},
    ],
)
def test_settings_outside_their_range_are_refused(tmp_path, changed):
    with pytest.raises(BudgetError):
        ReviewLedger.create(tmp_path / "r.sqlite", **{"classes": CLASSES, "budget": 3} | changed)
    assert not (tmp_path / "r.sqlite").exists()


# ---------------------------------------------------------------- the file


def test_everything_is_there_when_the_file_is_opened_again(tmp_path):
    ledger, clock = make(tmp_path, double_annotation_rate=0.5)
    ledger.decide("ann", ledger.next_post("ann").item.post_id, "rude")
    ledger.next_post("bob")
    before = (ledger.progress(), ledger.decisions(), ledger.population("round 1"))
    ledger.close()
    ledger.close()
    again = ReviewLedger(ledger.path, clock=clock)
    assert (again.progress(), again.decisions(), again.population("round 1")) == before
    assert (again.classes, again.budget, again.double_annotation_rate) == (CLASSES, 6, 0.5)


def test_creating_again_finds_the_ledger_and_other_settings_are_refused(tmp_path):
    ledger, _ = make(tmp_path)
    ledger.decide("ann", ledger.next_post("ann").item.post_id, "rude")
    again = ReviewLedger.create(ledger.path, classes=CLASSES, budget=6, lease_seconds=60)
    assert again.progress().reviewed == 1
    with pytest.raises(LedgerError, match="budget 6, now 7"):
        ReviewLedger.create(ledger.path, classes=CLASSES, budget=7, lease_seconds=60)


def test_files_that_are_no_ledger_are_refused(tmp_path):
    with pytest.raises(LedgerError, match="begins one"):
        ReviewLedger(tmp_path / "none.sqlite")
    (tmp_path / "text").write_text("no database, but long enough to look at " * 20)
    with pytest.raises(LedgerError):
        ReviewLedger(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    other.close()
    with pytest.raises(LedgerError, match="something else"):
        ReviewLedger.create(tmp_path / "other.sqlite", classes=CLASSES, budget=1)
    ledger, _ = make(tmp_path)
    ledger._connection.execute("PRAGMA user_version = 7")
    with pytest.raises(LedgerError, match="version 7"):
        ReviewLedger(ledger.path)


def test_two_connections_share_one_queue(tmp_path):
    ledger, clock = make(tmp_path, 40)
    seen, problems = [], []

    def work(who):
        mine = ReviewLedger(ledger.path, clock=clock)
        try:
            while (post := mine.next_post(who)) is not None:
                seen.append(post.item.post_id)
                mine.decide(who, post.item.post_id, "rude")
        except Exception as error:  # a thread's exceptions are nobody's
            problems.append(error)

    threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert sorted(seen) == sorted(f"p{i}" for i in range(40))


def test_a_refused_decision_leaves_no_transaction_open(tmp_path):
    ledger, _ = make(tmp_path)
    with pytest.raises(DecisionError):
        ledger.decide("ann", "p0", "rude")
    other = ReviewLedger(ledger.path)
    assert other.next_post("bob").item.post_id == "p0"


@given(
    st.lists(
        st.tuples(st.sampled_from(["next", "decide", "skip", "undo", "release", "wait"]), st.integers(0, 2)),
        max_size=60,
    )
)
@settings(max_examples=40, deadline=None)
def test_whatever_reviewers_do_the_budget_is_held(tmp_path_factory, steps):
    ledger, clock = make(tmp_path_factory.mktemp("any"), 5, budget=5, double_annotation_rate=0.4)
    holds = {}
    for action, number in steps:
        who = f"r{number}"
        if action == "next":
            post = ledger.next_post(who)
            holds[who] = post.item.post_id if post else None
        elif action == "wait":
            clock.now += 100
        elif action == "undo":
            post = ledger.undo(who)
            holds[who] = post.item.post_id if post else holds.get(who)
        elif action == "release":
            ledger.release(who)
        elif holds.get(who) is not None:
            with suppress(DecisionError):  # its lease may have run out meanwhile
                ledger.skip(who, holds[who]) if action == "skip" else ledger.decide(who, holds[who], "odd")
            holds[who] = None
        progress = ledger.progress()
        assert progress.reviewed <= 5
        assert progress.second <= progress.doubled == 2
    # and nothing is ever lost: three people, one after the other, finish
    clock.now += 1000
    for who in ("r0", "r1", "r2"):
        review_all(ledger, who)
    assert ledger.progress()[2:5] == (5, 2, 2)


@pytest.mark.parametrize("written_meanwhile", [False, True])
def test_reviews_in_a_folder_that_cannot_be_written_are_read(tmp_path, monkeypatch, written_meanwhile):
    """An archive, or a colleague's run; in that SQLite could make no files beside the ledger."""
    ledger, _ = make(tmp_path)
    ledger.decide("ann", ledger.next_post("ann").item.post_id, "rude")
    if not written_meanwhile:
        ledger.close()
    before = sorted((tmp_path / "run").iterdir())
    monkeypatch.setattr("os.access", lambda *_: False)
    with ReviewLedger(ledger.path) as found:
        assert [one.label for one in found.decisions()] == ["rude"]
        with pytest.raises(LedgerError, match="readonly"):
            found.next_post("bob")
        assert sorted((tmp_path / "run").iterdir()) == before
    ledger.close()

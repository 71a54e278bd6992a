"""People in the loop: asked after a round, waited for, counted as labels, never beyond the budget."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from loop_helpers import HashPanel, ScriptedTrainer, lines, make_corpus, settings
from report_helpers import by_hand

from losses.base import Group
from losses.pnu import PNULoss
from selftrain import loop
from selftrain.cli.tables import status_lines
from selftrain.errors import BudgetError, RunStateError
from selftrain.report.status import missing_reviews, status_after
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, UNSURE
from selftrain.review.reviewers import HumanReview, LedgerReviewers, waiting_for
from selftrain.review.sampling import request_audit
from selftrain.rounds import replay
from selftrain.selection import TopK
from selftrain.state import RoundLimits
from selftrain.store import atomic
from selftrain.store.run_dir import RunFolder

SCRIPT = [8, 12, 10, 15, 16, 17]  # round 1 kept, 2 rolled back, the others kept


def begin(folder, budget=20, *, rounds=4):
    """What `start` writes before the loop, as far as reviews need it."""
    folder.mkdir(parents=True, exist_ok=True)
    limits = f"[rounds]\nmax = {rounds}\npatience = 9\n[selection]\nreselect_divergent = true\n"
    recipe = f"[human]\nbudget = {budget}\n{limits}"
    (folder / "recipe.toml").write_text(recipe)
    classes = {"positive": "spam", "all": ["spam", "ham"]}
    atomic.write_json(folder / "environment.json", {"classes": classes, "splits": {"pool": 60}})


def go(
    folder,
    corpus=None,
    *,
    budget=20,
    per_round=4,
    rounds=4,
    panel=None,
    trainer=None,
    criticizer=None,
    **options,
):
    """The loop until it ends or waits; numbers of the rounds that are finished then."""
    begin(folder, budget, rounds=rounds)
    run = RunFolder(folder)
    wishes = HumanReview(budget=budget, per_round=per_round, **options)
    reviewers = LedgerReviewers(run, wishes, seed=3, criticizer=criticizer)
    found = loop.self_train(
        corpus or make_corpus(pool=60), trainer or ScriptedTrainer(SCRIPT), panel or HashPanel(0.5),
        selector=TopK(6), loss=PNULoss(), folder=run, settings=settings(folder, rounds=rounds),
        reviewers=reviewers,
    )  # fmt: skip
    return [one.number for one in found]


def truth_of(post_id):
    return ("ham", "spam")[int(post_id[1:]) % 2]


def review(folder, who="ann", label=truth_of, most=10**6):
    """One reviewer, until nothing is open."""
    ledger, seen = ReviewLedger(folder / LEDGER), []
    while len(seen) < most and (post := ledger.next_post(who)) is not None:
        ledger.decide(who, post.item.post_id, label(post.item.post_id))
        seen.append(post.item.post_id)
    ledger.close()
    return seen


def to_the_end(folder, **options):
    """Run and review in turns."""
    while True:
        numbers = go(folder, **options)
        if waiting_for(RunFolder(folder)) is None or not review(folder):
            return numbers


def next_of(folder):
    """What `selftrain status` says would happen next."""
    run = RunFolder(folder)
    return dict(status_lines(status_after(run, *replay(run))))["next"]


def human_rows(folder):
    return [row for row in lines(folder / "grown.jsonl") if row["provenance"]["source"] == "human"]


def verdict_ids(folder, number, consistent):
    file = folder / f"rounds/{number:04d}/verdicts.jsonl"
    return {v["post_id"] for v in lines(file) if v["consistent"] is consistent}


def test_the_run_ends_in_good_order_where_reviews_are_missing_and_says_how_many(tmp_path):
    assert go(tmp_path) == [0, 1]
    waiting = waiting_for(RunFolder(tmp_path))
    divergent = verdict_ids(tmp_path, 1, False)
    assert waiting == (tmp_path / LEDGER, min(4, len(divergent)), min(4, len(divergent)))
    assert "review.sqlite" in missing_reviews(RunFolder(tmp_path))
    assert f"selftrain review serve {tmp_path}" in str(waiting)
    # the same command again: nothing more is drawn, nothing begun
    assert go(tmp_path) == [0, 1]
    assert not (tmp_path / "rounds/0002").exists()
    review(tmp_path, most=1)
    assert waiting_for(RunFolder(tmp_path)).open == waiting.open - 1
    assert go(tmp_path) == [0, 1]


def test_reviewed_posts_become_labels_of_the_next_round_and_no_candidates_again(tmp_path):
    go(tmp_path)
    asked = review(tmp_path)
    assert asked
    assert set(asked) <= verdict_ids(tmp_path, 1, False)
    trainer, panel = ScriptedTrainer(SCRIPT), HashPanel(0.5)
    corpus = make_corpus(pool=60)
    assert go(tmp_path, corpus, trainer=trainer, panel=panel) == [0, 1, 2]
    training = trainer.trainings[2]
    group = dict(zip(training.positions.tolist(), training.groups[:, 0].tolist(), strict=True))
    for post_id in asked:
        expected = Group.POSITIVE if truth_of(post_id) == "spam" else Group.NEGATIVE
        assert group[int(post_id[1:])] == expected
    assert len(training.positions) == len(set(training.positions.tolist()))
    targets = dict(zip(training.positions.tolist(), training.targets[:, 0].tolist(), strict=True))
    assert [targets[int(i[1:])] for i in asked] == [float(truth_of(i) == "spam") for i in asked]
    later = to_the_end(tmp_path)
    assert later == [0, 1, 2, 3, 4]
    for number in (2, 3, 4):
        assert not set(asked) & {
            row["id"] for row in lines(tmp_path / f"rounds/{number:04d}/candidates.jsonl")
        }
    # the agents learn from them as from labels
    assert set(asked) <= {one for one, _ in panel.lessons[0]}


def test_a_label_from_people_stays_when_its_round_is_rolled_back(tmp_path):
    to_the_end(tmp_path)
    metrics = json.loads((tmp_path / "rounds/0002/metrics.json").read_text())
    assert not metrics["kept"]
    used = {row["id"]: row["label"] for row in lines(tmp_path / "rounds/0002/human.jsonl")}
    assert metrics["human"] == {"posts": len(used), "new": len(used)}
    rows = {row["id"]: row for row in human_rows(tmp_path)}
    for post_id, label in used.items():
        assert rows[post_id]["label"] == label == truth_of(post_id)
        provenance = rows[post_id]["provenance"]
        assert (provenance["round"], provenance["reviewers"], provenance["batch"]) == (2, ["ann"], "round 1")
        assert 0 < provenance["inclusion"] <= 1
    ids = [row["id"] for row in lines(tmp_path / "grown.jsonl")]
    assert len(ids) == len(set(ids))
    assert json.loads((tmp_path / "rounds/0004/metrics.json").read_text())["grown"] == len(ids)


@pytest.mark.parametrize(("budget", "per_round"), [(5, 4), (3, 50), (100, 2)])
def test_never_more_than_the_budget_nor_than_a_round_may_ask(tmp_path, budget, per_round):
    assert to_the_end(tmp_path, budget=budget, per_round=per_round) == [0, 1, 2, 3, 4]
    ledger = ReviewLedger(tmp_path / LEDGER)
    sizes = [len(ledger.drawn(batch)) for batch in ledger.batches()]
    assert sum(sizes) <= budget
    assert max(sizes) <= per_round
    if budget < 10:
        assert sum(sizes) == budget
    assert len(human_rows(tmp_path)) == sum(sizes)


def test_a_larger_budget_in_the_recipe_is_allowed_and_spent(tmp_path):
    to_the_end(tmp_path, budget=3, rounds=2)
    assert ReviewLedger(tmp_path / LEDGER).progress().entered == 3
    to_the_end(tmp_path, budget=6, rounds=4)
    progress = ReviewLedger(tmp_path / LEDGER).progress()
    assert (progress.entered, progress.budget) == (6, 6)


def test_the_same_decisions_give_the_same_bytes_however_often_the_run_was_started(tmp_path):
    to_the_end(tmp_path / "a")
    folder = tmp_path / "b"
    while (numbers := go(folder)) != [0, 1, 2, 3, 4]:
        assert go(folder) == numbers
        review(folder, most=1)
    go(folder)
    names = ["grown.jsonl", *(f"rounds/000{n}/candidates.jsonl" for n in (1, 2, 3, 4))]
    names += [f"rounds/000{n}/human.jsonl" for n in (2, 3, 4)]
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name


def test_what_a_round_used_stands_whatever_a_reviewer_does_afterwards(tmp_path):
    go(tmp_path)
    asked = review(tmp_path)
    go(tmp_path)
    before = {row["id"]: row["label"] for row in human_rows(tmp_path)}
    ledger = ReviewLedger(tmp_path / LEDGER)
    ledger.undo("ann")
    go(tmp_path)
    assert {row["id"]: row["label"] for row in human_rows(tmp_path)} == before
    other = {"spam": "ham", "ham": "spam"}[truth_of(asked[-1])]
    ledger.decide("ann", asked[-1], other)
    review(tmp_path)
    assert 3 in go(tmp_path)
    rows = {row["id"]: row for row in lines(tmp_path / "rounds/0003/human.jsonl")}
    assert rows[asked[-1]]["label"] == other  # decided anew: it counts from the next round
    assert asked[0] not in rows
    found = {row["id"]: row["label"] for row in human_rows(tmp_path)}
    assert found[asked[-1]] == other


def test_an_unsure_reviewer_decides_nothing_and_the_run_goes_on(tmp_path):
    go(tmp_path)
    asked = review(tmp_path, label=lambda _: UNSURE)
    assert asked
    assert go(tmp_path) == [0, 1, 2]
    assert not (tmp_path / "rounds/0002/human.jsonl").exists()
    assert human_rows(tmp_path) == []
    # and nobody is asked about such a post again
    assert not set(asked) & set(ReviewLedger(tmp_path / LEDGER).drawn("round 2"))


def test_replaying_gives_the_state_that_the_run_ended_in(tmp_path):
    to_the_end(tmp_path)
    state, rounds = replay(RunFolder(tmp_path))
    assert set(state.human) == {row["id"] for row in human_rows(tmp_path)}
    assert not state.human.keys() & (state.accepted.keys() | state.divergent | state.disputed)
    assert state.human.keys() <= state.closed(RoundLimits())
    assert len(rounds) == 5


def test_a_decision_on_a_post_that_the_pool_does_not_have_is_refused(tmp_path):
    go(tmp_path)
    review(tmp_path)
    go(tmp_path)
    by_hand(RunFolder(tmp_path))
    file = tmp_path / "rounds/0002/human.jsonl"
    file.write_text(file.read_text().replace('"id": "p', '"id": "stranger', 1))
    with pytest.raises(RunStateError, match="decision on 'stranger"):
        go(tmp_path)


def test_people_may_label_the_last_open_post(tmp_path):
    corpus = make_corpus(pool=6)
    assert go(tmp_path, corpus, per_round=50) == [0, 1]
    asked = review(tmp_path)
    assert set(asked) == verdict_ids(tmp_path, 1, False)
    # a round without candidates: the new labels are worth a training of their own
    assert go(tmp_path, corpus, per_round=50)[:3] == [0, 1, 2]
    assert {row["id"] for row in human_rows(tmp_path)} == set(asked)


def test_polling_waits_until_the_last_review_is_made(tmp_path):
    go(tmp_path)
    reviewer = threading.Timer(0.3, review, [tmp_path])
    reviewer.start()
    numbers = go(tmp_path, wait="poll", poll_seconds=0.05, rounds=2)
    reviewer.join()
    assert numbers == [0, 1, 2]
    assert human_rows(tmp_path)


def test_ctrl_c_while_it_polls_loses_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    go(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("selftrain.review.reviewers.time.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, wait="poll")
    assert "posts wait for review" in capsys.readouterr().err
    review(tmp_path)
    assert go(tmp_path, wait="poll", rounds=2) == [0, 1, 2]


# ---------------------------------------------------------------- audits


def test_an_audit_draws_pseudo_labels_beside_the_loops_budget(tmp_path):
    to_the_end(tmp_path, budget=3)
    run = RunFolder(tmp_path)
    accepted = {
        r["id"]: r for r in lines(tmp_path / "grown.jsonl") if r["provenance"]["source"] == "pseudo-label"
    }
    found = request_audit(run, budget=5)
    assert found.batch == "audit after round 4"
    assert (len(found.drawn), found.new) == (5, True)
    ledger = ReviewLedger(tmp_path / LEDGER)
    entries = ledger.population(found.batch)
    assert {one.post_id for one in entries} == set(accepted)
    assert all(one.machine_label == accepted[one.post_id]["label"] for one in entries)
    assert all(one.part == f"round {accepted[one.post_id]['provenance']['round']}" for one in entries)
    assert np.isclose(sum(one.inclusion for one in entries), 5)
    assert ledger.progress().budget == 8
    assert not request_audit(run, budget=5).new
    assert ReviewLedger(tmp_path / LEDGER).progress().budget == 8
    # the loop's own budget is what it was: nothing is drawn for it out of the audit's
    assert to_the_end(tmp_path, budget=3, rounds=5) == [0, 1, 2, 3, 4, 5]
    assert sum(len(ledger.drawn(b)) for b in ledger.batches() if b.startswith("round")) == 3


def test_what_an_audit_finds_wrong_is_put_right_in_the_grown_dataset(tmp_path):
    to_the_end(tmp_path, budget=0)
    assert not (tmp_path / LEDGER).exists()
    request_audit(RunFolder(tmp_path), budget=4, rule="normalised")
    assert missing_reviews(RunFolder(tmp_path)) is None  # the loop does not wait for audits
    assert next_of(tmp_path) == "nothing: all 4 rounds are done"
    asked = review(tmp_path, label=lambda _: "spam")
    assert next_of(tmp_path) == (
        f"no round: all 4 rounds are done; but grown.jsonl lacks {len(asked)} decisions of people: the"
        " command that began the run, given again, takes them in"
    )
    assert go(tmp_path, budget=0) == [0, 1, 2, 3, 4]
    assert next_of(tmp_path) == "nothing: all 4 rounds are done"
    rows = {row["id"]: row for row in lines(tmp_path / "grown.jsonl")}
    for post_id in asked:
        assert (rows[post_id]["label"], rows[post_id]["provenance"]["source"]) == ("spam", "human")
    grown = (tmp_path / "grown.jsonl").read_bytes()
    go(tmp_path, budget=0)
    assert (tmp_path / "grown.jsonl").read_bytes() == grown


def test_a_run_that_was_audited_first_may_ask_people_later_within_a_budget_of_its_own(tmp_path):
    to_the_end(tmp_path, budget=0, rounds=2)
    request_audit(RunFolder(tmp_path), budget=2)  # with the seed and the doubled share of its own ledger
    assert to_the_end(tmp_path, budget=3, double_annotation_rate=0.5, rounds=4)[-1] == 4
    ledger = ReviewLedger(tmp_path / LEDGER)
    assert sum(len(ledger.drawn(b)) for b in ledger.batches() if b.startswith("round")) == 3
    assert (ledger.progress().entered, ledger.progress().budget) == (5, 5)


@pytest.mark.parametrize(
    "options", [{"budget": 0}, {"budget": 1000}, {"budget": 2, "rule": "threshold", "floor": 0.0}]
)
def test_an_audit_that_cannot_be_is_refused_and_leaves_nothing(tmp_path, options):
    to_the_end(tmp_path, budget=0)
    with pytest.raises(BudgetError):
        request_audit(RunFolder(tmp_path), **options)
    assert not (tmp_path / LEDGER).exists()

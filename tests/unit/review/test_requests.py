"""From a run to a sample in its ledger: which posts are asked about, and what a second call does."""

from __future__ import annotations

import json
import shutil

import pytest
from report_helpers import PLAIN, figures, judgment

from selftrain.errors import BudgetError, LedgerError, RunStateError
from selftrain.review.ledger import ReviewLedger, opened_ledger
from selftrain.review.ledger_reader import LEDGER, connect
from selftrain.review.sampling import request_reviews, verdicts_among
from selftrain.store.run_dir import RunFolder

SAID = PLAIN | {"agent": "reviewer"}


def verdict(post_id, consistent=False, label="positive", probability=0.875):
    other = label if consistent else "negative" if label == "positive" else "positive"
    judgments = [judgment(SAID, "reviewer", 0, label), judgment(SAID, "user", 0, other)]
    return {
        "post_id": post_id, "classifier_label": label, "classifier_probability": probability,
        "consistent": consistent, "judgments": judgments, "deciders": [], "posterior": None,
    }  # fmt: skip


def run_of(tmp_path, *rounds):
    """A run after round 0 of (kept, verdicts, flipped ids)."""
    folder = RunFolder(tmp_path / "run")
    environment = {"identity": {}, "classes": {"positive": "positive", "all": ["positive", "negative"]}}
    with folder.locked():
        folder.begin({"data": {}}, environment)
        for number, (kept, verdicts, flipped) in enumerate([(True, [], []), *rounds]):
            path = folder.open_round(number)
            text = "".join(json.dumps(one) + "\n" for one in verdicts)
            (path / "verdicts.jsonl").write_text(text)
            more = {"flipped": flipped}
            folder.close_round(number, figures(number, SAID, kept=kept, macro_f1=0.5, **more))
    return folder


@pytest.fixture
def folder(tmp_path):
    """60 divergent posts in two kept rounds, 10 consistent ones in each."""
    rounds = [
        [*(verdict(f"d{r}-{i}") for i in range(30)), *(verdict(f"c{r}-{i}", True) for i in range(10))]
        for r in (1, 2)
    ]
    return run_of(tmp_path, *((True, verdicts, []) for verdicts in rounds))


def request(folder, budget=20, batch="first", **options):
    return request_reviews(folder, budget=budget, batch=batch, **options)


# ---------------------------------------------------------------- which posts


def test_a_post_is_divergent_until_a_kept_round_accepts_it(tmp_path):
    folder = run_of(
        tmp_path,
        (True, [verdict("a"), verdict("b"), verdict("c", True)], []),
        (False, [verdict("d"), verdict("a", True), verdict("e", True)], ["c"]),
        (True, [verdict("b", True), verdict("d")], []),
    )
    divergent, accepted = verdicts_among(folder, "divergent"), verdicts_among(folder, "accepted")
    # a was agreed on in a round that was rolled back, and c flipped there: neither counts
    assert list(divergent) == ["a", "d"]
    assert list(accepted) == ["b", "c"]
    assert {post_id: last.round for post_id, last in divergent.items()} == {"a": 2, "d": 3}
    assert divergent["d"].verdict.post_id == "d"


def test_a_pseudo_label_that_flipped_in_a_kept_round_is_divergent_again(tmp_path):
    folder = run_of(tmp_path, (True, [verdict("a", True)], []), (True, [verdict("b", True)], ["a"]))
    assert list(verdicts_among(folder, "divergent")) == ["a"]
    assert list(verdicts_among(folder, "accepted")) == ["b"]


# ---------------------------------------------------------------- the sample


def test_the_sample_is_exact_and_its_population_complete(folder):
    made = request(folder)
    assert (made.posts, len(set(made.drawn)), made.new) == (60, 20, True)
    assert made.ledger == folder.path / LEDGER
    ledger = ReviewLedger(made.ledger)
    entries = ledger.population("first")
    assert {one.post_id for one in entries} == {f"d{r}-{i}" for r in (1, 2) for i in range(30)}
    assert {one.part for one in entries} == {"round 1", "round 2"}
    assert sum(one.inclusion for one in entries) == pytest.approx(20)
    # classifier .875, reviewer .75 for the label, user .75 against it
    assert {round(one.error, 9) for one in entries} == {round(1 - (0.875 + 0.75 + 0.25) / 3, 9)}
    assert ledger.classes == ("positive", "negative")
    assert tuple(ledger.drawn("first")) == made.drawn
    assert not ledger.likeliest_first("first")


def test_accepted_posts_keep_their_pseudo_label(tmp_path):
    agreed = [verdict(f"p{i}", True, "negative", probability=0.51) for i in range(5)]
    made = request(run_of(tmp_path, (True, [*agreed, verdict("d")], [])), 5, among="accepted")
    entries = ReviewLedger(made.ledger).population("first")
    assert {(one.post_id, one.machine_label) for one in entries} == {(f"p{i}", "negative") for i in range(5)}


def test_uncertain_order_hands_out_the_likeliest_errors_first(tmp_path):
    divergent = [verdict(f"p{i}", probability=0.5 + i / 25) for i in range(12)]
    folder = run_of(tmp_path, (True, divergent, []))
    made = request(folder, 12, order="uncertain")
    assert list(made.drawn) == [f"p{i}" for i in range(12)]
    assert ReviewLedger(made.ledger).likeliest_first("first")


def test_the_same_seed_draws_the_same_sample_and_every_batch_its_own(folder, tmp_path):
    copies = [RunFolder(shutil.copytree(folder.path, tmp_path / name)) for name in ("same", "other")]
    first = request(folder).drawn
    assert request(copies[0]).drawn == first
    assert set(request(copies[1], batch="second").drawn) != set(first)


def test_a_batch_that_is_there_stays_even_after_further_rounds(folder):
    first = request(folder)
    path = folder.open_round(3)
    (path / "verdicts.jsonl").write_text(json.dumps(verdict("late")) + "\n")
    folder.close_round(3, figures(3, SAID, kept=True, macro_f1=0.5))
    again = request(folder)
    assert (again.drawn, again.posts, again.new) == (first.drawn, 60, False)


def test_later_batches_draw_from_those_nobody_was_asked_about_within_the_budget(folder):
    first = request(folder, 50, sample=30)
    second = request(folder, 50, "second")
    assert (len(second.drawn), second.posts) == (20, 30)
    assert not set(first.drawn) & set(second.drawn)
    with pytest.raises(BudgetError, match="a budget of 0 for 10"):
        request(folder, 50, "third")
    with pytest.raises(BudgetError, match=r"10 more posts.*at most 0"):
        request(folder, 50, "third", sample=10)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("budget", [0, -1, 61])
def test_a_budget_that_cannot_be_spent_leaves_no_ledger(folder, budget):
    with pytest.raises(BudgetError, match=f"budget of {budget} for 60 divergent posts.*from 1 to 60"):
        request(folder, budget)
    assert not (folder.path / LEDGER).exists()


def test_a_ledger_whose_process_died_before_it_had_tables_is_begun_anew(folder):
    connect(folder.path / LEDGER).close()
    assert (folder.path / LEDGER).stat().st_size
    with pytest.raises(LedgerError, match="not there"):
        ReviewLedger(folder.path / LEDGER)
    with opened_ledger(folder) as found:
        assert found is None
    assert len(request(folder).drawn) == 20


def test_a_run_without_divergent_posts_is_told_so(tmp_path):
    with pytest.raises(BudgetError, match="no divergent posts"):
        request(run_of(tmp_path, (True, [verdict("a", True)], [])))


def test_no_run_and_another_budget(folder, tmp_path):
    with pytest.raises(RunStateError, match="not a run folder"):
        request(RunFolder(tmp_path / "none"))
    request(folder)
    with pytest.raises(LedgerError, match="budget 20, now 30"):
        request(folder, 30)

"""What reviews say of a run's labels: which posts an estimate speaks of, and where it is shown."""

from __future__ import annotations

import json
import shutil

import pytest

from selftrain.cli import main
from selftrain.report.run_page import gather, render
from selftrain.review.estimates import newest_estimate, reviewed_batches
from selftrain.review.ledger import ReviewLedger
from selftrain.review.ledger_reader import LEDGER, UNSURE
from selftrain.review.page.review_server import next_command
from selftrain.review.sampling import request_audit, request_reviews, verdicts_among
from selftrain.store.run_dir import RunFolder, read_jsonl


@pytest.fixture
def run(small_run, tmp_path):
    shutil.copytree(small_run, tmp_path / "run", symlinks=True)
    return RunFolder(tmp_path / "run")


def pseudo_labels(run):
    return {
        row["id"]: row
        for row in read_jsonl(run.path / "grown.jsonl")
        if row["provenance"]["source"] == "pseudo-label"
    }


def review(run, label_of):
    """Everything that waits, by one person."""
    ledger = ReviewLedger(run.path / LEDGER)
    while (post := ledger.next_post("ann")) is not None:
        ledger.decide("ann", post.item.post_id, label_of(post.item))
    return ledger


def other(ledger_classes, label):
    return next(name for name in ledger_classes if name != label)


def wrong_where(run, condition):
    """Labels that differ from the machine's where `condition(post id)` holds."""
    classes = ReviewLedger(run.path / LEDGER).classes
    return lambda one: other(classes, one.machine_label) if condition(one.post_id) else one.machine_label


def test_when_every_pseudo_label_is_audited_the_share_of_wrong_ones_is_exact(run):
    rows = pseudo_labels(run)
    assert len(rows) >= 6
    wrong = set(sorted(rows)[::3])
    request_audit(run, budget=len(rows))
    review(run, wrong_where(run, wrong.__contains__))
    (batch,) = reviewed_batches(run)
    assert (batch.audit, batch.posts, batch.answered, batch.open) == (True, len(rows), len(rows), 0)
    share = len(wrong) / len(rows)
    assert batch.errors.all.value == pytest.approx(share)
    assert (batch.errors.all.low, batch.errors.all.high) == pytest.approx((share, share), abs=1e-3)
    for name, error in batch.errors.by_class.items():
        own = {post_id for post_id, row in rows.items() if row["label"] == name}
        assert error.value == pytest.approx(len(own & wrong) / len(own))
    for name, error in batch.errors.by_part.items():
        number = int(name.removeprefix("round "))
        own = {post_id for post_id, row in rows.items() if row["provenance"]["round"] == number}
        assert (error.posts, error.value) == (len(own), pytest.approx(len(own & wrong) / len(own)))
    grown = len(list(read_jsonl(run.path / "grown.jsonl")))
    assert batch.grown.posts == grown
    assert batch.grown.value == pytest.approx(len(wrong) / grown)


def test_a_part_of_them_gives_an_interval_around_the_estimate(run):
    rows = pseudo_labels(run)
    request_audit(run, budget=len(rows) // 2)
    review(run, wrong_where(run, lambda post_id: False))
    (batch,) = reviewed_batches(run)
    error = batch.errors.all
    assert error.wrong == 0
    assert error.low == 0.0 < error.high < 1.0
    assert (error.posts, error.reviewed) == (len(rows), len(rows) // 2)


def test_divergent_posts_and_audits_are_told_apart_and_the_audit_is_told_first(run):
    divergent = verdicts_among(run, "divergent")
    request_reviews(run, budget=len(divergent), batch="round 1")
    review(run, wrong_where(run, lambda post_id: True))
    assert "divergent posts' labels" in newest_estimate(reviewed_batches(run))
    request_audit(run, budget=4)
    assert [one.name for one in reviewed_batches(run)] == ["round 1"]  # nobody has looked at it
    review(run, wrong_where(run, lambda post_id: False))
    first, second = reviewed_batches(run)
    assert (first.audit, first.grown, first.errors.all.value) == (False, None, pytest.approx(1.0))
    assert second.audit
    line = newest_estimate([second, first])
    assert line.startswith("wrong pseudo-labels: ")
    assert "4 of" in line


def test_unsure_and_open_posts_are_counted_and_give_no_estimate_alone(run):
    request_audit(run, budget=4)
    ledger = ReviewLedger(run.path / LEDGER)
    first = ledger.next_post("ann").item.post_id
    ledger.decide("ann", first, UNSURE)
    (batch,) = reviewed_batches(run)
    assert (batch.answered, batch.unsure, batch.open, batch.errors) == (0, 1, 3, None)
    assert "none of" in batch.why
    assert newest_estimate([batch]) is None
    assert "No estimate" in render(gather(run))


def test_report_and_show_tell_the_estimate_and_nothing_without_reviews(run, capsys):
    assert "How wrong" not in render(gather(run))
    assert main(["show", str(run.path)]) == 0
    assert "wrong pseudo-labels" not in capsys.readouterr().out
    assert main(["review", "audit", str(run.path), "--budget", "5"]) == 0
    told = capsys.readouterr().out
    assert "5 of" in told
    assert f"then: {next_command(run)}\n" in told  # which puts corrections into grown.jsonl
    assert "How wrong" not in render(gather(run))
    review(run, wrong_where(run, lambda post_id: True))
    page = render(gather(run))
    assert 'id="label-error"' in page
    assert "5 of 5" in page
    assert "grown dataset, other labels taken as right" in page
    assert main(["show", str(run.path)]) == 0
    assert "wrong pseudo-labels: " in capsys.readouterr().out
    assert main(["show", str(run.path), "--json"]) == 0
    for line in capsys.readouterr().out.splitlines():
        json.loads(line)


def test_names_of_classes_and_batches_are_data_in_the_report(run):
    ledger_name = "<b>audit</b> after round 99"
    request_reviews(run, budget=2, batch=ledger_name)
    review(run, wrong_where(run, lambda post_id: False))
    page = render(gather(run))
    assert "<b>audit" not in page
    assert "&lt;b&gt;audit" in page

"""The ledger: what a round changes, what a rollback leaves, and what replaying a folder gives back."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import HashPanel, make_corpus, rounds_of, run

from losses.groups import Group
from selftrain import loop
from selftrain.errors import RunStateError
from selftrain.rounds import grown_rows, replay
from selftrain.state import Ledger, Pseudo, precision
from selftrain.store.run_dir import RunFolder

VALUES = {"spam": 1, "ham": 0}
POOL = np.arange(26, 56)


def verdict(label, consistent):
    return {"classifier_label": label, "consistent": consistent}


def test_merge_accepts_the_consistent_and_keeps_the_divergent_unlabelled():
    spam, ham, open_one = verdict("spam", True), verdict("ham", True), verdict("spam", False)
    trial = Ledger(next_round=3).merge([(30, spam), (31, ham), (32, open_one)], VALUES, [])
    assert trial.accepted == {30: Pseudo(1, 3, spam), 31: Pseudo(0, 3, ham)}
    assert trial.divergent == {32}
    assert trial.next_round == 3  # only keep and roll_back count


def test_a_divergent_post_that_is_agreed_on_later_is_divergent_no_more():
    ledger = Ledger().merge([(30, verdict("spam", False))], VALUES, [])
    assert ledger.merge([(30, verdict("ham", True))], VALUES, []).divergent == frozenset()


def test_returned_posts_lose_their_label_and_become_divergent():
    ledger = Ledger().merge([(30, verdict("spam", True)), (31, verdict("ham", True))], VALUES, [])
    revised = ledger.merge([], VALUES, [30])
    assert set(revised.accepted) == {31}
    assert revised.divergent == {30}
    assert set(ledger.accepted) == {30, 31}  # the old ledger is as it was


def test_keep_moves_best_and_lets_what_was_set_aside_be_chosen_again():
    before = Ledger(next_round=4, best_round=2, best_score=0.5, rejections=1, set_aside=frozenset({30}))
    after = before.keep(before.merge([(31, verdict("spam", True))], VALUES, []), 0.7)
    assert (after.next_round, after.best_round, after.best_score) == (5, 4, 0.7)
    assert (after.rejections, after.set_aside, set(after.accepted)) == (0, frozenset(), {31})


def test_roll_back_counts_the_rejection_and_sets_its_candidates_aside():
    before = Ledger(next_round=4, best_round=2, best_score=0.5, rejections=1, set_aside=frozenset({30}))
    after = before.roll_back([31, 32])
    assert (after.next_round, after.best_round, after.best_score) == (5, 2, 0.5)
    assert (after.rejections, after.set_aside, after.accepted) == (2, {30, 31, 32}, {})


def test_open_positions_leave_out_the_accepted_the_set_aside_and_on_request_the_divergent():
    ledger = Ledger(accepted={30: Pseudo(1, 1, {})}, divergent=frozenset({31}), set_aside=frozenset({32}))
    assert ledger.open_positions(POOL, again=True).tolist() == [p for p in POOL if p not in {30, 32}]
    assert ledger.open_positions(POOL, again=False).tolist() == [p for p in POOL if p not in {30, 31, 32}]
    assert Ledger().open_positions(POOL, again=False).tolist() == POOL.tolist()


def test_training_set_has_a_group_and_a_target_for_every_post():
    corpus = make_corpus(labelled=4)
    ledger = Ledger(accepted={33: Pseudo(0, 1, {}), 30: Pseudo(1, 1, {})}, divergent=frozenset({35, 31}))
    training = ledger.training_set(corpus, soft_positive=0.7)
    assert training.positions.tolist() == [0, 1, 2, 3, 30, 33, 31, 35]
    assert training.groups.tolist() == [
        Group.NEGATIVE, Group.POSITIVE, Group.NEGATIVE, Group.POSITIVE,
        Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE, Group.DIVERGENT, Group.DIVERGENT,
    ]  # fmt: skip
    np.testing.assert_allclose(training.targets, [0, 1, 0, 1, 0.7, 0.3, 0.5, 0.5], rtol=1e-6)
    assert training.groups.dtype == np.int64
    assert training.targets.dtype == np.float32


def test_training_set_of_the_labels_alone():
    training = Ledger().training_set(make_corpus(labelled=4), soft_positive=0.7)
    assert training.positions.tolist() == [0, 1, 2, 3]


def test_precision_counts_only_posts_whose_truth_is_known():
    truth = np.array([1, 0, -1, 1], np.int8)
    assert precision([0, 1, 2, 3], [1, 1, 1, 1], truth) == pytest.approx(2 / 3)
    assert precision([2], [1], truth) is None
    assert precision([], [], truth) is None


SCRIPTS = st.lists(st.integers(0, 20), min_size=7, max_size=7)


@given(SCRIPTS, st.booleans(), st.booleans(), st.floats(0, 1), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_replaying_the_folder_gives_the_live_ledger(script, again, revise, agreement, rounds):
    ledgers = []
    original = loop.publish

    def spy(folder, corpus, ledger, root):
        ledgers.append(ledger)
        original(folder, corpus, ledger, root)

    corpus = make_corpus()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "publish", spy)
        folder = Path(name)
        panel = HashPanel(agreement)
        live = run(folder, corpus, script, panel, again=again, revise=revise, rounds=rounds)
        ledger, finished = replay(RunFolder(folder), corpus)
        assert ledger == ledgers[-1]
        assert finished == live
        rows = loop.atomic.json.loads("[" + ",".join((folder / "grown.jsonl").read_text().splitlines()) + "]")
        assert rows == list(grown_rows(corpus, ledger, folder))


@given(SCRIPTS, st.booleans(), st.booleans(), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_loop_that_was_stopped_after_any_round_ends_like_one_that_never_was(script, again, revise, stop):
    corpus = make_corpus()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        whole, parts = Path(one), Path(other)
        run(whole, corpus, script, again=again, revise=revise)
        rounds = rounds_of(parts, corpus, script, again=again, revise=revise)
        for _ in range(stop + 1):
            next(rounds, None)
        rounds.close()
        run(parts, corpus, script, again=again, revise=revise)
        for file in [whole / "grown.jsonl", *whole.glob("rounds/*/*.jsonl")]:
            assert (parts / file.relative_to(whole)).read_bytes() == file.read_bytes(), file


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("verdicts.jsonl", None),
        ("verdicts.jsonl", '{"post_id": "p30"}\n'),
        ("verdicts.jsonl", '{"post_id": "nobody", "consistent": true, "classifier_label": "ham"}\n'),
        ("verdicts.jsonl", "{not json\n"),
        ("verdicts.jsonl", "[1]\n"),
        ("metrics.json", "{}"),
        ("metrics.json", '{"round": 0, "kept": true}'),
        ("metrics.json", '{"round": 1, "kept": true}'),
        ("metrics.json", '{"round": 1, "kept": true, "validation": {"macro_f1": '),
        ("metrics.json", "[]"),
    ],
)
def test_a_damaged_round_is_an_error_that_says_where(tmp_path, file, content):
    corpus = make_corpus()
    run(tmp_path, corpus, [5, 10], rounds=1)
    target = tmp_path / "rounds" / "0001" / file
    target.unlink()
    if content is not None:
        target.write_text(content)
    with pytest.raises(RunStateError, match=r"damaged|not those that the run began with") as caught:
        replay(RunFolder(tmp_path), corpus)
    assert str(tmp_path) in str(caught.value)

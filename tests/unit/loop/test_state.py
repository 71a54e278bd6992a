"""The state: what a round changes, what a rollback leaves, and what replaying a folder gives back."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import HashPanel, make_corpus, rounds_of, run

from agents.judgment import Judgment, Posterior, State, Verdict
from losses.base import Group
from selftrain import loop
from selftrain.errors import RunStateError
from selftrain.rounds import check_pool, grown_rows, precision, replay
from selftrain.state import LastVerdict, LoopState, RoundLimits, UsedLabel
from selftrain.store.run_dir import HumanLabel, RunFolder

LIMITS = RoundLimits()
ONCE = RoundLimits(reselect_divergent=False)
POOL = make_corpus().pool


def verdict(post_id, label="spam", consistent=True):
    answer = label if consistent else {"spam": "ham", "ham": "spam"}[label]
    return Verdict(post_id, label, 0.75, (Judgment("user", 0, State.LABEL, answer, 0.75, "seen", "fake"),))


def accepted(**labels):
    return {post_id: LastVerdict(1, verdict(post_id, label)) for post_id, label in labels.items()}


def human(post_id, label="spam"):
    return HumanLabel(post_id, label, ("ann",), False, "round 1", 0.5, "ham")


def test_merge_accepts_the_consistent_and_keeps_the_divergent_unlabelled():
    spam, ham, open_one = verdict("a"), verdict("b", "ham"), verdict("c", consistent=False)
    trial = LoopState(next_round=3).merge([spam, ham, open_one], [])
    assert trial.accepted == {"a": LastVerdict(3, spam), "b": LastVerdict(3, ham)}
    assert trial.divergent == trial.disputed == {"c"}
    assert trial.next_round == 3  # only keep and roll_back count
    assert trial.judged == 3


def test_a_divergent_post_that_is_agreed_on_later_is_divergent_no_more():
    state = LoopState().merge([verdict("a", consistent=False)], [])
    later = state.merge([verdict("a", "ham")], [])
    assert later.divergent == later.disputed == frozenset()


def test_flipped_posts_lose_their_label_and_become_divergent():
    state = LoopState().merge([verdict("a"), verdict("b", "ham")], [])
    retracted = state.merge([], ["a"])
    assert set(retracted.accepted) == {"b"}
    assert retracted.divergent == {"a"}
    assert set(state.accepted) == {"a", "b"}  # the old state is as it was


def test_keep_moves_best_and_lets_what_was_deferred_be_chosen_again():
    before = LoopState(next_round=4, best_round=2, rejections=1, deferred=frozenset({"a"}))
    after = before.keep(before.merge([verdict("b")], []))
    assert (after.next_round, after.best_round) == (5, 4)
    assert (after.rejections, after.deferred, set(after.accepted)) == (0, frozenset(), {"b"})


def test_roll_back_counts_the_rejection_and_defers_its_candidates():
    before = LoopState(next_round=4, best_round=2, rejections=1, deferred=frozenset({"a"}))
    after = before.roll_back([verdict("b"), verdict("c", consistent=False)])
    assert (after.next_round, after.best_round) == (5, 2)
    assert (after.rejections, after.deferred, after.accepted) == (2, {"a", "b", "c"}, {})
    # who disagreed in it disagreed: people may be asked, though the loss does not know of it
    assert (after.divergent, after.disputed, after.judged) == (frozenset(), {"c"}, 2)


def test_labels_of_people_settle_a_post_whatever_was_said_of_it():
    before = LoopState(
        next_round=3, accepted=accepted(a="ham"), divergent=frozenset({"b"}), disputed=frozenset({"b"})
    )
    after = before.apply_human_labels([human("a"), human("b")])
    assert after.human == {"a": UsedLabel(3, human("a")), "b": UsedLabel(3, human("b"))}
    assert (after.accepted, after.divergent, after.disputed) == ({}, frozenset(), frozenset())
    assert after.roll_back([]).human == after.human


def test_closed_are_the_accepted_the_deferred_the_humans_and_on_request_the_divergent():
    state = LoopState(
        accepted=accepted(a="spam"), divergent=frozenset({"b"}), deferred=frozenset({"c"}),
        human={"d": UsedLabel(1, human("d"))},
    )  # fmt: skip
    assert state.closed(LIMITS) == {"a", "c", "d"}
    assert state.closed(ONCE) == {"a", "b", "c", "d"}
    corpus = make_corpus()
    state = LoopState(accepted=accepted(p30="spam"), divergent=frozenset({"p31"}))
    assert loop.open_positions(state, corpus, LIMITS).tolist() == [p for p in POOL if p != 30]
    assert loop.open_positions(state, corpus, ONCE).tolist() == [p for p in POOL if p not in {30, 31}]
    assert loop.open_positions(LoopState(), corpus, ONCE).tolist() == POOL.tolist()


def test_it_stops_for_one_reason_at_a_time():
    limits = RoundLimits(2, 2, 9)
    assert LoopState(next_round=2).why_stop(limits, 5) is None
    assert LoopState(next_round=3).why_stop(limits, 5) == "all 2 rounds are done"
    assert LoopState(rejections=2).why_stop(limits, 5) == "2 rounds in a row brought no improvement"
    assert LoopState(judged=8).why_stop(limits, 5) is None
    assert LoopState(judged=9).why_stop(limits, 5) == "the budget of 9 candidates is spent"
    used_up = LoopState(accepted=accepted(a="spam"), deferred=frozenset({"b"}))
    assert used_up.why_stop(limits, 2) == "no pool post is left to choose from"
    assert used_up.why_stop(limits, 3) is None


def test_last_verdicts_stand_in_the_order_of_the_first_ones():
    first = LoopState().roll_back([verdict("b"), verdict("a")])
    later = first.merge([verdict("a", "ham"), verdict("c")], [])
    found = later.last_verdicts_on(["c", "a", "b"])
    assert list(found) == ["b", "a", "c"]
    assert found["a"] == LastVerdict(1, verdict("a", "ham"))


def test_training_set_has_a_group_and_a_target_for_every_post():
    corpus = make_corpus(labelled=4)
    state = LoopState(accepted=accepted(p33="ham", p30="spam"), divergent=frozenset({"p35", "p31"}))
    training = state.training_set(corpus, soft_positive=0.7)
    assert training.positions.tolist() == [0, 1, 2, 3, 30, 33, 31, 35]
    assert training.groups[:, 0].tolist() == [
        Group.NEGATIVE, Group.POSITIVE, Group.NEGATIVE, Group.POSITIVE,
        Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE, Group.DIVERGENT, Group.DIVERGENT,
    ]  # fmt: skip
    np.testing.assert_allclose(training.targets[:, 0], [0, 1, 0, 1, 0.7, 0.3, 0.5, 0.5], rtol=1e-6)
    assert training.groups.dtype == np.int64
    assert training.targets.dtype == np.float32


def test_training_set_of_the_labels_alone():
    training = LoopState().training_set(make_corpus(labelled=4), soft_positive=0.7)
    assert training.positions.tolist() == [0, 1, 2, 3]


def test_precision_counts_only_posts_whose_truth_is_known():
    corpus = make_corpus()
    corpus.truth[:4] = [1, 0, -1, 1]
    assert precision(corpus, [(f"p{i}", "spam") for i in range(4)]) == pytest.approx(2 / 3)
    assert precision(corpus, [("p2", "spam")]) is None
    assert precision(corpus, []) is None


SCRIPTS = st.lists(st.integers(0, 20), min_size=7, max_size=7)


@given(SCRIPTS, st.booleans(), st.booleans(), st.floats(0, 1), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_replaying_the_folder_gives_the_live_state(script, again, retract, agreement, rounds):
    states = []
    original = loop.publish

    def spy(folder, corpus, state, root):
        states.append(state)
        original(folder, corpus, state, root)

    corpus = make_corpus()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "publish", spy)
        folder = Path(name)
        panel = HashPanel(agreement)
        options = {"reselect_divergent": again, "retract_flipped": retract}
        live = run(folder, corpus, script, panel, rounds=rounds, **options)
        state, finished = replay(RunFolder(folder))
        assert state == states[-1]
        assert list(state.last_verdicts) == list(states[-1].last_verdicts)
        assert finished == live
        rows = loop.atomic.json.loads("[" + ",".join((folder / "grown.jsonl").read_text().splitlines()) + "]")
        assert rows == list(grown_rows(corpus, state, folder))


@given(SCRIPTS, st.booleans(), st.booleans(), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_a_loop_that_was_stopped_after_any_round_ends_like_one_that_never_was(script, again, retract, stop):
    corpus = make_corpus()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        whole, parts = Path(one), Path(other)
        options = {"reselect_divergent": again, "retract_flipped": retract}
        run(whole, corpus, script, **options)
        rounds = rounds_of(parts, corpus, script, **options)
        for _ in range(stop + 1):
            next(rounds, None)
        rounds.close()
        run(parts, corpus, script, **options)
        for file in [whole / "grown.jsonl", *whole.glob("rounds/*/*.jsonl")]:
            assert (parts / file.relative_to(whole)).read_bytes() == file.read_bytes(), file


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("verdicts.jsonl", None),
        ("verdicts.jsonl", '{"post_id": "p30"}\n'),
        ("verdicts.jsonl", '{"post_id": "nobody", "consistent": true, "classifier_label": "ham"}\n'),
        ("verdicts.jsonl", f"{json.dumps(verdict('nobody').to_json())}\n"),
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
        check_pool(corpus, replay(RunFolder(tmp_path))[0], RunFolder(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_people_may_be_asked_about_labels_that_are_learned_but_not_sure():
    def learned(post_id, sure):
        probs = {"fine": 1 - sure, "bad": sure}
        return Verdict(post_id, "bad", 0.6, (), posterior=Posterior(probs, {}, probs, 0.5, 1.0))

    state = LoopState().keep(LoopState().merge([learned("sure", 0.95), learned("unsure", 0.6)], []))
    assert set(state.accepted) == {"sure", "unsure"}
    assert state.disputed == {"unsure"}
    surer = state.merge([], [], [learned("unsure", 0.97)])
    assert surer.disputed == set()
    assert LoopState().roll_back([learned("unsure", 0.6)]).disputed == {"unsure"}

"""The loop with a scripted model: keeping, rolling back, stopping, and what it writes."""

import json

import numpy as np
import pytest
from class_helpers import both
from loop_helpers import (
    HashPanel,
    ScriptedTrainer,
    corpus_of,
    lines,
    make_corpus,
    rounds_of,
    run,
    settings,
)

from agents.errors import ReviewError
from agents.panel import NoPanel
from losses.against_rest import AgainstRest
from losses.base import Group
from losses.pnu import PNULoss
from selftrain._util.numeric import log_odds
from selftrain.errors import DecisionError, RecipeError, TrainingError
from selftrain.loop import self_train, validated
from selftrain.models.trainer import Fit
from selftrain.rounds import replay
from selftrain.selection import TopK
from selftrain.state import LoopState, RoundLimits
from selftrain.store.run_dir import HumanLabel, RunFolder

UP_DOWN_UP = [8, 12, 10, 15]  # round 1 kept, 2 rolled back, 3 kept


def ids_of(folder, number, consistent):
    return {
        v["post_id"]
        for v in lines(folder / f"rounds/{number:04d}/verdicts.jsonl")
        if v["consistent"] == consistent
    }


def grown_ids(folder):
    return {
        row["id"] for row in lines(folder / "grown.jsonl") if row["provenance"]["source"] == "pseudo-label"
    }


def test_a_round_that_does_not_improve_is_rolled_back_and_stays_readable(tmp_path):
    corpus = make_corpus()
    rounds = rounds_of(tmp_path, corpus, UP_DOWN_UP, rounds=3)
    next(rounds)
    assert next(rounds).kept
    kept, best = (tmp_path / "grown.jsonl").read_bytes(), (tmp_path / "best").readlink()
    assert str(best) == "rounds/0001"
    rejected = next(rounds)
    assert not rejected.kept
    assert (tmp_path / "best").readlink() == best
    assert (tmp_path / "grown.jsonl").read_bytes() == kept
    folder = tmp_path / "rounds" / "0002"
    assert {file.name for file in folder.iterdir()} == {
        "candidates.jsonl", "verdicts.jsonl", "model.safetensors", "scores.jsonl", "metrics.json",
    }  # fmt: skip
    assert ids_of(tmp_path, 2, True)
    assert not ids_of(tmp_path, 2, True) & grown_ids(tmp_path)


def test_an_equal_score_is_no_improvement(tmp_path):
    assert [r.kept for r in run(tmp_path, make_corpus(), [9, 9, 10], rounds=2)] == [True, False, True]


def test_rejected_candidates_wait_for_the_next_kept_round(tmp_path):
    corpus, panel = make_corpus(pool=60), HashPanel(agreement=0.5)
    run(tmp_path, corpus, [8, 7, 7, 12, 12], panel, rounds=4)
    first, second, third, fourth = (set(asked) for asked in panel.asked)
    assert not first & second
    assert not (first | second) & third
    # after the kept third round the confident ones of the first two are chosen again
    assert fourth & (first | second)


def test_the_model_of_the_best_round_selects_and_not_the_rejected_one(tmp_path):
    corpus = make_corpus(pool=60)
    run(tmp_path, corpus, [8, 12, 3, 15], rounds=3)
    best = ScriptedTrainer([]).load(tmp_path / "rounds/0001/model.safetensors")
    for row in lines(tmp_path / "rounds/0003/candidates.jsonl"):
        position = int(row["id"][1:])
        ((_, logits),) = ScriptedTrainer([]).logits(best, corpus, corpus.pool[corpus.pool == position])
        assert row["label"] == corpus.classes[logits[0].argmax()]


@pytest.mark.parametrize(("start", "expected"), [("best", [None, 0, 1, 1]), ("pretrained", [None] * 4)])
def test_training_starts_where_the_settings_say(tmp_path, start, expected):
    trainer = ScriptedTrainer([8, 12, 3, 15])
    run(tmp_path, make_corpus(), [], trainer=trainer, rounds=3, start=start)
    assert [model and model.number for model in trainer.starts.values()] == expected


def test_pseudo_labels_of_a_rejected_round_are_not_trained_on_later(tmp_path):
    trainer = ScriptedTrainer([8, 7, 12])
    corpus = make_corpus(pool=60)
    run(tmp_path, corpus, [], HashPanel(agreement=1.0), trainer=trainer, rounds=2, retract_flipped=False)
    agreed = {
        n: {
            int(p)
            for p, g in zip(t.positions, t.groups, strict=True)
            if g in (Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE)
        }
        for n, t in trainer.trainings.items()
    }
    assert len(agreed[1]) == len(agreed[2]) == 6
    assert not agreed[1] & agreed[2]


def test_the_agents_learn_from_what_was_accepted_so_far(tmp_path):
    panel = HashPanel(agreement=1.0)
    run(tmp_path, make_corpus(), [8, 12, 15], panel, rounds=2, retract_flipped=False)
    assert panel.lessons[0] == []
    assert {one for one, _ in panel.lessons[1]} == ids_of(tmp_path, 1, True)


def test_accepted_posts_whose_label_flipped_go_back(tmp_path):
    corpus = make_corpus(pool=60)
    rounds = run(tmp_path, corpus, [8, 10, 12, 14, 16], HashPanel(agreement=1.0), rounds=4)
    assert any(r.flipped for r in rounds)
    first = next(r for r in rounds if r.flipped)
    accepted_before = {i for n in range(1, first.number) for i in ids_of(tmp_path, n, True)}
    assert set(first.flipped) <= accepted_before
    calm = tmp_path / "calm"
    kept = run(calm, corpus, [8, 10, 12, 14, 16], HashPanel(agreement=1.0), rounds=4, retract_flipped=False)
    assert not any(r.flipped for r in kept)
    assert len(grown_ids(calm)) == 24


def test_it_stops_after_the_last_round(tmp_path):
    corpus = make_corpus()
    assert [r.number for r in run(tmp_path, corpus, UP_DOWN_UP, rounds=2)] == [0, 1, 2]
    state, _ = replay(RunFolder(tmp_path))
    assert state.why_stop(RoundLimits(2, 9), len(corpus.pool)) == "all 2 rounds are done"


def test_no_round_but_the_labels_alone(tmp_path):
    assert [r.number for r in run(tmp_path, make_corpus(), [8], rounds=0)] == [0]
    assert grown_ids(tmp_path) == set()


def test_it_stops_when_patience_is_at_an_end(tmp_path):
    corpus = make_corpus()
    script = [8, 12, 3, 13, 3, 3, 20]
    assert [r.number for r in run(tmp_path, corpus, script, rounds=6, patience=2)] == [0, 1, 2, 3, 4, 5]
    state, _ = replay(RunFolder(tmp_path))
    reason = state.why_stop(RoundLimits(6, 2), len(corpus.pool))
    assert reason == "2 rounds in a row brought no improvement"


def test_it_stops_when_the_budget_is_spent_and_never_exceeds_it(tmp_path):
    corpus = make_corpus()
    script = [8, 12, 13, 14, 15]
    rounds = run(tmp_path, corpus, script, budget=9)
    assert [r.sets.candidates.posts for r in rounds] == [0, 6, 3]
    state, _ = replay(RunFolder(tmp_path))
    assert state.judged == 9
    assert state.why_stop(RoundLimits(5, 9, 10), len(corpus.pool)) is None
    reason = state.why_stop(RoundLimits(5, 9, 9), len(corpus.pool))
    assert reason == "the budget of 9 candidates is spent"
    # the same command again spends nothing; a larger budget goes on from what was spent
    assert len(run(tmp_path, corpus, script, budget=9)) == 3
    again = run(tmp_path, corpus, script, budget=11)
    assert [r.sets.candidates.posts for r in again] == [0, 6, 3, 2]


def test_it_stops_when_the_pool_is_used_up(tmp_path):
    corpus = make_corpus(pool=10)
    rounds = run(
        tmp_path, corpus, [8, 9, 10, 11, 12, 13], HashPanel(agreement=1.0), rounds=5, retract_flipped=False
    )
    assert len(grown_ids(tmp_path)) == 10
    assert rounds[-1].number < 5
    state, _ = replay(RunFolder(tmp_path))
    assert state.why_stop(RoundLimits(), len(corpus.pool)) == "no pool post is left to choose from"


def test_a_finished_run_goes_on_when_more_rounds_are_asked_for(tmp_path):
    corpus = make_corpus()
    run(tmp_path, corpus, UP_DOWN_UP, rounds=1)
    assert [r.number for r in run(tmp_path, corpus, UP_DOWN_UP, rounds=3)] == [0, 1, 2, 3]
    whole = tmp_path / "whole"
    run(whole, corpus, UP_DOWN_UP, rounds=3)
    assert (whole / "grown.jsonl").read_bytes() == (tmp_path / "grown.jsonl").read_bytes()


@pytest.mark.parametrize("simulated", [True, False])
def test_a_simulated_panel_is_marked_wherever_the_round_is_shown(tmp_path, simulated):
    rounds = run(tmp_path, make_corpus(), [8, 12], HashPanel(simulated=simulated), rounds=1)
    for number, one in enumerate(rounds):
        metrics = json.loads((tmp_path / f"rounds/{number:04d}/metrics.json").read_text())
        assert metrics["simulated"] is simulated
        assert ("SIMULATED" in str(one)) is simulated


def test_without_agents_the_classifiers_word_is_taken(tmp_path):
    corpus = make_corpus(test=4)
    rounds = run(tmp_path, corpus, [8, 12], NoPanel(), rounds=1)
    assert (rounds[1].consistent, rounds[1].divergent) == (6, 0)
    row = lines(tmp_path / "grown.jsonl")[-1]
    assert row["provenance"]["agreed"] == ["classifier"]
    assert rounds[1].test.posts == 4


def test_grown_holds_the_labels_then_the_pseudo_labels_with_their_provenance(tmp_path):
    run(tmp_path, make_corpus(labelled=4), [8, 12], HashPanel(agreement=1.0), rounds=1)
    rows = lines(tmp_path / "grown.jsonl")
    assert [row["id"] for row in rows[:4]] == ["p0", "p1", "p2", "p3"]
    assert [row["label"] for row in rows[:4]] == ["ham", "spam", "ham", "spam"]
    assert all(row["provenance"] == {"source": "label"} for row in rows[:4])
    assert len(rows) == 10
    for row in rows[4:]:
        assert row["provenance"]["round"] == 1
        assert row["provenance"]["agreed"] == ["classifier", "reviewer", "user"]


def test_a_round_in_which_nothing_can_be_chosen_does_no_harm(tmp_path):
    # only what the model calls spam is wanted, and then there is none left
    trainer = ScriptedTrainer([8, 9, 10, 11], spread=0.0)
    rounds = run(
        tmp_path, make_corpus(pool=10), [], HashPanel(agreement=1.0),
        shares={"spam": 1.0, "ham": 0.0}, rounds=3, retract_flipped=False, trainer=trainer,
    )  # fmt: skip
    assert [r.sets.candidates.posts for r in rounds] == [0, 5, 0, 0]


def test_left_out_labels_calibrate_by_both_logits_of_a_post():
    """A trainer of somebody's own need not fix the first one at 0."""
    corpus, random = corpus_of((40, 0, 5, 0), ("ham", "spam")), np.random.default_rng(0)
    training = LoopState().training_set(corpus, soft_positive=0.8)

    class Anybodys:
        def fit(self, *_args, **_named):
            return None

        def calibrate(self, _model, calibration):
            return calibration

    def calibrated(raw):
        fit = Fit(training, AgainstRest((PNULoss(),)), 0, "round 0")
        return validated(Anybodys(), lambda _: raw, corpus, fit, start=None)

    raw = both(training.labels + random.normal(size=40))
    found, scored = calibrated(raw)
    moved, moved_scored = calibrated(raw + random.normal(0, 5, (40, 1)).astype(np.float32))
    assert moved.slope == pytest.approx(found.slope, abs=1e-3)
    assert log_odds(moved_scored.logits) == pytest.approx(log_odds(scored.logits), abs=1e-2)


# ---- what parts of somebody's own may not give --------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda positions, logits: (positions[::-1], logits[::-1]),
        lambda positions, logits: (positions[1:], logits[1:]),
        lambda positions, logits: (positions, logits[:, 1:]),
    ],
)
def test_a_trainer_that_scores_other_posts_than_it_was_asked_about_is_refused(tmp_path, spoil):
    class Spoilt(ScriptedTrainer):
        def logits(self, model, corpus, positions):
            yield spoil(*map(np.concatenate, zip(*super().logits(model, corpus, positions), strict=True)))

    with pytest.raises(
        TrainingError, match=r"Spoilt.logits gave .*: expected \(positions \[n\], logits \[n, 2"
    ):
        run(tmp_path, make_corpus(), [], trainer=Spoilt([8]), rounds=0)


def test_a_trainer_that_says_nan_of_validation_posts_is_refused(tmp_path):
    class Spoilt(ScriptedTrainer):
        def logits(self, model, corpus, positions):
            return ((part, logits * np.nan) for part, logits in super().logits(model, corpus, positions))

    with pytest.raises(TrainingError, match=r"round 0: .*Spoilt gave logits that are not finite"):
        run(tmp_path, make_corpus(), [], trainer=Spoilt([8]), rounds=0)


class Desk:
    """People who answer as they are told."""

    def __init__(self, *labels):
        self.labels = labels

    def ready(self, number):
        return True

    def answers(self, used):
        return (HumanLabel(*one, ("me",)) for one in self.labels if one[0] not in used)

    def close(self):
        pass


def with_people(folder, *labels, loss=None, selector=None, panel=None):
    return list(
        self_train(
            make_corpus(),
            ScriptedTrainer([8, 9]),
            panel or HashPanel(),
            selector=selector or TopK(6),
            loss=loss or PNULoss(),
            folder=RunFolder(folder),
            settings=settings(folder, rounds=1),
            reviewers=Desk(*labels),
        )
    )


def test_labels_of_people_that_come_one_by_one_are_written_too(tmp_path):
    found = with_people(tmp_path, ("p30", "spam"), ("p31", "ham"))
    assert found[1].human.posts == 2
    assert [one.post_id for one in RunFolder(tmp_path).human_labels(1)] == ["p30", "p31"]
    assert replay(RunFolder(tmp_path))[0].human.keys() == {"p30", "p31"}


def test_a_label_of_people_that_is_no_class_is_refused(tmp_path):
    with pytest.raises(DecisionError, match=r"Desk labels 'p30' as 'egg': expected one of \['spam', 'ham'\]"):
        with_people(tmp_path, ("p30", "egg"))


def test_numbers_of_numpy_are_written(tmp_path):
    loss = PNULoss(theta=np.float32(0.25), soft_positive=np.float32(0.75))
    assert with_people(tmp_path, loss=loss)[1].theta == {"spam": 0.25}
    assert json.loads((tmp_path / "rounds/0001/metrics.json").read_text())["theta"] == {"spam": 0.25}


def test_the_loop_holds_selectors_and_panels_to_what_they_were_asked(tmp_path):
    class Places(TopK):
        def select(self, chunks, **asked):
            found = super().select(chunks, **asked)
            return found._replace(positions=np.arange(len(found.positions)))

    class Half(HashPanel):
        def verify(self, candidates):
            return super().verify(candidates[::2])

    with pytest.raises(RecipeError, match="Places as selector: it chose position 0, which is no open post"):
        with_people(tmp_path / "places", selector=Places(6))
    with pytest.raises(ReviewError, match=r"Half\.verify gave 3 verdicts on 6 candidates"):
        with_people(tmp_path / "half", panel=Half())

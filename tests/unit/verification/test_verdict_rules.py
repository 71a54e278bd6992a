"""The posterior as the loop's rule: real heads, with and without validation posts, stopped and resumed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from class_helpers import column
from loop_helpers import corpus_of, turns, written

from agents.judgment import Candidate, Judgment, Posterior, State, Verdict
from losses.against_rest import AgainstRest
from losses.base import Group
from losses.pnu import PNULoss
from selftrain import loop
from selftrain.data.corpus import TrainingSet
from selftrain.errors import RecipeError
from selftrain.models.trainer import CrossFit, Fit, HeadTrainer, assign_folds
from selftrain.rounds import replay
from selftrain.selection import Uncertain
from selftrain.state import LoopState, RoundLimits
from selftrain.store.run_dir import RunFolder
from selftrain.store.scores import Scored
from selftrain.verification.rules import Judged, PosteriorRule, Unanimous

NAMES = ("fine", "bad")


def make_corpus(*, labelled=20, validation=0, pool=120, test=60):
    sizes = (labelled, validation, pool, test)
    truth = turns(sizes, NAMES)
    rows = np.random.default_rng(1).normal(size=(len(truth), 10)).astype(np.float32)
    rows[:, 0] += 1.2 * (2.0 * truth - 1)
    return corpus_of(sizes, NAMES, rows)


class Panel:
    """Two agents, right on most posts; where they are wrong, they are often wrong together."""

    simulated = False

    def __init__(self, corpus, accuracy=0.85):
        self.corpus, self.accuracy = corpus, accuracy

    def fit(self, labelled, *, accepted=(), pool=()):
        pass

    def _judge(self, role, post):
        draw = np.random.default_rng([int(post.id[1:]), role == "user"])
        both = np.random.default_rng(int(post.id[1:])).random()
        truth = int(self.corpus.truth[self.corpus.position_of[post.id]])
        right = (both if draw.random() < 0.5 else draw.random()) < self.accuracy
        return Judgment(role, 0, State.LABEL, NAMES[truth if right else 1 - truth], None, "seen", "fake")

    def verify(self, candidates):
        return [
            Verdict(
                c.post.id, c.label, c.probability, tuple(self._judge(r, c.post) for r in ("reviewer", "user"))
            )
            for c in candidates
        ]

    def predict_out_of_fold(self, labelled):
        return {role: [self._judge(role, post) for post in labelled] for role in ("reviewer", "user")}

    def describe(self):
        return {"protocol": "fake"}


class Arguing(Panel):
    """The same two, who are first told to make the case of a side."""

    def verify(self, candidates):
        return [
            replace(
                one,
                judgments=(
                    *(
                        replace(said, state=State.ABSTAIN, label=None, details={"argues": said.agent})
                        for said in one.judgments
                    ),
                    *(replace(said, step=1) for said in one.judgments),
                ),
            )
            for one in super().verify(candidates)
        ]


def rounds_of(folder, corpus, *, rule=None, rounds=2, panel=None):
    return loop.self_train(
        corpus, HeadTrainer(epochs=10), panel or Panel(corpus),
        selector=Uncertain(30), loss=PNULoss(), folder=RunFolder(folder), rule=rule or PosteriorRule(),
        settings=loop.LoopSettings(root=folder, limits=RoundLimits(rounds, 9), folds=3),
    )  # fmt: skip


@pytest.mark.parametrize("validation", [0, 40])
def test_all_that_was_judged_is_learned_by_what_the_agents_said_of_it(tmp_path, validation):
    corpus = make_corpus(validation=validation)
    first, *later = rounds_of(tmp_path, corpus)
    assert first.validation.posts == (validation or len(corpus.labelled))
    assert any(one.kept for one in later)
    verdicts = RunFolder(tmp_path).verdicts(1)
    assert len(verdicts) == 30
    assert all(one.consistent and one.posterior is not None for one in verdicts)
    assert any(one.label != one.classifier_label for one in verdicts)
    right = [NAMES[corpus.truth[corpus.position_of[one.post_id]]] == one.label for one in verdicts]
    assert np.mean(right) > 0.75
    state, _ = replay(RunFolder(tmp_path))
    training = state.training_set(corpus, soft_positive=0.8)
    agreed = np.isin(training.groups[:, 0], (Group.AGREED_POSITIVE, Group.AGREED_NEGATIVE))
    posteriors = [
        state.accepted[corpus.posts[position].id].verdict.posterior
        for position in training.positions[agreed].tolist()
    ]
    told = [one.evidence[corpus.positive] for one in posteriors]
    np.testing.assert_allclose(training.targets[agreed, 0], told, atol=1e-6)
    assert len(set(told)) > 2
    assert {one.weight for one in posteriors} == {state.evidence_weight}


def test_a_case_made_on_demand_is_no_opinion(tmp_path):
    corpus = make_corpus()
    posteriors = []
    for name, panel in {"alone": Panel(corpus), "arguing": Arguing(corpus)}.items():
        list(rounds_of(tmp_path / name, corpus, rounds=1, panel=panel))
        posteriors.append([one.posterior for one in RunFolder(tmp_path / name).verdicts(1)])
    assert posteriors[0] == posteriors[1]
    assert len(posteriors[0]) == 30


def test_earlier_posts_are_judged_anew_in_every_round(tmp_path):
    list(rounds_of(tmp_path, make_corpus()))
    folder = RunFolder(tmp_path)
    before = {one.post_id: one for one in folder.verdicts(1)}
    revised = folder.revised(2)
    assert {one.post_id for one in revised} == before.keys()
    assert any(one.posterior.probs != before[one.post_id].posterior.probs for one in revised)
    assert all(one.judgments == before[one.post_id].judgments for one in revised)


def test_a_run_that_was_stopped_after_any_round_ends_like_one_that_never_was(tmp_path):
    corpus = make_corpus()
    list(rounds_of(tmp_path / "whole", corpus, rounds=3))
    for _ in range(4):
        rounds = rounds_of(tmp_path / "stopped", corpus, rounds=3)
        known = len(list((tmp_path / "stopped").glob("rounds/*/metrics.json")))
        for number, _ in enumerate(rounds):
            if number == known:
                break
    list(rounds_of(tmp_path / "stopped", corpus, rounds=3))
    assert written(tmp_path / "stopped") == written(tmp_path / "whole")


def test_below_the_threshold_posts_stay_unlabelled_and_their_mean_is_the_prior(tmp_path):
    corpus = make_corpus(validation=40)
    _, one = rounds_of(tmp_path, corpus, rule=PosteriorRule(threshold=0.9), rounds=1)
    verdicts = RunFolder(tmp_path).verdicts(1)
    unsure = [v.posterior.probs["bad"] for v in verdicts if not v.consistent]
    assert unsure
    assert all(v.posterior.probability >= 0.9 for v in verdicts if v.consistent)
    assert one.divergent == len(unsure)
    assert one.theta["bad"] == pytest.approx(np.clip(np.mean(unsure), 0.05, 0.95), abs=1e-6)


def test_a_classifier_that_learned_from_the_judged_posts_counts_where_it_is_right_of_itself():
    corpus = make_corpus(labelled=60)
    panel, state = Panel(corpus), LoopState(next_round=1, best_round=0)
    posts = [corpus.posts[position] for position in corpus.pool]
    verdicts = panel.verify([Candidate(post, "bad", 0.6) for post in posts])
    signs = 2.0 * corpus.truth - 1
    said = {one.post_id: 2.0 * (one.judgments[0].label == "bad") - 1 for one in verdicts}
    repeated = np.array([said.get(post.id, sign) for post, sign in zip(corpus.posts, signs, strict=True)])
    repeated[corpus.labelled] = [
        2.0 * (one.label == "bad") - 1
        for one in panel.predict_out_of_fold([corpus.posts[i] for i in corpus.labelled])["reviewer"]
    ]

    def decided(second):
        """What is learned, with a classifier that says this of a post once it has learned from the others."""

        def left_out(learned):
            training = learned.training_set(corpus, soft_positive=0.8)
            logits = np.zeros((len(training.positions), 2), np.float32)
            logits[:, 1] = second[training.positions] if learned.accepted else 0.0
            return training, logits

        answers = panel.predict_out_of_fold([corpus.posts[i] for i in corpus.labelled])
        judged = Judged(
            corpus, state, verdicts, answers, left_out, lambda some: np.zeros((len(some), 2), np.float32)
        )
        return [one.posterior for one in PosteriorRule().decide(judged).verdicts]

    def for_truth(posteriors):
        truth = (NAMES[corpus.truth[position]] for position in corpus.pool)
        return np.array([one.evidence[name] for one, name in zip(posteriors, truth, strict=True)])

    nothing, copied, knowing = (decided(logits) for logits in (0.0 * signs, 2 * repeated, 2.0 * signs))
    assert copied == nothing  # it repeats an agent: the agents alone are learned
    assert (for_truth(knowing) > for_truth(nothing)).mean() > 0.95
    wrong = np.array([{j.label for j in one.judgments} for one in verdicts]) != [
        {NAMES[corpus.truth[position]]} for position in corpus.pool
    ]
    assert for_truth(knowing)[wrong].mean() > for_truth(nothing)[wrong].mean() + 0.15


def test_unanimity_leaves_verdicts_as_they_are(tmp_path):
    list(rounds_of(tmp_path, make_corpus(), rule=Unanimous()))
    folder = RunFolder(tmp_path)
    assert all(one.posterior is None for number in (1, 2) for one in folder.verdicts(number))
    assert not folder.revised(2)


def test_rounds_are_compared_by_likelihood_or_by_macro_f1(tmp_path):
    corpus = make_corpus(validation=40)
    likely = list(rounds_of(tmp_path / "a", corpus))
    counted = list(rounds_of(tmp_path / "b", corpus, rule=Unanimous()))
    assert all(one.score < 0 for one in likely)
    assert all(one.score == one.validation.macro_f1 for one in counted)


@pytest.mark.parametrize("threshold", [0.49, 1.01, float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(RecipeError, match="threshold"):
        PosteriorRule(threshold=threshold)


def test_a_verdict_with_a_posterior_is_read_as_it_was_written():
    posterior = Posterior(
        {"fine": 0.25, "bad": 0.75},
        {"classifier": 0.5, "reviewer": 0.6},
        {"fine": 0.35, "bad": 0.65},
        0.7,
        0.4,
    )
    verdict = Verdict("p1", "fine", 0.6, (), posterior=posterior)
    assert verdict.consistent
    assert verdict.label == "bad"
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    assert not replace(verdict, posterior=replace(posterior, threshold=0.8)).consistent


def test_evidence_for_a_class_is_weighed_against_the_mean_of_the_others():
    even = Posterior({}, {}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 0.5, 1.0)
    assert even.evidence_for("a") == pytest.approx(0.5)
    sure = replace(even, evidence={"a": 0.8, "b": 0.1, "c": 0.1})
    assert sure.evidence_for("a") == pytest.approx(8 / 9)
    assert replace(even, evidence={"a": 0.3, "b": 0.7}).evidence_for("b") == pytest.approx(0.7)


def test_folds_spread_every_group_and_leave_two_of_each_class():
    groups = np.array([Group.POSITIVE] * 3 + [Group.NEGATIVE] * 40 + [Group.DIVERGENT] * 10)
    training = TrainingSet(np.arange(53), column(groups), np.zeros((53, 1), np.float32))
    fold = assign_folds(training, 5, seed=0)
    assert set(fold) == {0, 1, 2}  # three positives: no fold without one
    for group in np.unique(groups):
        counts = np.bincount(fold[groups == group], minlength=3)
        assert counts.max() - counts.min() <= 1
    assert (fold == assign_folds(training, 5, seed=0)).all()


def test_no_post_is_scored_by_a_model_that_learned_from_it():
    corpus, seen = make_corpus(), []

    class Spy(HeadTrainer):
        def fit(self, corpus, training, **kwargs):
            seen.append(set(training.positions.tolist()))
            return super().fit(corpus, training, **kwargs)

        def logits(self, model, corpus, positions):
            assert not seen[-1] & set(positions.tolist())
            return super().logits(model, corpus, positions)

    groups = np.array([Group.POSITIVE, Group.NEGATIVE] * 10)
    training = TrainingSet(
        corpus.labelled, column(groups), column(groups == Group.POSITIVE).astype(np.float32)
    )
    cross_fit = CrossFit(Spy(epochs=2), corpus, 4)
    fit = Fit(training, AgainstRest((PNULoss(),)), 0, "round 0")
    first = cross_fit(fit)
    assert len(seen) == 4
    assert len(first) == 20
    assert cross_fit(fit) is first
    assert len(seen) == 4


def test_a_round_is_rolled_back_only_where_it_is_surely_worse():
    draws = np.random.RandomState(0)
    labels = draws.randint(0, 2, 100)
    signs = np.where(labels == 1, 1.0, -1.0)
    ids = [f"p{i}" for i in range(100)]

    def scored(margin):
        return Scored(ids, labels, np.stack([np.zeros(100), signs * margin], axis=1).astype(np.float32))

    best = scored(1 + draws.normal(size=100))
    noise = draws.normal(size=100)
    rule = PosteriorRule()
    assert rule.keeps(scored(1.5 + noise), best)
    assert rule.keeps(best, best)
    assert not rule.keeps(scored(noise - 1), best)
    # a little worse, but not more than a hundred posts can tell
    slightly = scored(best.logits[:, 1] * signs - 0.02 * (1 + 20 * noise))
    assert rule.score(slightly) < rule.score(best)
    assert rule.keeps(slightly, best)
    # posts that people have labelled since are no part of the comparison
    more = Scored(
        [*ids, "new"], np.append(labels, 1), np.append(best.logits, [[0, -50]], 0).astype(np.float32)
    )
    assert rule.keeps(more, best)
    assert not Unanimous().keeps(slightly, slightly)


def test_a_cut_is_made_between_two_classes_and_of_more_the_likeliest_is_predicted():
    logits = np.array([[2.0, 0.0, -1.0], [1.0, 0.0, 0.0], [3.0, 0.5, 0.0]], np.float32)
    first, second = PosteriorRule().cut(2, lambda: logits[:, :2])
    assert first == 0
    assert second > 0.1  # the rarer of two is named sooner
    assert PosteriorRule().cut(3, lambda: pytest.fail("scored in vain")) is None

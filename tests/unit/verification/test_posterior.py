"""The posterior of classifier and agents: against a naive reference, and where it must say nothing."""

import numpy as np
import pytest
from scipy.special import softmax

from agents.errors import JudgmentError
from agents.judgment import Judgment, State
from selftrain.verification.posterior import (
    JOINT_POSTS,
    OWN_POSTS,
    Beliefs,
    StateCounts,
    beliefs_of,
    fit_posterior,
)

ROLES = ("reviewer", "user")


def world(*, seed=0, labelled=100, judged=600, accuracy=(0.8, 0.75), shared=0.5, classes=2, separation=1.0):
    """Posts of known truth, a weak classifier, and agents that err together on a share of the posts."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(classes, size=labelled + judged)
    scores = draw.normal(size=(len(truth), classes))
    scores[np.arange(len(truth)), truth] += separation
    log_probs = np.log(softmax(scores, axis=1))
    luck = draw.random(len(truth))
    columns = []
    for share in accuracy:
        own = np.where(draw.random(len(truth)) < shared, luck, draw.random(len(truth)))
        columns.append(np.where(own < share, truth, (truth + 1) % classes))
    states = np.stack(columns, axis=1) if columns else np.empty((len(truth), 0), np.int64)
    known, pool = slice(0, labelled), slice(labelled, None)
    return (
        Beliefs(log_probs[known], states[known]),
        truth[known],
        Beliefs(log_probs[pool], states[pool]),
        truth[pool],
    )


def accuracy_of(probs, truth):
    return float((probs.argmax(1) == truth).mean())


def naive_log_likelihood(counted, weights, state, own):
    """P(state | class) of one post by the formula, written with loops."""
    found = []
    for label in range(weights.shape[1]):
        total = weights[:, label].sum() - own[label]
        product = 1.0
        for agent, answer in enumerate(state):
            matching = [row for row, other in enumerate(counted) if other[agent] == answer]
            kinds = {other[agent] for other in counted} | {answer}
            seen = sum(weights[row, label] for row in matching)
            share = (sum(weights[row].sum() for row in matching) + 0.5 / len(kinds)) / (weights.sum() + 0.5)
            product *= (seen - own[label] + OWN_POSTS * share) / (total + OWN_POSTS)
        both = [row for row, other in enumerate(counted) if list(other) == list(state)]
        seen = sum(weights[row, label] for row in both) - own[label]
        found.append(np.log((seen + JOINT_POSTS * product) / (total + JOINT_POSTS)))
    return found


@pytest.mark.parametrize("classes", [2, 4])
def test_the_tables_are_those_of_the_formula(classes):
    draw = np.random.default_rng(3)
    states, weights = draw.integers(classes + 2, size=(40, 2)), draw.random((40, classes))
    counts = StateCounts(states, weights)
    found = counts.log_likelihood(states, (0, 1), own=0.5 * weights)
    expected = [
        naive_log_likelihood(states, weights, state, 0.5 * own)
        for state, own in zip(states, weights, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_joint_state_that_was_never_seen_falls_back_to_the_agents_own_tables():
    labelled, labels, _, _ = world(labelled=300, accuracy=(0.9, 0.9), shared=1.0)
    counts = StateCounts(labelled.states, np.eye(2)[labels])
    agree = counts.log_likelihood(np.array([[1, 1]]), (0, 1))[0]
    differ = counts.log_likelihood(np.array([[1, 0]]), (0, 1))[0]  # agents of one mind never differ
    assert agree[1] - agree[0] > 1.5
    assert abs(differ[1] - differ[0]) < 0.7  # what one says for a class the other says against it


def test_with_four_classes_and_few_labels_rare_states_are_judged_by_the_agents_own_tables():
    labelled, labels, judged, truth = world(
        classes=4, labelled=24, judged=1000, accuracy=(0.85, 0.75), shared=0.3
    )
    weights = np.eye(4)[labels]
    counts = StateCounts(labelled.states, weights)
    seen = {tuple(state) for state in labelled.states.tolist()}
    unseen = np.array([[a, b] for a in range(4) for b in range(4) if (a, b) not in seen])
    assert len(unseen) >= 4  # of 16 that two agents who always answer can give
    product = sum(counts.log_likelihood(unseen, (agent,)) for agent in (0, 1))
    expected = np.log(JOINT_POSTS) + product - np.log(weights.sum(0) + JOINT_POSTS)
    np.testing.assert_allclose(counts.log_likelihood(unseen, (0, 1)), expected, rtol=1e-9)
    # and what is made of it is better than either agent, on posts whose state no labelled post shows too
    found = fit_posterior(labelled, labels, judged, ROLES, 4).probs
    rare = np.array([tuple(state) not in seen for state in judged.states.tolist()])
    assert rare.sum() > 20
    better = max(float((judged.states[:, agent] == truth).mean()) for agent in (0, 1))
    assert accuracy_of(found, truth) > better
    agents = [float((judged.states[rare, agent] == truth[rare]).mean()) for agent in (0, 1)]
    assert accuracy_of(found[rare], truth[rare]) > max(agents) - 0.05


@pytest.mark.parametrize("classes", [2, 4])
def test_it_beats_the_classifier_and_the_better_agent(classes):
    labelled, labels, judged, truth = world(classes=classes, judged=2000)
    found = fit_posterior(labelled, labels, judged, ROLES, classes)
    right = accuracy_of(found.probs, truth)
    assert right > accuracy_of(judged.log_probs, truth) + 0.05
    assert right > max(float((judged.states[:, agent] == truth).mean()) for agent in (0, 1)) + 0.01
    np.testing.assert_allclose(found.probs.sum(1), 1)


def test_probabilities_are_what_they_claim():
    labelled, labels, judged, truth = world(judged=4000, labelled=200)
    probs = fit_posterior(labelled, labels, judged, ROLES, 2).probs
    sure = probs.max(1)
    for low in (0.5, 0.7, 0.9):
        chosen = (sure >= low) & (sure < low + 0.2)
        assert abs(accuracy_of(probs[chosen], truth[chosen]) - sure[chosen].mean()) < 0.06


def test_inverted_agents_are_as_good_as_straight_ones():
    labelled, labels, judged, _ = world(judged=2000)
    straight = fit_posterior(labelled, labels, judged, ROLES, 2)
    turned = fit_posterior(
        labelled._replace(states=1 - labelled.states),
        labels,
        judged._replace(states=1 - judged.states),
        ROLES,
        2,
    )
    np.testing.assert_allclose(turned.probs, straight.probs, atol=1e-6)
    assert turned.weight == pytest.approx(straight.weight)


@pytest.mark.parametrize("answer", [0, 1, 2, 3])
def test_an_agent_that_always_says_the_same_weighs_nothing_and_says_nothing(answer):
    labelled, labels, judged, _ = world()
    constant = [one._replace(states=np.full_like(one.states, answer)) for one in (labelled, judged)]
    found = fit_posterior(constant[0], labels, constant[1], ROLES, 2)
    assert found.weight == pytest.approx(0, abs=1e-9)
    assert all(abs(one.log_odds[role]) < 1e-9 for one in found.evidence() for role in ROLES)


def test_agents_that_guess_weigh_little():
    weights = []
    for seed in range(10):
        labelled, labels, judged, _ = world(seed=seed, accuracy=(0.5, 0.5), shared=0.0)
        weights.append(fit_posterior(labelled, labels, judged, ROLES, 2).weight)
    assert np.mean(weights) < 0.15
    labelled, labels, judged, _ = world()
    assert fit_posterior(labelled, labels, judged, ROLES, 2).weight > 0.5


def test_agents_of_one_mind_count_once():
    """A copy of an agent must not make it twice as sure."""
    labelled, labels, judged, _ = world(accuracy=(0.8,), labelled=400, judged=2000)
    alone = fit_posterior(labelled, labels, judged, ("reviewer",), 2).probs
    twice = [one._replace(states=np.repeat(one.states, 2, axis=1)) for one in (labelled, judged)]
    both = fit_posterior(twice[0], labels, twice[1], ROLES, 2).probs
    assert np.abs(alone - both).max() < 0.1


def test_the_parties_shares_add_up_to_the_log_odds():
    labelled, labels, judged, _ = world(classes=3, accuracy=(0.8, 0.7, 0.6))
    roles = ("reviewer", "user", "guard")
    for one in fit_posterior(labelled, labels, judged, roles, 3).evidence():
        first, second, *_ = sorted(one.probs, reverse=True)
        assert sum(one.log_odds.values()) == pytest.approx(np.log(first / second), abs=1e-6)
        assert list(one.log_odds) == ["classifier", *roles, "base rate"]
        assert one.label == int(np.argmax(one.probs))


def test_ten_agents_share_what_they_add():
    """Their 3.6 million orders are never gone through."""
    labelled, labels, judged, _ = world(accuracy=(0.7,) * 10, labelled=50, judged=5)
    roles = tuple(f"agent {number}" for number in range(10))
    for one in fit_posterior(labelled, labels, judged, roles, 2).evidence():
        first, second = sorted(one.probs, reverse=True)
        assert sum(one.log_odds.values()) == pytest.approx(np.log(first / second), abs=1e-6)


def test_the_evidence_is_what_the_agents_add():
    labelled, labels, judged, _ = world(accuracy=(0.8, 0.7))
    for one in fit_posterior(labelled, labels, judged, ROLES, 2).evidence():
        other = 1 - one.label
        added = sum(one.log_odds[role] for role in ROLES)
        assert np.log(one.evidence[one.label] / one.evidence[other]) == pytest.approx(added, abs=1e-6)
        assert sum(one.evidence) == pytest.approx(1)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_share_of_the_classifiers_word_leads_from_the_evidence_to_the_posterior(classes):
    labelled, labels, judged, _ = world(classes=classes)
    posterior = fit_posterior(labelled, labels, judged, ROLES, classes)
    none, half, whole = (np.array([one.evidence for one in posterior.evidence(g)]) for g in (0, 0.5, 1))
    np.testing.assert_allclose(whole, posterior.probs, atol=1e-9)
    between = np.sqrt(none * whole)
    np.testing.assert_allclose(half, between / between.sum(1, keepdims=True), atol=1e-9)
    assert not np.allclose(none, whole, atol=0.1)


def test_a_classifier_may_teach_what_it_knows_beyond_the_agents_and_no_more():
    def share_of(separation, copied):
        labelled, labels, judged, _ = world(labelled=400, separation=separation)
        if copied:  # it repeats what the first agent says
            labelled, judged = (
                one._replace(log_probs=np.log(np.where(np.eye(2)[one.states[:, 0]] == 1, 0.9, 0.1)))
                for one in (labelled, judged)
            )
        return fit_posterior(labelled, labels, judged, ROLES, 2).classifier_share

    assert share_of(3.0, copied=False) > 0.5
    assert share_of(3.0, copied=True) == 0
    assert share_of(0.0, copied=False) == 0


def test_agents_that_say_the_same_share_what_they_add():
    labelled, labels, judged, _ = world(accuracy=(0.8,))
    twice = [one._replace(states=np.repeat(one.states, 2, axis=1)) for one in (labelled, judged)]
    for one in fit_posterior(twice[0], labels, twice[1], ROLES, 2).evidence():
        assert one.log_odds["reviewer"] == pytest.approx(one.log_odds["user"])


def test_without_agents_it_is_the_classifier_tempered():
    labelled, labels, judged, _ = world(accuracy=())
    found = fit_posterior(labelled, labels, judged, (), 2)
    assert found.weight == 0
    assert (found.probs.argmax(1) == judged.log_probs.argmax(1)).mean() > 0.9


def test_no_judged_post_is_no_fault():
    labelled, labels, judged, _ = world()
    none = Beliefs(judged.log_probs[:0], judged.states[:0])
    assert fit_posterior(labelled, labels, none, ROLES, 2).evidence() == []


# ---- an agent's probability, not only its word ----------------------------------------------------------


def sure_world(*, seed=0, classes=2, useful=True, threshold=0.0, labelled=100, judged=3000):
    """As `world`, without its agents: one that has a score for each class, and names the first too soon."""
    one, labels, other, truth = world(
        seed=seed, labelled=labelled, judged=judged, accuracy=(), classes=classes
    )
    draw = np.random.default_rng(seed + 100)
    all_truth = np.concatenate([labels, truth])
    scores = draw.normal(size=(len(all_truth), classes))
    scores[np.arange(len(all_truth)), all_truth] += 1.5
    shown = scores + threshold * (np.arange(classes) == 0)
    states = shown.argmax(1)[:, None]
    stated = np.log(softmax(shown if useful else draw.permutation(shown), axis=1))[:, None]
    return (
        one._replace(states=states[:labelled], stated=stated[:labelled]),
        labels,
        other._replace(states=states[labelled:], stated=stated[labelled:]),
        truth,
    )


def log_likelihood(found, truth):
    return float(np.log(found.probs[np.arange(len(truth)), truth]).mean())


def words_alone(labelled, labels, judged, classes):
    return fit_posterior(
        labelled._replace(stated=None), labels, judged._replace(stated=None), ("reviewer",), classes
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_how_sure_an_agent_is_helps_where_it_names_a_class_too_soon(classes):
    labelled, labels, judged, truth = sure_world(classes=classes, threshold=1.5)
    found = fit_posterior(labelled, labels, judged, ("reviewer",), classes)
    words = words_alone(labelled, labels, judged, classes)
    assert found.weights.grades[0] > 0.2
    assert log_likelihood(found, truth) > log_likelihood(words, truth) + 0.02
    assert accuracy_of(found.probs, truth) > accuracy_of(words.probs, truth) + 0.005


def test_a_probability_that_is_always_too_high_needs_no_threshold():
    labelled, labels, judged, _ = sure_world()
    found = fit_posterior(labelled, labels, judged, ("reviewer",), 2)
    assert found.weights.grades[0] > 0
    too_high = np.array([0.3, -0.3])  # not so much that it is cut off
    moved = [
        one._replace(stated=np.clip(one.stated - one.stated.mean(-1, keepdims=True), -1.5, 1.5) + shift)
        for shift in (0.0, too_high)
        for one in (labelled, judged)
    ]
    plain = fit_posterior(moved[0], labels, moved[1], ("reviewer",), 2)
    shifted = fit_posterior(moved[2], labels, moved[3], ("reviewer",), 2)
    np.testing.assert_allclose(shifted.probs, plain.probs, atol=1e-9)


def test_probabilities_that_mean_nothing_change_little_and_are_mostly_left_alone():
    used, changes = [], []
    for seed in range(10):
        labelled, labels, judged, truth = sure_world(seed=seed, useful=False)
        found = fit_posterior(labelled, labels, judged, ("reviewer",), 2)
        used.append(found.weights.grades[0] != 0)
        changes.append(
            log_likelihood(found, truth) - log_likelihood(words_alone(labelled, labels, judged, 2), truth)
        )
    assert np.mean(used) <= 0.5
    assert np.mean(changes) > -0.005


@pytest.mark.parametrize("stated", [np.nan, np.log(0.5)])
def test_probabilities_that_are_missing_or_always_the_same_are_words_alone(stated):
    labelled, labels, judged, _ = sure_world()
    same = [one._replace(stated=np.full_like(one.stated, stated)) for one in (labelled, judged)]
    found = fit_posterior(same[0], labels, same[1], ("reviewer",), 2)
    words = words_alone(labelled, labels, judged, 2)
    np.testing.assert_array_equal(found.probs, words.probs)
    assert found.information == words.information


def test_shares_of_an_agent_that_says_how_sure_it_is_add_up_too():
    labelled, labels, judged, _ = sure_world(threshold=1.0)
    found = fit_posterior(labelled, labels, judged, ("reviewer",), 2)
    shares = {round(one.log_odds["reviewer"], 6) for one in found.evidence()}
    assert len(shares) > 100  # not one for each word
    for one in found.evidence():
        first, second = sorted(one.probs, reverse=True)
        assert sum(one.log_odds.values()) == pytest.approx(np.log(first / second), abs=1e-6)


def test_an_agent_that_abstains_but_leans_is_heard():
    """Its word is always "no label": all that it knows is in its probability."""
    labelled, labels, judged, truth = sure_world()
    silent = [one._replace(states=np.full_like(one.states, 2)) for one in (labelled, judged)]
    found = fit_posterior(silent[0], labels, silent[1], ("reviewer",), 2)
    assert found.weight > 0.1
    assert accuracy_of(found.probs, truth) > accuracy_of(judged.log_probs, truth) + 0.02


def test_a_label_that_is_no_class_is_refused_by_its_name():
    stray = Judgment("reviewer", 0, State.LABEL, "notice", 0.9, "so", "test")
    with pytest.raises(JudgmentError, match=r"'reviewer' says 'notice' .*expected one of 'fine', 'bad'"):
        beliefs_of(("fine", "bad"), np.zeros((1, 2)), [[stray]])

from __future__ import annotations

from itertools import product

import pytest
from agents_helpers import Post, Scripted

from agents.errors import LearningError, ReviewError
from agents.judgment import Candidate
from agents.panel import CrossReview, NoPanel, review, verdicts_of

ANSWERS = ["flower", "metal", None, "!"]


def candidates(*ids, label="flower"):
    return [Candidate(Post(i), label, 0.8) for i in ids]


@pytest.mark.parametrize(("reviewer", "user"), list(product(ANSWERS, ANSWERS)))
@pytest.mark.parametrize(("reviewer_then", "user_then"), list(product(ANSWERS, ANSWERS)))
def test_consistent_over_every_combination(reviewer, user, reviewer_then, user_then):
    agents = (
        Scripted("reviewer", {"a": reviewer}, {"a": reviewer_then}),
        Scripted("user", {"a": user}, {"a": user_then}),
    )
    (verdict,) = review(candidates("a"), agents)
    alone = reviewer == user == "flower"
    assert len(verdict.judgments) == (2 if alone else 4)
    assert verdict.consistent == (alone or reviewer_then == user_then == "flower")


def test_agents_that_agree_against_the_classifier_are_divergent():
    agents = [Scripted(role, {"a": "metal"}, {"a": "metal"}) for role in ("reviewer", "user")]
    (verdict,) = review(candidates("a"), agents)
    assert not verdict.consistent


def test_cross_review_only_where_somebody_disagrees_and_everyone_sees_the_others():
    reviewer = Scripted("reviewer", {"a": "flower", "b": "metal", "c": None}, {"b": "flower", "c": None})
    user = Scripted("user", {"a": "flower", "b": "flower", "c": "flower"}, {"b": "flower", "c": "flower"})
    verdicts = review(candidates("a", "b", "c"), [reviewer, user])
    assert reviewer.asked == user.asked == [["b", "c"]]
    assert reviewer.seen == [("flower", "metal", "flower"), ("flower", None, "flower")]
    assert user.seen == [("flower", "flower", "metal"), ("flower", "flower", None)]
    assert [verdict.post_id for verdict in verdicts] == ["a", "b", "c"]
    assert [verdict.consistent for verdict in verdicts] == [True, True, False]
    steps = [[(j.agent, j.step) for j in verdict.judgments] for verdict in verdicts]
    assert steps[0] == [("reviewer", 0), ("user", 0)]
    assert steps[1] == [("reviewer", 0), ("user", 0), ("reviewer", 1), ("user", 1)]


def test_without_disagreement_nobody_is_asked_again():
    agents = [Scripted(role, {"a": "flower"}) for role in ("reviewer", "user")]
    review(candidates("a"), agents)
    assert [agent.asked for agent in agents] == [[], []]


def test_no_candidates_no_verdicts():
    assert review([], [Scripted("reviewer", {}), Scripted("user", {})]) == []


def test_an_agent_that_leaves_a_candidate_out_is_refused():
    short = Scripted("reviewer", {"a": "flower"})
    short.judge = lambda posts: []
    with pytest.raises(ReviewError, match="0 judgments on 1 posts"):
        review(candidates("a"), [short, Scripted("user", {"a": "flower"})])


def test_an_agent_that_answers_under_another_name_is_refused():
    other = Scripted("reviewer", {"a": "flower"})
    borrowed = Scripted("user", {"a": "flower"})
    borrowed.judge = other.judge
    with pytest.raises(ReviewError, match="'reviewer', step 0 answered"):
        review(candidates("a"), [other, borrowed])


@pytest.mark.parametrize("answer", ANSWERS)
def test_one_agent_alone_is_never_asked_again_and_decides_with_the_classifier(answer):
    agent = Scripted("reviewer", {"a": answer})
    panel = CrossReview(agent)
    (verdict,) = panel.verify(candidates("a"))
    assert [(one.agent, one.step) for one in verdict.judgments] == [("reviewer", 0)]
    assert verdict.consistent == (answer == "flower")
    assert agent.asked == []
    assert list(panel.predict_out_of_fold([Post("a", label="flower")])) == ["reviewer"]
    assert panel.describe()["protocol"] == "alone"


@pytest.mark.parametrize("roles", [[], ["user", "user"], ["reviewer", "user", "third"]])
def test_cross_review_takes_two_roles(roles):
    agents = [Scripted(role, {}) for role in roles]
    with pytest.raises(ReviewError, match="two agents of two roles"):
        review([], agents)
    if len(agents) == 2:
        with pytest.raises(ReviewError, match="two agents of two roles"):
            CrossReview(*agents)


def test_a_panel_with_one_simulated_agent_is_simulated():
    assert CrossReview(Scripted("reviewer", {}, simulated=True), Scripted("user", {})).simulated
    panel = CrossReview(Scripted("reviewer", {}), Scripted("user", {}))
    assert not panel.simulated
    assert panel.describe()["agents"] == [{"role": "reviewer"}, {"role": "user"}]


def test_an_id_given_twice_is_refused():
    panel = CrossReview(Scripted("reviewer", {}), Scripted("user", {}))
    with pytest.raises(LearningError, match="2 labelled posts with 1 different ids"):
        panel.fit([Post("a", label="flower"), Post("a", label="metal")])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: given[:1], "gave 1 verdicts on 2 candidates: expected one on each"),
        (lambda given: given * 2, "gave 4 verdicts on 2 candidates:"),
        (lambda given: given[::-1], "gave 2 verdicts on 2 candidates, 'b' first where 'a' was asked"),
    ],
)
def test_a_panel_that_does_not_judge_every_candidate_once_is_refused(spoil, message):
    panel, asked = NoPanel(), candidates("a", "b")
    given = NoPanel().verify(asked)
    panel.verify = lambda _: spoil(given)
    with pytest.raises(ReviewError, match=rf"NoPanel.verify {message}"):
        verdicts_of(panel, asked)


def test_verdicts_and_judgments_come_one_by_one_too():
    class Yielding(Scripted):
        def judge(self, posts):
            yield from super().judge(posts)

    panel = CrossReview(Yielding("reviewer", {"a": "flower"}, {}))
    assert panel.predict_out_of_fold([Post("a")])["reviewer"][0].label == "flower"
    verify, panel.verify = panel.verify, lambda asked: (one for one in verify(asked))
    assert [one.consistent for one in verdicts_of(panel, candidates("a"))] == [True]


def test_an_agent_without_a_method_is_refused_before_anybody_is_asked():
    class Judges:
        role, simulated = "reviewer", False

        def judge(self, posts):
            return []

        def describe(self):
            return {}

    CrossReview(Judges())  # alone it is never asked again
    with pytest.raises(ReviewError, match=r"Judges as an agent: it has no reconsider; expected what"):
        CrossReview(Judges(), Scripted("user", {}))

    class Learns(Judges):
        def fit(self, labelled, *, accepted=(), pool=()):
            raise AssertionError

    with pytest.raises(ReviewError, match=r"Learns as an agent: it has no predict_out_of_fold;"):
        CrossReview(Learns())
    with pytest.raises(
        ReviewError, match=r"NoneType as an agent: it has no role, simulated, judge, describe;"
    ):
        CrossReview(None)

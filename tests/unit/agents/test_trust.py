from __future__ import annotations

import json

import pytest
from agents_helpers import Post, Scripted
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score

from agents.errors import JudgmentError, ReviewError
from agents.panel import CrossReview
from agents.trust import ABSTAINED, FAILED, Trust, trust, wilson

TRUE = ["flower"] * 6 + ["metal"] * 4
REVIEWER = ["flower", "flower", "flower", "flower", "metal", None, "metal", "metal", "flower", "!"]
USER = ["flower", "flower", "flower", "metal", "metal", "flower", "metal", "metal", "metal", "flower"]


@pytest.fixture
def figures():
    posts = [Post(str(i), label=label) for i, label in enumerate(TRUE)]
    said = [dict(zip((post.id for post in posts), answers, strict=True)) for answers in (REVIEWER, USER)]
    return trust(CrossReview(Scripted("reviewer", said[0]), Scripted("user", said[1])), posts)[0]


def test_confusion_counts_abstentions_and_failures_apart(figures):
    confusion = figures.agents["reviewer"].confusion
    assert confusion["flower"] == {"flower": 4, "metal": 1, ABSTAINED: 1, FAILED: 0}
    assert confusion["metal"] == {"flower": 1, "metal": 2, ABSTAINED: 0, FAILED: 1}


def test_accuracies_agree_with_scikit_learn(figures):
    user = figures.agents["user"]
    assert user.accuracy.value == pytest.approx(7 / 10)
    assert user.balanced.value == pytest.approx(balanced_accuracy_score(TRUE, USER))
    assert figures.agents["reviewer"].accuracy.value == pytest.approx(6 / 8)


def test_kappa_agrees_with_scikit_learn_on_posts_that_both_labelled(figures):
    both = [(a, b) for a, b in zip(REVIEWER, USER, strict=True) if a not in (None, "!")]
    assert figures.kappa["reviewer/user"] == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))


def test_ten_posts_do_not_tell_an_agent_from_chance(figures):
    assert figures.agents["user"].near_chance
    json.dumps(figures.to_json(), allow_nan=False)


def test_figures_read_back_are_those_that_were_written(figures):
    record = json.loads(json.dumps(figures.to_json()))
    assert Trust.from_json(record).to_json() == record


def test_a_good_agent_on_enough_posts_is_told_from_chance():
    posts = [Post(str(i), label=("flower", "metal")[i % 2]) for i in range(100)]
    right = {post.id: post.label for post in posts}
    wrong = {post.id: "flower" for post in posts}
    panel = CrossReview(Scripted("reviewer", right), Scripted("user", wrong))
    figures = trust(panel, posts)[0]
    assert not figures.agents["reviewer"].near_chance
    assert figures.agents["user"].near_chance
    assert figures.agents["reviewer"].balanced.value == 1
    assert figures.agents["reviewer"].balanced.low < 1


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81/263 and 0/20
    assert wilson(81, 263) == pytest.approx((0.3080, 0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.5, 0.0, 1.0)


def test_posts_without_labels_are_refused():
    panel = CrossReview(Scripted("reviewer", {}), Scripted("user", {}))
    with pytest.raises(JudgmentError, match="1 posts, 1 of them"):
        trust(panel, [Post("a")])[0]
    with pytest.raises(JudgmentError, match="0 posts"):
        trust(panel, [])[0]


def test_a_role_that_does_not_judge_every_post_once_is_refused():
    posts = [Post(str(i), label=label) for i, label in enumerate(TRUE)]
    panel = CrossReview(Scripted("reviewer", dict.fromkeys([one.id for one in posts], "metal")))
    answers = panel.predict_out_of_fold(posts)["reviewer"]
    panel.predict_out_of_fold = lambda _: {"reviewer": iter(answers)}
    assert trust(panel, posts)[1] == {"reviewer": answers}
    panel.predict_out_of_fold = lambda _: {"reviewer": answers[:3]}
    with pytest.raises(ReviewError, match=r"reviewer gave 3 judgments on 10 posts .* of CrossReview.predict"):
        trust(panel, posts)
